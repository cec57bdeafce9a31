"""The sampler: one `lax.scan` that calls the denoiser along a grid of times."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.prediction import Denoise
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.solvers import Table, make_table
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Key

# The purposes of a sample's key: its first noise, the noise of each step, the noise on the known part of z, the noise
# of `known_channels`, the keys of FreeInit's later rounds, FreeNoise's order of frames. SHARED + purpose is the purpose
# of the noise that all frames share. KNOWN_LEVEL is the noise of `known_in_time`.
INITIAL, STEP, KNOWN, CHANNELS, ROUND, SHUFFLE, SHARED = range(7)
KNOWN_LEVEL = 2 * SHARED
FIRST_NOISE = ("total", "sigma", "one")


def noise_to_z(
    noise: Float[Array, "B *shape"],
    process: Process,
    time: float | Float[Array, "*T"] = 1.0,
    video: Float[Array, "#B *shape"] | None = None,
    first: str = "total",
) -> Float[Array, "B *shape"]:
    """Returns z at the first time of a grid (one time, or one per frame), from noise of variance 1.

    With a `video` z is α x + σ ε: sampling starts from the video. Without a video z is ε times the `first` of
    `FIRST_NOISE`: "total" is √(α² + σ²), the standard deviation of z for data of variance 1: 1 at t = 1, but
    √(1 + σ_max²) for EDM. Some published solvers begin with "sigma" or with "one".
    """
    alpha, sigma = (_over_frames(value, noise) for value in process.alpha_sigma(jnp.asarray(time, jnp.float32)))
    if video is not None:
        return alpha * video + sigma * noise
    return {"total": jnp.hypot(alpha, sigma), "sigma": sigma, "one": 1.0}[first] * noise


def sample(
    denoise: Denoise,
    z: Float[Array, "B *shape"],
    times: Float[Array, "points *T"],
    process: Process,
    *,
    solver: str = "ddim",
    eta: float = 0.0,
    keys: Key[Array, "B"] | None = None,
    **options: Any,
) -> Float[Array, "B *shape"]:
    """Follows `times` from the noise z at times[0] to the video at times[-1], which at t = 0 is the clean x̂.

    `denoise(z, t)` is called with B equal times. If each frame has its own times (points T, see `grids.pyramid`), it is
    called with times of shape B T. `solver` is one of `SOLVERS`, and `options` are its options. A solver that adds
    noise (in most by `eta`) needs one key per sample. Wrap the call in `jax.jit`; `times` must not be traced.
    """
    if len(times) < 2:
        raise InputError(f"times of length {len(times)} must hold at least two times, from noise to clean")
    table = make_table(solver, times, process, eta, **options)
    noisy = table.noise.any()
    if noisy and keys is None:
        raise InputError(f"solver={solver!r} with eta={eta} adds noise and so needs keys, one per sample")
    table = jax.tree.map(lambda column: jnp.asarray(column, z.dtype), table)

    def call(carry, row_and_index):
        z, past = carry
        row, index = row_and_index
        x_hat, eps_hat = denoise(z, jnp.broadcast_to(row.time, (z.shape[0], *row.time.shape)))
        noise = process_noise(process, keys, STEP, z.shape[1:], z.dtype, index) if noisy else 0.0
        return advance(row, z, x_hat, eps_hat, past, noise), None

    past = (jnp.zeros_like(z),) * table.past.shape[1]
    (z, _), _ = jax.lax.scan(call, (z, past), (table, jnp.arange(len(table.time))))
    return z


def advance(
    row: Table,
    z: Float[Array, "B *shape"],
    x_hat: Float[Array, "B *shape"],
    eps_hat: Float[Array, "B *shape"],
    past: tuple[Float[Array, "B *shape"], ...],
    noise: Float[Array, "B *shape"] | float = 0.0,
) -> tuple[Float[Array, "B *shape"], tuple[Float[Array, "B *shape"], ...]]:
    """Returns the next z and the newest K values of p, by one row of a table: the sum at the head of `solvers`."""
    row = jax.tree.map(lambda value: _over_frames(value, z), row)
    p = row.p_x * x_hat + row.p_eps * eps_hat
    z = row.keep * z + row.x * x_hat + row.eps * eps_hat + sum(w * q for w, q in zip(row.past, past, strict=True))
    return z + row.noise * noise, (p, *past)[: len(past)]


def process_noise(
    process: Process, keys: Key[Array, "B"], purpose: int, shape: tuple[int, ...], dtype, index: Array | int = 0
) -> Float[Array, "B ..."]:
    """Draws the noise that a process adds to videos: Gaussian, with the process's correlation of frames."""
    own = gaussian(keys, purpose, shape, dtype, index)
    if not process.frame_correlation:
        return own
    return process.mix(own, gaussian(keys, SHARED + purpose, (1, *shape[1:]), dtype, index))


def gaussian(
    keys: Key[Array, "B"], purpose: int, shape: tuple[int, ...], dtype, index: Array | int = 0
) -> Float[Array, "B ..."]:
    """Draws Gaussian noise of the given shape for each key, for one purpose and the index-th use of it."""

    def draw(key):  # flat, which is faster to compile: see `objective.draw`
        key = jax.random.fold_in(jax.random.fold_in(key, purpose), index)
        return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return jax.vmap(draw)(keys)


def _over_frames(value: Float[Array, "*T"], z: Float[Array, "B *shape"]) -> Float[Array, "..."]:
    """Appends axes of size 1, so that one value per frame multiplies z; one value for all frames stays a scalar."""
    return value.reshape(value.shape + (1,) * (z.ndim - 2)) if value.ndim else value
