"""From a network's raw output to a denoiser: classifier-free guidance, its rescaling, and clipping of x̂."""

from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.diffusion.prediction import TINY, check_prediction, per_sample, to_x_eps
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Scalar

CLIPS = (None, "static", "dynamic")


def guided(
    predict: Callable,
    process: Process,
    prediction: str,
    *,
    weight: float | int | Scalar | Float[Array, "T"] = 1.0,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable:
    """A denoiser `(z, t) -> (x̂, ε̂)` from `predict(z, network_time, drop) -> raw output`.

    - `weight` w: u + w (c − u) of the unconditional u and the conditional c; 1 is no guidance (Ho &
      Salimans 2022, in the convention of Saharia et al. 2022, eq. 3). Both come from one doubled batch
      [unconditional, conditional], `drop` true in the first half: `predict` repeats its condition to
      match. At w = 1 (a Python number) the batch is not doubled and `drop` is false. Several are for
      the frames of a video, B T ….
    - `interval`: outside these times w = 1 (Kynkäänniemi et al. 2024).
    - `rescale` φ: brings the output's standard deviation back to the conditional's, in part (Lin et al.
      2023, eq. 15-16).
    """
    check_prediction(prediction)
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale={rescale} must be between 0 (off) and 1")
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"interval={interval} must be two times with 0 <= first <= second <= 1")
    unguided = isinstance(weight, int | float) and weight == 1

    def denoise(z: Float[Array, "B *shape"], t: Float[Array, "B"]):
        scaled, told = per_sample(process.input_scale(t), z) * z, process.network_time(t)
        if unguided:
            output = predict(scaled, told, jnp.zeros(t.shape, bool)).astype(z.dtype)
        else:
            drop = jnp.repeat(jnp.array([True, False]), t.shape[0])
            both = predict(jnp.concatenate([scaled, scaled]), jnp.concatenate([told, told]), drop).astype(z.dtype)
            active = ((interval[0] <= t) & (t <= interval[1])).reshape(-1, *[1] * (z.ndim - 1))
            weights = jnp.asarray(weight).reshape(-1, *[1] * max(z.ndim - 2, 0))  # against B T …
            output = combine(*jnp.split(both, 2), jnp.where(active, weights, 1.0).astype(z.dtype), rescale)
        return to_x_eps(prediction, output, z, *process.alpha_sigma(t))

    return denoise


def clipped(denoise: Callable, process: Process, clip: str | None, *, percentile: float = 0.995) -> Callable:
    """The denoiser with x̂ kept near the range of the data, and ε̂ so that z = α x̂ + σ ε̂ still holds.

    "static" clips to [-1, 1]; "dynamic" to ±s, divided by s, with s the `percentile` of |x̂| in each sample and at
    least 1 (Saharia et al. 2022, section 2.3); None leaves it.
    """
    if clip not in CLIPS:
        raise InputError(f"clip={clip!r} must be one of None, 'static', 'dynamic'")
    if not 0 < percentile <= 1:
        raise InputError(f"percentile={percentile} must be in (0, 1]")
    if clip is None:
        return denoise

    def within(z: Float[Array, "B *shape"], t: Float[Array, "B"]):
        x_hat, _ = denoise(z, t)
        x_hat = clip_static(x_hat) if clip == "static" else clip_dynamic(x_hat, percentile)
        return to_x_eps("x", x_hat, z, *process.alpha_sigma(t))

    return within


def combine(
    unconditional: Float[Array, "B *shape"],
    conditional: Float[Array, "B *shape"],
    weight: Float[Array, "..."],
    rescale: float = 0.0,
) -> Float[Array, "B *shape"]:
    """u + w (c − u), then (1 − φ) of it and φ of it scaled to the standard deviation of c.

    The weights are one a sample, or shaped to broadcast.
    """
    weight = per_sample(weight, conditional) if weight.ndim == 1 else weight
    output = unconditional + weight * (conditional - unconditional)
    if rescale == 0:
        return output
    axes = tuple(range(1, output.ndim))
    spread = output.std(axes, keepdims=True)
    factor = conditional.std(axes, keepdims=True) / jnp.maximum(spread, TINY)
    return output * (1 + rescale * (factor - 1))


def clip_static(x: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
    """x within [-1, 1], the range of the data."""
    return jnp.clip(x, -1, 1)


def clip_dynamic(x: Float[Array, "B *shape"], percentile: float) -> Float[Array, "B *shape"]:
    """x within [-1, 1] by cutting at ±s and dividing by s, s = max(1, percentile of |x|), for each sample."""
    limit = jnp.quantile(jnp.abs(x).reshape(x.shape[0], -1), percentile, axis=1)
    limit = per_sample(jnp.maximum(limit, 1), x)
    return jnp.clip(x, -limit, limit) / limit
