"""Blocks that mix frames at one pixel: temporal convolution and temporal attention."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.models.attention import attend_time, clip_mask, relative_positions, rotate, sinusoid
from vdm_jax.models.space import GroupNorm, split_heads, zeros
from vdm_jax.typing import Array, Float

POSITIONS = ("relative", "rotary", "sinusoidal", "none")


class TimeConv(nnx.Module):
    """Residual convolution over three neighbouring frames, zero at first: x + conv(SiLU(GN(x))).

    One matrix product over the shifted frames: pixels keep their axes, so rows can be sharded.
    """

    def __init__(self, channels, *, dtype, rngs):
        self.norm = GroupNorm(channels, dtype, rngs)
        self.project = nnx.Linear(3 * channels, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], images: int = 0) -> Float[Array, "B T H W C"]:
        """The last `images` frames are stills: their neighbours count as zero, and they are nobody's."""
        return x + self.project(with_neighbours(jax.nn.silu(self.norm(x)), images))


def with_neighbours(x: Float[Array, "B T H W C"], images: int = 0) -> Float[Array, "B T H W C3"]:
    """The frame before, the frame itself and the frame after, side by side in the channels; zeros where there is none.

    A linear layer on it is a convolution over three frames.
    """
    clip, stills = jnp.split(x, [x.shape[1] - images], axis=1)
    before, after = (jnp.concatenate([_shift(clip, by), jnp.zeros_like(stills)], axis=1) for by in (1, -1))
    return jnp.concatenate([before, x, after], axis=-1)


def _shift(x: Array, by: int) -> Array:
    """Moves frames by one, zeros coming in at the end."""
    pad = jnp.zeros_like(x[:, :1])
    return jnp.concatenate([pad, x[:, :-1]] if by > 0 else [x[:, 1:], pad], axis=1)


class TimeAttention(nnx.Module):
    """Attention over the frames at each pixel (Ho et al. 2022, section 3), with the order of frames told.

    `position`: `relative` adds a learned bias for each head and offset (as in Video Diffusion Models), `rotary`
    turns queries and keys, `sinusoidal` adds a fixed code to the block's input. A weak learned absolute code is
    not offered: a network trained briefly with one learns no frame order, and the loss does not show it.
    """

    def __init__(self, channels, *, head_size, position, max_distance, dtype, rngs):
        self.heads = channels // head_size
        self.position = position
        self.max_distance = max_distance
        self.norm = GroupNorm(channels, dtype, rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)
        if position == "relative":
            self.bias = nnx.Param(
                0.5 * jax.random.normal(rngs.params(), (2 * max_distance + 1, self.heads), jnp.float32)
            )

    def __call__(self, x: Float[Array, "B T H W C"], images: int = 0) -> Float[Array, "B T H W C"]:
        """The last `images` frames are stills and see only themselves."""
        frames = x.shape[1]
        hidden = rearrange(self.norm(x), "b t h w c -> b t (h w) c")
        positions = jnp.arange(frames, dtype=jnp.float32)
        if self.position == "sinusoidal":
            hidden = hidden + sinusoid(positions, x.shape[-1])[:, None].astype(hidden.dtype)
        q, k, v = split_heads(self.qkv(hidden), 3, self.heads)
        if self.position == "rotary":
            q, k = rotate(q, positions), rotate(k, positions)
        bias = None
        if self.position == "relative":
            bias = rearrange(self.bias[relative_positions(frames, self.max_distance)], "t s n -> n t s")
        mask = clip_mask(frames, images) if images else None
        out = attend_time(q, k, v, bias=bias, mask=mask)
        return x + self.out(rearrange(out, "b t p n d -> b t p (n d)")).reshape(x.shape)
