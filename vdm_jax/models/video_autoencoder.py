"""Causal autoencoders of videos: a latent stands for several frames, and convolutions look back in time only.

With its arguments one network is Wan's autoencoder, 2.1 and 2.2 (Wan Team 2025, arXiv 2503.20314), HunyuanVideo's (Kong
et al. 2024, arXiv 2412.03603), which Open-Sora 2 has as well, and the temporal autoencoder of Open-Sora 1.2 (Zheng et
al. 2024, arXiv 2412.20404), whose frames are latents of an autoencoder of images.

On a mesh, frames lie over `context` where they divide, else every device of `context` computes all of its batch. Rows
are never split: XLA (JAX 0.10) computes some convolutions that are split along rows wrongly.

Norms of single positions (Wan) make a network strictly causal: it then runs on a whole video or piece by piece
(`causal.in_pieces`), with the same result. Group norms over frames let early latents depend on later frames.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention
from vdm_jax.models.autoencoder import moments
from vdm_jax.models.causal import Block, Down, Factors, Past, Style, Up, average, duplicate
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.typing import Array, Float

PADDINGS = ("zeros", "replicate", "first")
RESAMPLES = ("separate", "nearest", "shuffle")
ATTENTIONS = (None, "frame", "past")


class Level(nnx.Module):
    """Residual blocks, then what leads to the next level; with `shortcut`, also the means or copies of the input."""

    def __init__(self, channels_in, channels, blocks, resample, shortcut, style: Style, rngs):
        before = [channels_in, *[channels] * (blocks - 1)]
        self.blocks = nnx.List(Block(width, channels, style, rngs) for width in before)
        self.resample, self.shortcut = resample, shortcut

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T2 H2 W2 C2"]:
        start = x
        for block in self.blocks:
            x = block(x, past, layout)
        if self.resample is not None:
            x = layout(self.resample(layout(x, "space"), past, layout), "space")
        if self.shortcut is None:
            return x
        kind, *arguments = self.shortcut
        added = average(start, *arguments) if kind == "average" else duplicate(start, *arguments, past.begins)
        return layout(x + added, "space")


class MiddleAttention(nnx.Module):
    """Attention with one head, added to its input: over the pixels of each "frame", or of a frame and its "past"."""

    def __init__(self, channels, style: Style, rngs):
        self.norm, self.in_time = style.norm(channels, rngs), style.attention == "past"
        options = dict(along="all" if self.in_time else "space", biased="qkv", dtype=style.dtype, rngs=rngs)
        self.attention = Attention(channels, heads=1, **options)

    def __call__(self, x: Float[Array, "B T H W C"], layout: Layout) -> Float[Array, "B T H W C"]:
        """Adds attention to x."""
        x, mask = layout(x, "space"), None
        pixels = rearrange(self.norm(x), "b t h w c -> b t (h w) c")
        if self.in_time:
            frame = jnp.repeat(jnp.arange(x.shape[1]), pixels.shape[2])
            mask = (frame[:, None] >= frame)[None, None]
        return layout(x + self.attention(pixels, mask=mask, layout=layout).reshape(x.shape), "space")


class Middle(nnx.Module):
    """Residual blocks, with one attention between any two."""

    def __init__(self, channels, style: Style, rngs):
        self.blocks = nnx.List(Block(channels, channels, style, rngs) for _ in range(style.middle))
        self.attention = MiddleAttention(channels, style, rngs) if style.attention else None

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T H W C"]:
        for i, block in enumerate(self.blocks):
            if i and self.attention is not None:
                x = self.attention(x, layout)
            x = block(x, past, layout)
        return x


class Encoder(nnx.Module):
    """Maps frames to mean and log variance of their latents, concatenated along the channels."""

    def __init__(self, channels_in, channels_out, *, widths, blocks, down, kernel_out, style: Style, rngs):
        self.conv_in = style.conv(channels_in, widths[0], rngs, bias=style.bias)
        self.levels, width = nnx.List(), widths[0]
        for wide, factors in zip(widths, [*down, None], strict=True):
            resample = None if factors in (None, (1, 1)) else Down(wide, factors, style, rngs)
            shortcut = ("average", factors or (1, 1), wide) if style.residual else None
            self.levels.append(Level(width, wide, blocks, resample, shortcut, style, rngs))
            width = wide
        self.middle, self.norm = Middle(width, style, rngs), style.norm(width, rngs)
        self.conv_out = style.conv(width, channels_out, rngs, kernel=(kernel_out,) * 2)

    def __call__(self, x: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T2 H2 W2 C2"]:
        x = layout(self.conv_in(layout(x, "space"), past, layout), "space")
        for level in self.levels:
            x = level(x, past, layout)
        x = layout(self.middle(x, past, layout), "space")
        return layout(self.conv_out(jax.nn.silu(self.norm(x)), past, layout), "space")


class Decoder(nnx.Module):
    """Maps latents to frames."""

    def __init__(self, channels_in, channels_out, *, widths, blocks, up, style: Style, rngs):
        width = widths[-1]
        self.conv_in, self.middle = style.conv(channels_in, width, rngs), Middle(width, style, rngs)
        self.levels = nnx.List()
        for wide, factors in zip(reversed(widths), [*up, None], strict=True):
            halved = wide // 2 if style.resample == "separate" and not style.residual else wide
            resample = None if factors in (None, (1, 1)) else Up(wide, halved, factors, style, rngs)
            shortcut = ("duplicate", factors, wide) if style.residual and factors else None
            self.levels.append(Level(width, wide, blocks, resample, shortcut, style, rngs))
            width = halved if resample is not None else wide
        self.norm, self.conv_out = style.norm(wide, rngs), style.conv(wide, channels_out, rngs)

    def __call__(self, z: Float[Array, "B T H W C"], past: Past, layout: Layout) -> Float[Array, "B T2 H2 W2 C2"]:
        x = layout(self.conv_in(layout(z, "space"), past, layout), "space")
        x = layout(self.middle(x, past, layout), "space")
        for level in self.levels:
            x = level(x, past, layout)
        return layout(self.conv_out(jax.nn.silu(self.norm(x)), past, layout), "space")


class VideoAutoencoder(nnx.Module):
    """Causal autoencoder of videos with normal latents.

    Args:
        channels_in, channels_out: of a frame. latent_channels: of a latent.
        widths: channels of each level. decoder_widths: the same for the decoder.
        blocks: residual blocks per level, in the encoder and in the decoder.
        down, up: factors (time, space) between levels, in the order in which the encoder or the decoder runs.
        groups, epsilon: of group norms over frames; None for RMS norms of each position.
        padding: of convolutions (`CausalConv`): "zeros", "replicate" or "first".
        bias: residual blocks and the encoder's first convolution have biases.
        resample: "separate", "nearest" or "shuffle" (`Down`, `Up`).
        residual: levels add means or copies of their input (Wan 2.2).
        attention: in the middle: None, "frame" or "past" (`MiddleAttention`). middle: residual blocks there.
        patch: rows and columns of a block of pixels that become channels.
        kernel_out: of the encoder's last convolution. dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        *,
        channels_in: int = 3,
        channels_out: int = 3,
        latent_channels: int = 16,
        widths: Sequence[int],
        decoder_widths: Sequence[int] | None = None,
        blocks: tuple[int, int] = (2, 3),
        down: Sequence[Factors],
        up: Sequence[Factors],
        groups: int | None = None,
        epsilon: float = 1e-6,
        padding: str = "zeros",
        bias: bool = True,
        resample: str = "separate",
        residual: bool = False,
        attention: str | None = "frame",
        middle: int = 2,
        patch: int = 1,
        kernel_out: int = 3,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        for name, value, valid in (
            ("padding", padding, PADDINGS),
            ("resample", resample, RESAMPLES),
            ("attention", attention, ATTENTIONS),
        ):
            if value not in valid:
                raise InputError(f"{name}={value!r} must be one of {', '.join(map(str, valid))}")
        for width in (*widths, *(decoder_widths or ())):
            if groups is not None and width % groups:
                raise InputError(f"groups={groups} must divide every width, not {width}")
        style = Style(groups, epsilon, padding, bias, resample, residual, attention, middle, dtype)
        numbers, linear = 2 * latent_channels, dict(dtype=dtype, rngs=rngs)
        shape = dict(widths=widths, blocks=blocks[0], down=down, kernel_out=kernel_out)
        self.encoder = Encoder(channels_in * patch**2, numbers, **shape, style=style, rngs=rngs)
        self.quant = nnx.Linear(numbers, numbers, **linear)
        self.post_quant = nnx.Linear(latent_channels, latent_channels, **linear)
        shape = dict(widths=decoder_widths or widths, blocks=blocks[1], up=up)
        self.decoder = Decoder(latent_channels, channels_out * patch**2, **shape, style=style, rngs=rngs)
        self.patch = patch
        self.block = math.prod(time for time, _ in down) if resample == "shuffle" else 1  # frames of a latent

    def encode(
        self, video: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE, past: Past | None = None
    ) -> tuple[Float[Array, "B T2 H2 W2 C2"], Float[Array, "B T2 H2 W2 C2"]]:
        """Returns mean (the mode) and log variance of the latents of a video in [-1, 1], not normalised.

        `past` has the frames before a piece of a video; the first piece is one frame. In "shuffle" zeros in front of
        the video fill up the first latent.
        """
        x = rearrange(video, "b t (h i) (w j) c -> b t h w (c j i)", i=self.patch, j=self.patch)
        x = jnp.pad(x, [(0, 0), (-x.shape[1] % self.block, 0), (0, 0), (0, 0), (0, 0)])
        return moments(self.quant(self.encoder(x, past or Past(), layout)))

    def decode(
        self, latents: Float[Array, "B T H W C"], layout: Layout = ONE_DEVICE, past: Past | None = None
    ) -> Float[Array, "B T2 H2 W2 C2"]:
        """Returns the video of latents in the scale of `encode`; "shuffle" has the frames that filled up the first."""
        x = self.decoder(self.post_quant(latents), past or Past(), layout)
        return rearrange(x, "b t h w (c j i) -> b t (h i) (w j) c", i=self.patch, j=self.patch).astype(jnp.float32)
