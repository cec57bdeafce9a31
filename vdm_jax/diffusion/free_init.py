"""FreeInit: a video drawn again, from noise that holds its low frequencies (Wu et al. 2023, arXiv 2312.07537).

In training the noise at t = 1 still holds a little of the video, most of it slow and coarse; that of sampling holds
nothing. So the video that was drawn is noised to t = 1, and drawn again from there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import INITIAL, ROUND, process_noise
from vdm_jax.typing import Array, Float, Key

ORDER, IN_TIME, IN_SPACE = 4, 0.25, 0.25  # as published; cut-offs in units of the highest frequency


def low_pass(frames: int, rows: int, columns: int) -> Float[np.ndarray, "T H W 1"]:
    """Butterworth's filter 1 / (1 + r^2n) of a spectrum in the order of `fftn`, r in units of the cut-off.

    As published the centre is at half of the length: an odd one's frequencies are counted from half a step beside 0.
    """

    def squares(length: int, cut_off: float) -> np.ndarray:
        return (np.fft.ifftshift(2 * np.arange(length) / length - 1) / cut_off) ** 2

    in_time = squares(frames, IN_TIME)[:, None, None, None]
    squared = in_time + squares(rows, IN_SPACE)[:, None, None] + squares(columns, IN_SPACE)[:, None]
    return (1 / (1 + squared**ORDER)).astype(np.float32)


def refreshed(
    x: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"], fresh: Float[Array, "B T H W C"], process: Process
) -> Float[Array, "B T H W C"]:
    """Noise of variance 1: x noised to t = 1 in its low frequencies, fresh noise in the high ones."""
    alpha, sigma = process.alpha_sigma(jnp.float32(1))
    noised = (alpha * x + sigma * noise) / jnp.hypot(alpha, sigma)
    # Fourier transforms as products of matrices: XLA's own fails where devices share the videos (CPU, jax 0.10).
    to = [np.fft.fft(np.eye(length)).astype(np.complex64) for length in x.shape[1:4]]
    back = [matrix.conj() / len(matrix) for matrix in to]
    every_axis = functools.partial(jnp.einsum, "bthwc,tx,hy,wz->bxyzc", precision="highest")
    return fresh + every_axis(low_pass(*x.shape[1:4]) * every_axis(noised - fresh, *to), *back).real


def in_rounds(
    draw: Callable, noise: Float[Array, "B T H W C"], keys: Key[Array, "B"], process: Process, rounds: int
) -> Float[Array, "B T H W C"]:
    """The video of the last of `rounds` calls of `draw(noise, keys)`, compiled once; the first has the given noise."""
    if rounds == 1:
        return draw(noise, keys)

    def keys_of(number):
        later = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, ROUND), number))(keys)
        return jnp.where(number == 0, keys, later)

    def once(carry, number):
        x = draw(carry[0], keys_of(number))
        fresh = process_noise(process, keys_of(number + 1), INITIAL, x.shape[1:], x.dtype)
        return (refreshed(x, noise, fresh, process), x), None

    (_, x), _ = jax.lax.scan(once, (noise, jnp.zeros_like(noise)), jnp.arange(rounds))
    return x
