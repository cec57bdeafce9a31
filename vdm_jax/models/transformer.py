"""The transformers of the published latent U-Nets: over the pixels of a frame, over the frames of a pixel, and both."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vdm_jax.models.attention import Source, attend_space, attend_time, sinusoid
from vdm_jax.models.residual import Blend
from vdm_jax.models.space import GroupNorm, Layout
from vdm_jax.typing import Array, Bool, Float


class Attention(nnx.Module):
    """Attention with queries, keys and values projected apart: of pixels to pixels, frames to frames, or to tokens."""

    def __init__(self, width, *, heads, head_size, context_width=0, implementation, dtype, rngs):
        inner, common = heads * head_size, dict(dtype=dtype, rngs=rngs)
        self.heads, self.implementation = heads, implementation
        self.q = nnx.Linear(width, inner, use_bias=False, **common)
        self.k = nnx.Linear(context_width or width, inner, use_bias=False, **common)
        self.v = nnx.Linear(context_width or width, inner, use_bias=False, **common)
        self.out = nnx.Linear(inner, width, **common)

    def __call__(
        self, x: Float[Array, "B T H W C"], along: str, context: Float[Array, "B G L E"] | None = None
    ) -> Float[Array, "B T H W C"]:
        """`along` "space" or "time"; with a context, to its tokens, those of the video (G = 1) or of each frame."""
        pixels = rearrange(x, "b t h w c -> b t (h w) c")
        source = pixels if context is None else context
        q, k, v = (
            rearrange(linear(tokens), "b t p (n d) -> b t p n d", n=self.heads)
            for linear, tokens in ((self.q, pixels), (self.k, source), (self.v, source))
        )
        if context is None and along == "time":
            out = attend_time(q, k, v)
        else:
            out = attend_space(q, Source(k, v), implementation=self.implementation)
        return self.out(rearrange(out, "b t p n d -> b t p (n d)")).reshape(x.shape)


class FeedForward(nnx.Module):
    """GEGLU (Shazeer 2020): Linear((a · GELU(b))), (a, b) = Linear(x), four times as wide inside."""

    def __init__(self, width, *, dtype, rngs):
        self.up = nnx.Linear(width, 8 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Of every position apart."""
        hidden, gate = jnp.split(self.up(x), 2, axis=-1)
        return self.down(hidden * jax.nn.gelu(gate, approximate=False))


def interleaved_code(frames: int, width: int) -> Float[Array, "T C"]:
    """Sinusoidal code of the frame, sine and cosine in turns (Vaswani et al. 2017, section 3.5)."""
    cosines, sines = jnp.split(sinusoid(jnp.arange(frames, dtype=jnp.float32), width), 2, axis=-1)
    return rearrange(jnp.stack([sines, cosines], -1), "t c two -> t (c two)")


def in_windows(attend: Callable, x: Float[Array, "B T H W C"], length: int, stride: int) -> Float[Array, "B T H W C"]:
    """FreeNoise's window-based attention fusion (Qiu et al. 2023): `attend` on overlapping windows at once.

    Frames are the means of what the windows make of them, weighted by their distance to a window's ends. Frames that
    the last whole window leaves over are those of one more window at the end, which has no say in the others.
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

    The second attention is to the context where there is one (`context_width`), else like the first. `position` adds
    a code of the frame before both (AnimateDiff). `feed_in` begins with a further feed-forward (Stable Video
    Diffusion's temporal block). `window` (length, stride) lets frames attend in windows, and counts them there.
    """

    def __init__(
        self, width, *, along, context_width=0, position=False, feed_in=False, window=None, dtype, rngs, **heads
    ):
        common = dict(dtype=dtype, rngs=rngs)

        def norm():
            return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, **common)

        self.along, self.position, self.to_context, self.window = along, position, bool(context_width), window
        self.norm_in = norm() if feed_in else None
        self.feed_in = FeedForward(width, **common) if feed_in else None
        self.norm1, self.attention1 = norm(), Attention(width, **heads, **common)
        self.norm2, self.attention2 = norm(), Attention(width, context_width=context_width, **heads, **common)
        self.norm3, self.feed = norm(), FeedForward(width, **common)

    def __call__(
        self, x: Float[Array, "B T H W C"], context: Float[Array, "B G L E"] | None = None
    ) -> Float[Array, "B T H W C"]:
        """`context` is read by a block that was made with a `context_width`."""
        if self.feed_in is not None:
            x = x + self.feed_in(self.norm_in(x))
        if self.window is not None:
            x = in_windows(self._attend, x, *self.window)
        else:
            x = self._attend(x, context if self.to_context else None)
        return x + self.feed(self.norm3(x))

    def _attend(self, x, context=None):
        x = x + self.attention1(self._placed(self.norm1(x)), self.along)
        return x + self.attention2(self._placed(self.norm2(x)), self.along, context)

    def _placed(self, x):
        if not self.position:
            return x
        return x + interleaved_code(x.shape[1], x.shape[-1])[:, None, None].astype(x.dtype)


