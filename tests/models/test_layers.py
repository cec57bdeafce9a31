"""Small layers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.models.layers import (
    Blend,
    Conv,
    EmbeddingMLP,
    FeedForward,
    Fold,
    GroupNorm,
    Repeat,
    StridedConv,
    Unfold,
    UpsampleConv,
    dropout,
    layer_norm,
)
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.rngs import Keys

B, T, S, C = 2, 3, 4, 8
COMMON = dict(dtype="float32", rngs=Keys(0))


@pytest.mark.parametrize("across_frames", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(8, None), (48, None), (12, 4)])
def test_group_norm_is_that_of_each_frame_or_across_frames(channels, groups, across_frames):
    x = 2 + 3 * normal(0, B, T, S, S, channels)
    options = dict(groups=groups, epsilon=1e-3, across_frames=across_frames)
    ours = randomised(lambda: GroupNorm(channels, "float32", nnx.Rngs(0), **options))
    assert ours.groups == (groups or max(1, channels // 16))
    theirs = nnx.GroupNorm(channels, num_groups=ours.groups, epsilon=1e-3, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = ours.scale[...], ours.bias[...]
    images = x.reshape(*((B, T * S, S) if across_frames else (B * T, S, S)), channels)
    np.testing.assert_allclose(ours(x), theirs(images).reshape(x.shape), atol=2e-5)


def test_group_norm_has_a_number_of_groups_that_divides():
    assert GroupNorm(40, **COMMON).groups == 2
    assert GroupNorm(52, **COMMON).groups == 2  # three groups do not divide 52


def test_the_variance_of_a_group_norm_keeps_its_digits():
    x = 100 + normal(0, 1, 1, 8, 8, 4)
    out = GroupNorm(4, groups=2, **COMMON)(x)
    groups = np.asarray(x, np.float64).reshape(64, 2, 2)
    expected = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, expected.reshape(x.shape), atol=1e-4)  # in one pass 2e-3


def test_the_variance_of_a_layer_norm_keeps_its_digits():
    x = 1000 + normal(0, 4, 64)
    out = layer_norm(64, **COMMON)(x)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    out = dropout(x, 0.25, jax.random.key(0))
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_feed_forward_is_a_gated_gelu():
    module, x = randomised(lambda: FeedForward(C, **COMMON)), normal(0, 5, C)
    hidden, gate = np.split(np.asarray(module.up(x)), 2, -1)
    np.testing.assert_allclose(module(x), module.down(hidden * jax.nn.gelu(gate, approximate=False)), atol=1e-5)


def test_embedding_is_two_layers_with_a_silu_between():
    module, x = randomised(lambda: EmbeddingMLP(C, 12, 5, **COMMON)), normal(0, B, T, C)
    hidden = module.first(x)
    np.testing.assert_allclose(module(x), module.second(hidden * jax.nn.sigmoid(hidden)), atol=1e-5)
    assert module(x).shape == (B, T, 5)


@pytest.mark.parametrize("switched", [False, True])
def test_a_blend_is_a_weighted_mean_and_a_still_keeps_what_space_made(switched):
    space, time = normal(0, B, T, S, S, C), normal(1, B, T, S, S, C)
    blend = Blend(switched)
    np.testing.assert_allclose(blend.mix[...], 0.0 if switched else 0.5)
    blend.mix[...] = jnp.full((1,), 0.3)
    share = 1 / (1 + np.exp(0.3 if switched else -0.3))
    np.testing.assert_allclose(blend(space, time, None), share * space + (1 - share) * time, atol=1e-6)
    is_still = jnp.array([[False, False, True], [True, False, False]])
    out = blend(space, time, is_still)
    np.testing.assert_array_equal(out[is_still], space[is_still])
    np.testing.assert_array_equal(out[~is_still], blend(space, time, None)[~is_still])


@pytest.mark.parametrize("factors", [(1, 2), (2, 2), (2, 1)])
def test_unfold_undoes_fold(factors):
    x = normal(0, B, 4, S, S, 3)
    folded = 3 * factors[0] * factors[1] ** 2
    down, up = Fold(3, folded, factors, **COMMON), Unfold(folded, 3, factors, **COMMON)
    assert not up.project.kernel[...].any()
    for block in (down, up):
        block.project.kernel[...] = jnp.eye(folded)
    small = down(x)
    assert small.shape == (B, 4 // factors[0], S // factors[1], S // factors[1], folded)
    np.testing.assert_array_equal(up(small), x)


def test_repeat_copies_frames_rows_and_columns():
    x = normal(0, B, 2, S, S, C)
    up = Repeat(C, C, (2, 2), **COMMON)
    out = up(x)
    assert out.shape == (B, 4, 2 * S, 2 * S, C)
    for i in range(8):
        block = out[:, i // 4 :: 2, i // 2 % 2 :: 2, i % 2 :: 2]
        np.testing.assert_array_equal(block, up.project(x))


def convolved(conv, images, stride, padding):
    """Convolves images in plain loops over the window."""
    images = np.pad(np.asarray(images), [(0, 0), padding, padding, (0, 0)])
    rows, columns = ((n - 3) // stride + 1 for n in images.shape[1:3])
    out = np.zeros((len(images), rows, columns, conv.kernel.shape[-1]))
    for i, j in np.ndindex(3, 3):
        part = images[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        out += part @ np.asarray(conv.kernel[i, j])
    return out + np.asarray(conv.bias[...])


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_convolutions_halve_and_double_rows_and_columns(size):
    x = normal(0, B, T, *size, 3)
    images = x.reshape(B * T, *size, 3)
    plain = randomised(lambda: Conv(3, C, **COMMON))
    np.testing.assert_allclose(
        plain(x, ONE_DEVICE).reshape(B * T, *size, C), convolved(plain.conv, images, 1, (1, 1)), atol=1e-4
    )
    for border_after, padding, rounded in ((False, (1, 1), 1), (True, (0, 1), 0)):
        down = randomised(lambda after=border_after: StridedConv(3, C, border_after=after, **COMMON))
        out = down(x, ONE_DEVICE)
        assert out.shape[2:4] == tuple((n + rounded) // 2 for n in size)
        np.testing.assert_allclose(
            out.reshape(B * T, *out.shape[2:]), convolved(down.conv, images, 2, padding), atol=1e-4
        )

    up = randomised(lambda: UpsampleConv(3, C, **COMMON))
    for to in ((2 * size[0], 2 * size[1]), (2 * size[0] - 1, 2 * size[1] - 1)):
        rows, columns = (np.arange(n) * small // n for n, small in zip(to, size, strict=True))
        larger = np.asarray(images)[:, rows][:, :, columns]
        out = up(x, to, ONE_DEVICE)
        np.testing.assert_allclose(out.reshape(B * T, *to, C), convolved(up.conv, larger, 1, (1, 1)), atol=1e-4)
