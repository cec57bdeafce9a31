"""The published networks' windows over time, and a text for each frame."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.networks import UNETS, inputs, module_of, numbers, relative
from tests.pretrained.pipelines import one_level
from vdm_jax.errors import InputError
from vdm_jax.models.text.clip import ClipText
from vdm_jax.models.rngs import Keys
from vdm_jax.models.latent_denoiser import LatentDenoiser
from vdm_jax.models.unet import UNet
from vdm_jax.pretrained.families import translate

MOTION = UNETS["animatediff"][0] | one_level("animatediff") | {"block_out_channels": [8], "norm_num_groups": 2}


def answer(given, **window):
    module = module_of(MOTION, **window)
    return np.asarray(jax.jit(lambda given: module(**given))(given))


def test_a_window_of_all_frames_is_the_plain_network():
    given = inputs("animatediff")
    assert relative(answer(given, window=(4, 2)), answer(given)) < 1e-5


def test_windows_take_any_number_of_frames():
    """Where windows do not overlap a video that repeats itself is answered so."""
    given = inputs("animatediff")
    given["z"] = np.tile(numbers("a part", (2, 4, 4, 4, 4)), (1, 3, 1, 1, 1))
    found = answer(given, window=(4, 4))
    assert found.shape == given["z"].shape
    np.testing.assert_allclose(found[:, 4:], found[:, :8], atol=1e-4)
    assert np.abs(found[:, 1:4] - found[:, :3]).max() > 0.01


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
    arguments, _ = translate(config)
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: UNet(**arguments, window=window, rngs=Keys(0)))


def test_a_level_with_heads_that_are_too_wide_does_not_keep_the_others_from_the_fused_kernel(monkeypatch):
    h100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [h100])
    wide = {"block_out_channels": [16, 320], "down_block_types": ["CrossAttnDownBlock2D"] * 2}
    config = UNETS["image"][0] | wide | {"up_block_types": ["CrossAttnUpBlock2D"] * 2}  # heads of 8 and of 160
    arguments, _ = translate(config)
    network = nnx.eval_shape(lambda: UNet(**arguments, dtype="bfloat16", rngs=Keys(0)))
    levels = [level[0].space_attention.blocks[0].attention1.implementation for level in network.down]
    assert levels == ["cudnn", "xla"]


def test_fewer_frames_than_a_window():
    module = module_of(MOTION, window=(8, 4))
    with pytest.raises(InputError, match="frames=4 must be at least 8"):
        jax.eval_shape(lambda given: module(**given), inputs("animatediff"))


@pytest.fixture(scope="module")
def denoiser():
    sizes = dict(
        vocabulary=20, length=5, width=8, middle=16, depth=1, heads=2, activation="gelu", epsilon=1e-5, end=None
    )
    return LatentDenoiser(ClipText(**sizes, rngs=nnx.Rngs(params=0)), module_of(UNETS["modelscope"][0]))


def words(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 20, (*shape, 5)).astype(np.int32))


def test_every_frame_is_told_its_mixture_of_texts(denoiser):
    tokens = words(0, 2, 3)
    mixed = denoiser.encode(tokens, jnp.float32([[[1, 0, 0], [0.25, 0.75, 0]], [[0, 0, 1], [0, 0.5, 0.5]]]))
    first, second, third = (denoiser.encode(tokens[:, k]) for k in range(3))
    assert mixed.mask.shape == (2, 2, 5)
    for name, shape in (("tokens", (2, 2, 5, 8)), ("pooled", (2, 2, 8))):
        found, a, b, c = (getattr(text, name) for text in (mixed, first, second, third))
        assert found.shape == shape
        np.testing.assert_allclose(found[0, 0], a[0, 0], atol=1e-6)
        np.testing.assert_allclose(found[0, 1], 0.25 * a[0, 0] + 0.75 * b[0, 0], atol=1e-6)
        np.testing.assert_allclose(found[1, 0], c[1, 0], atol=1e-6)


def test_a_text_for_each_frame_is_heard_in_that_frame(denoiser):
    z, tokens = jnp.asarray(numbers("z", (2, 4, 6, 6, 4))), words(1, 2, 2)
    call = jax.jit(lambda text: denoiser(z, jnp.float32([500, 20]), text))
    same = denoiser.encode(tokens, jnp.tile(jnp.float32([1, 0]), (2, 4, 1)))
    plain = call(denoiser.encode(tokens[:, 0]))
    assert relative(call(same), plain) < 1e-5
    last = denoiser.encode(tokens, jnp.float32([[[1, 0], [1, 0], [1, 0], [0, 1]]] * 2))
    change = np.abs(call(last) - plain).max((0, 2, 3, 4))
    assert change[3] > 2 * change[:3].max() > 0  # the others hear of it through the slots in time
