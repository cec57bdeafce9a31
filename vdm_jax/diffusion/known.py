"""What is known of a video, and four ways in which a sampler or a network respects it.

- `replaced` and `reconstructed` serve any network (Ho et al. 2022, section 3.1). Both wrap a denoiser, so they work
  with every solver and with each other: the paper's reconstruction guidance is `replaced(reconstructed(denoise))`.
- `known_channels`: the network is trained with more channels. Next to the noisy video it sees the known video, zero
  elsewhere, and its certainty: 1 where the video is known without noise, 0 where nothing is known. Trained on a
  mixture of masks it serves every mode; trained on videos of low resolution it serves super-resolution.
- `known_in_time`: the network is trained with a time for each frame, and known frames stand at t = 0, as in Open-Sora
  1.2 (its `x_mask`) and Wan 2.2 (TI2V-5B). Only whole frames can be known in this way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat

from vdm_jax.diffusion.prediction import Denoise, per_sample, to_x_eps
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import KNOWN, KNOWN_LEVEL, process_noise
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, Key, Scalar

# Which frames or pixels may be known. k, n, the share of frames and the box are drawn for each video.
MASKS = ("nothing", "everything", "first", "first_k", "last_k", "every_nth", "frames", "inside", "outside")
TELLS = ("channels", "times")


class Known(NamedTuple):
    """A video that is known under the mask only; its other values are never used."""

    video: Float[Array, "B *shape"]
    mask: Bool[Array, "B ..."]  # the video's shape, with size 1 along axes where the mask is constant

    def put(self, x: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
        """Returns x with the known part replaced by the known video."""
        return jnp.where(self.mask, self.video, x)


@dataclass(frozen=True)
class MaskMixture:
    """What is known of a video in training, and how the network sees it.

    `mixture` gives the relative frequency of each of `MASKS`. `noise` is the largest standard deviation of the noise on
    the known part, drawn uniformly for each video (noise augmentation, Ho et al. 2021, section 4.2). With `downsample`
    n the known video has an n-th of the rows and columns. `tell` is how the network sees the known part: as more
    "channels" (`draw_known`), or as frames at other "times" (`draw_known_times`).
    """

    mixture: Mapping[str, float] = field(hash=False)
    noise: float | int = 0.0
    downsample: int = 1
    tell: str = "channels"

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
        if self.tell not in TELLS:
            raise InputError(f"known.tell={self.tell!r} must be one of {', '.join(TELLS)}")
        if self.tell == "times":
            if self.downsample > 1:
                raise InputError(f"known.downsample={self.downsample} must be 1 with known.tell='times'")
            for kind in ("inside", "outside"):
                if self.mixture.get(kind, 0) > 0:
                    raise InputError(
                        f"known.mixture.{kind}={self.mixture[kind]} must be 0 with known.tell='times': "
                        "a time belongs to a whole frame"
                    )


def draw_mask(mixture: Mapping[str, float], key: Key[Array, ""], shape: tuple[int, int, int]) -> Bool[Array, "T H W 1"]:
    """Draws the mask of one video of `shape` (frames, rows, columns): a kind of the mixture, then its sizes."""
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


def _draw_masks(
    mixture: Mapping[str, float], key: Key[Array, ""], shape: tuple[int, int, int, int], images: int
) -> Bool[Array, "B T H W 1"]:
    """Draws the masks of videos of `shape` (videos, frames, rows, columns); the last `images` stills are unknown."""
    videos, frames, *size = shape
    draw = jax.vmap(lambda key: draw_mask(mixture, key, (frames - images, *size)))
    return jnp.pad(draw(jax.random.split(key, videos)), [(0, 0), (0, images), (0, 0), (0, 0), (0, 0)])


def draw_known(
    masks: MaskMixture, x: Float[Array, "B T H W C"], key: Key[Array, ""], images: int = 0
) -> Float[Array, "B T H W C1"]:
    """Draws `known_channels` for each video of a training batch; nothing is known of the last `images` stills."""
    mask_key, level_key, noise_key = jax.random.split(key, 3)
    mask = _draw_masks(masks.mixture, mask_key, x.shape[:4], images)
    level = jax.random.uniform(level_key, x.shape[:1], maxval=masks.noise) if masks.noise else 0.0
    noise = jax.random.normal(noise_key, (x.shape[0], x[0].size)).reshape(x.shape) if masks.noise else jnp.zeros_like(x)
    return known_channels(Known(coarsen(x, masks.downsample), mask), noise, level)


def known_channels(
    known: Known, noise: Float[Array, "B T H W C"], level: Float[Array, "B"] | Scalar | float = 0.0
) -> Float[Array, "B T H W C1"]:
    """Returns the channels in which a network sees the known part: the video, and one channel for its certainty.

    A video that is known up to noise of standard deviation σ (`level`) is shown as α x + σ ε with the certainty
    α = √(1 − σ²).
    """
    sigma = jnp.broadcast_to(jnp.asarray(level, jnp.float32), known.video.shape[:1])[:, None, None, None, None]
    alpha = jnp.sqrt(1 - sigma**2)
    mask = jnp.broadcast_to(known.mask, (*known.video.shape[:-1], 1))
    return jnp.concatenate([mask * (alpha * known.video + sigma * noise), mask * alpha], axis=-1)


def coarsen(x: Float[Array, "B T H W C"], factor: int) -> Float[Array, "B T H W C"]:
    """Averages blocks of `factor` rows and columns, and repeats each pixel to the size of its block."""
    small = reduce(x, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor)
    return repeat(small, "b t h w c -> b t (h i) (w j) c", i=factor, j=factor)


def draw_known_times(
    masks: MaskMixture, process: Process, time: Float[Array, "B *T"], frames: int, key: Key[Array, ""], images: int = 0
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Draws which frames of a training batch are known; returns the times of all frames, and their weights in the loss.

    A known frame stands at the time of its noise level, 0 without noise, and has weight 0. Every other frame keeps its
    `time` and has weight 1. Nothing is known of the last `images` stills.
    """
    mask_key, level_key = jax.random.split(key)
    known = _draw_masks(masks.mixture, mask_key, (len(time), frames, 1, 1), images)[..., 0, 0, 0]
    level = jax.random.uniform(level_key, time.shape[:1], time.dtype, maxval=masks.noise) if masks.noise else 0.0
    level = jnp.broadcast_to(jnp.asarray(level, time.dtype), time.shape[:1])
    time = time[:, None] if time.ndim == 1 else time
    return jnp.where(known, level_time(process, level)[:, None], time), (~known).astype(time.dtype)


