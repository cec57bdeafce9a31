"""Attention blocks and transformers: what they compute, and which pixels, frames and texts they see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention
from vdm_jax.models.conditions import Text
from vdm_jax.models.convolution import Inputs
from vdm_jax.models.layers import GroupNorm
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.positions import frame_code, interleaved_code, sinusoid
from vdm_jax.models.rngs import Keys
from vdm_jax.models.transformer import (
    ACTIVATIONS,
    POSITIONS,
    EncoderBlock,
    SpaceAttention,
    SpaceTimeTransformer,
    TimeAttention,
    Transformer,
    TransformerBlock,
    clip_mask,
    in_windows,
)

B, T, S, C, E, L = 2, 4, 4, 8, 6, 5
COMMON = dict(dtype="float32", rngs=Keys(0))
CONTEXTS = ("none", "joint", "cross")


def space(context, all_frames=False):
    options = dict(head_size=4, context=context, all_frames=all_frames, implementation="xla")
    return SpaceAttention(C, E, **options, **COMMON)


def time(position):
    return TimeAttention(C, head_size=4, position=position, max_distance=3, **COMMON)


@pytest.fixture(scope="module")
def x():
    return normal(0, B, T, S, S, C)


@pytest.fixture(scope="module")
def text():
    mask = jnp.arange(L) < jnp.array([2, 4])[:, None, None]
    return Text(normal(1, B, 1, L, E), mask, normal(2, B, 1, E))


def run(block, x, text=None, is_still=None):
    inputs = Inputs(text=text, is_still=is_still)
    return np.asarray(jax.jit(lambda x, inputs: block(x, inputs, ONE_DEVICE))(x, inputs))


def for_each_frame(text):
    return jax.tree.map(lambda array: jnp.repeat(array, T, axis=1), text)


# --------------------------------------------------------------------------------------------- along space


@pytest.mark.parametrize("context", CONTEXTS)
def test_space_attention_is_the_identity_at_first(x, text, context):
    np.testing.assert_array_equal(run(space(context), x, text), x)


@pytest.mark.parametrize("context", CONTEXTS)
def test_space_attention_mixes_pixels_but_not_frames(x, text, context):
    block = randomised(lambda: space(context))
    moved = np.abs(run(block, x.at[1, 2, 0, 0].add(1.0), text) - run(block, x, text)).max(-1)
    assert (moved[1, 2] > 1e-4).sum() > 1  # other pixels of the frame
    moved[1, 2] = 0
    assert moved.max() == 0


@pytest.mark.parametrize("context", ["joint", "cross"])
def test_space_attention_reads_the_tokens_that_count(x, text, context):
    block = randomised(lambda: space(context))
    out = run(block, x, text)
    hidden = text._replace(tokens=jnp.where(text.mask[..., None], text.tokens, 100.0))
    np.testing.assert_allclose(run(block, x, hidden), out, atol=1e-5)
    moved = np.abs(run(block, x, text._replace(tokens=text.tokens.at[1, 0, 0].add(1.0))) - out).max((1, 2, 3, 4))
    assert moved[0] == 0
    assert moved[1] > 1e-3


@pytest.mark.parametrize("context", ["joint", "cross"])
def test_space_attention_takes_one_text_for_all_frames_or_one_for_each(x, text, context):
    block, each = randomised(lambda: space(context)), for_each_frame(text)
    out = run(block, x, each)
    np.testing.assert_allclose(out, run(block, x, text), atol=1e-5)
    changed = each._replace(tokens=each.tokens.at[:, 1, 0].add(1.0))
    moved = np.abs(run(block, x, changed) - out).max((0, 2, 3, 4))
    assert moved[1] > 1e-3
    assert moved[[0, 2, 3]].max() == 0


def test_with_all_frames_a_pixel_sees_all_pixels_and_the_text_under_one_softmax(x, text):
    block = randomised(lambda: space("joint", all_frames=True))
    hidden = block.norm(x) + sinusoid(jnp.arange(T, dtype=jnp.float32), C)[:, None, None]
    one_frame = hidden.reshape(B, T * S * S, C)
    expected = np.zeros((B, T * S * S, C))
    for head in range(C // 4):
        q, k, v = np.split(np.asarray(block.attention.qkv(one_frame))[..., 12 * head : 12 * head + 12], 3, -1)
        pair = np.asarray(block.attention.text_kv(text.tokens[:, 0]))[..., 8 * head : 8 * head + 8]
        text_k, text_v = np.split(pair, 2, -1)
        scores = q @ np.concatenate([k, text_k], 1).swapaxes(1, 2) / 2
        scores[..., -L:] -= 1e9 * ~np.asarray(text.mask)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mean = weights @ np.concatenate([v, text_v], 1) / weights.sum(-1, keepdims=True)
        expected[..., 4 * head : 4 * head + 4] = mean
    expected = x + block.attention.out(expected.astype(np.float32)).reshape(x.shape)
    np.testing.assert_allclose(run(block, x, text), expected, atol=1e-4)
    with pytest.raises(InputError, match="4 texts must be one for all frames"):
        run(block, x, for_each_frame(text))


@pytest.mark.parametrize("context", CONTEXTS)
def test_all_frames_are_told_apart(x, text, context):
    block = randomised(lambda: space(context, all_frames=True))
    moved = np.abs(run(block, x.at[1, 2, 0, 0].add(1.0), text) - run(block, x, text)).max(-1)
    assert moved[1].min() > 1e-5
    assert moved[0].max() == 0
    assert np.abs(run(block, x[:, ::-1], text)[:, ::-1] - run(block, x, text)).max() > 1e-3


# ---------------------------------------------------------------------------------------------- along time


@pytest.mark.parametrize("position", POSITIONS)
def test_time_attention_is_the_identity_at_first(x, position):
    np.testing.assert_array_equal(run(time(position), x), x)


@pytest.mark.parametrize("position", POSITIONS)
def test_time_attention_mixes_frames_but_not_pixels(x, position, monkeypatch):
    monkeypatch.setattr(GroupNorm, "__call__", lambda self, x: x)  # its statistics are over pixels
    block = randomised(lambda: time(position))
    moved = np.abs(run(block, x.at[1, 2, 0, 1].add(1.0)) - run(block, x)).max(-1)
    assert moved[1, :, 0, 1].min() > 1e-4
    moved[1, :, 0, 1] = 0
    assert moved.max() == 0


@pytest.mark.parametrize("position", POSITIONS)
def test_time_attention_knows_the_order_of_frames_where_it_has_positions(x, position):
    block = randomised(lambda: time(position))
    difference = np.abs(run(block, x)[:, ::-1] - run(block, x[:, ::-1])).max()
    assert difference < 1e-5 if position == "none" else difference > 1e-2


@pytest.mark.parametrize("stills", [[3], [1, 2, 3], [0, 2]])
@pytest.mark.parametrize("position", POSITIONS)
def test_stills_do_not_touch_the_clip_nor_each_other(x, position, stills):
    block, still = randomised(lambda: time(position)), np.isin(np.arange(T), stills)
    is_still = jnp.asarray([still] * B)
    out = run(block, x, is_still=is_still)
    if stills[-1] - stills[0] == len(stills) - 1 and stills[-1] == T - 1:  # the stills follow the clip
        np.testing.assert_allclose(out[:, ~still], run(block, x[:, ~still]), atol=1e-5)
    for frame in range(T):
        moved = np.abs(run(block, x.at[:, frame].add(normal(1, B, S, S, C)), is_still=is_still) - out)
        moved = moved.max((0, 2, 3, 4))
        apart = [i for i in range(T) if i != frame and (still[i] or still[frame])]
        assert moved[frame] > 1e-3
        assert moved[apart].max(initial=0) == 0


def test_clip_mask_keeps_stills_to_themselves():
    is_still = jnp.array([[False, False, True, True], [True, False, True, False], [False] * 4])
    expected = [
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]],
        np.ones((4, 4)),
    ]
    np.testing.assert_array_equal(clip_mask(is_still), np.array(expected, bool))


# ------------------------------------------------------------------------------------------ windows in time


def block(**options):
    common = dict(heads=2, head_size=4, implementation="xla", position=True)
    return TransformerBlock(8, along="time", **common, **COMMON, **options)


def apply(function, x):
    return np.asarray(jax.jit(lambda x: function(x))(x))


def hat(length):
    return np.float64([min(i + 1, length - i) for i in range(length)])


def in_a_loop(attend, x, length, stride):
    """Takes one window after the other, in float64."""
    frames = x.shape[1]
    total, weight = np.zeros(x.shape), np.zeros((1, frames, 1, 1, 1))
    for start in range(0, frames - length + 1, stride):
        at = slice(start, start + length)
        total[:, at] += np.asarray(attend(x[:, at])) * hat(length)[:, None, None, None]
        weight[:, at] += hat(length)[:, None, None, None]
    over = frames - at.stop
    if over:
        total[:, -over:], weight[:, -over:] = np.asarray(attend(x[:, -length:]))[:, -over:], 1
    return total / weight


@pytest.mark.parametrize(("frames", "length", "stride"), [(12, 8, 4), (11, 8, 4), (9, 4, 3), (9, 5, 3), (7, 3, 1)])
def test_frames_are_weighted_means_over_their_windows(frames, length, stride):
    x = normal(1, 2, frames, 2, 3, 8)
    attend = jax.jit(randomised(block, scale=0.3)._attend)
    out = apply(lambda x: in_windows(attend, x, length, stride), x)
    np.testing.assert_allclose(out, in_a_loop(attend, x, length, stride), atol=1e-5)
    assert np.abs(out - attend(x)).max() > 0.01


def test_one_window_of_all_frames_is_the_plain_block():
    x = normal(2, 2, 6, 2, 3, 8)
    windowed, plain = (randomised(lambda w=window: block(window=w), scale=0.3) for window in ((6, 4), None))
    np.testing.assert_allclose(apply(windowed, x), apply(plain, x), atol=1e-5)


def test_positions_are_counted_within_a_window():
    """Windows without overlap make a video that repeats itself into one that repeats itself."""
    x = jnp.tile(normal(3, 1, 4, 2, 2, 8), (1, 2, 1, 1, 1))
    windowed, plain = (randomised(lambda w=window: block(window=w), scale=0.3) for window in ((4, 4), None))
    out = apply(windowed, x)
    np.testing.assert_allclose(out[:, 4:], out[:, :4], atol=1e-5)
    np.testing.assert_allclose(out[:, :4], apply(plain, x[:, :4]), atol=1e-5)
    assert np.abs(apply(plain, x)[:, 4:] - out[:, 4:]).max() > 0.01


def test_windows_keep_half_precision():
    x = normal(4, 1, 7, 1, 1, 8).astype(jnp.bfloat16)
    out = in_windows(lambda parts: parts, x, 4, 2)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, x)


# --------------------------------------------------------------------------------------------- transformers


def pixels(x):
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


@pytest.mark.parametrize("feed_in", [False, True])
@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("reads_text", [False, True])
def test_a_block_is_two_attentions_and_a_feed_forward(x, text, feed_in, position, reads_text):
    options = dict(along="time", heads=2, position=position, feed_in=feed_in, text_width=E if reads_text else 0)
    module = randomised(lambda: TransformerBlock(C, **options, **COMMON), scale=0.3)
    code = interleaved_code(T, C)[:, None] if position else 0.0
    tokens = text.tokens if reads_text else None
    hidden = pixels(x)
    if feed_in:
        hidden = hidden + module.feed_in(module.norm_in(hidden))
    hidden = hidden + module.attention1(module.norm1(hidden) + code)
    hidden = hidden + module.attention2(module.norm2(hidden) + code, tokens)
    hidden = hidden + module.feed(module.norm3(hidden))
    np.testing.assert_allclose(apply(lambda x: module(x, tokens), x), hidden.reshape(x.shape), atol=1e-4)
    assert module.attention2.along == ("space" if reads_text else "time")


@pytest.mark.parametrize("along", ["space", "time"])
def test_a_transformer_adds_its_blocks_between_two_projections(x, text, along):
    options = dict(along=along, layers=2, heads=2, head_size=3, groups=2, across_frames=along == "time")
    module = randomised(lambda: Transformer(C, E, **options, **COMMON), scale=0.3)
    hidden = module.project_in(module.norm(x))
    assert hidden.shape[-1] == 6
    for one in module.blocks:
        hidden = one(hidden, text.tokens)
    np.testing.assert_allclose(run(module, x, text), x + module.project_out(hidden), atol=1e-4)
    assert module.norm.axes == ((1, 2, 3) if along == "time" else (2, 3))
    assert (len(module.blocks), module.norm.epsilon) == (2, 1e-6)


def test_a_space_time_transformer_blends_a_block_in_time_into_each_in_space(x, text):
    module = randomised(lambda: SpaceTimeTransformer(C, E, layers=2, heads=2, groups=2, **COMMON), scale=0.3)
    each = for_each_frame(text)
    each = each._replace(tokens=each.tokens + normal(3, B, T, L, E))
    share = jax.nn.sigmoid(module.blend.mix[...])
    code = module.frame(frame_code(T, C))[:, None, None]

    def expected(still):
        hidden = module.project_in(module.norm(x))
        for one, in_time in zip(module.blocks, module.time_blocks, strict=True):
            hidden = one(hidden, each.tokens)
            mixed = in_time(hidden + code, each.tokens[:, :1])  # the text of the first frame
            blended = share * hidden + (1 - share) * mixed
            hidden = jnp.where(still[:, None, None, None], hidden, blended)
        return x + module.project_out(hidden)

    for still in ([False] * T, [False, False, True, True]):
        out = run(module, x, each, is_still=jnp.asarray([still] * B))
        np.testing.assert_allclose(out, expected(jnp.asarray(still)), atol=2e-4)
    np.testing.assert_allclose(run(module, x, each), run(module, x, each, jnp.zeros((B, T), bool)), atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_encoder_block_is_attention_and_two_layers(activation):
    options = dict(heads=2, activation=activation, epsilon=1e-5, biased="qkv")
    module = randomised(lambda: EncoderBlock(C, 12, **options, **COMMON))
    x, mask = normal(0, B, L, C), jnp.arange(L) < jnp.array([2, 4])[:, None]
    hidden = x + module.attention(module.norm1(x)[:, None], mask=mask[:, None])[:, 0]
    inner = module.up(module.norm2(hidden))
    formulas = {
        "quick_gelu": lambda a: a / (1 + np.exp(-1.702 * a)),
        "gelu": lambda a: a * 0.5 * (1 + jax.scipy.special.erf(a / np.sqrt(2))),
        "gelu_tanh": lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
    }
    expected = hidden + module.down(jnp.asarray(formulas[activation](np.asarray(inner))))
    np.testing.assert_allclose(jax.jit(lambda x: module(x, mask))(x), expected, atol=1e-4)


def test_an_encoder_block_sees_the_tokens_that_count():
    module = randomised(lambda: EncoderBlock(C, 12, heads=2, activation="gelu", epsilon=1e-5, **COMMON))
    x, mask = normal(0, B, L, C), jnp.arange(L) < jnp.array([2, 4])[:, None]
    hidden = jnp.where(mask[..., None], x, 100.0)
    np.testing.assert_array_equal(module(x, mask)[mask], module(hidden, mask)[mask])
    causal = randomised(lambda: EncoderBlock(C, 12, heads=2, activation="gelu", epsilon=1e-5, causal=True, **COMMON))
    moved = np.abs(causal(x.at[:, 2].add(normal(1, C))) - causal(x)).max((0, 2))
    assert moved[:2].max() == 0
    assert moved[2:].min() > 1e-4
    assert isinstance(causal.attention, Attention)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=3, activation="gelu"), "width=8 must be a multiple of heads=3"),
        (dict(heads=2, activation="relu"), "activation='relu' must be one of quick_gelu, gelu, gelu_tanh"),
    ],
)
def test_an_encoder_block_that_cannot_be_made(options, message):
    with pytest.raises(InputError, match=message):
        EncoderBlock(C, 12, epsilon=1e-5, **options, **COMMON)
