"""Diffusion processes: how much signal α and noise σ a noisy video z_t = α_t x + σ_t ε holds at time t.

Time runs from 0 (clean) to 1 (noise). A process is a frozen, hashable value, so `jax.jit` can close over it.
Its methods take times of any shape and return arrays of the same shape and precision.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

Times = Float[Array, "*shape"]


@dataclass(frozen=True)
class Process:
    """The pair (α, σ) as functions of time, and the time as the network sees it.

    The base class is variance preserving, α² + σ² = 1. A subclass defines `log_snr` and its inverse `time`,
    and overrides what differs.

    `num_steps` is the number of training steps of a discrete process, else None.
    `finite_times` are the least and the most noisy time with a finite log-SNR: grids in log-SNR span them.
    `frame_correlation` ρ is the correlation of the noise of any two frames of a video (PYoCo's mixed noise model, Ge et
    al. 2023, section 4.1, whose α² is ρ/(1 − ρ)). The noise of each frame keeps variance 1.
    """

    num_steps = None
    finite_times = (0.0, 1.0)
    frame_correlation: float = field(default=0.0, kw_only=True)

    def mix(self, own: Float[Array, "*B T H W C"], shared: Float[Array, "*B 1 H W C"]) -> Float[Array, "*B T H W C"]:
        """Returns the noise ε of the process from each frame's own noise and shared noise, both of variance 1."""
        return math.sqrt(1 - self.frame_correlation) * own + math.sqrt(self.frame_correlation) * shared

    def log_snr(self, t: Times) -> Times:
        """λ(t) = log α²/σ², decreasing."""
        raise NotImplementedError

    def time(self, log_snr: Times) -> Times:
        """Returns the time in [0, 1] at which the log-SNR is λ: the inverse of `log_snr`."""
        raise NotImplementedError

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        """Returns (α_t, σ_t). In a variance-preserving process α² = sigmoid(λ) and σ² = sigmoid(−λ)."""
        log_snr = self.log_snr(t)
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    def network_time(self, t: Times) -> Times:
        """Returns the time as the network sees it: 1000·t, the range for which sinusoidal embeddings are made."""
        return 1000 * t

    def input_scale(self, t: Times) -> Times:
        """Returns the factor on z before the network sees it: 1 unless the variance grows with time."""
        return jnp.ones_like(t)

    def training_time(self, t: Times) -> Times:
        """Returns the time to train at when `t` was drawn: a discrete process rounds it up to a training step."""
        return t


@dataclass(frozen=True)
class Cosine(Process):
    """Cosine schedule λ = −2 log tan(πt/2), with t rescaled so that λ spans the limits.

    Limits and rescaling follow Salimans & Ho (2022) and Video Diffusion Models (Ho et al. 2022).
    `shift` s = resolution / base resolution lowers λ by 2 log s (Hoogeboom et al. 2023, simple diffusion).
    """

    shift: float = 1.0
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    def __post_init__(self):
        low, high = self.log_snr_min, self.log_snr_max
        _require(self.shift > 0, f"shift={self.shift} must be positive (resolution / base resolution)")
        _require(low < high, f"log_snr_min={low} must be below log_snr_max={high}")

    def _angles(self) -> tuple[float, float]:
        """Returns the angles atan(σ/α) at t = 0 and t = 1, before the shift."""
        return math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(-self.log_snr_min / 2))

    def log_snr(self, t: Times) -> Times:
        first, last = self._angles()
        angle = first + (last - first) * t
        # cos(angle) as the sine of the complement keeps the digits of float32 at the noisy end, too.
        complement = (math.pi / 2 - last) + (last - first) * (1 - t)
        return 2 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(angle))) - 2 * math.log(self.shift)

    def time(self, log_snr: Times) -> Times:
        first, last = self._angles()
        angle = jnp.arctan(jnp.exp(-(log_snr + 2 * math.log(self.shift)) / 2))
        return jnp.clip((angle - first) / (last - first), 0, 1)


