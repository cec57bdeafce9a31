"""Solvers: the numbers that turn a denoiser's (x̂, ε̂) into the next, less noisy video.

Every solver here is the first-order step z_s = α_s x̂ + σ_s ε̂ plus a multiple of how much a prediction
has changed, so it is a table of coefficients with one row for each call of the denoiser, and the sampler
is one loop over rows:

    z  ←  keep·z + x·x̂ + eps·ε̂ + change·(p − p_before) + noise·n,        p = x̂ or ε̂

None of the coefficients divides by what may vanish: α_t = 0 (a flow's noise) and σ_s = 0 (the clean end)
are fine.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

# From a higher σ/α than this a trapezium in σ/α spans a nearly infinite step (infinite at a flow's t = 1).
PURE_NOISE = 1000.0


class Table(NamedTuple):
    """One row for each call of the denoiser: the time it is called at, and the coefficients of the update."""

    time: Float[Array, "calls"]
    keep: Float[Array, "calls"]
    x: Float[Array, "calls"]
    eps: Float[Array, "calls"]
    change: Float[Array, "calls"]
    noise: Float[Array, "calls"]


def ddim(times: Float[Array, "points"], process: Process, eta: float = 0.0) -> Table:
    """First-order steps with noise η: 0 is DDIM, 1 ancestral sampling (Song et al. 2021, eq. 12 and 16).

    Their σ² for general (α, σ) is η² σ_s² (1 − q²) with q² = SNR_t / SNR_s. At η = 0 on a flow this is
    Euler's method, and with α = 1 Karras et al.'s (2022) Euler step.
    """
    return _first_order(times[:-1], times[1:], process, eta)


def ddim_strided(times: Float[Array, "points"], process: Process, eta: float = 0.0) -> Table:
    """DDIM whose every step is as long as N // n training steps, wherever the next one begins.

    So diffusers steps on a linspace or trailing grid, and so AnimateDiff's samples were made: the network is called at
    the grid's times, but what it is given has a little more or less noise than that.
    """
    if process.num_steps is None:
        raise InputError("solver 'ddim_strided' needs a discrete process")
    stride = process.num_steps // (len(times) - 1) / process.num_steps
    beyond = times[:-1] - stride < 0.5 / process.num_steps  # before the first training step
    return _first_order(times[:-1], jnp.where(beyond, times[-1], times[:-1] - stride), process, eta)


def _first_order(t: Float[Array, "steps"], s: Float[Array, "steps"], process: Process, eta: float) -> Table:
    """Steps from times t to times s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    fresh = eta**2 * (1 - jnp.square(alpha_t * sigma_s / (sigma_t * alpha_s)))
    fresh = jnp.clip(fresh, 0, 1)
    zeros = jnp.zeros_like(fresh)
    return Table(
        time=t,
        keep=zeros,
        x=alpha_s,
        eps=sigma_s * jnp.sqrt(1 - fresh),
        change=zeros,
        noise=sigma_s * jnp.sqrt(fresh),
    )


def dpmpp(times: Float[Array, "points"], process: Process) -> Table:
    """DPM-Solver++(2M): x̂ is extrapolated from its last two values (Lu et al. 2022b, algorithm 2).

    Their z_s = (σ_s/σ_t) z − α_s (e^−h − 1) D with D = x̂ + (x̂ − x̂_before) h/2h_before is the
    first-order step plus (α_s − α_t σ_s/σ_t) · h/2h_before · (x̂ − x̂_before). First-order are the first
    step, the step to t = 0 (where h is infinite or as good as), and with less than 15 steps the last one
    (as diffusers does).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _from_to(times, process)
    h = jnp.diff(process.log_snr(times))
    steps = len(times) - 1
    index = jnp.arange(steps)
    first_order = (index == 0) | (times[1:] == 0) | ((index == steps - 1) & (steps < 15))
    before = jnp.concatenate([h[:1], h[:-1]])
    ratio = jnp.where(first_order, 0, jnp.where(first_order, 1, h) / jnp.where(first_order, 1, before))
    zeros = jnp.zeros_like(alpha_s)
    return Table(
        time=times[:-1],
        keep=zeros,
        x=alpha_s,
        eps=sigma_s,
        change=(alpha_s - alpha_t * sigma_s / sigma_t) * ratio / 2,
        noise=zeros,
    )


def heun(times: Float[Array, "points"], process: Process) -> Table:
    """Heun's method in σ/α: Euler to s, then the trapezium with the ε̂ found there (Karras et al. 2022).

    Their algorithm 1 for any (α, σ): d(z/α) = ε̂ d(σ/α), so the trapezium adds α_s (σ_s/α_s − σ_t/α_t)/2
    · (ε̂_s − ε̂_t) to Euler's z_s. Two calls a step; the last step is Euler's alone, and steps from pure
    noise (σ/α > 1000) stay Euler's.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _from_to(times, process)
    noisy = sigma_t > PURE_NOISE * alpha_t
    trapezium = jnp.where(noisy, 0, (sigma_s - alpha_s * sigma_t / jnp.where(noisy, 1, alpha_t)) / 2)
    zeros, ones = jnp.zeros_like(alpha_s), jnp.ones_like(alpha_s)

    def rows(predict: Array, correct: Array) -> Array:
        """The rows predict, correct, predict, …, predict."""
        return jnp.stack([predict, correct], axis=1).reshape(-1)[:-1]

    return Table(
        time=rows(times[:-1], times[1:]),
        keep=rows(zeros, ones),
        x=rows(alpha_s, zeros),
        eps=rows(sigma_s, zeros),
        change=rows(zeros, trapezium),
        noise=rows(zeros, zeros),
    )


SOLVERS = ("ddim", "heun", "dpmpp")  # and, of a discrete process alone, ddim_strided


def make_table(solver: str, times: Float[Array, "points"], process: Process, eta: float = 0.0) -> Table:
    """The table of the named solver on the given grid."""
    if solver not in (*SOLVERS, "ddim_strided"):
        raise InputError(f"solver {solver!r} is unknown; known are {', '.join(SOLVERS)}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be between 0 (DDIM) and 1 (ancestral)")
    if solver in ("ddim", "ddim_strided"):
        return {"ddim": ddim, "ddim_strided": ddim_strided}[solver](times, process, eta)
    if eta > 0:
        raise InputError(f"eta={eta} must be 0 with solver {solver!r}: only ddim adds noise")
    return {"heun": heun, "dpmpp": dpmpp}[solver](times, process)


def _from_to(times: Array, process: Process) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(α_t, σ_t) and (α_s, σ_s) of every step from t to s."""
    alpha, sigma = process.alpha_sigma(times)
    return (alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:])
