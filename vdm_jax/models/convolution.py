"""What fills the convolution slots of a layer: residual blocks in space and in time.

All are called as `block(x, inputs, layout)`. `ModulatedBlock` and `TimeConv` are our own networks'. Stable Diffusion
(Rombach et al. 2022) has `ResidualBlock`; ModelScope (Wang et al. 2023) follows it with a stack of temporal
convolutions, Stable Video Diffusion (Blattmann et al. 2023) with a temporal block that it blends in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.models.conditions import Text
from vdm_jax.models.layers import Blend, GroupNorm, dropout, zeros
from vdm_jax.models.layout import Layout
from vdm_jax.typing import Array, Bool, Float, Key


class Inputs(NamedTuple):
    """Inputs of a slot next to x."""

    embedding: Float[Array, "B G E"] | None = None  # of time and conditions: G = 1, or T (one for each frame)
    text: Text | None = None
    is_still: Bool[Array, "B T"] | None = None
    key: Key[Array, ""] | None = None  # of dropout


class ModulatedBlock(nnx.Module):
    """Residual block of two convolutions, modulated by the embedding (Dhariwal & Nichol 2021, equation 1).

    x + conv(dropout(SiLU((1 + s)·GN(conv(SiLU(GN(x)))) + b))), (s, b) = Linear(SiLU(e)); zero at first.
    """

    def __init__(self, channels_in, channels, embedding, *, kernel=3, dropout=0.0, dtype, rngs):
        def conv(channels_in, **options):
            """A convolution within frames; a pointwise one is a plain matrix product."""
            if kernel == 1:
                return nnx.Linear(channels_in, channels, dtype=dtype, rngs=rngs, **options)
            return nnx.Conv(channels_in, channels, (kernel, kernel), dtype=dtype, rngs=rngs, **options)

        self.norm1 = GroupNorm(channels_in, dtype, rngs)
        self.conv1 = conv(channels_in)
        self.modulation = nnx.Linear(embedding, 2 * channels, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(channels, dtype, rngs)
        self.conv2 = conv(channels, kernel_init=zeros)
        self.shortcut = None if channels_in == channels else nnx.Linear(channels_in, channels, dtype=dtype, rngs=rngs)
        self.rate = dropout

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C2"]:
        """Adds the modulated convolutions to x."""
        hidden = layout.per_frame(self.conv1, jax.nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.modulation(jax.nn.silu(inputs.embedding))[:, :, None, None], 2, axis=-1)
        hidden = jax.nn.silu(self.norm2(hidden) * (1 + scale) + shift)
        hidden = layout.per_frame(self.conv2, dropout(hidden, self.rate, inputs.key))
        return (x if self.shortcut is None else self.shortcut(x)) + hidden


class TimeConv(nnx.Module):
    """Residual convolution over three neighbouring frames, zero at first: x + conv(SiLU(GN(x))).

    One matrix product over the shifted frames: pixels keep their axes, so rows can be sharded.
    """

    def __init__(self, channels, embedding=None, *, dtype, rngs):
        del embedding
        self.norm = GroupNorm(channels, dtype, rngs)
        self.project = nnx.Linear(3 * channels, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds the convolution to x; a still has no neighbours."""
        return x + self.project(with_neighbours(jax.nn.silu(self.norm(x)), inputs.is_still))


def with_neighbours(
    x: Float[Array, "B T H W C"], is_still: Bool[Array, "B T"] | None = None
) -> Float[Array, "B T H W C3"]:
    """Concatenates the frame before, the frame itself and the frame after along the channels.

    A linear layer on the result is a convolution over three frames. Zeros stand for a frame that does not exist. A
    still has no neighbours, and is no neighbour.
    """

    def shift(x, by):
        """Moves frames by one, zeros coming in at the end."""
        pad = jnp.zeros_like(x[:, :1])
        return jnp.concatenate([pad, x[:, :-1]] if by > 0 else [x[:, 1:], pad], axis=1)

    before, after = shift(x, 1), shift(x, -1)
    if is_still is not None:
        before, after = (
            jnp.where((is_still | shift(is_still, by))[:, :, None, None, None], 0, neighbour)
            for by, neighbour in ((1, before), (-1, after))
        )
    return jnp.concatenate([before, x, after], axis=-1)


class ResidualBlock(nnx.Module):
    """x + conv(SiLU(GN(conv(SiLU(GN(x))) + Linear(SiLU(e))))): convolutions within frames, or between them.

    In time, statistics are over all frames, and a convolution is a matrix product with the three frames around.
    `embedding` is the width of e, None for a block without one (autoencoders).
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

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C2"]:
        """Adds the convolutions to x."""
        hidden = self._convolve(self.conv1, jax.nn.silu(self.norm1(x)), layout)
        if self.embedding is not None:
            hidden = hidden + self.embedding(jax.nn.silu(inputs.embedding))[:, :, None, None]
        hidden = self._convolve(self.conv2, jax.nn.silu(self.norm2(hidden)), layout)
        return (x if self.shortcut is None else self.shortcut(x)) + hidden

    def _convolve(self, conv, x, layout):
        return conv(with_neighbours(x)) if self.in_time else layout.per_frame(conv, x)


class TimeConvStack(nnx.Module):
    """Four temporal convolutions, each after group norm over all frames and SiLU, added to their input (ModelScope)."""

    def __init__(self, channels, embedding=None, *, groups, dtype, rngs):
        del embedding
        self.norms, self.convs = nnx.List(), nnx.List()
        for _ in range(4):
            self.norms.append(GroupNorm(channels, dtype, rngs, groups=groups, across_frames=True))
            self.convs.append(nnx.Linear(3 * channels, channels, dtype=dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds the output of the stack to x."""
        hidden = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(with_neighbours(jax.nn.silu(norm(hidden))))
        return x + hidden


class BlendedTimeBlock(nnx.Module):
    """A residual block in time, blended with its input."""

    def __init__(self, channels, embedding, *, switched=False, **options):
        self.block = ResidualBlock(channels, channels, embedding, across_frames=True, **options)
        self.blend = Blend(switched)

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Blends x with the output of the block."""
        return self.blend(x, self.block(x, inputs, layout), inputs.is_still)
