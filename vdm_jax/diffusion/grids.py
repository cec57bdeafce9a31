"""Grids: the decreasing times, from noise to clean, at which a sampler calls the denoiser."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Process, evaluate
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float


def make_grid(name: str, num_steps: int, process: Process, **options) -> Float[Array, "points"]:
    """Returns the grid called `name` (a key of `GRIDS`) as float32 times, computed in float64.

    `num_steps` steps need `num_steps` + 1 times. The last time is 0, the clean video, unless `final="first"` ends a
    discrete grid at the first training step.
    """
    return jnp.asarray(_points(name, num_steps, process, options), jnp.float32)


def make_network_time(name: str, num_steps: int, process: Process, **options) -> Callable[[Array], Array]:
    """Returns the function from times to the times that the network sees, on a grid.

    It is the process's own unless the grid has `network_time`: published solvers that step between training steps round
    the network's time to "whole" numbers (down on a flow), or interpolate it in log σ/α ("log"). Between the points of
    the grid it is linear.
    """
    kind = options.get("network_time", "process")
    if kind == "process":
        return process.network_time
    if kind not in ("whole", "log"):
        raise InputError(f"network_time={kind!r} must be process, whole or log")
    times = _points(name, num_steps, process, options)[:-1]
    if process.num_steps is None:
        seen = np.floor(evaluate(process.network_time, times) + 1e-9)
    else:
        steps = np.arange(1, process.num_steps + 1) / process.num_steps
        seen = np.interp(-evaluate(process.log_snr, times), -evaluate(process.log_snr, steps), np.arange(len(steps)))
        seen = np.round(seen) if kind == "whole" else seen
    rising = np.append(times, 0.0)[::-1], np.append(seen, evaluate(process.network_time, np.zeros(1)))[::-1]
    return lambda t: jnp.interp(t, *(jnp.asarray(values, t.dtype) for values in rising))


def _points(name: str, num_steps: int, process: Process, options: Mapping[str, Any]) -> np.ndarray:
    """Returns the times of a grid in float64."""
    if name not in GRIDS:
        raise InputError(f"grid {name!r} is unknown; known are {', '.join(GRIDS)}")
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise InputError(f"num_steps={num_steps!r} must be a whole number of at least 1")
    grid = GRIDS[name]
    allowed = [*list(inspect.signature(grid).parameters)[2:], "network_time"]
    for option in options:
        if option not in allowed:
            raise InputError(f"grid {name!r} has no option {option!r}; it has {', '.join(allowed)}")
    return grid(int(num_steps), process, **{key: value for key, value in options.items() if key != "network_time"})


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


def _uniform(
    num_steps: int, process: Process, first: float = 1.0, last: float | None = None, beyond: float = 0.0
) -> np.ndarray:
    """Spaces times evenly from `first` to `beyond`, in whose place comes 0.

    With `last` they are spaced evenly from `first` to `last`, and then one step leads to 0.
    """
    for name, value in (("first", first), ("last", last), ("beyond", beyond)):
        if value is not None and not (0 < value < 1 or value == {"first": 1, "beyond": 0}.get(name)):
            raise InputError(f"{name}={value} must be a time above 0 and below 1")
    spaced = np.linspace(first, beyond, num_steps + 1)[:-1] if last is None else np.linspace(first, last, num_steps)
    return np.append(spaced, 0.0)


def _log_snr(
    num_steps: int,
    process: Process,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    limits: str | None = None,
    steps_offset: int = 0,
    final: str = "clean",
) -> np.ndarray:
    """Spaces times evenly in log-SNR (Lu et al. 2022, DPM-Solver, section 3.4)."""
    ends = sigma_min, sigma_max, limits, steps_offset
    return _in_noise_level(num_steps, process, np.log, np.exp, ends, final)


def _karras(
    num_steps: int,
    process: Process,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    limits: str | None = None,
    steps_offset: int = 0,
    final: str = "clean",
    rho: float = 7.0,
) -> np.ndarray:
    """Spaces times evenly in (σ/α)^(1/ρ) (Karras et al. 2022, eq. 5)."""
    if rho <= 0:
        raise InputError(f"rho={rho} must be positive (7 in the paper)")
    ends = sigma_min, sigma_max, limits, steps_offset
    return _in_noise_level(num_steps, process, lambda level: level ** (1 / rho), lambda y: y**rho, ends, final)


def _in_noise_level(num_steps: int, process: Process, forward, inverse, ends: tuple, final: str) -> np.ndarray:
    """Spaces times evenly in forward(σ/α), between limits that default to the limits of the process.

    With `limits`, the name of a discrete grid, they are the first and the last noisy level of that grid. If the process
    has infinite log-SNR at t = 0, or `sigma_min` is given, the last level is `sigma_min` and one more step leads to
    t = 0 (or to the first training step, with `final` "first"). If the process has a finite log-SNR at t = 0, that is
    the last level.
    """
    (sigma_min, sigma_max, limits, steps_offset), (least, most) = ends, process.finite_times
    if limits is not None:
        options = {"steps_offset": steps_offset} if limits == "leading" else {}
        span = _points(limits, num_steps, process, options)
        sigma_max = _noise_level(process, span[0]) if sigma_max is None else sigma_max
        sigma_min = _noise_level(process, span[-2]) if sigma_min is None else sigma_min
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
    times = evaluate(process.time, -2 * np.log(levels))
    if sigma_max is None:
        times[0] = 1.0  # sampling starts with the noise of t = 1, also where log-SNR is -∞ there
    return np.append(times if to_clean else times[:-1], _end(process, final))


def _leading(
    num_steps: int, process: Process, steps_offset: int = 0, final: str = "clean", spare: bool = False
) -> np.ndarray:
    """Takes every (N // n)-th training step, counted from the clean end (Lin et al. 2023, table 2; diffusers).

    With `spare` there is one more, which is left out at the clean end (diffusers' DPM-Solver and UniPC).
    """
    total, count = _training_steps(num_steps, process), num_steps + spare
    return _from_indices(np.arange(spare, count)[::-1] * (total // count) + steps_offset, process, final)


def _trailing(num_steps: int, process: Process, final: str = "clean") -> np.ndarray:
    """Takes every (N / n)-th training step, counted from the noisy end (Lin et al. 2023, table 2; diffusers)."""
    total = _training_steps(num_steps, process)
    return _from_indices(np.round(total - np.arange(num_steps) * (total / num_steps)) - 1, process, final)


def _linspace(
    num_steps: int, process: Process, final: str = "clean", spare: bool = False, whole: bool = True
) -> np.ndarray:
    """Spaces training steps evenly from the last to the first, both included (Lin et al. 2023, table 2; diffusers).

    With `spare` the first one is left out, as in `_leading`. `whole` rounds to training steps.
    """
    indices = np.linspace(0, _training_steps(num_steps, process) - 1, num_steps + spare)[spare:][::-1]
    return _from_indices(indices.round() if whole else indices, process, final)


def _distilled(num_steps: int, process: Process, teacher_steps: int = 50, final: str = "clean") -> np.ndarray:
    """Takes `num_steps` of the teacher's trailing steps (latent consistency models; diffusers' LCM and TCD)."""
    total = _training_steps(num_steps, process)
    if not num_steps <= teacher_steps <= total:
        raise InputError(f"num_steps={num_steps} must be at most the {teacher_steps} steps of the teacher")
    steps = np.arange(1, teacher_steps + 1)[::-1] * (total // teacher_steps) - 1
    return _from_indices(steps[np.arange(num_steps) * teacher_steps // num_steps], process, final)


def _training_steps(num_steps: int, process: Process) -> int:
    if process.num_steps is None:
        kind = type(process).__name__
        raise InputError(f"grids leading, trailing and linspace need a discrete process; {kind} is continuous")
    if num_steps > process.num_steps:
        raise InputError(f"num_steps={num_steps} must be at most the {process.num_steps} training steps")
    return process.num_steps


def _from_indices(indices: np.ndarray, process: Process, final: str) -> np.ndarray:
    if indices[0] >= process.num_steps or indices[-1] < 0:
        raise InputError(f"steps_offset leads to training step {indices[0]:g} of {process.num_steps}")
    return np.append((indices + 1) / process.num_steps, _end(process, final))


def _end(process: Process, final: str) -> float:
    """Returns the last time of a grid."""
    if final not in ("clean", "first") or (final == "first" and process.num_steps is None):
        raise InputError(f"final={final!r} must be clean (t = 0) or first (the first training step of a chain)")
    return 0.0 if final == "clean" else 1 / process.num_steps


def _noise_level(process: Process, t: float) -> float:
    """Returns σ/α at time t."""
    return float(np.exp(-0.5 * evaluate(process.log_snr, np.array(t))))


GRIDS = {
    "uniform": _uniform,
    "log_snr": _log_snr,
    "karras": _karras,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "distilled": _distilled,
}