@dataclass(frozen=True)
class Discrete(Process):
    """A chain of N = `num_steps` training steps with variances β (Ho et al. 2020): α_i² = Π_{j≤i} (1 − β_j).

    Index i stands at t = (i + 1)/N, and t = 0 is clean. Between two steps (α, σ) moves along the chord of its
    neighbours, scaled back to α² + σ² = 1. So everything is finite, also at zero terminal SNR.
    `beta_schedule` "linear" spaces β evenly; "scaled_linear" spaces √β evenly (Stable Diffusion); "squaredcos_cap_v2"
    is the cosine schedule of Nichol & Dhariwal (2021), without limits of β but 0.999.
    `zero_terminal_snr` rescales the chain so that it ends in pure noise (Lin et al. 2023, algorithm 1).
    `terminal_alpha` replaces the α = 0 of that end (2^-12 in diffusers' solvers in σ/α).
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    zero_terminal_snr: bool = False
    terminal_alpha: float = 0.0

    def __post_init__(self):
        first, last, schedule = self.beta_start, self.beta_end, self.beta_schedule
        _require(self.num_steps >= 2, f"num_steps={self.num_steps} must be at least 2")
        _require(0 < first <= last < 1, f"betas {first}, {last} must satisfy 0 < beta_start <= beta_end < 1")
        _require(
            schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"),
            f"beta_schedule={schedule!r} must be linear, scaled_linear or squaredcos_cap_v2",
        )

    @property
    def finite_times(self) -> tuple[float, float]:
        n = self.num_steps
        return 1 / n, (n - 1) / n if self.zero_terminal_snr and not self.terminal_alpha else 1.0

    def _position(self, t: Array) -> Array:
        """Returns t·N, exactly whole at a training step although t = (i + 1)/N is rounded."""
        position = t * self.num_steps
        whole = jnp.round(position)
        return jnp.where(jnp.abs(position - whole) < 1e-3, whole, position)

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        position = self._position(t)
        low = jnp.clip(jnp.floor(position), 0, self.num_steps - 1).astype(int)
        part = position - low
        tables = (jnp.asarray(values, t.dtype) for values in _table(self))
        alpha, sigma = ((1 - part) * values[low] + part * values[low + 1] for values in tables)
        norm = jnp.hypot(alpha, sigma)
        return alpha / norm, sigma / norm

    def log_snr(self, t: Times) -> Times:
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (jnp.log(alpha) - jnp.log(sigma))

    def time(self, log_snr: Times) -> Times:
        alphas, sigmas = (jnp.asarray(values, log_snr.dtype) for values in _table(self))
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
        low = jnp.clip(jnp.searchsorted(sigmas, sigma, side="right") - 1, 0, self.num_steps - 1)
        step_alpha, step_sigma = alphas[low + 1] - alphas[low], sigmas[low + 1] - sigmas[low]
        # The point of the chord parallel to (α, σ): there the product with (−σ, α) vanishes.
        part = (sigma * alphas[low] - alpha * sigmas[low]) / (alpha * step_sigma - sigma * step_alpha)
        return jnp.clip((low + part) / self.num_steps, 0, 1)

    def network_time(self, t: Times) -> Times:
        """Returns the index i = t·N − 1 of the training step. A clean frame (t = 0) has the index −1."""
        return self._position(t) - 1

    def training_time(self, t: Times) -> Times:
        return jnp.clip(jnp.ceil(t * self.num_steps), 1, self.num_steps) / self.num_steps


@cache
def _table(process: Discrete) -> tuple[np.ndarray, np.ndarray]:
    """Returns α and σ at t = 0, 1/N, …, 1 in float64."""
    power = 0.5 if process.beta_schedule == "scaled_linear" else 1.0
    betas = np.linspace(process.beta_start**power, process.beta_end**power, process.num_steps) ** (1 / power)
    if process.beta_schedule == "squaredcos_cap_v2":
        signal = np.cos((np.arange(process.num_steps + 1) / process.num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    alpha_squared = np.cumprod(1 - betas)
    if process.zero_terminal_snr:
        alpha = np.sqrt(alpha_squared)
        alpha_squared = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        alpha_squared[-1] = process.terminal_alpha**2
    alpha_squared = np.concatenate([[1.0], alpha_squared])
    return np.sqrt(alpha_squared), np.sqrt(1 - alpha_squared)


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow α = 1 − t', σ = t' (Liu et al. 2022) at the shifted time t' = s t / (1 + (s − 1) t).

    The shift s lowers λ by 2 log s, as in `Cosine` (Esser et al. 2024, Stable Diffusion 3, eq. 23).
    """

    shift: float = 1.0

    finite_times = (1e-3, 1 - 1e-3)

    def __post_init__(self):
        _require(self.shift > 0, f"shift={self.shift} must be positive (3 in Stable Diffusion 3)")

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        scale = 1 + (self.shift - 1) * t
        return (1 - t) / scale, self.shift * t / scale

    def log_snr(self, t: Times) -> Times:
        return 2 * (jnp.log(1 - t) - jnp.log(t) - math.log(self.shift))

    def time(self, log_snr: Times) -> Times:
        return jax.nn.sigmoid(-log_snr / 2 - math.log(self.shift))

    def network_time(self, t: Times) -> Times:
        """Returns 1000·t', the shifted time, which published flow networks take."""
        return 1000 * self.alpha_sigma(t)[1]


