"""Solvers: the numbers that turn a denoiser's (x̂, ε̂) into the next, less noisy video.

Every solver is a linear multistep method: a table of coefficients with one row for each call of the denoiser. The
sampler is one loop over its rows:

    z  ←  keep·z + x·x̂ + eps·ε̂ + Σ_k past_k·p_k + noise·n,        p = p_x·x̂ + p_eps·ε̂

where p_k is p of the k-th call before. p is x̂, ε̂ or v: what the method extrapolates. The sum over the past holds for
masks and guidance too, as every call returns z = α x̂ + σ ε̂. No coefficient divides by a number that may vanish:
α_t = 0 (a flow's noise) and σ_s = 0 (the clean end) are fine. Coefficients are computed in float64 on the host.

Published schedulers are among these: Euler is `ddim`, Euler ancestral and DDPM are `ddim` with η = 1, and
SDE-DPM-Solver++ is `dpmpp` with η = 1, all exactly.
"""

import inspect
from typing import NamedTuple

import numpy as np

from vdm_jax.diffusion.process import Process, evaluate
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

# Above this σ/α a trapezium in σ/α spans a nearly infinite step (infinite at a flow's t = 1).
PURE_NOISE = 1000.0

Times = Float[np.ndarray, "points *T"]
Steps = Float[np.ndarray, "steps *T"]  # a value for each step: points less one


class Table(NamedTuple):
    """The time and the coefficients of each call of the denoiser, for the whole video or for each of its T frames."""

    time: Float[np.ndarray, "calls *T"]
    keep: Float[np.ndarray, "calls *T"]
    x: Float[np.ndarray, "calls *T"]
    eps: Float[np.ndarray, "calls *T"]
    noise: Float[np.ndarray, "calls *T"]
    p_x: Float[np.ndarray, "calls *T"]
    p_eps: Float[np.ndarray, "calls *T"]
    past: Float[np.ndarray, "calls K *T"]  # K values of p are kept


def ddim(times: Times, process: Process, eta: float = 0.0, strided: bool = False, rescaled: bool = False) -> Table:
    """Returns first-order steps with noise η: 0 is DDIM, 1 ancestral sampling (Song et al. 2021, eq. 12 and 16).

    Their σ² for general (α, σ) is η² σ_s² (1 − q²) with q² = SNR_t / SNR_s. At η = 0 this is Euler's method on a flow,
    and Karras et al.'s (2022) Euler step with α = 1. A frame whose time does not change keeps its z.

    Args:
        strided: every step is N // n training steps long, wherever the next step begins, as in diffusers. The network
            is called at the grid's times, but the noise level of its input is a little higher or lower.
        rescaled: the last z is divided by its α, as the result of a solver in σ/α is.
    """
    table = _first_order(times[:-1], _ends(times, process, strided), process, eta)
    if rescaled:
        alpha, _ = evaluate(process.alpha_sigma, times[-1:])
        for column in (table.keep, table.x, table.eps, table.noise):
            column[-1] /= alpha[0]
    return table


def _ends(times: Times, process: Process, strided: bool) -> Steps:
    """Returns the time at which each step ends."""
    if not strided:
        return times[1:]
    end = times[:-1] - _stride(times, process)
    return np.where(end < 0.5 / process.num_steps, times[-1], end)  # before the first training step


def _stride(times: Times, process: Process) -> float:
    if process.num_steps is None:
        raise InputError("strided=True needs a discrete process")
    return process.num_steps // (len(times) - 1) / process.num_steps


def _first_order(t: Steps, s: Steps, process: Process, eta: float = 0.0) -> Table:
    """Returns the steps from times t to times s."""
    (alpha_t, alpha_s), (sigma_t, sigma_s) = evaluate(process.alpha_sigma, np.stack([t, s]))
    waits = t == s  # both may be 0 or 1, where q is 0/0
    fresh = eta**2 * (1 - np.square(alpha_t * sigma_s / np.where(waits, 1, sigma_t * alpha_s)))
    fresh = np.clip(fresh, 0, 1)
    return Table(
        time=t,
        keep=waits.astype(float),
        x=np.where(waits, 0, alpha_s),
        eps=np.where(waits, 0, sigma_s * np.sqrt(1 - fresh)),
        noise=np.where(waits, 0, sigma_s * np.sqrt(fresh)),
        p_x=np.zeros_like(t),
        p_eps=np.zeros_like(t),
        past=np.zeros((len(t), 0, *t.shape[1:])),
    )


