"""What fills the attention slots of a layer: attention blocks, and the transformers of the published U-Nets.

All are called as `block(x, inputs, layout)`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention
from vdm_jax.models.convolution import Inputs
from vdm_jax.models.layers import Blend, EmbeddingMLP, FeedForward, GroupNorm, layer_norm
from vdm_jax.models.layout import Layout
from vdm_jax.models.positions import frame_angles, frame_code, interleaved_code
from vdm_jax.typing import Array, Bool, Float

POSITIONS = ("relative", "rotary", "sinusoidal", "none")


def _pixels(x: Float[Array, "B T H W C"]) -> Float[Array, "B T P C"]:
    return rearrange(x, "b t h w c -> b t (h w) c")


class SpaceAttention(nnx.Module):
    """Attention over the pixels of each frame and to the text tokens; zero at first.

    `context="joint"` puts pixels and tokens under one softmax; `"cross"` attends to the tokens in a second attention
    (Rombach et al. 2022). With `all_frames` a pixel sees the pixels of all frames, which a sinusoidal code tells apart:
    joint space-time attention (Bertasius et al. 2021, arXiv 2102.05095, section 3).
    """

    def __init__(self, channels, text_width, *, head_size, context, all_frames, implementation, dtype, rngs):
        common = dict(head_size=head_size, fused=True, zero=True, implementation=implementation, dtype=dtype, rngs=rngs)
        self.all_frames = all_frames
        self.norm = GroupNorm(channels, dtype, rngs)
        joint = dict(text_width=text_width if context == "joint" else 0, along="all" if all_frames else "space")
        self.attention = Attention(channels, **joint, **common)
        crosses = context == "cross" and text_width
        self.cross_norm = GroupNorm(channels, dtype, rngs) if crosses else None
        self.cross = Attention(channels, text_width=text_width, context="only", **common) if crosses else None

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds attention to x. Raises InputError for a text per frame where all frames attend to each other."""
        tokens, mask = inputs.text[:2] if inputs.text is not None else (None, None)
        hidden = _pixels(self.norm(x))
        if self.all_frames:
            if self.attention.context == "joint" and tokens.shape[1] > 1:
                raise InputError(f"{tokens.shape[1]} texts must be one for all frames that attend to each other")
            hidden = hidden + frame_code(x.shape[1], x.shape[-1])[:, None].astype(hidden.dtype)
        x = x + self.attention(hidden, tokens, text_mask=mask, layout=layout).reshape(x.shape)
        if self.cross is None:
            return x
        return x + self.cross(_pixels(self.cross_norm(x)), tokens, text_mask=mask).reshape(x.shape)


