"""Blocks within a frame: what they compute, and that they never look at another frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import sinusoid
from vdm_jax.models.space import (
    Downsample,
    GroupNorm,
    SpaceAttention,
    SpaceConv,
    Unpatch,
    Upsample,
    dropout,
    split_heads,
)

B, T, S, C, E, L = 2, 3, 4, 8, 6, 5
CONTEXTS = ("none", "joint", "cross")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomised(make):
    """The module that `make` creates, with every parameter drawn anew, so that nothing is zero."""
    rng = np.random.default_rng(0)
    graphdef, params = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), params))


def conv(channels_in=C, kernel=3, rate=0.0):
    return SpaceConv(channels_in, C, E, kernel=kernel, dropout=rate, dtype="float32", rngs=nnx.Rngs(0))


def attention(context, all_frames=False):
    return SpaceAttention(
        C,
        head_size=4,
        context_width=E,
        context=context,
        implementation="xla",
        all_frames=all_frames,
        dtype="float32",
        rngs=nnx.Rngs(0),
    )


@pytest.fixture
def x():
    return normal(0, B, T, S, S, C)


@pytest.fixture
def text():
    return normal(1, B, 1, L, E), jnp.arange(L) < jnp.array([2, 4])[:, None, None]


@pytest.mark.parametrize("channels", [8, 48])  # one group, three groups
def test_frame_norm_is_group_norm_of_each_frame(channels):
    x = 2 + 3 * normal(0, B, T, S, S, channels)
    ours = randomised(lambda: GroupNorm(channels, "float32", nnx.Rngs(0)))
    theirs = nnx.GroupNorm(channels, num_groups=ours.groups, epsilon=1e-5, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = ours.scale[...], ours.bias[...]
    expected = theirs(x.reshape(B * T, S, S, channels)).reshape(x.shape)
    np.testing.assert_allclose(ours(x), expected, atol=2e-5)
    assert ours.groups == max(1, channels // 16)


def test_frame_norm_has_a_group_count_that_divides():
    assert GroupNorm(40, "float32", nnx.Rngs(0)).groups == 2
    assert GroupNorm(52, "float32", nnx.Rngs(0)).groups == 2  # three groups do not divide 52


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    out = dropout(x, 0.25, jax.random.key(0))
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("kernel", [1, 3])
def test_space_conv_is_its_shortcut_at_first(x, kernel):
    embedding = normal(2, B, 1, E)
    np.testing.assert_array_equal(conv(kernel=kernel)(x, embedding), x)
    wider = conv(channels_in=2 * C, kernel=kernel)
    x = jnp.concatenate([x, -x], axis=-1)
    np.testing.assert_array_equal(wider(x, embedding), wider.shortcut(x))


def test_space_conv_is_its_formula(x):
    """x + conv(SiLU((1 + s)·GN(conv(SiLU(GN(x)))) + b)), written over the frames of one flat batch."""
    block, embedding = randomised(conv), normal(2, B, 1, E)

    def plain_conv(layer, y):
        y = jax.lax.conv_general_dilated(
            y, layer.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + layer.bias[...]

    def norm(layer, y):
        mean, var = (f(y, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))  # one group
        return (y - mean) / jnp.sqrt(var + 1e-5) * layer.scale[...] + layer.bias[...]

    flat = x.reshape(B * T, S, S, C)
    s, b = jnp.split(block.modulation(jax.nn.silu(jnp.repeat(embedding[:, 0], T, 0)))[:, None, None], 2, -1)
    hidden = plain_conv(block.conv1, jax.nn.silu(norm(block.norm1, flat)))
    hidden = jax.nn.silu((1 + s) * norm(block.norm2, hidden) + b)
    expected = flat + plain_conv(block.conv2, hidden)
    np.testing.assert_allclose(block(x, embedding), expected.reshape(x.shape), atol=1e-4)


def test_space_conv_takes_one_embedding_for_all_frames_or_one_for_each(x):
    block, embedding = randomised(conv), normal(2, B, T, E)
    out = block(x, embedding)
    for frame in range(T):
        alone = block(x, embedding[:, frame : frame + 1])
        np.testing.assert_allclose(out[:, frame], alone[:, frame], atol=1e-5)
        assert np.abs(out[:, frame - 1] - alone[:, frame - 1]).max() > 0.1


@pytest.mark.parametrize("context", CONTEXTS)
def test_space_attention_is_the_identity_at_first(x, text, context):
    np.testing.assert_array_equal(attention(context)(x, *text), x)


@pytest.mark.parametrize("name", ["conv", *CONTEXTS])
def test_space_blocks_mix_pixels_but_not_frames(x, text, name):
    block = randomised(conv if name == "conv" else lambda: attention(name))
    arguments = (normal(2, B, 1, E),) if name == "conv" else text
    run = jax.jit(lambda x: block(x, *arguments))
    moved = np.abs(run(x.at[1, 2, 0, 0].add(1.0)) - run(x)).max(-1)
    assert (moved[1, 2] > 1e-4).sum() > 1  # other pixels of the frame
    moved[1, 2] = 0
    assert moved.max() == 0


@pytest.mark.parametrize("context", ["joint", "cross"])
def test_space_attention_reads_the_tokens_that_count(x, text, context):
    block, (tokens, mask) = randomised(lambda: attention(context)), text
    run = jax.jit(block.__call__)
    out = run(x, tokens, mask)
    hidden = jnp.where(mask[..., None], tokens, 100.0)
    np.testing.assert_allclose(run(x, hidden, mask), out, atol=1e-5)
    moved = np.abs(run(x, tokens.at[1, 0, 0].add(1.0), mask) - out).max((1, 2, 3, 4))
    assert moved[0] == 0
    assert moved[1] > 1e-3


def test_space_attention_takes_one_text_for_all_frames_or_one_for_each(x, text):
    block, (tokens, mask) = randomised(lambda: attention("joint")), text
    each = jnp.repeat(tokens, T, 1), jnp.repeat(mask, T, 1)
    np.testing.assert_allclose(block(x, *each), block(x, tokens, mask), atol=1e-5)
    moved = np.abs(block(x, each[0].at[:, 1, 0].add(1.0), each[1]) - block(x, *each)).max((0, 2, 3, 4))
    assert moved[1] > 1e-3
    assert moved[0] == moved[2] == 0


def test_with_all_frames_every_pixel_sees_those_of_all_and_the_text_under_one_softmax(x, text):
    block, (tokens, mask) = randomised(lambda: attention("joint", all_frames=True)), text
    hidden = block.norm(x) + sinusoid(jnp.arange(T, dtype=jnp.float32), C)[:, None, None]
    one_frame = hidden.reshape(B, T * S * S, C)
    expected = np.zeros((B, T * S * S, C))
    for head in range(C // 4):
        q, k, v = np.split(np.asarray(block.qkv(one_frame))[..., 12 * head : 12 * head + 12], 3, -1)
        text_k, text_v = np.split(np.asarray(block.context_kv(tokens[:, 0]))[..., 8 * head : 8 * head + 8], 2, -1)
        scores = q @ np.concatenate([k, text_k], 1).swapaxes(1, 2) / 2
        scores[..., -L:] -= 1e9 * ~np.asarray(mask)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mean = weights @ np.concatenate([v, text_v], 1) / weights.sum(-1, keepdims=True)
        expected[..., 4 * head : 4 * head + 4] = mean
    expected = x + block.out(expected.astype(np.float32)).reshape(x.shape)
    np.testing.assert_allclose(block(x, tokens, mask), expected, atol=1e-4)
    with pytest.raises(InputError, match="3 texts must be one for all frames"):
        block(x, jnp.repeat(tokens, T, 1), jnp.repeat(mask, T, 1))


@pytest.mark.parametrize("context", CONTEXTS)
def test_all_frames_are_told_apart(x, text, context):
    block = randomised(lambda: attention(context, all_frames=True))
    run = jax.jit(lambda x: block(x, *text))
    moved = np.abs(run(x.at[1, 2, 0, 0].add(1.0)) - run(x)).max(-1)
    assert moved[1].min() > 1e-5
    assert moved[0].max() == 0
    assert np.abs(run(x[:, ::-1])[:, ::-1] - run(x)).max() > 1e-3


def test_split_heads_keeps_the_parts_of_a_head_together():
    x = jnp.arange(12.0).reshape(1, 1, 1, 12)
    first, second = split_heads(x, 2, 3)
    np.testing.assert_array_equal(first[0, 0, 0], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(second[0, 0, 0], [[2, 3], [6, 7], [10, 11]])


@pytest.mark.parametrize("factors", [(1, 2), (2, 2), (2, 1)])
def test_unpatch_undoes_downsample(factors):
    x = normal(0, B, 4, S, S, 3)
    folded = 3 * factors[0] * factors[1] ** 2
    down, up = (
        Downsample(3, folded, factors, dtype="float32", rngs=nnx.Rngs(0)),
        Unpatch(folded, 3, factors, dtype="float32", rngs=nnx.Rngs(0)),
    )
    assert not up.project.kernel[...].any()
    for block in (down, up):
        block.project.kernel[...] = jnp.eye(folded)
    small = down(x)
    assert small.shape == (B, 4 // factors[0], S // factors[1], S // factors[1], folded)
    np.testing.assert_array_equal(up(small), x)


def test_upsample_repeats_frames_rows_and_columns():
    x = normal(0, B, 2, S, S, C)
    up = Upsample(C, C, (2, 2), dtype="float32", rngs=nnx.Rngs(0))
    out = up(x)
    assert out.shape == (B, 4, 2 * S, 2 * S, C)
    for i in range(8):
        block = out[:, i // 4 :: 2, i // 2 % 2 :: 2, i % 2 :: 2]
        np.testing.assert_array_equal(block, up.project(x))
