"""The training loss: which times are drawn, how errors are weighted, when the condition is dropped."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.prediction import Predict, check_prediction, error_factor, from_x_eps, per_sample
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, Key, Scalar

TIME_SAMPLINGS = ("uniform", "stratified", "logit_normal")
WEIGHTINGS = ("none", "truncated_snr", "min_snr")
LOSSES = ("squared", "huber")

# Each random draw of a training step has its own purpose, folded into the step's key.
TIME, NOISE, DROP, SHARED = range(4)

# Beyond ±20 no weight matters in float32, and log-SNR is infinite at the ends of a flow.
LOG_SNR_LIMIT = 20.0


@dataclass(frozen=True)
class Objective:
    """The predicted quantity, and how its error is weighted and averaged.

    `mean` and `std` belong to "logit_normal" times, `gamma` to "min_snr", `delta` to the "huber" loss.
    `time_per_frame` draws an independent time for each frame (Diffusion Forcing, Chen et al. 2024, arXiv 2407.01392).
    """

    prediction: str = "v"
    time_sampling: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    weighting: str = "none"
    gamma: float = 5.0
    loss: str = "squared"
    delta: float = 1.0
    null_probability: float = 0.1
    time_per_frame: bool = False

    def __post_init__(self):
        check_prediction(self.prediction)
        for name, allowed in (("time_sampling", TIME_SAMPLINGS), ("weighting", WEIGHTINGS), ("loss", LOSSES)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        for name in ("std", "gamma", "delta"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.null_probability <= 1:
            raise InputError(f"null_probability={self.null_probability} must be between 0 and 1")


class Draws(NamedTuple):
    """Everything random in the loss of one batch. Split it with the batch to accumulate gradients exactly."""

    time: Float[Array, "B *T"]  # one per video (B), or one per frame (B T)
    noise: Float[Array, "B *shape"]
    drop: Bool[Array, "B"]


def sample_times(
    objective: Objective, key: Key[Array, ""], batch: int, frames: int | None = None
) -> Float[Array, "B *T"]:
    """Draws one time in [0, 1) per video, or per frame if the number of `frames` is given.

    "uniform": independent. "stratified": one in each of `batch` equal intervals, where each time by itself is still
    uniform (Kingma et al. 2021, appendix I.1). "logit_normal": sigmoid of a Gaussian (Esser et al. 2024, eq. 19).

    The times of a video's frames are independent. With "stratified" each frame has one time in each interval, and an
    order of its own over the batch: a Latin hypercube.
    """
    shape = (batch,) if frames is None else (batch, frames)
    if objective.time_sampling == "stratified":
        if frames is None:
            return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
        offset_key, order_key = jax.random.split(key)
        strata = jnp.broadcast_to(jnp.arange(batch)[:, None] / batch, shape)
        strata = jax.random.permutation(order_key, strata, axis=0, independent=True)
        return (jax.random.uniform(offset_key, (frames,)) + strata) % 1.0
    if objective.time_sampling == "logit_normal":
        return jax.nn.sigmoid(objective.mean + objective.std * jax.random.normal(key, shape))
    return jax.random.uniform(key, shape)


def weights(objective: Objective, process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the weight on the squared error of the predicted quantity at each time.

    "none" keeps the prediction's own error. The other weights are defined for the error of x, and divided by
    `error_factor`: "truncated_snr" is max(SNR, 1) (Salimans & Ho 2022, section 4), "min_snr" is min(SNR, γ) (Hang et
    al. 2023, eq. 8).
    """
    if objective.weighting == "none":
        return jnp.ones_like(t)
    log_snr = jnp.clip(process.log_snr(t), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    snr = jnp.exp(log_snr)
    in_x_space = jnp.maximum(snr, 1) if objective.weighting == "truncated_snr" else jnp.minimum(snr, objective.gamma)
    return in_x_space / error_factor(objective.prediction, log_snr)


def draw(objective: Objective, process: Process, x: Float[Array, "B *shape"], key: Key[Array, ""]) -> Draws:
    """Draws the times, the noise and the null dropout of one batch, each from its own key."""
    batch, frames = x.shape[0], x.shape[1] if objective.time_per_frame else None
    time = process.training_time(sample_times(objective, jax.random.fold_in(key, TIME), batch, frames))
    # Drawn flat, with the same bits: XLA takes eight times as long to compile five dimensions for CPUs.
    noise = jax.random.normal(jax.random.fold_in(key, NOISE), (batch, x[0].size), x.dtype).reshape(x.shape)
    if process.frame_correlation:
        shared = jax.random.normal(jax.random.fold_in(key, SHARED), (batch, x[0, 0].size), x.dtype)
        noise = process.mix(noise, shared.reshape(batch, 1, *x.shape[2:]))
    drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), objective.null_probability, (batch,))
    return Draws(time, noise, drop)


def loss_at(
    objective: Objective,
    process: Process,
    predict: Predict,
    x: Float[Array, "B *shape"],
    draws: Draws,
    frame_weights: Float[Array, "B T"] | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Returns the loss of one batch at given draws, the mean of w(t)·error, and {loss, unweighted mse}.

    `predict(z, network_time, drop)` is the network's raw output; it replaces the condition by the null condition where
    `drop` is true (classifier-free guidance, Ho & Salimans 2022, algorithm 1).

    All frames count equally by default, appended images included (joint training, Ho et al. 2022, section 4.3.1).
    `frame_weights` makes the error of a video the weighted mean over its frames. A video whose weights are all zero
    adds zero to the mean over videos.
    """
    t, noise, drop = draws
    if frame_weights is not None and frame_weights.shape != x.shape[:2]:
        raise InputError(
            f"frame_weights of shape {frame_weights.shape} must hold one weight per frame, shape {x.shape[:2]}"
        )
    alpha, sigma = process.alpha_sigma(t)
    z = per_sample(alpha, x) * x + per_sample(sigma, x) * noise
    output = predict(per_sample(process.input_scale(t), z) * z, process.network_time(t), drop).astype(x.dtype)
    difference = output - from_x_eps(objective.prediction, x, noise, alpha, sigma)
    squared = difference**2
    errors = _huber(difference, objective.delta) if objective.loss == "huber" else squared
    value = jnp.mean(_mean(errors, weights(objective, process, t), frame_weights))
    return value, {"loss": value, "mse": jnp.mean(_mean(squared, jnp.ones_like(t), frame_weights))}


def _huber(difference: Array, delta: float) -> Array:
    """Returns the squared error up to |difference| = δ, then its tangent: twice Huber's function."""
    size = jnp.abs(difference)
    return jnp.where(size <= delta, difference**2, delta * (2 * size - delta))


def _mean(error: Array, weight: Array, frame_weights: Array | None) -> Array:
    """Returns the mean of weight · error over each video, B, for weights of shape B or B T."""
    if weight.ndim == 1 and frame_weights is None:
        return weight * error.reshape(error.shape[0], -1).mean(axis=1)
    per_frame = error.reshape(*error.shape[:2], -1).mean(axis=2)
    per_frame = per_sample(weight, per_frame) * per_frame
    if frame_weights is None:
        return per_frame.mean(axis=1)
    total = frame_weights.sum(axis=1)
    return (frame_weights * per_frame).sum(axis=1) / jnp.where(total == 0, 1, total)
