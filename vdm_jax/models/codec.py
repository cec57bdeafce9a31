"""From videos to what a network draws, and back: an autoencoder's latents, or the pixels themselves."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import decode_in_chunks
from vdm_jax.models.causal import in_pieces
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
            `decode` also takes the number of frames, for codecs in chunks (default: the greatest that fits).
        scale: the network's latents are the autoencoder's times this.
        decoded: frames that are decoded at a time, at most; None for all.
        first_alone: the first latent stands for the first frame alone, as in causal autoencoders.
        chunk: frames are encoded so many at a time; the first latent of a chunk may stand for fewer frames.
    """

    factors: tuple[int, int]
    channels: int | None
    encode: Callable[[Params, Array], Array]
    decode: Callable[..., Array]
    scale: float = 1.0
    video_channels: int | None = None
    decoded: int | None = None
    first_alone: bool = False
    chunk: int | None = None

    def spans(self, frames: int) -> list[int]:
        """Returns how many frames each latent stands for. Raises InputError for a number that does not fit."""
        factor, first = self.factors[0], int(self.first_alone)
        if self.chunk:
            return spans_in_chunks(frames, self.chunk, factor)
        if frames < 1 or (frames - first) % factor:
            valid = "at least 1"
            if frames > 0 and first:
                below = frames - (frames - 1) % factor
                valid = f"1 + a multiple of {factor} (the autoencoder's): {below} or {below + factor}"
            elif frames > 0:
                valid = f"a multiple of {factor} (the autoencoder's)"
            raise InputError(f"frames={frames} must be {valid}")
        return [1] * first + [factor] * ((frames - first) // factor)

    def shape(self, video: Shape) -> Shape:
        """Returns the shape of the latents of a video. Raises InputError for a size that does not fit."""
        latents, side = len(self.spans(video[0])), self.factors[1]
        for name, size in zip(("height", "width"), video[1:3], strict=True):
            if size < 1 or size % side:
                valid = f"a multiple of {side} (the autoencoder's)" if size > 0 else "at least 1"
                raise InputError(f"{name}={size} must be {valid}")
        if self.video_channels not in (None, video[3]):
            raise InputError(f"channels={video[3]} must be {self.video_channels} (the autoencoder's)")
        return latents, video[1] // side, video[2] // side, self.channels or video[3]

    def mask(self, mask: Bool[Array, "B T H W 1"]) -> Bool[Array, "B T2 H2 W2 1"]:
        """Returns which latents are known: those whose pixels are all known.

        A latent stands for the frames of its span alone, although a causal autoencoder also sees the frames before.
        """
        spans, side = self.spans(mask.shape[1]), self.factors[1]
        ends = np.cumsum(spans)
        # A short span counts its last frame several times.
        frames = ends[:, None] - 1 - np.minimum(np.arange(max(spans)), np.array(spans)[:, None] - 1)
        blocks = dict(i=side, j=side)
        return reduce(mask[:, frames].astype(jnp.uint8), "b t k (h i) (w j) c -> b t h w c", "min", **blocks).astype(
            bool
        )


def spans_in_chunks(frames: int, chunk: int, factor: int) -> list[int]:
    """Returns how many frames each latent stands for, where chunks are filled up in front to a multiple of `factor`."""
    if frames < 1:
        raise InputError(f"frames={frames} must be at least 1")
    sizes = [min(chunk, frames - start) for start in range(0, frames, chunk)]
    return [n for size in sizes for n in [(size - 1) % factor + 1] + [factor] * ((size - 1) // factor)]


def _same(params: Params, video: Array, frames: int | None = None) -> Array:
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

    def decode(params: Params, latents: Float[Array, "B T H W C"], frames: int | None = None):
        frames = latents.shape[1]
        size = (chunk or frames) if in_time else frames_at_once(frames)
        return decode_in_chunks(lambda part: decode_part(params, part), latents, size)

    return Codec((1, factor), channels, encode, decode, scale, video_channels, chunk if in_time else ENCODED)


def video_codec(
    graphdef: nnx.GraphDef,
    *,
    factors: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    streams: bool,
    clip: bool,
    video_channels: int = 3,
) -> Codec:
    """Returns the codec of a causal `VideoAutoencoder` whose first frame is alone.

    Args:
        mean, std: of each channel of a latent: the network's latents are (z - mean) / std.
        streams: no frame sees later ones, so videos go through it one latent at a time, on the memory of one.
        clip: decoded videos are clipped to [-1, 1].
    """
    mean, std = (np.asarray(numbers, np.float32) for numbers in (mean, std))
    run = in_pieces if streams else lambda step, x, size: step(x, None)

    @jax.jit
    def encode_video(params: Params, video: Float[Array, "B T H W C"]):
        module = nnx.merge(graphdef, params)
        return (run(lambda part, past: module.encode(part, past=past)[0], video, factors[0]) - mean) / std

    @jax.jit
    def decode_latents(params: Params, latents: Float[Array, "B T H W C"]):
        module = nnx.merge(graphdef, params)
        video = run(lambda part, past: module.decode(part, past=past), latents * std + mean, 1)
        return jnp.clip(video, -1, 1) if clip else video

    def encode(params: Params, video: Float[Array, "B T H W C"]):
        codec.shape(video.shape[1:])
        return encode_video(params, video)

    def decode(params: Params, latents: Float[Array, "B T H W C"], frames: int | None = None):
        return decode_latents(params, latents)

    decoded = factors[0] if streams else None
    codec = Codec(factors, len(mean), encode, decode, video_channels=video_channels, decoded=decoded, first_alone=True)
    return codec


def stacked_codec(
    images: Codec, graphdef: nnx.GraphDef, *, factor: int, mean: Sequence[float], std: Sequence[float], chunk: int
) -> Codec:
    """Returns the codec of a temporal `VideoAutoencoder` on the latents of `images`, `chunk` frames at a time.

    Its parameters are {"images": ..., "time": ...}. Every chunk is filled up in front to a multiple of `factor`, the
    frames of a latent. Means take the place of samples from the posterior.
    """
    mean, std = (np.asarray(numbers, np.float32) for numbers in (mean, std))

    @jax.jit
    def encode_part(params: Params, part: Float[Array, "B T H W C"]):
        return (nnx.merge(graphdef, params).encode(part)[0] - mean) / std

    @jax.jit
    def decode_part(params: Params, part: Float[Array, "B T H W C"]):
        return nnx.merge(graphdef, params).decode(part * std + mean)

    def encode(params: Params, video: Float[Array, "B T H W C"]):
        frames = images.encode(params["images"], video)
        parts = [frames[:, start : start + chunk] for start in range(0, frames.shape[1], chunk)]
        return jnp.concatenate([encode_part(params["time"], part) for part in parts], axis=1)

    def decode(params: Params, latents: Float[Array, "B T H W C"], frames: int | None = None):
        size, parts = -(-chunk // factor), []
        for i, start in enumerate(range(0, latents.shape[1], size)):
            part = decode_part(params["time"], latents[:, start : start + size])
            count = min(chunk, part.shape[1]) if frames is None else min(chunk, frames - i * chunk)
            parts.append(part[:, part.shape[1] - count :])
        return images.decode(params["images"], jnp.concatenate(parts, axis=1))

    factors = (factor, images.factors[1])
    return Codec(factors, len(mean), encode, decode, video_channels=images.video_channels, decoded=chunk, chunk=chunk)
