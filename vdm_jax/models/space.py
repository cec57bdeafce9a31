"""Blocks that mix pixels within a frame: residual convolution and attention, and the resampling between levels."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import Source, attend_space, sinusoid
from vdm_jax.typing import Array, Bool, Float, Key

zeros = nnx.initializers.zeros_init()


@runtime_checkable
class Layout(Protocol):
    """How activations lie on a mesh; what is written here is for a single device."""

    def __call__(self, x: Float[Array, "B T H W C"], where: str) -> Float[Array, "B T H W C"]:
        """x, about to be mixed by a slot in "space" or in "time"."""
        return x

    def per_frame(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        """Applies a function of (B·T) images, such as a 2-D convolution: the fast kernels of every backend."""
        images = function(x.reshape(-1, *x.shape[2:]))
        return images.reshape(*x.shape[:2], *images.shape[1:])


class _OneDevice(Layout):
    pass


ONE_DEVICE = _OneDevice()


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018): of each frame apart, so that stills stay independent, or `across_frames`.

    Moments are taken per channel before channels are grouped: on CPU that is faster than a reshape to groups.
    Statistics are float32.
    """

    def __init__(
        self,
        channels: int,
        dtype,
        rngs: nnx.Rngs,
        *,
        groups: int | None = None,
        epsilon: float = 1e-5,
        across_frames: bool = False,
    ):
        """`groups` is by default so many that each has 16 channels, or more where that does not divide them."""
        del rngs
        if groups is None:
            groups = max(1, channels // 16)
            while channels % groups:
                groups -= 1
        self.groups, self.epsilon, self.dtype = groups, epsilon, jnp.dtype(dtype)
        self.axes = (1, 2, 3) if across_frames else (2, 3)
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Normalises over pixels and the channels of a group."""
        x32 = x.astype(jnp.float32)
        mean, square = (self._grouped(moment.mean(self.axes, keepdims=True)) for moment in (x32, x32**2))
        factor = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon) * self.scale[...]
        return (x32 * factor + (self.bias[...] - mean * factor)).astype(self.dtype)

    def _grouped(self, moment: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Every channel's moment replaced by its group's mean."""
        groups = rearrange(moment, "b t h w (g c) -> b t h w g c", g=self.groups)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(moment.shape)


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zeroes a fraction `rate` of entries and rescales the rest; the identity without a key (evaluation)."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class SpaceConv(nnx.Module):
    """Residual block of two convolutions, modulated by the embedding (Dhariwal & Nichol 2021, equation 1).

    x + conv(dropout(SiLU((1 + s)·GN(conv(SiLU(GN(x)))) + b))), (s, b) = Linear(SiLU(e)); zero at first.
    """

    def __init__(self, channels_in, channels, embedding, *, kernel, dropout, dtype, rngs):
        self.norm1 = GroupNorm(channels_in, dtype, rngs)
        self.conv1 = _conv(channels_in, channels, kernel, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(embedding, 2 * channels, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(channels, dtype, rngs)
        self.conv2 = _conv(channels, channels, kernel, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.shortcut = None if channels_in == channels else nnx.Linear(channels_in, channels, dtype=dtype, rngs=rngs)
        self.rate = dropout

    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        embedding: Float[Array, "B G E"],
        key: Key[Array, ""] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C2"]:
        """G is 1 (one embedding for the video) or T (one for each frame)."""
        hidden = layout.per_frame(self.conv1, jax.nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.modulation(jax.nn.silu(embedding))[:, :, None, None], 2, axis=-1)
        hidden = jax.nn.silu(self.norm2(hidden) * (1 + scale) + shift)
        hidden = layout.per_frame(self.conv2, dropout(hidden, self.rate, key))
        return (x if self.shortcut is None else self.shortcut(x)) + hidden


def _conv(channels_in: int, channels: int, kernel: int, **options) -> nnx.Conv | nnx.Linear:
    """A convolution within frames; a pointwise one is a plain matrix product."""
    if kernel == 1:
        return nnx.Linear(channels_in, channels, **options)
    return nnx.Conv(channels_in, channels, kernel_size=(kernel, kernel), **options)


class SpaceAttention(nnx.Module):
    """Attention over the pixels of each frame, and to the context tokens: joined to the pixels, or after them.

    `context="joint"` appends the tokens' keys and values to the pixels' (Saharia et al. 2022, Imagen, section
    2.5); `"cross"` gives them an attention of their own after the first (Rombach et al. 2022). With `all_frames` a
    pixel sees those of all frames at once, which a sinusoidal code tells apart: joint space-time attention (Bertasius
    et al. 2021, arXiv 2102.05095, section 3).
    """

    def __init__(self, channels, *, head_size, context_width, context, implementation, all_frames=False, dtype, rngs):
        linear = dict(use_bias=False, dtype=dtype, rngs=rngs)
        out = dict(kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.heads = channels // head_size
        self.context = context if context_width and context != "none" else None
        self.implementation, self.all_frames = implementation, all_frames
        self.norm = GroupNorm(channels, dtype, rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, **linear)
        self.out = nnx.Linear(channels, channels, **out)
        if self.context:
            self.context_kv = nnx.Linear(context_width, 2 * channels, **linear)
        if self.context == "cross":
            self.cross_norm = GroupNorm(channels, dtype, rngs)
            self.cross_q = nnx.Linear(channels, channels, **linear)
            self.cross_out = nnx.Linear(channels, channels, **out)

    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        context: Float[Array, "B G L E"] | None = None,
        context_mask: Bool[Array, "B G L"] | None = None,
    ) -> Float[Array, "B T H W C"]:
        """G is 1 (one text for the video) or T (one for each frame). Raises InputError for T with `all_frames`."""
        pixels = rearrange(self.norm(x), "b t h w c -> b t (h w) c")
        if self.all_frames:
            if self.context == "joint" and context.shape[1] > 1:
                raise InputError(f"{context.shape[1]} texts must be one for all frames that attend to each other")
            code = sinusoid(jnp.arange(x.shape[1], dtype=jnp.float32), x.shape[-1])[:, None]
            pixels = rearrange(pixels + code.astype(pixels.dtype), "b t p c -> b 1 (t p) c")
        q, k, v = split_heads(self.qkv(pixels), 3, self.heads)
        sources = [Source(k, v)]
        if self.context is not None:
            text = Source(*split_heads(self.context_kv(context), 2, self.heads), context_mask)
        if self.context == "joint":
            sources.append(text)
        x = x + self._merge(self.out, attend_space(q, *sources, implementation=self.implementation), x)
        if self.context != "cross":
            return x
        pixels = rearrange(self.cross_norm(x), "b t h w c -> b t (h w) c")  # text alone: each frame by itself
        (q,) = split_heads(self.cross_q(pixels), 1, self.heads)
        return x + self._merge(self.cross_out, attend_space(q, text, implementation=self.implementation), x)

    @staticmethod
    def _merge(linear, heads, x):
        return linear(rearrange(heads, "b t p n d -> b t p (n d)")).reshape(x.shape)


def split_heads(x: Float[Array, "B T P C"], parts: int, heads: int) -> tuple[Array, ...]:
    """Splits the last axis into `parts` arrays of `heads` heads; a head's parts lie together (tensor sharding)."""
    x = rearrange(x, "b t p (n parts d) -> parts b t p n d", parts=parts, n=heads)
    return tuple(x[i] for i in range(parts))


class Downsample(nnx.Module):
    """Folds a (time, space, space) block of pixels into channels and projects them: also the patch stem."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        folded = channels_in * factors[0] * factors[1] ** 2
        self.project = nnx.Linear(folded, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        time, space = self.factors
        return self.project(rearrange(x, "b (t i) (h j) (w k) c -> b t h w (i j k c)", i=time, j=space, k=space))


class Upsample(nnx.Module):
    """Projects, then repeats every pixel over a (time, space, space) block (nearest neighbour)."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        self.project = nnx.Linear(channels_in, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        time, space = self.factors
        return repeat(self.project(x), "b t h w c -> b (t i) (h j) (w k) c", i=time, j=space, k=space)


class Unpatch(nnx.Module):
    """Projects every position to a block of output pixels: the inverse of the patch stem; zero at first."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        unfolded = channels * factors[0] * factors[1] ** 2
        self.project = nnx.Linear(channels_in, unfolded, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 C2"]:
        time, space = self.factors
        return rearrange(self.project(x), "b t h w (i j k c) -> b (t i) (h j) (w k) c", i=time, j=space, k=space)
