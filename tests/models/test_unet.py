"""The trunk: what each slot, condition and option changes, and what it must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models import space
from vdm_jax.models.unet import UNet

B, T, S, C, L, E = 2, 4, 4, 2, 3, 6
# No layers on the way down and one on the way up: three layers in all, quick to compile.
TINY = {"channels_in": C, "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 4}
TIME = jnp.array([3.0, 700.0])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(**options):
    return nnx.eval_shape(lambda: UNet(**TINY | options, rngs=nnx.Rngs(0)))


def make(zero=None, **options):
    """A UNet with every parameter drawn anew, so that nothing is zero but paths that hold `zero`."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
        return 0 * value if zero and zero in jax.tree_util.keystr(path) else value

    graphdef, shapes = nnx.split(shapes_of(**options))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, shapes))


def jit(model, **fixed):
    return jax.jit(lambda z, time=TIME, **conditions: model(z, time, **conditions, **fixed))


@pytest.fixture(scope="module")
def z():
    return normal(1, B, T, S, S, C)


def moved(a, b):
    """For each video and frame, whether it differs; small differences are not allowed."""
    difference = np.abs(np.asarray(a) - np.asarray(b)).max((2, 3, 4))
    assert ((difference > 1e-3) | (difference == 0)).all(), difference
    return difference > 0


def test_the_prediction_is_zero_at_first_and_has_channels_out(z):
    model = UNet(**TINY, channels_out=3, space_attention=False, time_attention=False, rngs=nnx.Rngs(0))
    out = jit(model)(z)
    assert (out.shape, out.dtype) == ((B, T, S, S, 3), jnp.float32)
    assert not out.any()


@pytest.mark.parametrize("slots", ["empty", "zero"])
def test_without_time_slots_it_is_an_image_network(z, slots):
    if slots == "empty":
        model = make(time_attention=False)
    else:
        model = make(zero="time_conv", time_conv=True)
        for layer in (model.middle1, model.up[0][0]):
            layer.time_attention.out.kernel[...] *= 0
            layer.time_attention.out.bias[...] *= 0
    frames = jit(model)(z.reshape(B * T, 1, S, S, C), jnp.repeat(TIME, T))
    np.testing.assert_allclose(jit(model)(z), frames.reshape(z.shape), atol=1e-4)


@pytest.mark.parametrize("position", ["relative", "none"])
def test_the_order_of_frames_matters_where_positions_are_told(z, position):
    run, order = jit(make(time_position=position, space_attention=False)), jnp.array([2, 0, 3, 1])
    difference = np.abs(run(z)[:, order] - run(z[:, order])).max()
    assert difference < 1e-5 if position == "none" else difference > 1e-3


def test_the_time_and_every_video_are_taken_apart(z):
    run = jit(make())
    out = run(z)
    np.testing.assert_array_equal(moved(run(z, TIME.at[1].add(50.0)), out), [[False] * T, [True] * T])
    np.testing.assert_array_equal(moved(run(z.at[0].multiply(-1)), out), [[True] * T, [False] * T])


def test_joint_stills_leave_the_clip_as_it_is_and_each_other(z):
    model = make(time_conv=True)
    run = jit(model, images=2)
    out = run(z)
    np.testing.assert_allclose(out[:, :2], jit(model)(z[:, :2]), atol=1e-4)
    changed = run(z.at[:, 3].multiply(-1))
    np.testing.assert_array_equal(moved(changed, out), [[False, False, False, True]] * B)


def test_resampling_of_space_and_time_folds_pairs_of_frames():
    """Without time slots, only the frames that were folded together know of each other."""
    model = make(multipliers=(1, 2), resample="space_time", time_attention=False)
    z = normal(1, B, T, S, S, C)
    run = jit(model)
    changed = run(z.at[:, 1].multiply(-1))
    np.testing.assert_array_equal(moved(changed, run(z)), [[True, True, False, False]] * B)
    assert changed.shape == z.shape


def test_patches_fold_frames_and_pixels_into_one_position(z):
    model = make(patch=2, patch_time=2, space_attention=False, time_attention=False, kernel=1, space_position=True)
    assert model.stem.project.kernel.shape == (C * 2 * 2 * 2, 8)
    run = jit(model)
    difference = np.abs(run(z.at[0, 0, 0, 0].add(1.0)) - run(z)).max(-1)
    # Pointwise convolutions: beyond the patch only the normalisation's statistics are heard.
    assert difference[0, :2, :2, :2].min() > 1e-3
    assert difference[0, 2:].max() == difference[1].max() == 0


def test_the_space_position_tells_pixels_of_a_constant_frame_apart():
    z = jnp.ones((B, T, S, S, C))
    run = jit(make(kernel=1, space_position=True, time_attention=False))
    pixels = np.asarray(run(z))[0, 0].reshape(S * S, C)
    assert len(np.unique(pixels.round(4), axis=0)) == S * S


