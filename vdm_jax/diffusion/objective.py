"""The training loss: which times are drawn, how errors are weighted, when the condition is dropped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.prediction import check_prediction, error_factor, from_x_eps, per_sample
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, Key, Scalar

TIME_SAMPLINGS = ("uniform", "stratified", "logit_normal")
WEIGHTINGS = ("none", "truncated_snr", "min_snr")
LOSSES = ("squared", "huber")

# Each random draw of a training step has its own purpose, folded into the step's key.
TIME, NOISE, DROP, SHARED = range(4)

# Beyond ±20 no weight matters in float32, and the ends of a flow are infinite.
LOG_SNR_LIMIT = 20.0


@dataclass(frozen=True)
class Objective:
    """What is predicted, and how its error is weighted and averaged.

    `mean` and `std` belong to "logit_normal" times, `gamma` to "min_snr", `delta` to the "huber" loss.
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

    def __post_init__(self):
        check_prediction(self.prediction)
        for name, known in (("time_sampling", TIME_SAMPLINGS), ("weighting", WEIGHTINGS), ("loss", LOSSES)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name}={value!r} must be one of {', '.join(known)}")
        for name in ("std", "gamma", "delta"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.null_probability <= 1:
            raise InputError(f"null_probability={self.null_probability} must be between 0 and 1")


class Draws(NamedTuple):
    """Everything random in the loss of one batch. Split it with the batch to accumulate gradients exactly."""

    time: Float[Array, "B"]
    noise: Float[Array, "B *shape"]
    drop: Bool[Array, "B"]


def sample_times(objective: Objective, key: Key[Array, ""], batch: int) -> Float[Array, "B"]:
    """One time in [0, 1) per sample.

    "uniform": independent. "stratified": one in each of `batch` equal intervals, each still uniform by itself
    (Kingma et al. 2021, appendix I.1). "logit_normal": sigmoid of a Gaussian (Esser et al. 2024, eq. 19).
    """
    if objective.time_sampling == "stratified":
        return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
    if objective.time_sampling == "logit_normal":
        return jax.nn.sigmoid(objective.mean + objective.std * jax.random.normal(key, (batch,)))
    return jax.random.uniform(key, (batch,))


def weights(objective: Objective, process: Process, t: Float[Array, "B"]) -> Float[Array, "B"]:
    """The weight on the squared error of the predicted quantity.

    "none" leaves the prediction's own error. The others are weights in x-space, divided by
    `error_factor`: "truncated_snr" max(SNR, 1) (Salimans & Ho 2022, section 4), "min_snr" min(SNR, γ)
    (Hang et al. 2023, eq. 8).
    """
    if objective.weighting == "none":
        return jnp.ones_like(t)
    log_snr = jnp.clip(process.log_snr(t), -LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    snr = jnp.exp(log_snr)
    in_x_space = jnp.maximum(snr, 1) if objective.weighting == "truncated_snr" else jnp.minimum(snr, objective.gamma)
    return in_x_space / error_factor(objective.prediction, log_snr)


def draw(objective: Objective, process: Process, x: Float[Array, "B *shape"], key: Key[Array, ""]) -> Draws:
    """The times, the noise and the null dropout of one batch, each from its own key."""
    batch = x.shape[0]
    time = process.training_time(sample_times(objective, jax.random.fold_in(key, TIME), batch))
    # The same bits in any shape; XLA takes eight times as long to compile them in five dimensions for CPUs.
    noise = jax.random.normal(jax.random.fold_in(key, NOISE), (batch, x[0].size), x.dtype).reshape(x.shape)
    if process.frame_correlation:
        shared = jax.random.normal(jax.random.fold_in(key, SHARED), (batch, x[0, 0].size), x.dtype)
        noise = process.mix(noise, shared.reshape(batch, 1, *x.shape[2:]))
    drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), objective.null_probability, (batch,))
    return Draws(time, noise, drop)


def loss(
    objective: Objective,
    process: Process,
    predict: Callable,
    x: Float[Array, "B *shape"],
    key: Key[Array, ""],
    frame_weights: Float[Array, "T"] | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss of one batch and its metrics, with times, noise and null dropout drawn from `key`.

    `predict(z, network_time, drop)` is the network's raw output; where `drop` is true the condition is to be
    replaced by the null condition (classifier-free guidance, Ho & Salimans 2022, algorithm 1).
    """
    return loss_at(objective, process, predict, x, draw(objective, process, x, key), frame_weights)


def loss_at(
    objective: Objective,
    process: Process,
    predict: Callable,
    x: Float[Array, "B *shape"],
    draws: Draws,
    frame_weights: Float[Array, "T"] | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss of one batch at given draws: the mean over samples of w(t)·error, and {loss, unweighted mse}.

    All frames count alike by default, appended images included (joint training, Ho et al. 2022, section 4.3.1);
    `frame_weights` makes it the weighted mean over the frame axis 1 instead.
    """
    t, noise, drop = draws
    alpha, sigma = process.alpha_sigma(t)
    z = per_sample(alpha, x) * x + per_sample(sigma, x) * noise
    output = predict(per_sample(process.input_scale(t), z) * z, process.network_time(t), drop).astype(x.dtype)
    difference = output - from_x_eps(objective.prediction, x, noise, alpha, sigma)
    squared = _frame_mean(difference**2, frame_weights)
    if objective.loss == "huber":
        errors = _frame_mean(_huber(difference, objective.delta), frame_weights)
    else:
        errors = squared
    value = jnp.mean(weights(objective, process, t) * errors)
    return value, {"loss": value, "mse": jnp.mean(squared)}


def _huber(difference: Array, delta: float) -> Array:
    """Squared error up to |difference| = δ, then its tangent: twice Huber's function."""
    size = jnp.abs(difference)
    return jnp.where(size <= delta, difference**2, delta * (2 * size - delta))


def _frame_mean(error: Array, frame_weights: Array | None) -> Array:
    """B T … -> B, the mean over everything but the batch, weighted along the frames if asked."""
    if frame_weights is None:
        return error.reshape(error.shape[0], -1).mean(axis=1)
    if error.ndim < 2 or frame_weights.shape != error.shape[1:2]:
        shape, frames = frame_weights.shape, error.shape[1:2]
        raise InputError(f"frame_weights of shape {shape} must hold one weight per frame, shape {frames}")
    per_frame = error.reshape(*error.shape[:2], -1).mean(axis=2)
    return per_frame @ frame_weights / frame_weights.sum()
