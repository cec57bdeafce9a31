"""Causal layers of autoencoders of videos: they look back in time only, on a whole video or piece by piece."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from vdm_jax.models.layers import GroupNorm
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.typing import Array, Float

Factors = tuple[int, int]  # of time and of space


class Past:
    """The frames before a piece of a video, for each layer that looks back, in the order in which layers run.

    `kept` is `next` of the piece before; without it the piece is the beginning of a video, or all of it.
    """

    def __init__(self, kept: Sequence[Array] | None = None):
        self.begins, self._kept, self.next = kept is None, iter(kept or ()), []

    def __call__(self, x: Float[Array, "B T H W C"], count: int, fill: str) -> Float[Array, "B T2 H W C"]:
        """Returns x after the `count` frames before it.

        Before a video there are zeros, or copies of its "first" frame ("replicate" as well), or "nothing".
        """
        if count == 0:
            return x
        if not self.begins:
            x = jnp.concatenate([next(self._kept), x], axis=1)
        elif fill in ("first", "replicate"):
            x = jnp.concatenate([jnp.repeat(x[:, :1], count, axis=1), x], axis=1)
        elif fill == "zeros":
            x = jnp.pad(x, [(0, 0), (count, 0), (0, 0), (0, 0), (0, 0)])
        self.next.append(x[:, x.shape[1] - count :])
        return x


def in_pieces(step: Callable[[Array, Past], Array], x: Float[Array, "B T H W C"], size: int) -> Array:
    """Runs `step(piece, past)` on the first frame, then on `size` frames at a time, on the memory of one piece.

    Equal to `step(x, Past())` where no frame sees later ones.
    """
    past = Past()
    start = step(x[:, :1], past)
    if x.shape[1] == 1:
        return start

    def scan(kept, piece):
        past = Past(kept)
        result = step(piece, past)
        return past.next, result

    pieces = rearrange(x[:, 1:], "b (n t) h w c -> n b t h w c", t=size)
    _, rest = jax.lax.scan(scan, past.next, pieces)
    return jnp.concatenate([start, rearrange(rest, "n b t h w c -> b (n t) h w c")], axis=1)


class CausalConv(nnx.Module):
    """A convolution over time and space that looks back in time: a sum of convolutions of frames.

    On CPUs the sum is faster than XLA's convolution over three axes; `experiments/benchmark_layers.py` measures both.

    Args:
        kernel, stride: of time and of space; a kernel of 0 in time convolves each frame, and has four axes.
        before: frames that it looks back.
        padding: "zeros" around a video; "replicate", its border; "first", the first frame in time and zeros in space;
            "nothing" in time; "after", zeros below and right of a frame alone.
    """

    def __init__(
        self, channels_in, channels, *, kernel=(3, 3), stride=(1, 1), before=None, padding, bias=True, dtype, rngs
    ):
        time, side = kernel
        self.stride, self.padding, self.dtype = stride, padding, jnp.dtype(dtype)
        self.before = max(time - 1, 0) if before is None else before
        shape = (*[time] * (time > 0), side, side, channels_in, channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32)) if bias else None

    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past, layout: Layout = ONE_DEVICE
    ) -> Float[Array, "B T2 H2 W2 C2"]:
        """Convolves a piece of a video."""
        kernel = self.kernel[...].astype(self.dtype)
        kernel = kernel if kernel.ndim == 5 else kernel[None]
        taps, side = kernel.shape[:2]
        x = past(x.astype(self.dtype), self.before, self.padding)
        frames, border = (x.shape[1] - taps) // self.stride[0] + 1, (side // 2, side // 2)
        if self.padding == "replicate":
            x = jnp.pad(x, [(0, 0), (0, 0), border, border, (0, 0)], mode="edge")
        if self.padding in ("replicate", "after"):
            border = (0, int(self.padding == "after"))

        def tap(i):
            images = x[:, i :: self.stride[0]][:, :frames]
            if side == 1:
                return images @ kernel[i, 0, 0]
            axes = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
            window = dict(window_strides=self.stride[1:] * 2, padding=[border] * 2)
            convolve = functools.partial(jax.lax.conv_general_dilated, rhs=kernel[i], **window, **axes)
            return layout.per_frame(convolve, images)

        y = sum(tap(i) for i in range(taps))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Style:
    """What the layers of one autoencoder have in common: arguments of `VideoAutoencoder`."""

    groups: int | None
    epsilon: float
    padding: str
    bias: bool
    resample: str
    residual: bool
    attention: str | None
    middle: int
    dtype: str

    def norm(self, channels: int, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a group norm over frames, or an RMS norm of each position."""
        if self.groups is None:
            return nnx.RMSNorm(channels, epsilon=1e-24, dtype=self.dtype, rngs=rngs)
        return GroupNorm(channels, self.dtype, rngs, groups=self.groups, epsilon=self.epsilon, across_frames=True)

    def conv(self, channels_in: int, channels: int, rngs: nnx.Rngs, **options: Any) -> CausalConv:
        """Returns a causal convolution."""
        return CausalConv(channels_in, channels, **dict(padding=self.padding, dtype=self.dtype) | options, rngs=rngs)


