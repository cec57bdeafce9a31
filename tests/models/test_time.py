"""Blocks along time: what they compute, and that they never look at another pixel or at a still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.models.time import POSITIONS, TimeAttention, TimeConv

B, T, S, C = 2, 4, 2, 8
BLOCKS = ("conv", *POSITIONS)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(name):
    options = {"dtype": "float32", "rngs": nnx.Rngs(0)}
    if name == "conv":
        return TimeConv(C, **options)
    return TimeAttention(C, head_size=4, position=name, max_distance=3, **options)


def randomised(name):
    """The block with every parameter drawn anew, so that nothing is zero."""
    rng = np.random.default_rng(0)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make(name)))
    return nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), params))


@pytest.fixture
def x():
    return normal(0, B, T, S, S, C)


@pytest.mark.parametrize("name", BLOCKS)
def test_time_blocks_are_the_identity_at_first(x, name):
    np.testing.assert_array_equal(make(name)(x), x)


def after_norm(name):
    """The block without its normalisation, which takes a frame's statistics over all of its pixels."""
    block = randomised(name)
    block.norm = lambda x: x
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_time_blocks_mix_frames_but_not_pixels(x, name):
    block = after_norm(name)
    moved = np.abs(block(x.at[1, 2, 0, 1].add(1.0)) - block(x)).max(-1)
    reached = {1, 2, 3} if name == "conv" else {0, 1, 2, 3}
    assert {frame for frame in range(T) if moved[1, frame, 0, 1] > 1e-4} == reached
    moved[1, :, 0, 1] = 0
    assert moved.max() == 0


def test_time_conv_is_a_convolution_over_three_frames(x):
    block = randomised("conv")
    kernel = block.project.kernel[...].reshape(3, C, C)
    pixels = jax.nn.silu(block.norm(x)).transpose(0, 2, 3, 1, 4).reshape(-1, T, C)
    out = jax.lax.conv_general_dilated(pixels, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    out = out.reshape(B, S, S, T, C).transpose(0, 3, 1, 2, 4)
    np.testing.assert_allclose(block(x), x + out + block.project.bias[...], atol=1e-4)


@pytest.mark.parametrize("name", POSITIONS)
def test_attention_knows_the_order_of_frames_unless_told_nothing(x, name):
    block = randomised(name)
    difference = np.abs(block(x)[:, ::-1] - block(x[:, ::-1])).max()
    if name == "none":
        assert difference < 1e-5
    else:
        assert difference > 1e-2


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_stills_do_not_touch_the_clip_nor_each_other(x, name, images):
    block = randomised(name)
    run = jax.jit(lambda x: block(x, images))
    out = run(x)
    np.testing.assert_allclose(out[:, : T - images], block(x[:, : T - images]), atol=1e-5)
    for frame in range(T):
        moved = np.abs(run(x.at[:, frame].add(normal(1, B, S, S, C))) - out).max((0, 2, 3, 4))
        others = [i for i in range(T) if i != frame and (i >= T - images or frame >= T - images)]
        assert moved[frame] > 1e-3
        assert moved[others].max() == 0


def test_bias_has_float32_and_one_number_for_each_offset_and_head():
    bias = make("relative").bias
    assert (bias.shape, bias.dtype) == ((2 * 3 + 1, C // 4), jnp.float32)
    assert 0.3 < float(bias[...].std()) < 0.8  # strong from the start, so that order is learned
