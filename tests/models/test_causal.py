"""Causal layers against plain convolutions, and piece by piece."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, randomised
from vdm_jax.models.causal import CausalConv, Past, average, duplicate, in_pieces
from vdm_jax.models.rngs import Keys


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (2, 2), (2, 1)])
@pytest.mark.parametrize("padding", ["zeros", "replicate", "first"])
def test_a_causal_convolution_is_one_over_three_axes_with_padding_in_front(padding, stride):
    conv = randomised(lambda: CausalConv(3, 4, stride=stride, padding=padding, dtype="float32", rngs=Keys(0)))
    x = normal(0, 2, 5, 6, 4, 3)
    space = [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)]
    time = [(0, 0), (2, 0), (0, 0), (0, 0), (0, 0)]
    padded = np.pad(np.pad(x, space, "edge" if padding == "replicate" else "constant"), time, "edge")
    if padding == "zeros":
        padded[:, :2] = 0
    axes = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(
        padded, conv.kernel[...], (stride[0], *stride[1:] * 2), "VALID", dimension_numbers=axes
    )
    np.testing.assert_allclose(conv(x, Past()), expected + conv.bias[...], atol=1e-5)


def test_pieces_see_the_frames_before_them():
    common = dict(padding="zeros", dtype="float32", rngs=Keys(0))
    first, second = (
        randomised(functools.partial(CausalConv, 3, 3, kernel=kernel, **common)) for kernel in [(3, 1), (2, 3)]
    )
    x = normal(0, 1, 7, 4, 4, 3)

    def step(piece, past):
        return second(first(piece, past), past)

    whole = step(x, Past())
    for size in (1, 2, 6):
        np.testing.assert_allclose(in_pieces(step, x, size), whole, atol=1e-5)
    np.testing.assert_allclose(in_pieces(step, x[:, :1], 2), whole[:, :1], atol=1e-5)


def test_means_of_copies_are_the_input():
    x = normal(0, 2, 3, 2, 4, 8)
    for factors, channels in (((2, 2), 4), ((1, 2), 8), ((2, 1), 4)):
        copies = duplicate(x, factors, channels, begins=False)
        assert copies.shape == (2, 3 * factors[0], 2 * factors[1], 4 * factors[1], channels)
        np.testing.assert_allclose(average(copies, factors, 8), x, atol=1e-6)
        begun = duplicate(x, factors, channels, begins=True)
        np.testing.assert_array_equal(begun, copies[:, factors[0] - 1 :])
    # Zeros stand for the frame before the first one.
    np.testing.assert_allclose(average(x, (2, 1), 16)[:, 0, ..., 0], jnp.zeros((2, 2, 4)))
    np.testing.assert_allclose(average(x, (2, 1), 16)[:, 0, ..., 1], x[:, 0, ..., 0])
