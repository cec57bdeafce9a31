"""From a network's raw output to a denoiser: guidance, its rescaling, and clipping of x̂."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.prediction import TINY, Denoise, Predict, check_prediction, per_sample, to_x_eps
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, PyTree, Scalar

# A number, or one for each frame; or a function from the time of sampling to either.
Weight = float | int | Scalar | Float[Array, "T"] | Callable[[Array], Array]

CLIPS = (None, "static", "dynamic", "static_x")


def guided(
    predict: Predict,
    process: Process,
    prediction: str,
    branches: Sequence[PyTree],
    weights: Sequence[Weight] = (),
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    network_time: Callable[[Array], Array] | None = None,
) -> Denoise:
    """Returns a denoiser that guides from the first condition of `branches` to the last.

    One branch is the network without guidance. Two branches u, c give u + w (c − u), classifier-free guidance (Ho &
    Salimans 2022; w as in Saharia et al. 2022, eq. 3: w = 1 is c). n branches give b₀ + Σ wᵢ (bᵢ₊₁ − bᵢ). So the image
    and the text have one weight each if the conditions are neither, the image, and both (Open-Sora 2.0).

    - `branches`: conditions of equal structure, whose arrays have the leading axis B. The network is called once for
      all branches, with the batch [b₀, b₁, …] along the first axis. A single branch is not copied.
    - `weights`: one less than branches. A weight is a number, a ramp of one number per frame (z is B T …), or a
      function from the time, of the first video and its first frame, to either.
    - `interval`: outside these times all weights are 1, which leaves the last branch (Kynkäänniemi et al. 2024).
    - `rescale` φ: brings the standard deviation of the result part of the way back to the standard deviation of the
      last branch (Lin et al. 2023, eq. 15-16).
    - `network_time`: the time that the network sees (default: the process's; see `grids.make_network_time`).
    """
    network_time = network_time or process.network_time
    check_prediction(prediction)
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale={rescale} must be between 0 (off) and 1")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"interval={interval} must be two times with 0 <= first <= second <= 1")
    if len(branches) != len(weights) + 1:
        raise InputError(f"weights has length {len(weights)}; guidance between {len(branches)} branches needs one less")
    copies = len(branches)
    condition = branches[0] if copies == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *branches)

    def denoise(z: Float[Array, "B *shape"], t: Float[Array, "B *T"]):
        scaled, seen = per_sample(process.input_scale(t), z) * z, network_time(t)
        if copies > 1:
            scaled, seen = jnp.concatenate([scaled] * copies), jnp.concatenate([seen] * copies)
        output = predict(scaled, seen, condition).astype(z.dtype)
        if copies > 1:
            active = (interval[0] <= t) & (t <= interval[1])
            active = active.reshape(active.shape + (1,) * (z.ndim - active.ndim))
            now = [weight(t.reshape(-1)[0]) if callable(weight) else weight for weight in weights]
            over_frames = [jnp.asarray(weight).reshape(-1, *[1] * max(z.ndim - 2, 0)) for weight in now]
            over_frames = [jnp.where(active, weight, 1.0).astype(z.dtype) for weight in over_frames]
            output = combine(jnp.split(output, copies), over_frames, rescale)
        return to_x_eps(prediction, output, z, *process.alpha_sigma(t))

    return denoise


def combine(
    outputs: Sequence[Float[Array, "B *shape"]], weights: Sequence[Float[Array, "..."]], rescale: float = 0.0
) -> Float[Array, "B *shape"]:
    """Returns b₀ + Σ wᵢ (bᵢ₊₁ − bᵢ), scaled by 1 − φ + φ · (standard deviation of the last output / its own).

    A weight is one number per sample (B), or has a shape that broadcasts.
    """
    output = outputs[0]
    for weight, (before, after) in zip(weights, itertools.pairwise(outputs), strict=True):
        weight = per_sample(weight, after) if weight.ndim == 1 else weight
        output = output + weight * (after - before)
    if rescale == 0:
        return output
    axes = tuple(range(1, output.ndim))
    spread = output.std(axes, keepdims=True)
    factor = outputs[-1].std(axes, keepdims=True) / jnp.maximum(spread, TINY)
    return output * (1 + rescale * (factor - 1))


def clipped(denoise: Denoise, process: Process, clip: str | None, *, percentile: float = 0.995) -> Denoise:
    """Keeps x̂ of a denoiser near the range of the data, and changes ε̂ so that z = α x̂ + σ ε̂ still holds.

    "static" clips x̂ to [-1, 1]. "dynamic" clips it to ±s and divides by s, where s is the `percentile` of |x̂| in each
    video, and at least 1 (Saharia et al. 2022, section 2.3). "static_x" clips x̂ to [-1, 1] and leaves ε̂ as it is
    (diffusers' DDIM). None changes nothing.
    """
    if clip not in CLIPS:
        raise InputError(f"clip={clip!r} must be one of {', '.join(map(repr, CLIPS))}")
    if not 0 < percentile <= 1:
        raise InputError(f"percentile={percentile} must be in (0, 1]")
    if clip is None:
        return denoise

    def clipped_denoise(z: Float[Array, "B *shape"], t: Float[Array, "B *T"]):
        x_hat, eps_hat = denoise(z, t)
        if clip == "static_x":
            return clip_static(x_hat), eps_hat
        x_hat = clip_static(x_hat) if clip == "static" else clip_dynamic(x_hat, percentile)
        return to_x_eps("x", x_hat, z, *process.alpha_sigma(t))

    return clipped_denoise


def clip_static(x: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
    """Clips x to [-1, 1], the range of the data."""
    return jnp.clip(x, -1, 1)


def clip_dynamic(x: Float[Array, "B *shape"], percentile: float) -> Float[Array, "B *shape"]:
    """Clips each video to ±s and divides it by s = max(1, percentile of |x|), so that it lies in [-1, 1]."""
    limit = jnp.quantile(jnp.abs(x).reshape(x.shape[0], -1), percentile, axis=1)
    limit = per_sample(jnp.maximum(limit, 1), x)
    return jnp.clip(x, -limit, limit) / limit
