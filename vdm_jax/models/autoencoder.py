"""The autoencoders of the published latent models.

An image autoencoder (Stable Diffusion, Rombach et al. 2022) encodes and decodes every frame by itself. Stable Video
Diffusion (Blattmann et al. 2023) has the same encoder, and a decoder with a residual block in time in every layer.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention
from vdm_jax.models.convolution import BlendedTimeBlock, Inputs, ResidualBlock, with_neighbours
from vdm_jax.models.layers import GroupNorm, StridedConv, UpsampleConv
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.typing import Array, Float

EPSILON = 1e-6  # of all norms, except in time (1e-5)

Decode = Callable[[Array], Array]


class MiddleAttention(nnx.Module):
    """Group norm and attention over the pixels of each frame, added to the input; q, k, v and out have biases."""

    def __init__(self, channels, *, heads=1, groups, dtype, rngs):
        self.norm = GroupNorm(channels, dtype, rngs, groups=groups, epsilon=EPSILON)
        # A head as wide as the level is too wide for the fused kernel.
        self.attention = Attention(channels, heads=heads, biased="qkv", dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Adds attention to x."""
        pixels = rearrange(self.norm(x), "b t h w c -> b t (h w) c")
        return x + self.attention(pixels).reshape(x.shape)


class Layer(nnx.Module):
    """A residual block in space, then one in time if the decoder is `in_time`."""

    def __init__(self, channels_in, channels, *, in_time=False, **common):
        self.space_conv = ResidualBlock(channels_in, channels, None, epsilon=EPSILON, **common)
        self.time_conv = BlendedTimeBlock(channels, None, switched=True, epsilon=1e-5, **common) if in_time else None

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H W C2"]:
        x = layout(self.space_conv(layout(x, "space"), Inputs(), layout), "space")
        if self.time_conv is not None:
            x = layout(self.time_conv(layout(x, "time"), Inputs(), layout), "time")
        return layout(x, "space")


class Middle(nnx.Module):
    """Layer, attention, layer. With one layer the attention is not run, as published, though it has parameters."""

    def __init__(self, channels, *, layers=2, in_time=False, **common):
        self.layers = nnx.List(Layer(channels, channels, in_time=in_time, **common) for _ in range(layers))
        self.attention = MiddleAttention(channels, **common)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H W C"]:
        x = self.layers[0](x, layout)
        for layer in self.layers[1:]:
            x = layer(self.attention(x), layout)
        return x


class Encoder(nnx.Module):
    """Maps frames to mean and log variance of their latents, concatenated along the channels; each frame by itself."""

    def __init__(self, channels_in, channels_out, *, widths, blocks, groups, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.conv_in = nnx.Conv(channels_in, widths[0], (3, 3), **common)
        self.down, self.downsample, width = nnx.List(), nnx.List(), widths[0]
        for level, wide in enumerate(widths):
            before = [width, *[wide] * (blocks - 1)]
            self.down.append(nnx.List(Layer(channels, wide, groups=groups, **common) for channels in before))
            width = wide
            if level < len(widths) - 1:
                self.downsample.append(StridedConv(width, width, border_after=True, **common))
        self.middle = Middle(width, groups=groups, **common)
        self.norm = GroupNorm(width, dtype, rngs, groups=groups, epsilon=EPSILON)
        self.conv_out = nnx.Conv(width, channels_out, (3, 3), **common)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE) -> Float[Array, "B T H2 W2 C2"]:
        """Encodes a video: rows and columns are halved between levels, and odd numbers rounded down."""
        x = layout.per_frame(self.conv_in, layout(x, "space"))
        for level, layers in enumerate(self.down):
            for layer in layers:
                x = layer(x, layout)
            if level < len(self.downsample):
                x = self.downsample[level](x, layout)
        return layout.per_frame(self.conv_out, jax.nn.silu(self.norm(self.middle(x, layout))))