@pytest.fixture(scope="module")
def conditions():
    return {
        "context": normal(2, B, 1, L, E),
        "context_mask": jnp.arange(L) < jnp.array([2, 3])[:, None, None],
        "pooled": normal(3, B, 1, E),
    }


@pytest.mark.parametrize("context", ["joint", "cross", "none"])
def test_context_and_pooled_vector_condition_the_videos(z, conditions, context):
    run = jit(make(context=context, context_width=E, pooled_width=E, time_attention=False))
    out = run(z, **conditions)
    mask = conditions["context_mask"]
    hidden = jnp.where(mask[..., None], conditions["context"], 100.0)
    np.testing.assert_allclose(run(z, **conditions | {"context": hidden}), out, atol=1e-4)
    changed = run(z, **conditions | {"context": conditions["context"].at[0, 0, 0].add(2.0)})
    np.testing.assert_array_equal(moved(changed, out), [[context != "none"] * T, [False] * T])
    changed = run(z, **conditions | {"pooled": conditions["pooled"].at[1].add(1.0)})
    np.testing.assert_array_equal(moved(changed, out), [[False] * T, [True] * T])

    each = {name: jnp.repeat(value, T, axis=1) for name, value in conditions.items()}
    out_each = run(z, **each)
    np.testing.assert_allclose(out_each, out, atol=1e-4)
    for name in ("context", "pooled"):
        changed = run(z, **each | {name: each[name].at[0, 2].add(2.0)})
        heard = name == "pooled" or context != "none"
        np.testing.assert_array_equal(moved(changed, out_each), [[False, False, heard, False], [False] * T])


@pytest.fixture(scope="module")
def loss_and_gradients(z):
    """By name of the remat policy, with dropout so that its keys are recomputed too."""

    def compute(remat):
        graphdef, params = nnx.split(make(remat=remat, dropout=0.5, space_attention=False))

        def loss(params):
            return (nnx.merge(graphdef, params)(z, TIME, key=jax.random.key(1)) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    return {remat: compute(remat) for remat in ("none", "full", "dots")}


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_neither_loss_nor_gradients(loss_and_gradients, remat):
    plain, other = (jax.tree.leaves(loss_and_gradients[name]) for name in ("none", remat))
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * max(1, float(jnp.abs(a).max())))
    assert all(float(jnp.abs(a).max()) > 0 for a in plain)  # every parameter is used


def test_dropout_is_off_without_a_key_and_follows_it(z):
    model = make(dropout=0.5)
    run = jax.jit(lambda key: model(z, TIME, key=key))
    np.testing.assert_allclose(run(None), jit(make())(z), atol=1e-5)
    one, two = run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(one, run(jax.random.key(1)))
    assert np.abs(one - two).max() > 1e-2
    assert np.abs(one - run(None)).max() > 1e-2


def test_every_layer_drops_with_a_key_of_its_own(z, monkeypatch):
    model, seen = make(dropout=0.5), []

    def spy(x, rate, key):
        seen.append(jax.random.key_data(key))
        return x

    monkeypatch.setattr(space, "dropout", spy)

    @jax.jit
    def keys(key):
        model(z, TIME, key=key)
        return jnp.stack([jax.random.key_data(key), *seen])

    drawn = {tuple(key) for key in np.asarray(keys(jax.random.key(0))).tolist()}
    assert len(drawn) == 1 + 3  # the key itself and those of the three layers


def test_bfloat16_computes_near_float32_with_float32_parameters(z):
    half, full = make(dtype="bfloat16", time_conv=True), make(time_conv=True)
    assert {p.dtype for p in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype("float32")}
    out, expected = jit(half)(z), jit(full)(z)
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.05


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
    "resample='time' must be one of space, space_time": {"multipliers": (1, 2), "resample": "time"},
    "attention='flash' must be one of auto, xla, cudnn": {"attention": "flash"},
    "attention='cudnn' cannot run: the backend is cpu": {"attention": "cudnn"},
    r"resample=\('space', 'space'\) must be one value or 1 of them": {
        "multipliers": (1, 2),
        "resample": ("space", "space"),
    },
    r"space_attention=\(True,\) must be one value or 2 of them": {
        "multipliers": (1, 2),
        "space_attention": (True,),
    },
    "channels=9 must be even": {"channels": 9, "space_attention": False, "time_attention": False},
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
    model.check_size(8, 8, 12)
    with pytest.raises(InputError, match=message):
        model.check_size(*size)


def test_stills_must_not_see_other_frames():
    with pytest.raises(InputError, match="joint_images=2 needs all_frames=False"):
        shapes_of(all_frames=True).check_size(4, 4, 4, 2)


@pytest.mark.parametrize(("missing", "given"), [("context", "pooled"), ("pooled", "context")])
def test_a_missing_condition_is_named(z, conditions, missing, given):
    model = shapes_of(context_width=E, pooled_width=E)
    with pytest.raises(InputError, match=f"{missing}=None"):
        jax.eval_shape(lambda: model(z, TIME, **{given: conditions[given]}))