@dataclass(frozen=True)
class EDM(Process):
    """Variance exploding, α = 1 (Karras et al. 2022).

    log σ is linear in t, from `sigma_min` at t = 1/1000 to `sigma_max` at t = 1. Below t = 1/1000 σ falls linearly to
    0, so that t = 0 is clean as in a discrete process. (The grid "karras" has Karras et al.'s own spacing.) The network
    sees z/√(1 + σ²) and the time ¼ ln σ: their table 1 for data of variance 1, as in Stable Video Diffusion.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    finite_times = (1e-3, 1.0)

    def __post_init__(self):
        low, high = self.sigma_min, self.sigma_max
        _require(0 < low < high, f"sigmas {low}, {high} must satisfy 0 < sigma_min < sigma_max")

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        first, last = self.finite_times
        part = jnp.clip((t - first) / (last - first), 0, 1)
        sigma = self.sigma_min * jnp.exp(part * math.log(self.sigma_max / self.sigma_min))
        return jnp.ones_like(t), sigma * jnp.clip(t / first, 0, 1)

    def log_snr(self, t: Times) -> Times:
        return -2 * jnp.log(self.alpha_sigma(t)[1])

    def time(self, log_snr: Times) -> Times:
        first, last = self.finite_times
        log_ratio = -log_snr / 2 - math.log(self.sigma_min)
        part = jnp.clip(log_ratio / math.log(self.sigma_max / self.sigma_min), 0, 1)
        return jnp.where(log_ratio < 0, first * jnp.exp(log_ratio), first + (last - first) * part)

    def network_time(self, t: Times) -> Times:
        """Returns ¼ ln σ with σ of at least `sigma_min`: the clean end has no finite logarithm."""
        return 0.25 * jnp.log(jnp.maximum(self.alpha_sigma(t)[1], self.sigma_min))

    def input_scale(self, t: Times) -> Times:
        return 1 / jnp.sqrt(1 + self.alpha_sigma(t)[1] ** 2)


STABLE_DIFFUSION_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
PROCESSES = {
    "cosine": (Cosine, {}),
    "ddpm": (Discrete, {}),
    "stable_diffusion": (Discrete, STABLE_DIFFUSION_BETAS | {"beta_schedule": "scaled_linear"}),
    "animatediff": (Discrete, STABLE_DIFFUSION_BETAS),
    "flow": (Flow, {}),
    "edm": (EDM, {}),
}


def make_process(name: str, **options) -> Process:
    """Returns the process called `name` (a key of `PROCESSES`); `options` change the fields of its class."""
    _require(name in PROCESSES, f"process {name!r} is unknown; known are {', '.join(PROCESSES)}")
    kind, preset = PROCESSES[name]
    allowed = [field.name for field in fields(kind)]
    for option in options:
        _require(option in allowed, f"process {name!r} has no option {option!r}; it has {', '.join(allowed)}")
    correlation = options.get("frame_correlation", 0)
    _require(0 <= correlation < 1, f"frame_correlation={correlation} must be at least 0 and below 1")
    return kind(**preset | options)


def evaluate(function: Callable, values: np.ndarray) -> np.ndarray:
    """Evaluates a process's function in float64, whatever precision jax runs in, and not on TPUs, which emulate it."""
    on_cpu = jax.default_backend() == "tpu" and "cpu" in (jax.config.jax_platforms or "cpu")
    device = jax.local_devices(backend="cpu")[0] if on_cpu else None
    with jax.default_device(device), jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.array(jax.jit(function)(jnp.asarray(values, jnp.float64)))


def _require(condition: bool, message: str):
    if not condition:
        raise InputError(message)
