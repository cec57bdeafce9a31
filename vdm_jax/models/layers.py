"""Small layers: normalisation, dropout, feed-forward, embeddings of numbers, and the resampling between levels."""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from vdm_jax.models.layout import Layout
from vdm_jax.typing import Array, Bool, Float, Key

zeros = nnx.initializers.zeros_init()


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018) of each frame, so that stills stay independent, or `across_frames`.

    Moments are taken per channel before channels are grouped: on CPU that is faster than a reshape to groups.
    Statistics are float32, and the variance is computed in two passes: E[x²] − E[x]² loses digits in deep networks.
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
        """By default a group has 16 channels, or the next larger number that divides them."""
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
        centred = x32 - self._grouped(x32)
        factor = jax.lax.rsqrt(self._grouped(centred**2) + self.epsilon) * self.scale[...]
        return (centred * factor + self.bias[...]).astype(self.dtype)

    def _grouped(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 1 1 C"]:
        """Returns for every channel the mean of its group."""
        means = x.mean(self.axes, keepdims=True)
        groups = rearrange(means, "b t h w (g c) -> b t h w g c", g=self.groups)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(means.shape)


def layer_norm(width: int, epsilon: float = 1e-5, **common) -> nnx.LayerNorm:
    """Returns a layer norm whose variance is computed in two passes: one pass loses digits in deep networks."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, **common)


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zeroes a fraction `rate` of entries and rescales the rest; the identity without a key (evaluation)."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class FeedForward(nnx.Module):
    """GEGLU (Shazeer 2020): Linear(a · GELU(b)), (a, b) = Linear(x), with four times the width inside."""

    def __init__(self, width, *, dtype, rngs):
        self.up = nnx.Linear(width, 8 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Transforms every position by itself."""
        hidden, gate = jnp.split(self.up(x), 2, axis=-1)
        return self.down(hidden * jax.nn.gelu(gate, approximate=False))


class EmbeddingMLP(nnx.Module):
    """Linear, activation, Linear."""

    def __init__(self, width_in, width, width_out, *, activation=jax.nn.silu, dtype, rngs):
        self.activation = activation
        self.first = nnx.Linear(width_in, width, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width_out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C2"]:
        """Embeds a sinusoidal code, or a text token."""
        return self.second(self.activation(self.first(x)))


class Blend(nnx.Module):
    """sigmoid(mix)·space + (1 − sigmoid(mix))·time; a still keeps space alone (Blattmann et al. 2023).

    `switched`: sigmoid(mix) is the share of time, as in the autoencoder's decoder; the mix then starts at 0.
    """

    def __init__(self, switched=False):
        self.switched = switched
        self.mix = nnx.Param(jnp.full((1,), 0.0 if switched else 0.5, jnp.float32))

    def __call__(
        self,
        space: Float[Array, "B T H W C"],
        time: Float[Array, "B T H W C"],
        is_still: Bool[Array, "B T"] | None,
    ) -> Float[Array, "B T H W C"]:
        """Blends results of a block in space and of a block in time."""
        share = jax.nn.sigmoid(-self.mix[...] if self.switched else self.mix[...])
        if is_still is not None:
            share = jnp.where(is_still[:, :, None, None, None], 1.0, share)
        share = share.astype(space.dtype)
        return share * space + (1 - share) * time


class Conv(nnx.Module):
    """A 3×3 convolution of each frame."""

    def __init__(self, channels_in, channels, factors=None, *, dtype, rngs):
        del factors
        self.conv = nnx.Conv(channels_in, channels, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H W C2"]:
        """Convolves each frame."""
        return layout.per_frame(self.conv, x)


class Fold(nnx.Module):
    """Folds a (time, space, space) block of pixels into channels and projects them: a patch stem, or downsampling."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        folded = channels_in * factors[0] * factors[1] ** 2
        self.project = nnx.Linear(folded, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout | None = None) -> Float[Array, "B T2 H2 W2 C2"]:
        """Returns one position for each block."""
        time, space = self.factors
        return self.project(rearrange(x, "b (t i) (h j) (w k) c -> b t h w (i j k c)", i=time, j=space, k=space))


class Repeat(nnx.Module):
    """Projects, then repeats every pixel over a (time, space, space) block: nearest-neighbour upsampling."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        self.project = nnx.Linear(channels_in, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], size=None, layout=None) -> Float[Array, "B T2 H2 W2 C2"]:
        """Returns one block for each pixel."""
        time, space = self.factors
        return repeat(self.project(x), "b t h w c -> b (t i) (h j) (w k) c", i=time, j=space, k=space)


class Unfold(nnx.Module):
    """Projects every position to a block of output pixels: the inverse of the patch stem; zero at first."""

    def __init__(self, channels_in, channels, factors, *, dtype, rngs):
        self.factors = factors
        unfolded = channels * factors[0] * factors[1] ** 2
        self.project = nnx.Linear(channels_in, unfolded, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout | None = None) -> Float[Array, "B T2 H2 W2 C2"]:
        """Returns one block for each position."""
        time, space = self.factors
        return rearrange(self.project(x), "b t h w (i j k c) -> b (t i) (h j) (w k) c", i=time, j=space, k=space)


class StridedConv(nnx.Module):
    """Halves rows and columns by a convolution with stride 2, padded on both sides or only on the far side."""

    def __init__(self, channels_in, channels, factors=None, *, border_after=False, dtype, rngs):
        del factors
        padding = (0, 1) if border_after else (1, 1)
        self.conv = nnx.Conv(channels_in, channels, (3, 3), strides=2, padding=(padding,) * 2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H2 W2 C2"]:
        """Rounds an odd number of rows or columns up, or with `border_after` down."""
        return layout.per_frame(self.conv, x)


class UpsampleConv(nnx.Module):
    """Nearest-neighbour upsampling, then a convolution."""

    def __init__(self, channels_in, channels, factors=None, *, dtype, rngs):
        del factors
        self.conv = nnx.Conv(channels_in, channels, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T H W C"], size: tuple[int, int], layout: Layout
    ) -> Float[Array, "B T H2 W2 C2"]:
        """Returns frames of `size`, the rows and columns of the level above: about twice as many."""
        if size == (2 * x.shape[2], 2 * x.shape[3]):  # no gather, whose gradient is slow
            x = repeat(x, "b t h w c -> b t (h i) (w j) c", i=2, j=2)
        else:
            for axis, n in zip((2, 3), size, strict=True):
                x = jnp.take(x, jnp.arange(n) * x.shape[axis] // n, axis=axis)
        return layout.per_frame(self.conv, x)
