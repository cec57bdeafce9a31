"""From videos to what a network draws, and back: an autoencoder's latents, or the pixels themselves."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import decode_in_chunks
from vdm_jax.typing import Array, Bool, Float, Params

Shape = tuple[int, int, int, int]  # frames, rows, columns, channels
ENCODED = 4  # frames that an image autoencoder encodes or decodes at a time, at most


@dataclasses.dataclass(frozen=True)
class Codec:
    """What stands between videos and the network. `PIXELS` is the identity, so that nobody asks whether there is one.

    Args:
        factors: frames, and rows and columns, of the block of pixels that one latent stands for.
        channels: of a latent; None for the channels of the video.
        video_channels: of a video; None for any number.
        encode, decode: from (parameters, videos B T H W C) to latents and back; both are compiled where that helps.
        scale: the network's latents are the autoencoder's times this.
        decoded: frames that are decoded at a time, at most; None for all.
    """

    factors: tuple[int, int]
    channels: int | None
    encode: Callable[[Params, Array], Array]
    decode: Callable[[Params, Array], Array]
    scale: float = 1.0
    video_channels: int | None = None
    decoded: int | None = None

    def shape(self, video: Shape) -> Shape:
        """Returns the shape of the latents of a video. Raises InputError for a size that does not fit."""
        factors = (self.factors[0], self.factors[1], self.factors[1])
        for name, size, factor in zip(("frames", "height", "width"), video, factors, strict=False):
            if size < 1 or size % factor:
                valid = f"a multiple of {factor} (the autoencoder's)" if size > 0 else "at least 1"
                raise InputError(f"{name}={size} must be {valid}")
        if self.video_channels not in (None, video[3]):
            raise InputError(f"channels={video[3]} must be {self.video_channels} (the autoencoder's)")
        sizes = (size // factor for size, factor in zip(video, factors, strict=False))
        return (*sizes, self.channels or video[3])

    def mask(self, mask: Bool[Array, "B T H W 1"]) -> Bool[Array, "B T2 H2 W2 1"]:
        """Returns which latents are known: those whose pixels are all known."""
        frames, side = self.factors
        blocks = dict(k=frames, i=side, j=side)
        return reduce(mask.astype(jnp.uint8), "b (t k) (h i) (w j) c -> b t h w c", "min", **blocks).astype(bool)


def _same(params: Params, video: Array) -> Array:
    return video


PIXELS = Codec((1, 1), None, _same, _same)


def latent_codec(
    graphdef: nnx.GraphDef,
    *,
    channels: int,
    factor: int,
    scale: float,
    video_channels: int | None = None,
    chunk: int | None = None,
    in_time: bool = False,
) -> Codec:
    """Returns the codec of an `Autoencoder` of frames.

    Args:
        graphdef: of the autoencoder.
        channels, factor: of a latent; its rows and columns of pixels.
        scale: the network's latents are the autoencoder's times this.
        video_channels: of a frame.
        chunk: frames that a decoder in time takes at a time (default: all). Other decoders take a few.
        in_time: the decoder mixes frames.
    """

    def frames_at_once(frames: int) -> int:
        """Returns a divisor, so that all chunks have one shape."""
        return max(n for n in range(1, ENCODED + 1) if frames % n == 0)

    @jax.jit
    def encode(params: Params, video: Float[Array, "B T H W C"]):
        def encode_part(part):
            mean, _ = nnx.merge(graphdef, params).encode(part)
            return scale * mean

        parts = rearrange(video, "b (n t) h w c -> n b t h w c", t=frames_at_once(video.shape[1]))
        return rearrange(jax.lax.map(encode_part, parts), "n b t h w c -> b (n t) h w c")

    @jax.jit
    def decode_part(params: Params, latents: Float[Array, "B T H W C"]):
        return nnx.merge(graphdef, params).decode(latents / scale)

    def decode(params: Params, latents: Float[Array, "B T H W C"]):
        frames = latents.shape[1]
        size = (chunk or frames) if in_time else frames_at_once(frames)
        return decode_in_chunks(lambda part: decode_part(params, part), latents, size)

    return Codec((1, factor), channels, encode, decode, scale, video_channels, chunk if in_time else ENCODED)
