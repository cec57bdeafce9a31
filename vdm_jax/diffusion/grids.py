"""Grids: the decreasing times, from noise to clean, at which a sampler calls the denoiser."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float


def make_grid(name: str, num_steps: int, process: Process, **options) -> Float[Array, "points"]:
    """Returns the grid called `name` (a key of `GRIDS`) as float32 times, computed in float64.

    `num_steps` steps need `num_steps` + 1 times. The last time is 0, the clean video, unless `final="first"` ends a
    discrete grid at the first training step.
    """
    if name not in GRIDS:
        raise InputError(f"grid {name!r} is unknown; known are {', '.join(GRIDS)}")
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise InputError(f"num_steps={num_steps!r} must be a whole number of at least 1")
    grid = GRIDS[name]
    allowed = list(inspect.signature(grid).parameters)[2:]
    for option in options:
        if option not in allowed:
            raise InputError(f"grid {name!r} has no option {option!r}; it has {', '.join(allowed)}")
    return jnp.asarray(grid(int(num_steps), process, **options), jnp.float32)


def pyramid(times: Float[Array, "points"], frames: int, delay: int) -> Float[Array, "rows T"]:
    """Returns times for each frame, where every frame follows the grid `delay` steps behind the frame before it.

    This is the pyramid scheduling of Diffusion Forcing (Chen et al. 2024, arXiv 2407.01392). A frame waits at the first
    time of the grid until its turn, and at the last time for the frames after it. A delay of 0 moves all frames at
    once, a delay of all the steps draws one frame after the other.
    """
    if delay < 0:
        raise InputError(f"delay={delay} must not be negative (0: all frames at once)")
    rows = jnp.arange(len(times) + delay * (frames - 1))[:, None]
    return times[jnp.clip(rows - delay * jnp.arange(frames), 0, len(times) - 1)]


def _uniform(num_steps: int, process: Process, last: float | None = None) -> np.ndarray:
    """Spaces times evenly from 1 to 0; with `last`, evenly from 1 to `last` and then one step to 0."""
    if last is None:
        return np.linspace(1, 0, num_steps + 1)
    if not 0 < last < 1:
        raise InputError(f"last={last} must be a time above 0 and below 1")
    return np.append(np.linspace(1, last, num_steps), 0.0)


def _log_snr(
    num_steps: int, process: Process, sigma_min: float | None = None, sigma_max: float | None = None
) -> np.ndarray:
    """Spaces times evenly in log-SNR (Lu et al. 2022, DPM-Solver, section 3.4)."""
    return _in_noise_level(num_steps, process, sigma_min, sigma_max, np.log, np.exp)


def _karras(
    num_steps: int,
    process: Process,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> np.ndarray:
    """Spaces times evenly in (σ/α)^(1/ρ) (Karras et al. 2022, eq. 5)."""
    if rho <= 0:
        raise InputError(f"rho={rho} must be positive (7 in the paper)")
    return _in_noise_level(num_steps, process, sigma_min, sigma_max, lambda level: level ** (1 / rho), lambda y: y**rho)


def _in_noise_level(
    num_steps: int, process: Process, sigma_min: float | None, sigma_max: float | None, forward, inverse
) -> np.ndarray:
    """Spaces times evenly in forward(σ/α), between limits that default to the limits of the process.

    If the process has infinite log-SNR at t = 0, or `sigma_min` is given, the last level is `sigma_min` and one more
    step leads to t = 0. If the process has a finite log-SNR at t = 0, that is the last level.
    """
    least, most = process.finite_times
    to_clean = sigma_min is not None or least > 0
    low = _noise_level(process, least) if sigma_min is None else sigma_min
    high = _noise_level(process, most) if sigma_max is None else sigma_max
    if not 0 < low < high:
        raise InputError(f"sigma_min={low:g}, sigma_max={high:g} must satisfy 0 < sigma_min < sigma_max")
    if most == 1 and high > _noise_level(process, most) * (1 + 1e-6):
        raise InputError(f"sigma_max={high:g} must be at most the process's own {_noise_level(process, most):g}")
    if least == 0 and low < _noise_level(process, least) * (1 - 1e-6):
        raise InputError(f"sigma_min={low:g} must be at least the process's own {_noise_level(process, least):g}")
    levels = inverse(np.linspace(forward(high), forward(low), num_steps if to_clean else num_steps + 1))
    times = _evaluate(process.time, -2 * np.log(levels))
    if sigma_max is None:
        times[0] = 1.0  # sampling starts with the noise of t = 1, also where log-SNR is -∞ there
    return np.append(times, 0.0) if to_clean else np.append(times[:-1], 0.0)


def _leading(num_steps: int, process: Process, steps_offset: int = 0, final: str = "clean") -> np.ndarray:
    """Takes every (N // n)-th training step, counted from the clean end (Lin et al. 2023, table 2; diffusers)."""
    total = _training_steps(num_steps, process)
    return _from_indices(np.arange(num_steps)[::-1] * (total // num_steps) + steps_offset, process, final)


def _trailing(num_steps: int, process: Process, final: str = "clean") -> np.ndarray:
    """Takes every (N / n)-th training step, counted from the noisy end (Lin et al. 2023, table 2; diffusers)."""
    total = _training_steps(num_steps, process)
    return _from_indices(np.round(total - np.arange(num_steps) * (total / num_steps)) - 1, process, final)


def _linspace(num_steps: int, process: Process, final: str = "clean") -> np.ndarray:
    """Spaces training steps evenly from the last to the first, both included (Lin et al. 2023, table 2; diffusers)."""
    total = _training_steps(num_steps, process)
    return _from_indices(np.linspace(0, total - 1, num_steps).round()[::-1], process, final)


def _training_steps(num_steps: int, process: Process) -> int:
    if process.num_steps is None:
        kind = type(process).__name__
        raise InputError(f"grids leading, trailing and linspace need a discrete process; {kind} is continuous")
    if num_steps > process.num_steps:
        raise InputError(f"num_steps={num_steps} must be at most the {process.num_steps} training steps")
    return process.num_steps


def _from_indices(indices: np.ndarray, process: Process, final: str) -> np.ndarray:
    if final not in ("clean", "first"):
        raise InputError(f"final={final!r} must be clean (t = 0) or first (the first training step)")
    if indices[0] >= process.num_steps or indices[-1] < 0:
        raise InputError(f"steps_offset leads to training step {indices[0]:g} of {process.num_steps}")
    return np.append((indices + 1) / process.num_steps, 0.0 if final == "clean" else 1 / process.num_steps)


def _noise_level(process: Process, t: float) -> float:
    """Returns σ/α at time t."""
    return float(np.exp(-0.5 * _evaluate(process.log_snr, np.array(t))))


def _evaluate(function, values: np.ndarray) -> np.ndarray:
    """Evaluates a process's function in float64, whatever precision jax runs in, and not on TPUs, which emulate it."""
    on_cpu = jax.default_backend() == "tpu" and "cpu" in (jax.config.jax_platforms or "cpu")
    device = jax.local_devices(backend="cpu")[0] if on_cpu else None
    with jax.default_device(device), jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.array(jax.jit(function)(jnp.asarray(values, jnp.float64)))


GRIDS = {
    "uniform": _uniform,
    "log_snr": _log_snr,
    "karras": _karras,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
}