class TimeAttention(nnx.Module):
    """Attention over the frames at each pixel (Ho et al. 2022, section 3), zero at first.

    `position` says how it knows the order of frames: `relative` adds a learned bias for each head and offset (as in
    Video Diffusion Models), `rotary` rotates queries and keys, `sinusoidal` adds a fixed code to the block's input. A
    weak learned absolute code is not offered: a network trained briefly with one learns no frame order, and the loss
    does not show it.
    """

    def __init__(self, channels, text_width=0, *, head_size, position, max_distance, dtype, rngs):
        del text_width
        self.position, self.head_size = position, head_size
        self.norm = GroupNorm(channels, dtype, rngs)
        self.attention = Attention(
            channels,
            head_size=head_size,
            along="time",
            fused=True,
            zero=True,
            position="relative" if position == "relative" else None,
            max_distance=max_distance,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds attention to x; stills see only themselves."""
        hidden = _pixels(self.norm(x))
        if self.position == "sinusoidal":
            hidden = hidden + frame_code(*x.shape[1::3])[:, None].astype(hidden.dtype)
        mask = None if inputs.is_still is None else clip_mask(inputs.is_still)[:, None]
        angles = frame_angles(x.shape[1], self.head_size) if self.position == "rotary" else None
        return x + self.attention(hidden, mask=mask, angles=angles).reshape(x.shape)


def clip_mask(is_still: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Returns which frames each frame sees: frames of the clip see the clip, a still sees itself (Ho et al. 2022,
    section 4.3.1)."""
    in_clip = ~is_still
    return (in_clip[:, :, None] & in_clip[:, None, :]) | jnp.eye(is_still.shape[1], dtype=bool)


def in_windows(attend: Callable, x: Float[Array, "B T H W C"], length: int, stride: int) -> Float[Array, "B T H W C"]:
    """FreeNoise's window-based attention fusion (Qiu et al. 2023): `attend` on overlapping windows at once.

    A frame is the mean of its values in all windows, weighted by its distance to a window's ends. If frames remain
    after the last full window, one more window ends at the last frame and supplies these frames alone.
    """
    frames = x.shape[1]
    starts = np.arange(0, frames - length + 1, stride)
    weights = np.tile(np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0, (len(starts), 1))
    if over := frames - (starts[-1] + length):
        starts = np.append(starts, frames - length)
        weights = np.append(weights, [np.arange(length) >= length - over], axis=0)
    at = starts[:, None] + np.arange(length)
    weights /= np.bincount(at.ravel(), weights.ravel())[at]
    parts = attend(rearrange(x[:, at], "b n t h w c -> (b n) t h w c"))
    parts = rearrange(parts, "(b n) t h w c -> b n t h w c", n=len(at)) * np.float32(weights[..., None, None, None])
    return jnp.zeros(x.shape, parts.dtype).at[:, at].add(parts).astype(x.dtype)


class TransformerBlock(nnx.Module):
    """Two attentions and a feed-forward, each after a layer norm and added to its input.

    The second attention is to the text if there is one (`text_width`), else like the first. `position` adds a code of
    the frame before both (AnimateDiff). `feed_in` begins with a further feed-forward (Stable Video Diffusion's temporal
    block). `window` (length, stride) lets frames attend in windows, and counts them there.
    """

    def __init__(
        self, width, *, along, text_width=0, position=False, feed_in=False, window=None, dtype, rngs, **attention
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.position, self.window = position, window
        self.norm_in = layer_norm(width, **common) if feed_in else None
        self.feed_in = FeedForward(width, **common) if feed_in else None
        attention |= dict(along=along, **common)
        self.norm1, self.attention1 = layer_norm(width, **common), Attention(width, **attention)
        self.norm2 = layer_norm(width, **common)
        self.attention2 = Attention(width, text_width=text_width, context="only", **attention)
        self.norm3, self.feed = layer_norm(width, **common), FeedForward(width, **common)

    def __call__(
        self, x: Float[Array, "B T H W C"], text: Float[Array, "B G L E"] | None = None
    ) -> Float[Array, "B T H W C"]:
        """Transforms x; a block that was made with a `text_width` reads the text."""
        if self.feed_in is not None:
            x = x + self.feed_in(self.norm_in(x))
        if self.window is not None:
            x = in_windows(self._attend, x, *self.window)
        else:
            x = self._attend(x, text)
        return x + self.feed(self.norm3(x))

    def _attend(self, x, text=None):
        x = x + self.attention1(self._placed(self.norm1(x))).reshape(x.shape)
        return x + self.attention2(self._placed(self.norm2(x)), text).reshape(x.shape)

    def _placed(self, x):
        if self.position:
            x = x + interleaved_code(x.shape[1], x.shape[-1])[:, None, None].astype(x.dtype)
        return _pixels(x)


# OpenAI's CLIP has the quick GELU, OpenCLIP the exact GELU, our byte encoder the tanh approximation.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
}


class EncoderBlock(nnx.Module):
    """A transformer block over a sequence of tokens: pre-norm (Radford et al. 2019, section 2.3).

    `post`: the norms follow the sums, as in the first transformers (Vaswani et al. 2017, section 3.1) and in BERT.
    `attention` are arguments of `Attention`.
    """

    def __init__(self, width, middle, *, heads, activation, epsilon, post=False, dtype="float32", rngs, **attention):
        common = dict(dtype=dtype, rngs=rngs)
        if width % heads:
            raise InputError(f"width={width} must be a multiple of heads={heads}")
        if activation not in ACTIVATIONS:
            raise InputError(f"activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")
        self.activation, self.post = activation, post
        self.norm1 = layer_norm(width, epsilon, **common)
        self.attention = Attention(width, heads=heads, **attention, **common)
        self.norm2 = layer_norm(width, epsilon, **common)
        self.up = nnx.Linear(width, middle, **common)
        self.down = nnx.Linear(middle, width, **common)

    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "B L"] | None = None) -> Float[Array, "B L C"]:
        """Transforms the tokens; `mask` is true where a token counts."""
        mask = None if mask is None else mask[:, None]
        if self.post:
            x = self.norm1(x + self.attention(x[:, None], mask=mask)[:, 0])
            return self.norm2(x + self._feed(x))
        x = x + self.attention(self.norm1(x)[:, None], mask=mask)[:, 0]
        return x + self._feed(self.norm2(x))

    def _feed(self, x):
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Transformer(nnx.Module):
    """Group norm, projection, blocks, projection, added to the input: along space or along time.

    Epsilon is 1e-6. `across_frames`: statistics of the norm are over all frames.
    """

    def __init__(
        self,
        channels,
        text_width=0,
        *,
        along="space",
        layers=1,
        heads,
        head_size=None,
        groups,
        across_frames=False,
        dtype,
        rngs,
        **block,
    ):
        head_size = head_size or channels // heads
        inner, common = heads * head_size, dict(dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(channels, dtype, rngs, groups=groups, epsilon=1e-6, across_frames=across_frames)
        self.project_in = nnx.Linear(channels, inner, **common)
        block |= dict(along=along, text_width=text_width, heads=heads, head_size=head_size, **common)
        self.blocks = nnx.List(TransformerBlock(inner, **block) for _ in range(layers))
        self.project_out = nnx.Linear(inner, channels, **common)

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds the output of the blocks to x."""
        tokens = inputs.text.tokens if inputs.text is not None else None
        hidden = self.project_in(self.norm(x))
        for block in self.blocks:
            hidden = block(hidden, tokens)
        return x + self.project_out(hidden)


class SpaceTimeTransformer(nnx.Module):
    """A space transformer whose every block is followed by one in time, blended in (Stable Video Diffusion).

    The temporal blocks know the frame by a learned embedding of its number, and see the text of the first frame. One
    blend serves all blocks.
    """

    def __init__(self, channels, text_width, *, layers=1, heads, groups, implementation="xla", dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        block = dict(heads=heads, text_width=text_width, implementation=implementation) | common
        self.norm = GroupNorm(channels, dtype, rngs, groups=groups, epsilon=1e-6)
        self.project_in = nnx.Linear(channels, channels, **common)
        self.blocks = nnx.List(TransformerBlock(channels, along="space", **block) for _ in range(layers))
        self.time_blocks = nnx.List(
            TransformerBlock(channels, along="time", feed_in=True, **block) for _ in range(layers)
        )
        self.frame = EmbeddingMLP(channels, 4 * channels, channels, **common)
        self.blend = Blend()
        self.project_out = nnx.Linear(channels, channels, **common)

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds the output of the blocks to x; stills stay as the space blocks leave them."""
        tokens = inputs.text.tokens
        hidden = self.project_in(self.norm(x))
        code = self.frame(frame_code(x.shape[1], x.shape[-1]))[:, None, None]
        for block, time_block in zip(self.blocks, self.time_blocks, strict=True):
            hidden = layout(layout(block(hidden, tokens), "space"), "time")
            mixed = time_block(hidden + code.astype(hidden.dtype), tokens[:, :1])
            hidden = layout(layout(self.blend(hidden, mixed, inputs.is_still), "time"), "space")
        return x + self.project_out(hidden)
