"""Convolution slots: their formulas, what they start as, and which frames and pixels they mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, randomised
from vdm_jax.models.convolution import (
    BlendedTimeBlock,
    Inputs,
    ModulatedBlock,
    ResidualBlock,
    TimeConv,
    TimeConvStack,
    with_neighbours,
)
from vdm_jax.models.layers import GroupNorm
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.rngs import Keys

B, T, S, C, E = 2, 4, 4, 8, 6
COMMON = dict(dtype="float32", rngs=Keys(0))
SPACE = {
    "modulated": lambda: ModulatedBlock(C, C, E, **COMMON),
    "pointwise": lambda: ModulatedBlock(C, C, E, kernel=1, **COMMON),
    "residual": lambda: ResidualBlock(C, C, E, groups=2, epsilon=1e-5, **COMMON),
}
TIME = {
    "three": lambda: TimeConv(C, **COMMON),
    "stack": lambda: TimeConvStack(C, groups=2, **COMMON),
    "blended": lambda: BlendedTimeBlock(C, E, groups=2, epsilon=1e-5, **COMMON),
}


@pytest.fixture(scope="module")
def x():
    return normal(0, B, T, S, S, C)


def run(block, x, **inputs):
    inputs = Inputs(**dict(embedding=normal(2, B, 1, E)) | inputs)
    return jax.jit(lambda x, inputs: block(x, inputs, ONE_DEVICE))(x, inputs)


def group_norm(layer, x, axes):
    grouped = x.reshape(*x.shape[:-1], layer.groups, -1)
    mean, var = (f(grouped, axis=(*axes, -1), keepdims=True) for f in (jnp.mean, jnp.var))
    return ((grouped - mean) / jnp.sqrt(var + layer.epsilon)).reshape(x.shape) * layer.scale[...] + layer.bias[...]


def conv_in_space(layer, x):
    images = x.reshape(-1, *x.shape[2:])
    out = jax.lax.conv_general_dilated(
        images, layer.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (out + layer.bias[...]).reshape(*x.shape[:-1], -1)


def conv_in_time(layer, x):
    """A convolution over three frames, whose kernel is the linear layer's."""
    pixels = x.transpose(0, 2, 3, 1, 4).reshape(-1, x.shape[1], x.shape[-1])
    kernel = layer.kernel[...].reshape(3, x.shape[-1], -1)
    out = jax.lax.conv_general_dilated(pixels, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    out = out + layer.bias[...]
    return out.reshape(x.shape[0], *x.shape[2:4], x.shape[1], -1).transpose(0, 3, 1, 2, 4)


# ------------------------------------------------------------------------------------------------ in space


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_modulated_block_is_its_shortcut_at_first(x, kernel):
    block = ModulatedBlock(C, C, E, kernel=kernel, **COMMON)
    np.testing.assert_array_equal(run(block, x), x)
    wider = ModulatedBlock(2 * C, C, E, kernel=kernel, **COMMON)
    x = jnp.concatenate([x, -x], axis=-1)
    np.testing.assert_allclose(run(wider, x), wider.shortcut(x), atol=1e-6)


def test_a_modulated_block_is_its_formula(x):
    """x + conv(SiLU((1 + s)·GN(conv(SiLU(GN(x)))) + b))."""
    block, embedding = randomised(SPACE["modulated"]), normal(2, B, 1, E)
    s, b = jnp.split(block.modulation(jax.nn.silu(embedding))[:, :, None, None], 2, -1)
    hidden = conv_in_space(block.conv1, jax.nn.silu(group_norm(block.norm1, x, (2, 3))))
    hidden = jax.nn.silu((1 + s) * group_norm(block.norm2, hidden, (2, 3)) + b)
    np.testing.assert_allclose(run(block, x), x + conv_in_space(block.conv2, hidden), atol=2e-4)


@pytest.mark.parametrize("in_time", [False, True])
@pytest.mark.parametrize("embedding", [E, None])
def test_a_residual_block_is_its_formula(x, in_time, embedding):
    """x + conv(SiLU(GN(conv(SiLU(GN(x))) + Linear(SiLU(e))))), in time with statistics over all frames."""
    wide, axes, conv = C + 2, (1, 2, 3) if in_time else (2, 3), conv_in_time if in_time else conv_in_space
    options = dict(groups=2, epsilon=1e-3, across_frames=in_time)
    block = randomised(lambda: ResidualBlock(C, wide, embedding, **options, **COMMON))
    hidden = conv(block.conv1, jax.nn.silu(group_norm(block.norm1, x, axes)))
    if embedding:
        hidden = hidden + block.embedding(jax.nn.silu(normal(2, B, 1, E)))[:, :, None, None]
    hidden = conv(block.conv2, jax.nn.silu(group_norm(block.norm2, hidden, axes)))
    np.testing.assert_allclose(run(block, x), block.shortcut(x) + hidden, atol=2e-4)


@pytest.mark.parametrize("name", SPACE)
def test_space_blocks_mix_pixels_but_not_frames(x, name):
    block = randomised(SPACE[name])
    moved = np.array(np.abs(run(block, x.at[1, 2, 0, 0].add(1.0)) - run(block, x)).max(-1))
    assert (moved[1, 2] > 1e-4).sum() > 1  # other pixels of the frame
    moved[1, 2] = 0
    assert moved.max() == 0


@pytest.mark.parametrize("name", ["modulated", "residual", "blended"])
def test_a_block_takes_one_embedding_for_all_frames_or_one_for_each(x, name):
    block, embedding = randomised((SPACE | TIME)[name]), normal(2, B, T, E)
    same = jnp.repeat(embedding[:, :1], T, axis=1)
    np.testing.assert_allclose(run(block, x, embedding=same), run(block, x, embedding=embedding[:, :1]), atol=1e-5)
    if name == "blended":  # whose frames see each other
        return
    out = run(block, x, embedding=embedding)
    for frame in range(T):
        alone = run(block, x, embedding=embedding[:, frame : frame + 1])
        np.testing.assert_allclose(out[:, frame], alone[:, frame], atol=1e-5)
        assert np.abs(out[:, frame - 1] - alone[:, frame - 1]).max() > 0.1


def test_dropout_needs_a_key(x):
    block = randomised(lambda: ModulatedBlock(C, C, E, dropout=0.5, **COMMON))
    one, two = (run(block, x, key=jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_allclose(run(block, x), run(randomised(SPACE["modulated"]), x), atol=1e-5)
    assert np.abs(one - two).max() > 0.1


# ------------------------------------------------------------------------------------------------- in time


def test_neighbours_are_the_frames_before_and_after_and_a_still_has_none(x):
    before, frame, after = np.split(with_neighbours(x), 3, -1)
    np.testing.assert_array_equal(frame, x)
    np.testing.assert_array_equal(before[:, 1:], x[:, :-1])
    np.testing.assert_array_equal(after[:, :-1], x[:, 1:])
    assert not before[:, 0].any()
    assert not after[:, -1].any()
    is_still = jnp.array([[False, False, True, False], [False] * 4])  # a still between frames of the first video
    alone = with_neighbours(x, is_still)
    assert not alone[0, 2, ..., :C].any()
    assert not alone[0, 2, ..., 2 * C :].any()
    assert not alone[0, 1, ..., 2 * C :].any()
    assert not alone[0, 3, ..., :C].any()
    np.testing.assert_array_equal(alone[0, 1, ..., : 2 * C], with_neighbours(x)[0, 1, ..., : 2 * C])
    np.testing.assert_array_equal(alone[1], with_neighbours(x)[1])


def test_a_time_convolution_is_the_identity_at_first(x):
    np.testing.assert_array_equal(run(TIME["three"](), x), x)


def test_a_time_convolution_is_one_over_three_frames(x):
    block = randomised(TIME["three"])
    np.testing.assert_allclose(run(block, x), x + conv_in_time(block.project, jax.nn.silu(block.norm(x))), atol=1e-4)


def test_a_stack_is_four_convolutions_in_a_row(x):
    block, hidden = randomised(TIME["stack"], scale=0.3), x
    assert len(block.convs) == 4
    for norm, conv in zip(block.norms, block.convs, strict=True):
        hidden = conv_in_time(conv, jax.nn.silu(group_norm(norm, hidden, (1, 2, 3))))
    np.testing.assert_allclose(run(block, x), x + hidden, atol=1e-4)


def test_a_blended_block_is_the_mean_of_its_input_and_its_output(x):
    block = randomised(TIME["blended"])
    share = jax.nn.sigmoid(block.blend.mix[...])
    np.testing.assert_allclose(run(block, x), share * x + (1 - share) * run(block.block, x), atol=1e-5)
    is_still = jnp.array([[False, True, False, True]] * B)
    out = run(block, x, is_still=is_still)
    np.testing.assert_array_equal(out[:, 1::2], x[:, 1::2])


@pytest.mark.parametrize("name", TIME)
def test_time_blocks_mix_frames_but_not_pixels(x, name, monkeypatch):
    monkeypatch.setattr(GroupNorm, "__call__", lambda self, x: x)  # its statistics are over pixels
    block = randomised(TIME[name])
    moved = np.array(np.abs(run(block, x.at[1, 2, 0, 1].add(1.0)) - run(block, x)).max(-1))
    reached = {1, 2, 3} if name == "three" else set(range(T))
    assert {frame for frame in range(T) if moved[1, frame, 0, 1] > 1e-4} == reached
    moved[1, :, 0, 1] = 0
    assert moved.max() == 0


@pytest.mark.parametrize("stills", [[3], [1, 2, 3], [0, 2]])
def test_stills_and_the_clip_do_not_touch_each_other(x, stills):
    block, is_still = randomised(TIME["three"]), np.isin(np.arange(T), stills)
    out = run(block, x, is_still=jnp.asarray([is_still] * B))
    if stills[-1] - stills[0] == len(stills) - 1 and stills[-1] == T - 1:  # the stills follow the clip
        np.testing.assert_allclose(out[:, ~is_still], run(block, x[:, ~is_still]), atol=1e-5)
    for frame in range(T):
        changed = run(block, x.at[:, frame].add(1.0), is_still=jnp.asarray([is_still] * B))
        moved = np.abs(changed - out).max((0, 2, 3, 4))
        apart = [i for i in range(T) if i != frame and (is_still[i] or is_still[frame])]
        assert moved[apart].max(initial=0) == 0
        if is_still[frame]:
            alone = run(block, x[:, frame : frame + 1])
            np.testing.assert_allclose(out[:, frame], alone[:, 0], atol=1e-5)
