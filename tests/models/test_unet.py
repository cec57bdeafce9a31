"""The U-Net: what each slot, condition and option changes, and what it must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models import convolution
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.unet import UNet

B, T, S, C, L, E = 2, 4, 4, 2, 3, 6
# No layers on the way down and one on the way up: three layers in all, quick to compile.
TINY = {"channels_in": C, "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 4}
TIME = jnp.array([3.0, 700.0])


def shapes_of(**options):
    return nnx.eval_shape(lambda: UNet(**TINY | options, rngs=nnx.Rngs(0)))


def make(zero=None, **options):
    return randomised(lambda: UNet(**TINY | options, rngs=nnx.Rngs(0)), scale=0.3, zero=zero)


def jit(model):
    return jax.jit(lambda z, time=TIME, **conditions: model(z, time, Conditions(**conditions)))


@pytest.fixture(scope="module")
def z():
    return normal(1, B, T, S, S, C)


def moved(a, b):
    """Returns for each video and frame whether it differs; small differences are not allowed."""
    difference = np.abs(np.asarray(a) - np.asarray(b)).max((2, 3, 4))
    assert ((difference > 1e-3) | (difference == 0)).all(), difference
    return difference > 0


# -------------------------------------------------------------------------------------------------- slots


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
            layer.time_attention.attention.out.kernel[...] *= 0
            layer.time_attention.attention.out.bias[...] *= 0
    frames = jit(model)(z.reshape(B * T, 1, S, S, C), jnp.repeat(TIME, T))
    np.testing.assert_allclose(jit(model)(z), frames.reshape(z.shape), atol=1e-4)


@pytest.mark.parametrize("position", ["relative", "none"])
def test_the_order_of_frames_matters_where_there_are_positions(z, position):
    run, order = jit(make(time_position=position, space_attention=False)), jnp.array([2, 0, 3, 1])
    difference = np.abs(run(z)[:, order] - run(z[:, order])).max()
    assert difference < 1e-5 if position == "none" else difference > 1e-3


def test_videos_do_not_see_each_other(z):
    run = jit(make())
    out = run(z)
    np.testing.assert_array_equal(moved(run(z, TIME.at[1].add(50.0)), out), [[False] * T, [True] * T])
    np.testing.assert_array_equal(moved(run(z.at[0].multiply(-1)), out), [[True] * T, [False] * T])


@pytest.mark.parametrize("stills", [[2, 3], [0, 3]])
def test_stills_leave_the_clip_and_each_other_as_they_are(z, stills):
    is_still = np.isin(np.arange(T), stills)
    run = jit(make(time_conv=True))
    out = run(z, is_still=jnp.asarray([is_still] * B))
    if stills == [2, 3]:  # the stills follow the clip
        np.testing.assert_allclose(out[:, :2], run(z[:, :2]), atol=1e-4)
    for still in stills:
        np.testing.assert_allclose(out[:, still : still + 1], run(z[:, still : still + 1]), atol=1e-4)
        changed = run(z.at[:, still].multiply(-1), is_still=jnp.asarray([is_still] * B))
        np.testing.assert_array_equal(moved(changed, out), [np.arange(T) == still] * B)


def test_each_video_has_stills_of_its_own(z):
    run = jit(make(time_conv=True))
    is_still = jnp.array([[False, False, False, True], [False] * T])
    out = run(z, is_still=is_still)
    np.testing.assert_allclose(out[1], run(z)[1], atol=1e-4)
    np.testing.assert_allclose(out[0, :3], run(z[:, :3])[0], atol=1e-4)


def test_resampling_of_space_and_time_folds_pairs_of_frames():
    """Without time slots, only frames that were folded together see each other."""
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
    # Convolutions are pointwise: beyond the patch only the statistics of norms change.
    assert difference[0, :2, :2, :2].min() > 1e-3
    assert difference[0, 2:].max() == difference[1].max() == 0


def test_the_space_position_tells_pixels_of_a_constant_frame_apart():
    z = jnp.ones((B, T, S, S, C))
    run = jit(make(kernel=1, space_position=True, time_attention=False))
    pixels = np.asarray(run(z))[0, 0].reshape(S * S, C)
    assert len(np.unique(pixels.round(4), axis=0)) == S * S


def test_a_stem_of_convolutions_takes_odd_sizes_and_any_channels(z):
    options = dict(stem="conv", resample="conv", multipliers=(1, 2), channels_out=3, space_attention=False)
    model = make(**options, time_attention=False)
    odd = normal(1, B, 1, 5, 7, C)
    assert jit(model)(odd).shape == (B, 1, 5, 7, 3)


# -------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("per_frame", [False, True])
def test_equal_times_of_frames_are_the_time_of_the_video(z, per_frame):
    run = jit(make(time_conv=True, text_width=E, pooled_width=E))
    groups = T if per_frame else 1
    text = Text(normal(2, B, groups, L, E), jnp.ones((B, groups, L), bool), normal(3, B, groups, E))
    one, each = run(z, TIME, text=text), run(z, jnp.repeat(TIME[:, None], T, 1), text=text)
    np.testing.assert_allclose(each, one, atol=1e-4)


@pytest.mark.parametrize("in_time", [False, True])
def test_a_frames_time_reaches_other_frames_through_time_slots_alone(z, in_time):
    run = jit(make(time_attention=in_time))
    time = jnp.repeat(TIME[:, None], T, 1).at[0, 1].set(20.0)
    out = run(z, time)
    changed = run(z, time.at[0, 2].add(50.0))
    expected = [True] * T if in_time else [False, False, True, False]
    np.testing.assert_array_equal(moved(changed, out), [expected, [False] * T])


@pytest.mark.parametrize("options", [dict(patch_time=2), dict(multipliers=(1, 2), resample="space_time")])
def test_folded_frames_have_one_time(z, options):
    model = shapes_of(**options)
    time = jnp.repeat(TIME[:, None], T, 1)
    with pytest.raises(InputError, match="a time for each frame needs patch_time=1 and resample='space'"):
        jax.eval_shape(lambda: model(z, time, Conditions()))


# --------------------------------------------------------------------------------------------- conditions


@pytest.fixture(scope="module")
def text():
    mask = jnp.arange(L) < jnp.array([2, 3])[:, None, None]
    return Text(normal(2, B, 1, L, E), mask, normal(3, B, 1, E))


@pytest.mark.parametrize("context", ["joint", "cross", "none"])
def test_tokens_and_the_pooled_vector_condition_the_videos(z, text, context):
    run = jit(make(context=context, text_width=E, pooled_width=E, time_attention=False))
    out = run(z, text=text)
    hidden = text._replace(tokens=jnp.where(text.mask[..., None], text.tokens, 100.0))
    np.testing.assert_allclose(run(z, text=hidden), out, atol=1e-4)
    changed = run(z, text=text._replace(tokens=text.tokens.at[0, 0, 0].add(2.0)))
    np.testing.assert_array_equal(moved(changed, out), [[context != "none"] * T, [False] * T])
    changed = run(z, text=text._replace(pooled=text.pooled.at[1].add(1.0)))
    np.testing.assert_array_equal(moved(changed, out), [[False] * T, [True] * T])

    each = jax.tree.map(lambda array: jnp.repeat(array, T, axis=1), text)
    out_each = run(z, text=each)
    np.testing.assert_allclose(out_each, out, atol=1e-4)
    for name in ("tokens", "pooled"):
        changed = run(z, text=each._replace(**{name: getattr(each, name).at[0, 2].add(2.0)}))
        read = name == "pooled" or context != "none"
        np.testing.assert_array_equal(moved(changed, out_each), [[False, False, read, False], [False] * T])


def test_known_channels_lie_next_to_z(z):
    """The mathematics is that of a network whose input has both."""
    model = make(channels_in=C + 3, channels_out=C, time_attention=False, space_attention=False)
    known = normal(4, B, T, S, S, 3)
    out = jit(model)(z, known=known)
    assert out.shape == z.shape
    np.testing.assert_array_equal(jit(model)(jnp.concatenate([z, known], -1)), out)
    changed = jit(model)(z, known=known.at[0, 1, ..., 2].add(1.0))
    np.testing.assert_array_equal(moved(changed, out), [[False, True, False, False], [False] * T])


def test_scalars_condition_the_videos(z):
    run = jit(make(scalars=(8, 2)))
    scalars = jnp.array([[7.0, 127.0], [25.0, 30.0]])
    out = run(z, scalars=scalars)
    for number in range(2):
        changed = run(z, scalars=scalars.at[1, number].add(10.0))
        np.testing.assert_array_equal(moved(changed, out), [[False] * T, [True] * T])
    assert moved(run(z, scalars=scalars[:, ::-1]), out).all()  # each has its own place


@pytest.mark.parametrize(
    ("options", "conditions", "message"),
    [
        (dict(text_width=E), {}, "conditions.text=None, but the network was made for a text encoder"),
        (dict(pooled_width=E), {}, "conditions.text=None, but the network was made for a text encoder"),
        (dict(scalars=(8, 2)), {}, "conditions.scalars=None, but the network takes 2"),
        (dict(scalars=(8, 2)), dict(scalars=jnp.ones((B, 3))), "conditions.scalars=3 numbers, but the network takes 2"),
        (dict(channels_in=5), {}, "2 channels of z and of what is known must be 5"),
        ({}, dict(known=jnp.ones((B, T, S, S, 3))), "5 channels of z and of what is known must be 2"),
    ],
)
def test_a_condition_that_does_not_fit_is_named(z, options, conditions, message):
    model = make(**options)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: model(z, TIME, Conditions(**conditions)))


@pytest.mark.parametrize("options", [dict(context="none"), dict(space_attention=False)])
def test_a_network_that_reads_no_tokens_needs_no_text(z, options):
    model = make(text_width=E, **options)
    assert jax.eval_shape(lambda: model(z, TIME, Conditions())).shape == z.shape


# ------------------------------------------------------------------------------- remat, dropout, precision


@pytest.fixture(scope="module")
def loss_and_gradients(z):
    """Returns {remat policy: (loss, gradients)}, with dropout so that its keys are computed again, too."""

    def compute(remat):
        graphdef, params = nnx.split(make(remat=remat, dropout=0.5, space_attention=False))

        def loss(params):
            return (nnx.merge(graphdef, params)(z, TIME, Conditions(), key=jax.random.key(1)) ** 2).mean()

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
    run = jax.jit(lambda key: model(z, TIME, Conditions(), key=key))
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

    monkeypatch.setattr(convolution, "dropout", spy)

    @jax.jit
    def keys(key):
        model(z, TIME, Conditions(), key=key)
        return jnp.stack([jax.random.key_data(key), *seen])

    drawn = {tuple(key) for key in np.asarray(keys(jax.random.key(0))).tolist()}
    assert len(drawn) == 1 + 3  # the key itself and the keys of three layers


def test_bfloat16_computes_near_float32_with_float32_parameters(z):
    half, full = make(dtype="bfloat16", time_conv=True), make(time_conv=True)
    assert {p.dtype for p in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype("float32")}
    out, expected = jit(half)(z), jit(full)(z)
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.05