def _multistep(table: Table, change: Float[np.ndarray, "steps K1"], p_x: Steps | float, p_eps: Steps | float) -> Table:
    """Adds Σ_k change_k p_k to every step of a table; k = 0 is the current call."""
    p_x, p_eps = (np.broadcast_to(np.asarray(value, float), table.x.shape) for value in (p_x, p_eps))
    x, eps = table.x + change[:, 0] * p_x, table.eps + change[:, 0] * p_eps
    return table._replace(x=x, eps=eps, p_x=p_x, p_eps=p_eps, past=change[:, 1:])


def _half_log_snr(alpha: Times, sigma: Times) -> Times:
    """Returns log α/σ, limited where α or σ vanishes: nothing but the weight of a correction depends on it there."""
    return np.clip(np.log(np.maximum(alpha, 1e-30)) - np.log(np.maximum(sigma, 1e-30)), -20, 20)


def dpmpp(
    times: Times,
    process: Process,
    eta: float = 0.0,
    order: int = 2,
    kind: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Table:
    """Returns DPM-Solver++(2M) or (3M), which extrapolate x̂ from its last values (Lu et al. 2022b, algorithm 2).

    Their z_s = (σ_s/σ_t) z − α_s (e^−h − 1) D with D = x̂ + (x̂ − x̂_before) h/2h_before is the first-order step plus
    (α_s − α_t σ_s/σ_t) · h/2h_before · (x̂ − x̂_before). η = 1 is their SDE-DPM-Solver++. The first step is first-order;
    so is the step to t = 0 (where h is infinite or nearly so) and, with `lower_order_final` and less than 15 steps,
    the last step, with a step of order 2 before it (as in diffusers). `kind` "heun" has other weights of order 2.
    """
    if order not in (1, 2, 3) or (order == 3 and eta > 0):
        raise InputError(f"order={order} must be 1, 2, or (with eta=0) 3 for solver 'dpmpp'")
    if kind not in ("midpoint", "heun"):
        raise InputError(f"kind={kind!r} must be midpoint or heun for solver 'dpmpp'")
    table = _first_order(times[:-1], times[1:], process, eta)
    alpha, sigma = evaluate(process.alpha_sigma, times)
    h, steps = np.diff(_half_log_snr(alpha, sigma)), len(times) - 1
    few = lower_order_final and steps < 15
    change = np.zeros((steps, order))
    for i in range(steps):
        last = i == steps - 1 and (euler_at_final or few)
        now = 1 if last or times[i + 1] == 0 else min(order, i + 1, 2 if few and i == steps - 2 else 3)
        span = h[i] * (2 if eta == 1 else 1)
        weights = [alpha[i + 1], table.eps[i] / sigma[i] * alpha[i]]  # of x̂ where z is fixed
        if now == 2:
            midpoint, trapezium = (weights[0] - weights[1]) / 2, alpha[i + 1] * (np.expm1(-span) / span + 1)
            change[i, :2] = np.array([1, -1]) * (midpoint if kind == "midpoint" else trapezium) * h[i] / h[i - 1]
        elif now == 3:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            first = np.array([[1, -1, 0], [0, 1, -1]]) / np.array([[r0], [r1]])
            second = (first[0] - first[1]) / (r0 + r1)
            phi = np.expm1(-h[i]) / h[i] + 1
            change[i] = alpha[i + 1] * (phi * (first[0] + r0 * second) - (phi / h[i] - 0.5) * second)
    return _multistep(table, change, 1.0, 0.0)


def unipc(
    times: Times,
    process: Process,
    order: int = 2,
    kind: str = "bh2",
    lower_order_final: bool = True,
    uncorrected: tuple[int, ...] = (),
) -> Table:
    """Returns UniPC, which corrects each z with the x̂ found there (Zhao et al. 2023, arXiv 2302.04867).

    The correction is linear in the values of x̂, too, and is made in one step with the next prediction: one call a
    step. The step to t = 0 is first-order. `uncorrected` are the steps after which z is not corrected.
    """
    if order not in (1, 2, 3) or kind not in ("bh1", "bh2"):
        raise InputError(f"order={order}, kind={kind!r} must be 1, 2 or 3, and bh1 or bh2, for solver 'unipc'")
    table = _first_order(times[:-1], times[1:], process)
    alpha, sigma = evaluate(process.alpha_sigma, times)
    half_log_snr, steps = _half_log_snr(alpha, sigma), len(times) - 1
    change, correction = np.zeros((steps, order + 1)), np.zeros(order + 1)
    for i in range(steps):
        now = min(order, i + 1, steps - i if lower_order_final else order, 1 if times[i + 1] == 0 else order)
        predictor, corrector = (alpha[i + 1] * row for row in _unipc_step(half_log_snr, i, now, kind))
        change[i, :now] = predictor[1:]
        change[i] += sigma[i + 1] / sigma[i] * correction
        correction[: now + 1] = 0 if i in uncorrected else corrector - predictor
        correction[now + 1 :] = 0
    return _multistep(table, change, 1.0, 0.0)


def _unipc_step(
    half_log_snr: Times, i: int, order: int, kind: str
) -> tuple[Float[np.ndarray, "values"], Float[np.ndarray, "values"]]:
    """Returns what x̂ at the end of step i, at its beginning and before it contribute to predictor and corrector."""
    h = half_log_snr[i + 1] - half_log_snr[i]
    r = np.append((half_log_snr[i - np.arange(1, order)] - half_log_snr[i]) / h, 1.0)
    scale = -np.expm1(-h) if kind == "bh2" else h
    phi, factorial, b = np.expm1(-h) / -h - 1, 1.0, []
    for k in range(1, order + 1):
        b.append(-phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    matrix, b = r ** np.arange(order)[:, None], np.array(b)
    rho = np.zeros(order)
    rho[:-1] = 0.5 if order == 2 else np.linalg.solve(matrix[:-1, :-1], b[:-1])
    corrected = np.full(1, 0.5) if order == 1 else np.linalg.solve(matrix, b)
    rows = [scale * weights / r for weights in (rho, corrected)]
    predictor, corrector = (np.array([row[-1], -row.sum(), *row[:-1]]) for row in rows)
    return predictor, corrector


def pndm(times: Times, process: Process, strided: bool = False, of: str = "eps") -> Table:
    """Returns PNDM without Runge-Kutta steps: Adams-Bashforth of order 4 in ε̂, with DDIM's steps (Liu et al. 2022).

    The first step is made twice, the second time with the mean of ε̂ at its two ends: one call more than steps. As in
    diffusers (PLMS), the order grows from 2 to 4, and `of` may be "v", whose values are extrapolated then.
    """
    if of not in ("eps", "v"):
        raise InputError(f"of={of!r} must be eps or v for solver 'pndm'")
    begin, end = times[:-1], _ends(times, process, strided)
    call = begin
    if len(begin) > 1:
        again = times[1] + _stride(times, process) if strided else times[0]
        call, begin, end = (np.insert(*row) for row in ((begin, 1, times[1]), (begin, 1, again), (end, 1, times[1])))
    (alpha, alpha_t, alpha_s), (sigma, sigma_t, sigma_s) = evaluate(process.alpha_sigma, np.stack([call, begin, end]))
    if (alpha_t == 0).any():
        raise InputError("solver 'pndm' needs a process that leaves something of the video at t = 1")
    # z_s = of_z·z + of_p·p, with ε̂ = α_t v + σ_t z where p is v.
    of_z = alpha_s / alpha_t
    of_p = sigma_s - of_z * sigma_t
    if of == "v":
        of_z, of_p = of_z + of_p * sigma_t, of_p * alpha_t
    begun = ([24, 0, 0, 0, 0], [12, 12, 0, 0, 0], [36, 0, -12, 0, 0], [46, -32, 0, 10, 0], [55, -59, 37, 0, -9])
    weights = np.array([begun[i] if i < 5 else [55, -59, 37, -9, 0] for i in range(len(call))]) / 24
    change, keep = of_p[:, None] * weights, np.zeros(len(call))
    x, eps = of_z * alpha, of_z * sigma
    if len(call) > 1:  # the second call begins at the first z again, which is (z − of_p·p_1) / of_z of the first step
        keep[1], x[1], eps[1] = of_z[1] / of_z[0], 0, 0
        change[1, 1] -= keep[1] * of_p[0]
    p = (0.0, 1.0) if of == "eps" else (-sigma, alpha)
    return _multistep(_first_order(call, end, process)._replace(keep=keep, x=x, eps=eps), change, *p)


def heun(times: Times, process: Process) -> Table:
    """Returns Heun's method in σ/α: Euler to s, then the trapezium with ε̂ at s (Karras et al. 2022).

    Their algorithm 1 for any (α, σ): d(z/α) = ε̂ d(σ/α), so the trapezium adds α_s (σ_s/α_s − σ_t/α_t)/2 · (ε̂_s − ε̂_t)
    to Euler's z_s. A step has two calls. The last step, and steps from pure noise (σ/α > 1000), are Euler's alone.
    """
    alpha, sigma = evaluate(process.alpha_sigma, times)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (alpha[:-1], alpha[1:]), (sigma[:-1], sigma[1:])
    noisy = sigma_t > PURE_NOISE * alpha_t
    trapezium = np.where(noisy, 0, (sigma_s - alpha_s * sigma_t / np.where(noisy, 1, alpha_t)) / 2)
    order = np.repeat(np.arange(len(times) - 1), 2)[:-1]  # predict, correct, predict, …, predict
    corrects = np.arange(len(order)) % 2 == 1
    table = _first_order(np.where(corrects, times[order + 1], times[order]), times[order + 1], process)
    table = table._replace(
        keep=corrects.astype(float), x=np.where(corrects, 0, table.x), eps=np.where(corrects, 0, table.eps)
    )
    return _multistep(table, np.where(corrects, trapezium[order], 0)[:, None] * np.array([1, -1]), 0.0, 1.0)


def lcm(times: Times, process: Process, scaling: float = 10.0) -> Table:
    """Returns the sampler of latent consistency models: x̂, noised anew at every step (Luo et al. 2023, algorithm 3).

    Their f = c_out x̂ + c_skip z, with the constants 0.5 and `scaling` of diffusers, is x̂ but for the last time steps.
    """
    (alpha, alpha_s), (sigma, sigma_s) = evaluate(process.alpha_sigma, np.stack([times[:-1], times[1:]]))
    scaled = scaling * evaluate(process.network_time, times[:-1])
    if (scaled < 0).any():
        raise InputError("solver 'lcm' needs a process whose network time counts training steps")
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    table = _first_order(times[:-1], times[1:], process)
    return table._replace(x=alpha_s * (out + skip * alpha), eps=alpha_s * skip * sigma, noise=sigma_s)


def tcd(times: Times, process: Process, eta: float = 0.0) -> Table:
    """Returns trajectory consistency distillation's sampler (Zheng et al. 2024, arXiv 2402.19159, strategic sampling).

    A step goes to the training step (1 − η) i, below the next one i, and from there to i with fresh noise. Their γ is
    η: 0.3 as published; 0 is `ddim`.
    """
    if process.num_steps is None:
        raise InputError("solver 'tcd' needs a discrete process")
    index = np.round(times[1:] * process.num_steps - 1, 3)
    below = (np.where(index > 0, np.floor((1 - eta) * index), index) + 1) / process.num_steps
    (alpha, alpha_s), (_, sigma_s) = evaluate(process.alpha_sigma, np.stack([times[1:], below]))
    table = _first_order(times[:-1], below, process)
    ratio = alpha / alpha_s
    ratio[-1] = 1  # the last step has no noise
    return table._replace(x=ratio * alpha_s, eps=ratio * sigma_s, noise=np.sqrt(np.maximum(1 - ratio**2, 0)))


SOLVERS = {f.__name__: f for f in (ddim, heun, dpmpp, unipc, pndm, lcm, tcd)}


def make_table(solver: str, times: Float[Array, "points *T"], process: Process, eta: float = 0.0, **options) -> Table:
    """Returns the table of the named solver on a grid, in float64; `times` are known when a program is traced.

    `options` are the solver's own; only "ddim" takes a grid for each frame (points T).
    """
    if solver not in SOLVERS:
        raise InputError(f"solver {solver!r} is unknown; known are {', '.join(SOLVERS)}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be between 0 (no noise) and 1 (ancestral)")
    if times.ndim > 1 and (solver != "ddim" or options):
        raise InputError(f"solver={solver!r} must be ddim where each frame has its own times (shape {times.shape})")
    allowed = list(inspect.signature(SOLVERS[solver]).parameters)[2:]
    for option in options:
        if option not in allowed or option == "eta":
            raise InputError(f"solver {solver!r} has no option {option!r}; it has {', '.join(allowed) or 'none'}")
    if "eta" in allowed:
        options["eta"] = eta
    elif eta > 0:
        raise InputError(f"eta={eta} must be 0 with solver {solver!r}: only ddim, dpmpp and tcd take it")
    return SOLVERS[solver](np.asarray(times, np.float64), process, **options)
