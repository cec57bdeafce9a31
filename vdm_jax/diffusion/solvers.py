"""Solvers: the numbers that turn a denoiser's (x̂, ε̂) into the next, less noisy video.

Every solver here is the first-order step z_s = α_s x̂ + σ_s ε̂ plus a multiple of the change of a prediction between
two calls. So a solver is a table of coefficients with one row for each call of the denoiser, and the sampler is one
loop over its rows:

    z  ←  keep·z + x·x̂ + eps·ε̂ + change·(p − p_before) + noise·n,        p = x̂ or ε̂

No coefficient divides by a number that may vanish: α_t = 0 (a flow's noise) and σ_s = 0 (the clean end) are fine.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

# Above this σ/α a trapezium in σ/α spans a nearly infinite step (infinite at a flow's t = 1).
PURE_NOISE = 1000.0


class Table(NamedTuple):
    """The time and the coefficients of each call of the denoiser, for the whole video or for each of its T frames."""

    time: Float[Array, "calls *T"]
    keep: Float[Array, "calls *T"]
    x: Float[Array, "calls *T"]
    eps: Float[Array, "calls *T"]
    change: Float[Array, "calls *T"]
    noise: Float[Array, "calls *T"]

    of_x = False  # `change` multiplies the change of ε̂


class TableOfX(Table):
    """A table whose `change` multiplies the change of x̂."""

    of_x = True


def ddim(times: Float[Array, "points *T"], process: Process, eta: float = 0.0) -> Table:
    """Returns first-order steps with noise η: 0 is DDIM, 1 ancestral sampling (Song et al. 2021, eq. 12 and 16).

    Their σ² for general (α, σ) is η² σ_s² (1 − q²) with q² = SNR_t / SNR_s. At η = 0 this is Euler's method on a flow,
    and Karras et al.'s (2022) Euler step with α = 1. A frame whose time does not change keeps its z.
    """
    return _first_order(times[:-1], times[1:], process, eta)


def ddim_strided(times: Float[Array, "points"], process: Process, eta: float = 0.0) -> Table:
    """Returns DDIM steps that are all N // n training steps long, wherever the next step begins.

    diffusers takes such steps on a linspace or trailing grid, and AnimateDiff's samples were made with them. The
    network is called at the grid's times, but the noise level of its input is a little higher or lower.
    """
    if process.num_steps is None:
        raise InputError("solver 'ddim_strided' needs a discrete process")
    stride = process.num_steps // (len(times) - 1) / process.num_steps
    beyond = times[:-1] - stride < 0.5 / process.num_steps  # before the first training step
    return _first_order(times[:-1], jnp.where(beyond, times[-1], times[:-1] - stride), process, eta)


def _first_order(t: Float[Array, "steps *T"], s: Float[Array, "steps *T"], process: Process, eta: float) -> Table:
    """Returns the steps from times t to times s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    waits = t == s  # both may be 0 or 1, where q is 0/0
    fresh = eta**2 * (1 - jnp.square(alpha_t * sigma_s / jnp.where(waits, 1, sigma_t * alpha_s)))
    fresh = jnp.clip(fresh, 0, 1)
    return Table(
        time=t,
        keep=waits.astype(t.dtype),
        x=jnp.where(waits, 0, alpha_s),
        eps=jnp.where(waits, 0, sigma_s * jnp.sqrt(1 - fresh)),
        change=jnp.zeros_like(t),
        noise=jnp.where(waits, 0, sigma_s * jnp.sqrt(fresh)),
    )


def dpmpp(times: Float[Array, "points"], process: Process) -> Table:
    """Returns DPM-Solver++(2M), which extrapolates x̂ from its last two values (Lu et al. 2022b, algorithm 2).

    Their z_s = (σ_s/σ_t) z − α_s (e^−h − 1) D with D = x̂ + (x̂ − x̂_before) h/2h_before is the first-order step plus
    (α_s − α_t σ_s/σ_t) · h/2h_before · (x̂ − x̂_before). The first step is first-order; so is the step to t = 0 (where h
    is infinite or nearly so) and, with less than 15 steps, the last step (as in diffusers).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _from_to(times, process)
    h = jnp.diff(process.log_snr(times))
    steps = len(times) - 1
    index = jnp.arange(steps)
    first_order = (index == 0) | (times[1:] == 0) | ((index == steps - 1) & (steps < 15))
    before = jnp.concatenate([h[:1], h[:-1]])
    ratio = jnp.where(first_order, 0, jnp.where(first_order, 1, h) / jnp.where(first_order, 1, before))
    zeros = jnp.zeros_like(alpha_s)
    return TableOfX(
        time=times[:-1],
        keep=zeros,
        x=alpha_s,
        eps=sigma_s,
        change=(alpha_s - alpha_t * sigma_s / sigma_t) * ratio / 2,
        noise=zeros,
    )


def heun(times: Float[Array, "points"], process: Process) -> Table:
    """Returns Heun's method in σ/α: Euler to s, then the trapezium with ε̂ at s (Karras et al. 2022).

    Their algorithm 1 for any (α, σ): d(z/α) = ε̂ d(σ/α), so the trapezium adds α_s (σ_s/α_s − σ_t/α_t)/2 · (ε̂_s − ε̂_t)
    to Euler's z_s. A step has two calls. The last step, and steps from pure noise (σ/α > 1000), are Euler's alone.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _from_to(times, process)
    noisy = sigma_t > PURE_NOISE * alpha_t
    trapezium = jnp.where(noisy, 0, (sigma_s - alpha_s * sigma_t / jnp.where(noisy, 1, alpha_t)) / 2)
    zeros, ones = jnp.zeros_like(alpha_s), jnp.ones_like(alpha_s)

    def rows(predict: Array, correct: Array) -> Array:
        """Returns the rows predict, correct, predict, …, predict."""
        return jnp.stack([predict, correct], axis=1).reshape(-1)[:-1]

    return Table(
        time=rows(times[:-1], times[1:]),
        keep=rows(zeros, ones),
        x=rows(alpha_s, zeros),
        eps=rows(sigma_s, zeros),
        change=rows(zeros, trapezium),
        noise=rows(zeros, zeros),
    )


SOLVERS = ("ddim", "heun", "dpmpp")  # and ddim_strided, for discrete processes only


def make_table(solver: str, times: Float[Array, "points *T"], process: Process, eta: float = 0.0) -> Table:
    """Returns the table of the named solver on a grid; only "ddim" takes a grid for each frame (points T)."""
    if solver not in (*SOLVERS, "ddim_strided"):
        raise InputError(f"solver {solver!r} is unknown; known are {', '.join(SOLVERS)}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be between 0 (DDIM) and 1 (ancestral)")
    if times.ndim > 1 and solver != "ddim":
        raise InputError(f"solver={solver!r} must be ddim where each frame has its own times (shape {times.shape})")
    if solver in ("ddim", "ddim_strided"):
        return {"ddim": ddim, "ddim_strided": ddim_strided}[solver](times, process, eta)
    if eta > 0:
        raise InputError(f"eta={eta} must be 0 with solver {solver!r}: only ddim adds noise")
    return {"heun": heun, "dpmpp": dpmpp}[solver](times, process)


def _from_to(times: Array, process: Process) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns (α_t, σ_t) and (α_s, σ_s) of every step from t to s."""
    alpha, sigma = process.alpha_sigma(times)
    return (alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:])