def level_time(process: Process, level: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the time at which a video is noisy as √(1 − σ²) x + σ ε, up to scale; exactly 0 for the level σ = 0."""
    sigma = jnp.where(level > 0, level, 0.5)
    return jnp.where(level > 0, process.time(jnp.log1p(-(sigma**2)) - 2 * jnp.log(sigma)), 0)


def nearest_known(video: Float[Array, "B T H W C"], mask: Bool[Array, "B T H W 1"]) -> Float[Array, "B T H W C"]:
    """Returns the video with each frame that is all unknown replaced by the nearest frame that is all known, if any."""
    whole, some, frame = mask.all((2, 3, 4)), mask.any((2, 3, 4)), jnp.arange(mask.shape[1])
    distance = jnp.abs(frame[:, None] - frame) + len(frame) * ~whole[:, None]  # B T T
    nearest = jnp.where(some, frame, distance.argmin(-1))
    return jnp.take_along_axis(video, nearest[:, :, None, None, None], 1)


def whole_frames(mask: Bool[Array, "B T ..."] | Bool[np.ndarray, "B T ..."]) -> bool:
    """Returns whether every frame is known as a whole or not at all, so that `known_in_time` can show it all."""
    mask = np.asarray(mask).reshape(*mask.shape[:2], -1)
    return bool((mask.all(-1) == mask.any(-1)).all())


def known_in_time(
    denoise: Denoise,
    known: Known,
    process: Process,
    keys: Key[Array, "B"],
    level: float | int = 0.0,
    exact: bool = True,
) -> Denoise:
    """Returns the denoiser whose network sees the known frames at t = 0, next to noisy frames at t.

    Known frames have noise of standard deviation `level`, the same noise at every call, and stand at the time of that
    level. Their part of x̂ is the known video, or if `exact` is false the output of the network, which the loss does
    not train. Their part of ε̂ is 0: a step leads them to α_s x̂, which is x̂ itself at t = 0, and each call puts the
    known frames in their place. A frame that is known in part counts as unknown: see `whole_frames`.
    """
    known = known._replace(mask=known.mask.all(axis=tuple(range(2, known.mask.ndim)), keepdims=True))
    known_frames = known.mask.reshape(known.mask.shape[:2])
    known_time = level_time(process, jnp.float32(level))

    def denoise_known(z: Float[Array, "B *shape"], t: Float[Array, "B *T"]):
        video = known.video
        if level > 0:
            alpha, sigma = process.alpha_sigma(known_time)
            video = alpha * video + sigma * process_noise(process, keys, KNOWN_LEVEL, z.shape[1:], z.dtype)
        t = jnp.where(known_frames, known_time.astype(t.dtype), t if t.ndim == 2 else t[:, None])
        x_hat, eps_hat = denoise(jnp.where(known.mask, video, z), jnp.broadcast_to(t, z.shape[:2]))
        return (known.put(x_hat) if exact else x_hat), jnp.where(known.mask, 0, eps_hat)

    return denoise_known


def replaced(denoise: Denoise, known: Known, process: Process, keys: Key[Array, "B"], *, exact: bool = True) -> Denoise:
    """Returns the denoiser that sees a sample of q(z_t | known) in the known part: the replacement method.

    The noise of that sample is new at each time. Where frames share noise (`frame_correlation`), unknown frames share
    none with the known ones. The known part of x̂ is the known video, or if `exact` is false the output of the network:
    then no pixel is pasted, and no edge is visible.
    """

    def denoise_replaced(z: Float[Array, "B *shape"], t: Float[Array, "B *T"]):
        alpha, sigma = (per_sample(value, z) for value in process.alpha_sigma(t))
        # Solvers do not number their calls, but the bits of the time do: of all frames, as they may move one by one.
        bits = jax.lax.bitcast_convert_type(t[0].astype(jnp.float32), jnp.int32).reshape(-1)
        moment = bits[0] - (bits - bits[0]).sum(dtype=jnp.int32)
        noise = process_noise(process, keys, KNOWN, z.shape[1:], z.dtype, moment)
        x_hat, eps_hat = denoise(jnp.where(known.mask, alpha * known.video + sigma * noise, z), t)
        return (known.put(x_hat) if exact else x_hat), jnp.where(known.mask, noise, eps_hat)

    return denoise_replaced


def reconstructed(
    denoise: Denoise,
    target: Float[Array, "B *measured"],
    measure: Callable[[Float[Array, "B *shape"]], Float[Array, "B *measured"]],
    process: Process,
    weight: float | int | Scalar,
) -> Denoise:
    """Returns the denoiser that is drawn to videos whose measurement is the target: reconstruction guidance.

    x̃ = x̂ − (w α_t / 2) ∇_z ‖target − measure(x̂(z))‖² (Ho et al. 2022, section 3.1).
    The gradient goes through the network: a call costs as much as several, and more memory.
    """

    def denoise_towards(z: Float[Array, "B *shape"], t: Float[Array, "B *T"]):
        def error(z):
            x_hat, _ = denoise(z, t)
            return jnp.sum((target - measure(x_hat)) ** 2), x_hat

        gradient, x_hat = jax.grad(error, has_aux=True)(z)
        alpha, sigma = process.alpha_sigma(t)
        return to_x_eps("x", x_hat - weight * per_sample(alpha, z) / 2 * gradient, z, alpha, sigma)

    return denoise_towards


def under(mask: Bool[Array, "B ..."]) -> Callable[[Array], Array]:
    """Returns the measurement that keeps a video under the mask, and is zero elsewhere."""
    return lambda x: jnp.where(mask, x, 0)