class Transformer(nnx.Module):
    """Group norm, projection, blocks, projection, added to the input: along space or along time.

    Epsilon is 1e-6. `across_frames`: statistics of the norm are over all frames.
    """

    def __init__(self, channels, *, layers, heads, head_size, groups, across_frames, along, dtype, rngs, **block):
        inner, common = heads * head_size, dict(dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(channels, dtype, rngs, groups=groups, epsilon=1e-6, across_frames=across_frames)
        self.project_in = nnx.Linear(channels, inner, **common)
        self.blocks = nnx.List(
            TransformerBlock(inner, along=along, heads=heads, head_size=head_size, **block, **common)
            for _ in range(layers)
        )
        self.project_out = nnx.Linear(inner, channels, **common)

    def __call__(
        self, x: Float[Array, "B T H W C"], context: Float[Array, "B G L E"] | None = None
    ) -> Float[Array, "B T H W C"]:
        """`context`: the tokens of the text, for a transformer that reads them."""
        hidden = self.project_in(self.norm(x))
        for block in self.blocks:
            hidden = block(hidden, context)
        return x + self.project_out(hidden)


class SpaceTimeTransformer(nnx.Module):
    """A space transformer whose every block is followed by one in time, blended in (Stable Video Diffusion).

    The temporal blocks know the frame by a learned embedding of its number, and see the context of the first frame.
    One blend serves all blocks.
    """

    def __init__(self, channels, *, layers, heads, head_size, groups, context_width, implementation, dtype, rngs):
        inner, common = heads * head_size, dict(dtype=dtype, rngs=rngs)
        block = dict(heads=heads, head_size=head_size, context_width=context_width, implementation=implementation)
        self.norm = GroupNorm(channels, dtype, rngs, groups=groups, epsilon=1e-6)
        self.project_in = nnx.Linear(channels, inner, **common)
        self.blocks = nnx.List(TransformerBlock(inner, along="space", **block, **common) for _ in range(layers))
        self.time_blocks = nnx.List(
            TransformerBlock(inner, along="time", feed_in=True, **block, **common) for _ in range(layers)
        )
        self.frame = EmbeddingMLP(channels, 4 * channels, channels, **common)
        self.blend = Blend()
        self.project_out = nnx.Linear(inner, channels, **common)

    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        context: Float[Array, "B G L E"],
        stills: Bool[Array, "B T"] | None,
        layout: Layout,
    ) -> Float[Array, "B T H W C"]:
        """`stills` are frames that stay as the space blocks leave them."""
        hidden = self.project_in(self.norm(x))
        code = self.frame(sinusoid(jnp.arange(x.shape[1], dtype=jnp.float32), x.shape[-1]))[:, None, None]
        for block, time_block in zip(self.blocks, self.time_blocks, strict=True):
            hidden = layout(block(hidden, context), "time")
            mixed = time_block(hidden + code.astype(hidden.dtype), context[:, :1])
            hidden = layout(self.blend(hidden, mixed, stills), "space")
        return x + self.project_out(hidden)


class EmbeddingMLP(nnx.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, width_in, width, width_out, *, dtype, rngs):
        self.first = nnx.Linear(width_in, width, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C2"]:
        """Of a sinusoidal code."""
        return self.second(jax.nn.silu(self.first(x)))
