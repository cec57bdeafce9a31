"""Arguments of the U-Net: what published families pass, and which are refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal
from tests.pretrained.networks import UNETS, inputs, module_of, relative
from tests.pretrained.pipelines import one_level
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions
from vdm_jax.models.rngs import Keys
from vdm_jax.models.unet import UNet
from vdm_jax.pretrained.families import translate

TINY = {"channels_in": 2, "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 4}


def shapes_of(**options):
    return nnx.eval_shape(lambda: UNet(**TINY | options, rngs=nnx.Rngs(0)))


# ----------------------------------------------------------------------------------------- published ones

MOTION = UNETS["animatediff"][0] | one_level("animatediff") | {"block_out_channels": [8], "norm_num_groups": 2}


def answer(arguments, **window):
    module = module_of(MOTION, **window)
    return np.asarray(jax.jit(lambda arguments: module(**arguments))(arguments))


def test_a_window_of_all_frames_is_the_plain_network():
    arguments = inputs("animatediff")
    assert relative(answer(arguments, window=(4, 2)), answer(arguments)) < 1e-5


def test_windows_take_any_number_of_frames():
    """Where windows do not overlap, a video that repeats itself has a prediction that repeats itself."""
    arguments = inputs("animatediff")
    arguments["z"] = np.tile(np.asarray(normal(0, 2, 4, 4, 4, 4)), (1, 3, 1, 1, 1))
    out = answer(arguments, window=(4, 4))
    assert out.shape == arguments["z"].shape
    np.testing.assert_allclose(out[:, 4:], out[:, :8], atol=1e-4)
    assert np.abs(out[:, 1:4] - out[:, :3]).max() > 0.01


@pytest.mark.parametrize(
    ("config", "window", "message"),
    [
        (UNETS["modelscope"][0], (8, 4), "free_noise=8,4 needs a network with motion modules"),
        (MOTION, (9, 4), "free_noise=9,4 must be a context length of at most 8 frames"),
        (MOTION, (8, 9), "free_noise=8,9 must be .* a stride from 1 to that length"),
        (MOTION, (8, 0), "free_noise=8,0 must be .* a stride from 1 to that length"),
    ],
)
def test_windows_that_do_not_fit(config, window, message):
    with pytest.raises(InputError, match=message):
        translate(config, window=window)


def test_numbers_of_frames_that_do_not_fit():
    module = nnx.eval_shape(lambda: UNet(**translate(MOTION, window=(8, 4))[0], rngs=Keys(0)))
    with pytest.raises(InputError, match=r"frames=4 must be at least 8 \(window of free_noise\)"):
        module.check(4, 8, 8)
    module.check(40, 8, 8)
    module = nnx.eval_shape(lambda: UNet(**translate(MOTION)[0], rngs=Keys(0)))
    module.check(8, 8, 8)
    with pytest.raises(InputError, match=r"frames=9 must be at most 8 \(positions of the motion modules\)"):
        module.check(9, 8, 8)


def test_a_level_with_wide_heads_leaves_the_fused_kernel_to_the_other_levels(monkeypatch):
    h100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [h100])
    wide = {"block_out_channels": [16, 320], "down_block_types": ["CrossAttnDownBlock2D"] * 2}
    config = UNETS["image"][0] | wide | {"up_block_types": ["CrossAttnUpBlock2D"] * 2}  # heads of 8 and of 160
    arguments, _ = translate(config)
    network = nnx.eval_shape(lambda: UNet(**arguments, dtype="bfloat16", rngs=Keys(0)))
    levels = [level[0].space_attention.blocks[0].attention1.implementation for level in network.down]
    assert levels == ["cudnn", "xla"]


# ----------------------------------------------------------------------------------------------- bad input

BAD_OPTIONS = {
    "head_size=3 must divide every attended width, not 8": {"head_size": 3},
    # The middle attends where any level does, though the last level does not.
    "head_size=16 must divide every attended width, not 8": {
        "multipliers": (2, 1),
        "head_size": 16,
        "space_attention": (True, False),
        "time_attention": False,
    },
    "time_position='learned' must be one of relative, rotary, sinusoidal, none": {"time_position": "learned"},
    "kernel=1 needs space_position=True": {"kernel": 1},
    "context='film' must be one of joint, cross, none": {"context": "film"},
    "remat='some' must be one of none, full, dots": {"remat": "some"},
    "resample='time' must be one of space, space_time, conv": {"multipliers": (1, 2), "resample": "time"},
    "attention='flash' must be one of auto, xla, cudnn": {"attention": "flash"},
    "attention='cudnn' cannot run: the backend is cpu": {"attention": "cudnn"},
    "stem='fold' must be one of patch, conv": {"stem": "fold"},
    r"resample=\('space', 'space'\) must be one value or 1 of them": {
        "multipliers": (1, 2),
        "resample": ("space", "space"),
    },
    r"space_attention=\(True,\) must be one value or 2 of them": {
        "multipliers": (1, 2),
        "space_attention": (True,),
    },
    r"space_conv must be filled at every level": {"multipliers": (1, 2), "space_conv": (True, False)},
    "time_conv.kind='four' must be one of three, stack, blended": {"time_conv": {"kind": "four"}},
    "channels=9 must be even": {"channels": 9, "space_attention": False, "time_attention": False},
    "channels=6 must be a multiple of 4 for space_position": {"channels": 6, "space_position": True},
    "head_size=3 must be even for rotary": {"channels": 6, "head_size": 3, "time_position": "rotary"},
    "patch=0 and patch_time=1 must be at least 1": {"patch": 0},
    "dropout=1.0 must be at least 0 and below 1": {"dropout": 1.0},
    r"time_attention=\(True, False, True\) must be one value or 2 of them": {
        "multipliers": (1, 2),
        "time_attention": (True, False, True),
    },
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_are_named(message):
    with pytest.raises(InputError, match=message):
        shapes_of(**BAD_OPTIONS[message])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((4, 10, 8), "height=10 must be a multiple of 4"),
        ((4, 8, 6), "width=6 must be a multiple of 4"),
        ((6, 8, 8), "frames=6 must be a multiple of 4"),
        ((4, 8, 8, 1), "joint_images=1 needs patch_time=1 and resample='space'"),
    ],
)
def test_sizes_that_do_not_divide_are_named(size, message):
    model = shapes_of(multipliers=(1, 1), patch=2, patch_time=2, resample="space_time")
    model.check(8, 8, 12)
    with pytest.raises(InputError, match=message):
        model.check(*size)
    if len(size) == 3:
        with pytest.raises(InputError, match=message):
            jax.eval_shape(lambda: model(jnp.zeros((1, *size, 2)), jnp.zeros(1), Conditions()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(all_frames=True), "joint_images=2 needs all_frames=False"),
        (dict(time_conv=dict(kind="stack", groups=2)), "joint_images=2 needs our own blocks in the time slots"),
        (dict(time_attention=dict(kind="transformer", heads=2, groups=2)), "joint_images=2 needs our own blocks"),
        (dict(stem_attention=dict(heads=2, groups=2)), "joint_images=2 needs our own blocks in the time slots"),
    ],
)
def test_stills_must_not_be_seen_by_other_frames(options, message):
    model = shapes_of(**options)
    model.check(4, 4, 4)
    with pytest.raises(InputError, match=message):
        model.check(4, 4, 4, 2)
    shapes_of(space_attention=dict(kind="transformer", heads=2, groups=2)).check(4, 4, 4, 2)
