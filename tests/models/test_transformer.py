"""Windowed attention (FreeNoise): the weighted mean of what the windows make of a frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.models.transformer import TransformerBlock, in_windows


def block(**options):
    rngs = nnx.Rngs(params=0)
    return TransformerBlock(
        8,
        along="time",
        heads=2,
        head_size=4,
        implementation="xla",
        position=True,
        dtype="float32",
        rngs=rngs,
        **options,
    )


def apply(function, x):
    return np.asarray(jax.jit(lambda x: function(x))(x))


def pyramid(length):
    return np.float64([min(i + 1, length - i) for i in range(length)])


def in_a_loop(attend, x, length, stride):
    """One window after the other, in float64."""
    frames = x.shape[1]
    total, weight = np.zeros(x.shape), np.zeros((1, frames, 1, 1, 1))
    for start in range(0, frames - length + 1, stride):
        at = slice(start, start + length)
        total[:, at] += np.asarray(attend(x[:, at])) * pyramid(length)[:, None, None, None]
        weight[:, at] += pyramid(length)[:, None, None, None]
    over = frames - at.stop
    if over:
        total[:, -over:], weight[:, -over:] = np.asarray(attend(x[:, -length:]))[:, -over:], 1
    return total / weight


@pytest.mark.parametrize(("frames", "length", "stride"), [(12, 8, 4), (11, 8, 4), (9, 4, 3), (9, 5, 3), (7, 3, 1)])
def test_frames_are_weighted_means_over_their_windows(frames, length, stride):
    x, attend = jax.random.normal(jax.random.key(1), (2, frames, 2, 3, 8)), jax.jit(block()._attend)
    found = apply(lambda x: in_windows(attend, x, length, stride), x)
    np.testing.assert_allclose(found, in_a_loop(attend, x, length, stride), atol=2e-6)
    assert np.abs(found - attend(x)).max() > 0.01


def test_one_window_of_all_frames_is_the_plain_block():
    x = jax.random.normal(jax.random.key(2), (2, 6, 2, 3, 8))
    np.testing.assert_allclose(apply(block(window=(6, 4)), x), apply(block(), x), atol=2e-6)


def test_positions_count_within_a_window():
    """A video that repeats itself does so in what windows without overlap make of it."""
    x = jnp.tile(jax.random.normal(jax.random.key(3), (1, 4, 2, 2, 8)), (1, 2, 1, 1, 1))
    found = apply(block(window=(4, 4)), x)
    np.testing.assert_allclose(found[:, 4:], found[:, :4], atol=1e-6)
    np.testing.assert_allclose(found[:, :4], apply(block(), x[:, :4]), atol=2e-6)
    assert np.abs(apply(block(), x)[:, 4:] - found[:, 4:]).max() > 0.01


def test_half_precision_stays():
    x = jax.random.normal(jax.random.key(4), (1, 7, 1, 1, 8), jnp.bfloat16)
    found = in_windows(lambda parts: parts, x, 4, 2)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, x)
