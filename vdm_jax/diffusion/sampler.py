"""The sampler: one `lax.scan` that calls the denoiser along a grid of times."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Key, Scalar

# What a sample's key is used for: its first noise, the noise of each step, that of what is known, that of what the
# network is told of it, the keys of FreeInit's later rounds, and FreeNoise's order of frames; then the same again for
# what the frames of each noise share.
INITIAL, STEP, KNOWN, TOLD, ROUND, SHUFFLE, SHARED = range(7)


def initial_noise(
    keys: Key[Array, "B"], shape: tuple[int, ...], process: Process, time: float | Scalar = 1.0
) -> Float[Array, "B ..."]:
    """Noise to start from, `shape` for each key, so that a sample's noise does not depend on its batch.

    Its standard deviation is √(α² + σ²) at the grid's first time, that of z for data of variance 1 (as
    diffusers starts): 1 for variance-preserving processes and flows, √(1 + σ_max²) for EDM.
    """
    alpha, sigma = process.alpha_sigma(jnp.float32(time))
    return jnp.hypot(alpha, sigma) * process_noise(process, keys, INITIAL, shape, jnp.float32)


def sample(
    denoise: Callable,
    z: Float[Array, "B *shape"],
    times: Float[Array, "points"],
    process: Process,
    *,
    solver: str = "ddim",
    eta: float = 0.0,
    keys: Key[Array, "B"] | None = None,
) -> Float[Array, "B *shape"]:
    """Follows `times` from the noise z at times[0] to the video at times[-1], which at t = 0 is the clean x̂.

    `denoise(z, t)` gives (x̂, ε̂) for a vector of B equal times. `solver` is one of `SOLVERS`; "ddim"
    takes the noise level `eta` (a Python float), which needs one key per sample. Wrap the call in
    `jax.jit`.
    """
    if len(times) < 2:
        raise InputError(f"times of length {len(times)} must hold at least two times, from noise to clean")
    if eta > 0 and keys is None:
        raise InputError(f"eta={eta} adds noise and so needs keys, one per sample")
    table = make_table(solver, times.astype(z.dtype), process, eta)
    changes_of_x = solver == "dpmpp"

    def call(carry, row_and_index):
        z, before = carry
        row, index = row_and_index
        x_hat, eps_hat = denoise(z, jnp.full(z.shape[0], row.time))
        now = x_hat if changes_of_x else eps_hat
        z = row.keep * z + row.x * x_hat + row.eps * eps_hat + row.change * (now - before)
        if eta > 0:
            z = z + row.noise * process_noise(process, keys, STEP, z.shape[1:], z.dtype, index)
        return (z, now), None

    (z, _), _ = jax.lax.scan(call, (z, jnp.zeros_like(z)), (table, jnp.arange(len(table.time))))
    return z


def process_noise(
    process: Process, keys: Key[Array, "B"], purpose: int, shape: tuple[int, ...], dtype, index: Array | int = 0
) -> Float[Array, "B ..."]:
    """Noise as a process puts it on videos: Gaussian, with its correlation of frames."""
    own = gaussian(keys, purpose, shape, dtype, index)
    if not process.frame_correlation:
        return own
    return process.mix(own, gaussian(keys, SHARED + purpose, (1, *shape[1:]), dtype, index))


def gaussian(
    keys: Key[Array, "B"], purpose: int, shape: tuple[int, ...], dtype, index: Array | int = 0
) -> Float[Array, "B ..."]:
    """Gaussian noise of the given shape for each key, for one purpose and the index-th use of it."""

    def one(key):  # flat, which is faster to compile: see `objective.draw`
        key = jax.random.fold_in(jax.random.fold_in(key, purpose), index)
        return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return jax.vmap(one)(keys)