class Block(nnx.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with causal convolutions."""

    def __init__(self, channels_in, channels, style: Style, rngs):
        self.norm1 = style.norm(channels_in, rngs)
        self.conv1 = style.conv(channels_in, channels, rngs, bias=style.bias)
        self.norm2 = style.norm(channels, rngs)
        self.conv2 = style.conv(channels, channels, rngs, bias=style.bias)
        linear = dict(use_bias=style.bias, dtype=style.dtype, rngs=rngs)
        self.shortcut = None if channels_in == channels else nnx.Linear(channels_in, channels, **linear)

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T H W C2"]:
        """Adds the convolutions to x."""
        x = layout(x, "space")
        hidden = self.conv1(jax.nn.silu(self.norm1(x)), past, layout)
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)), past, layout)
        return layout((x if self.shortcut is None else self.shortcut(x)) + hidden, "space")


class Down(nnx.Module):
    """Divides frames, rows and columns by factors.

    "separate": a convolution of each frame, then one of three frames with stride 2, which leaves the first frame alone.
    Else one convolution with strides. It leaves the first frame alone, but not in "shuffle".
    """

    def __init__(self, channels, factors: Factors, style: Style, rngs):
        if style.resample == "separate":
            self.space = style.conv(channels, channels, rngs, kernel=(0, 3), stride=(1, 2), padding="after")
            options = dict(kernel=(3, 1), stride=(2, 1), before=1, padding="nothing")
            self.time = style.conv(channels, channels, rngs, **options) if factors[0] == 2 else None
        else:
            before = 3 - factors[0] if style.resample == "shuffle" else 2
            self.conv = style.conv(channels, channels, rngs, stride=factors, before=before)
        self.separate = style.resample == "separate"

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T2 H2 W2 C"]:
        """Returns a smaller piece."""
        if not self.separate:
            return self.conv(x, past, layout)
        x = self.space(x, past, layout)
        if self.time is None:
            return x
        rest = self.time(x, past, layout)
        return jnp.concatenate([x[:, :1], rest], axis=1) if past.begins else rest


class Up(nnx.Module):
    """Multiplies frames, rows and columns by factors; 1 + n frames become 1 + t n, but t + t n in "shuffle".

    "separate": a convolution of three frames makes two of one, but for the first frame, then nearest neighbours and a
    convolution of each frame. "nearest": nearest neighbours, then a convolution. "shuffle": a convolution to more
    channels, which become frames, rows and columns.
    """

    def __init__(self, channels, channels_out, factors: Factors, style: Style, rngs):
        self.factors, self.resample = factors, style.resample
        if self.resample == "separate":
            options = dict(kernel=(3, 1), padding="zeros")
            self.time = style.conv(channels, 2 * channels, rngs, **options) if factors[0] == 2 else None
            self.space = style.conv(channels, channels_out, rngs, kernel=(0, 3))
        else:
            more = factors[0] * factors[1] ** 2 if self.resample == "shuffle" else 1
            self.conv = style.conv(channels, more * channels_out, rngs)

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T2 H2 W2 C2"]:
        """Returns a larger piece."""
        time, space = self.factors
        if self.resample == "shuffle":
            x = self.conv(x, past, layout)
            return rearrange(x, "b t h w (c i j k) -> b (t i) (h j) (w k) c", i=time, j=space, k=space)
        if self.resample == "nearest":
            x = repeat(x, "b t h w c -> b (t i) (h j) (w k) c", i=time, j=space, k=space)
            return self.conv(x[:, time - 1 :] if past.begins else x, past, layout)
        if self.time is not None:
            first, rest = (x[:, :1], x[:, 1:]) if past.begins else (x[:, :0], x)
            rest = rearrange(self.time(rest, past, layout), "b t h w (i c) -> b (t i) h w c", i=2)
            x = jnp.concatenate([first, rest], axis=1)
        return self.space(repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2), past, layout)


def average(x: Float[Array, "B T H W C"], factors: Factors, channels: int) -> Float[Array, "B T2 H2 W2 C2"]:
    """Returns the mean of groups of numbers of a (time, space, space) block; zeros fill up the first block."""
    time, space = factors
    x = jnp.pad(x, [(0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)])
    x = rearrange(x, "b (t i) (h j) (w k) c -> b t h w (c i j k)", i=time, j=space, k=space)
    return rearrange(x, "b t h w (c n) -> b t h w c n", c=channels).mean(-1)


def duplicate(x: Float[Array, "B T H W C"], factors: Factors, channels: int, begins: bool) -> Array:
    """Returns (time, space, space) blocks of `channels` channels, filled with copies of x; the first frame is alone."""
    time, space = factors
    x = jnp.repeat(x, channels * time * space**2 // x.shape[-1], axis=-1)
    x = rearrange(x, "b t h w (c i j k) -> b (t i) (h j) (w k) c", i=time, j=space, k=space)
    return x[:, time - 1 :] if begins else x
