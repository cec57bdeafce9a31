"""The convolutions of the published latent U-Nets: residual blocks in space and in time, and what changes resolution.

Stable Diffusion (Rombach et al. 2022) has the space block; ModelScope (Wang et al. 2023) follows it with a stack of
temporal convolutions, Stable Video Diffusion (Blattmann et al. 2023) with a temporal block that it blends in.
"""

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx

from vdm_jax.models.space import GroupNorm, Layout
from vdm_jax.models.time import with_neighbours
from vdm_jax.typing import Array, Bool, Float


class ResidualBlock(nnx.Module):
    """x + conv(SiLU(GN(conv(SiLU(GN(x))) + Linear(SiLU(e))))): convolutions within frames, or between them.

    In time, statistics are over all frames, and a convolution is a matrix product with the three frames around.
    `embedding` is the width of e, None for a block that is told nothing (autoencoders).
    """

    def __init__(self, channels_in, channels, embedding, *, groups, epsilon, across_frames=False, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        norm = dict(groups=groups, epsilon=epsilon, across_frames=across_frames)
        self.in_time = across_frames

        def conv(channels_in):
            if self.in_time:
                return nnx.Linear(3 * channels_in, channels, **common)
            return nnx.Conv(channels_in, channels, (3, 3), **common)

        self.norm1 = GroupNorm(channels_in, dtype, rngs, **norm)
        self.conv1 = conv(channels_in)
        self.embedding = None if embedding is None else nnx.Linear(embedding, channels, **common)
        self.norm2 = GroupNorm(channels, dtype, rngs, **norm)
        self.conv2 = conv(channels)
        self.shortcut = None if channels_in == channels else nnx.Linear(channels_in, channels, **common)

    def __call__(
        self, x: Float[Array, "B T H W C"], embedding: Float[Array, "B G E"] | None, layout: Layout
    ) -> Float[Array, "B T H W C2"]:
        """G is 1 (one embedding for the video) or T (one for each frame)."""
        hidden = self._convolve(self.conv1, jax.nn.silu(self.norm1(x)), layout)
        if self.embedding is not None:
            hidden = hidden + self.embedding(jax.nn.silu(embedding))[:, :, None, None]
        hidden = self._convolve(self.conv2, jax.nn.silu(self.norm2(hidden)), layout)
        return (x if self.shortcut is None else self.shortcut(x)) + hidden

    def _convolve(self, conv, x, layout):
        return conv(with_neighbours(x)) if self.in_time else layout.per_frame(conv, x)


class TimeConvStack(nnx.Module):
    """Four temporal convolutions, each after group norm over all frames and SiLU, added to their input (ModelScope)."""

    def __init__(self, channels, *, groups, dtype, rngs):
        self.norms, self.convs = nnx.List(), nnx.List()
        for _ in range(4):
            self.norms.append(GroupNorm(channels, dtype, rngs, groups=groups, across_frames=True))
            self.convs.append(nnx.Linear(3 * channels, channels, dtype=dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Its input and what the stack makes of it."""
        hidden = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(with_neighbours(jax.nn.silu(norm(hidden))))
        return x + hidden


class Blend(nnx.Module):
    """sigmoid(mix)·space + (1 − sigmoid(mix))·time; of frames that are stills, space alone (Blattmann et al. 2023).

    `switched`: sigmoid(mix) is the share of time, as in the decoder; the mix then starts at 0.
    """

    def __init__(self, switched=False):
        self.switched = switched
        self.mix = nnx.Param(jnp.full((1,), 0.0 if switched else 0.5, jnp.float32))

    def __call__(
        self,
        space: Float[Array, "B T H W C"],
        time: Float[Array, "B T H W C"],
        stills: Bool[Array, "B T"] | None,
    ) -> Float[Array, "B T H W C"]:
        """The blend of what was computed within frames and between them."""
        share = jax.nn.sigmoid(-self.mix[...] if self.switched else self.mix[...])
        if stills is not None:
            share = jnp.where(stills[:, :, None, None, None], 1.0, share)
        share = share.astype(space.dtype)
        return share * space + (1 - share) * time


class BlendedTimeBlock(nnx.Module):
    """A residual block in time, blended with its input."""

    def __init__(self, channels, embedding, *, switched=False, **options):
        self.block = ResidualBlock(channels, channels, embedding, across_frames=True, **options)
        self.blend = Blend(switched)

    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        embedding: Float[Array, "B G E"] | None,
        stills: Bool[Array, "B T"] | None,
        layout: Layout,
    ) -> Float[Array, "B T H W C"]:
        """The blend of x with the block's answer."""
        return self.blend(x, self.block(x, embedding, layout), stills)


class StridedConv(nnx.Module):
    """Halves rows and columns: a convolution with stride 2 and a border of one pixel, or only `border_after` them."""

    def __init__(self, channels, *, border_after=False, dtype, rngs):
        padding = (0, 1) if border_after else (1, 1)
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=(padding,) * 2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H2 W2 C"]:
        """An odd number of rows or columns is rounded up; down where the border is only below and to the right."""
        return layout.per_frame(self.conv, x)


class UpsampleConv(nnx.Module):
    """The nearest pixel, then a convolution."""

    def __init__(self, channels, *, dtype, rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], size: tuple[int, int], layout: Layout
    ) -> Float[Array, "B T H2 W2 C"]:
        """`size` is that of the level above: about twice as many rows and columns."""
        if size == (2 * x.shape[2], 2 * x.shape[3]):  # no gather, whose gradient is slow
            x = repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2)
        else:
            for axis, n in zip((2, 3), size, strict=True):
                x = jnp.take(x, jnp.arange(n) * x.shape[axis] // n, axis=axis)
        return layout.per_frame(self.conv, x)