class Decoder(nnx.Module):
    """Maps latents to frames. If `in_time`, frames see each other, and a convolution over three frames comes last."""

    def __init__(self, channels_in, channels_out, *, widths, blocks, in_time, groups, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        layer, width = dict(in_time=in_time, groups=groups) | common, widths[-1]
        self.conv_in = nnx.Conv(channels_in, width, (3, 3), **common)
        self.middle = Middle(width, layers=blocks if in_time else 2, **layer)
        self.up, self.upsample = nnx.List(), nnx.List()
        for level, wide in enumerate(reversed(widths)):
            self.up.append(nnx.List(Layer(before, wide, **layer) for before in [width, *[wide] * blocks]))
            width = wide
            if level < len(widths) - 1:
                self.upsample.append(UpsampleConv(width, width, **common))
        self.norm = GroupNorm(width, dtype, rngs, groups=groups, epsilon=EPSILON)
        self.conv_out = nnx.Conv(width, channels_out, (3, 3), **common)
        self.time_out = nnx.Linear(3 * channels_out, channels_out, **common) if in_time else None

    def __call__(self, z: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE) -> Float[Array, "B T H2 W2 C2"]:
        """Decodes latents: rows and columns are doubled between levels."""
        x = self.middle(layout.per_frame(self.conv_in, layout(z, "space")), layout)
        for level, layers in enumerate(self.up):
            for layer in layers:
                x = layer(x, layout)
            if level < len(self.upsample):
                x = self.upsample[level](x, (2 * x.shape[2], 2 * x.shape[3]), layout)
        x = layout.per_frame(self.conv_out, jax.nn.silu(self.norm(x)))
        if self.time_out is None:
            return x
        x = layout(layout(x, "space"), "time")
        return layout(layout(self.time_out(with_neighbours(x)), "time"), "space")


class Autoencoder(nnx.Module):
    """Autoencoder of frames with normal latents, as published.

    Args:
        channels_in, channels_out: of a frame. latent_channels: of a latent.
        widths: channels of each level; between two levels, rows and columns are halved.
        blocks: layers per level in the encoder (one more in the decoder).
        in_time: the decoder has residual blocks in time (Stable Video Diffusion). Its middle has `blocks` layers.
        quant, post_quant: a linear layer after the encoder, and before the decoder. groups: of every group norm.
        dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        *,
        channels_in: int = 3,
        channels_out: int = 3,
        latent_channels: int = 4,
        widths: Sequence[int],
        blocks: int,
        in_time: bool = False,
        quant: bool = True,
        post_quant: bool = True,
        groups: int = 32,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        for width in widths:
            if width % groups:
                raise InputError(f"groups={groups} must divide every width, not {width}")
        if in_time and blocks > 2:
            raise InputError(f"blocks={blocks} must be 1 or 2 with a decoder in time: no more are run in its middle")
        common, numbers = dict(dtype=dtype, rngs=rngs), 2 * latent_channels
        shape = dict(widths=widths, blocks=blocks, groups=groups) | common
        self.encoder = Encoder(channels_in, numbers, **shape)
        self.quant = nnx.Linear(numbers, numbers, **common) if quant else None
        self.post_quant = nnx.Linear(latent_channels, latent_channels, **common) if post_quant else None
        self.decoder = Decoder(latent_channels, channels_out, in_time=in_time, **shape)

    def encode(
        self, video: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE
    ) -> tuple[Float[Array, "B T H2 W2 C2"], Float[Array, "B T H2 W2 C2"]]:
        """Returns mean (the mode) and log variance of the latents of a video in [-1, 1], not scaled."""
        encoded = self.encoder(video, layout)
        return moments(encoded if self.quant is None else self.quant(encoded))

    def decode(self, latents: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE) -> Float[Array, "B T H2 W2 C2"]:
        """Returns the video of latents in the scale of `encode`, without `Codec.scale`."""
        latents = latents if self.post_quant is None else self.post_quant(latents)
        return self.decoder(latents, layout).astype(jnp.float32)


def moments(encoded: Float[Array, "B T H W C2"]) -> tuple[Float[Array, "B T H W C"], Float[Array, "B T H W C"]]:
    """Splits the result of an encoder into mean and log variance, in float32."""
    mean, log_variance = jnp.split(encoded.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


def decode_in_chunks(decode: Decode, latents: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T H2 W2 C2"]:
    """Decodes `frames` frames at a time, on the memory of one chunk if `decode` is compiled by itself.

    A decoder in time sees no frame of another chunk, so its result depends on `frames`. As published, chunks do not
    overlap, and the last may be shorter: padding would be seen by the other frames.
    """
    if frames < 1:
        raise InputError(f"chunk={frames} must be at least 1")
    chunks = [decode(latents[:, start : start + frames]) for start in range(0, latents.shape[1], frames)]
    return jnp.concatenate(chunks, axis=1)
