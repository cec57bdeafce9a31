"""Networks that are told what is known: the channels that tell it, and what they are told in training.

The third way to respect what is known, beside the two of `known`. Next to the noisy video such a network sees the known
video, zero elsewhere, and how certain it is: 1 where it is as it was given, 0 where nothing is known. Trained on a
mixture of masks it serves every mode; on videos of low resolution, super-resolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat

from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, Key

# Which frames or pixels may be known. k, n, the share of frames and the box are drawn for each video.
MASKS = ("nothing", "everything", "first", "first_k", "last_k", "every_nth", "frames", "inside", "outside")


@dataclass(frozen=True)
class Conditioning:
    """What a network is trained to be told.

    `mixture` gives the relative frequency of each of `MASKS`. `noise` is the largest standard deviation of the noise on
    what is known, drawn uniformly for each video (noise augmentation, Ho et al. 2021, section 4.2). With `downsample`
    n what is known is the video at an n-th of its rows and columns.
    """

    mixture: Mapping[str, float] = field(hash=False)
    noise: float | int = 0.0
    downsample: int = 1

    def __post_init__(self):
        for kind, weight in self.mixture.items():
            if kind not in MASKS:
                raise InputError(f"known.mixture.{kind} must be one of {', '.join(MASKS)}")
            if weight < 0:
                raise InputError(f"known.mixture.{kind}={weight} must not be negative")
        if sum(self.mixture.values()) <= 0:
            raise InputError(f"known.mixture={dict(self.mixture)} must have a positive weight")
        if not 0 <= self.noise < 1:
            raise InputError(f"known.noise={self.noise} must be at least 0 and below 1")
        if self.downsample < 1:
            raise InputError(f"known.downsample={self.downsample} must be at least 1")


def tell(
    known: Known, noise: Float[Array, "B T H W C"], level: Float[Array, "B"] | float = 0.0
) -> Float[Array, "B T H W C1"]:
    """The channels that tell a network what is known: the video and its certainty, one more channel.

    A video that is known up to noise of standard deviation σ (`level`) is told as α x + σ ε with certainty
    α = √(1 − σ²).
    """
    sigma = jnp.broadcast_to(jnp.asarray(level, jnp.float32), known.video.shape[:1])[:, None, None, None, None]
    alpha = jnp.sqrt(1 - sigma**2)
    mask = jnp.broadcast_to(known.mask, (*known.video.shape[:-1], 1))
    return jnp.concatenate([mask * (alpha * known.video + sigma * noise), mask * alpha], axis=-1)


def draw_told(
    conditioning: Conditioning, x: Float[Array, "B T H W C"], key: Key[Array, ""], images: int = 0
) -> Float[Array, "B T H W C1"]:
    """What the network is told of each video of a batch in training; of the last `images` stills nothing."""
    mask_key, level_key, noise_key = jax.random.split(key, 3)
    clip = (x.shape[1] - images, *x.shape[2:4])
    mask = jax.vmap(lambda k: draw_mask(conditioning.mixture, k, clip))(jax.random.split(mask_key, x.shape[0]))
    mask = jnp.pad(mask, [(0, 0), (0, images), (0, 0), (0, 0), (0, 0)])
    level = jax.random.uniform(level_key, x.shape[:1], maxval=conditioning.noise) if conditioning.noise else 0.0
    noise = (
        jax.random.normal(noise_key, (x.shape[0], x[0].size)).reshape(x.shape)
        if conditioning.noise
        else jnp.zeros_like(x)
    )
    return tell(Known(coarsen(x, conditioning.downsample), mask), noise, level)


def coarsen(x: Float[Array, "B T H W C"], factor: int) -> Float[Array, "B T H W C"]:
    """A video at a `factor`-th of its rows and columns, each pixel repeated to the size that it had."""
    small = reduce(x, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor)
    return repeat(small, "b t h w c -> b t (h i) (w j) c", i=factor, j=factor)


def draw_mask(mixture: Mapping[str, float], key: Key[Array, ""], shape: tuple[int, int, int]) -> Bool[Array, "T H W 1"]:
    """What is known of one video of `shape` (frames, rows, columns): a kind of the mixture, then its sizes."""
    frames, rows, columns = shape
    kind_key, k_key, n_key, share_key, frames_key, *box_keys = jax.random.split(key, 9)
    t = jnp.arange(frames)
    k = jax.random.randint(k_key, (), 1, max(frames, 2))
    n = jax.random.randint(n_key, (), 2, max(frames // 2, 2) + 1)
    chosen = jax.random.uniform(frames_key, (frames,)) < jax.random.uniform(share_key)

    def span(size, length_key, start_key):
        length = jax.random.randint(length_key, (), max(size // 4, 1), max(3 * size // 4, 1) + 1)
        start = jax.random.randint(start_key, (), 0, size - length + 1)
        return (start <= jnp.arange(size)) & (jnp.arange(size) < start + length)

    box = span(rows, *box_keys[:2])[:, None] & span(columns, *box_keys[2:])
    in_time = {
        "nothing": t < 0,
        "everything": t >= 0,
        "first": t < 1,
        "first_k": t < k,
        "last_k": t >= frames - k,
        "every_nth": t % n == 0,
        "frames": chosen,
    }
    masks = {name: jnp.broadcast_to(mask[:, None, None], shape) for name, mask in in_time.items()}
    masks |= {name: jnp.broadcast_to(m, shape) for name, m in {"inside": box, "outside": ~box}.items()}
    kinds = list(mixture)
    weights = jnp.array([mixture[kind] for kind in kinds], jnp.float32)
    kind = jax.random.categorical(kind_key, jnp.log(weights))
    return rearrange(jnp.stack([masks[name] for name in kinds])[kind], "t h w -> t h w 1")
