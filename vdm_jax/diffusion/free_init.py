"""FreeInit: a video sampled again, from noise that holds its low frequencies (Wu et al. 2023, arXiv 2312.07537).

In training the noisy video at t = 1 still holds a little of the video, most of it slow and coarse. In sampling it holds
nothing. So the sampled video is noised to t = 1, and sampled again from there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import INITIAL, ROUND, process_noise
from vdm_jax.typing import Array, Float, Key

ORDER, CUT_OFF_IN_TIME, CUT_OFF_IN_SPACE = 4, 0.25, 0.25  # as published; in units of the highest frequency


def low_pass(frames: int, rows: int, columns: int) -> Float[np.ndarray, "T H W 1"]:
    """Returns Butterworth's filter 1 / (1 + r^2n) of a spectrum in the order of `fftn`, r in units of the cut-off.

    The centre is at half of the length, as published: with an odd length the frequencies are half a step off.
    """

    def squares(length: int, cut_off: float) -> np.ndarray:
        return (np.fft.ifftshift(2 * np.arange(length) / length - 1) / cut_off) ** 2

    in_time = squares(frames, CUT_OFF_IN_TIME)[:, None, None, None]
    squared = in_time + squares(rows, CUT_OFF_IN_SPACE)[:, None, None] + squares(columns, CUT_OFF_IN_SPACE)[:, None]
    return (1 / (1 + squared**ORDER)).astype(np.float32)


def refreshed(
    x: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"], fresh: Float[Array, "B T H W C"], process: Process
) -> Float[Array, "B T H W C"]:
    """Returns noise that holds the low frequencies of x noised to t = 1, and the high frequencies of fresh noise.

    Its variance is 1 but for the transition of the filter, where H² + (1 − H)² < 1 (measured: 0.992 on average for
    16×32×32, 0.61 to 0.66 in the transition). The published method has the same.
    """
    alpha, sigma = process.alpha_sigma(jnp.float32(1))
    noised = (alpha * x + sigma * noise) / jnp.hypot(alpha, sigma)
    # Fourier transforms as products of matrices: XLA's own fails where devices share the videos (CPU, jax 0.10).
    forward = [np.fft.fft(np.eye(length)).astype(np.complex64) for length in x.shape[1:4]]
    inverse = [matrix.conj() / len(matrix) for matrix in forward]
    transform = functools.partial(jnp.einsum, "bthwc,tx,hy,wz->bxyzc", precision="highest")
    return fresh + transform(low_pass(*x.shape[1:4]) * transform(noised - fresh, *forward), *inverse).real


def in_rounds(
    draw: Callable, noise: Float[Array, "B T H W C"], keys: Key[Array, "B"], process: Process, rounds: int
) -> Float[Array, "B T H W C"]:
    """Returns the video of the last of `rounds` calls of `draw(noise, keys)`; the first call has the given noise.

    `draw` is compiled once. The first round has the given keys, and every later round has its own.
    """
    if rounds == 1:
        return draw(noise, keys)

    def keys_of(number):
        later = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, ROUND), number))(keys)
        return jnp.where(number == 0, keys, later)

    def draw_round(carry, number):
        x = draw(carry[0], keys_of(number))
        fresh = process_noise(process, keys_of(number + 1), INITIAL, x.shape[1:], x.dtype)
        return (refreshed(x, noise, fresh, process), x), None

    (_, x), _ = jax.lax.scan(draw_round, (noise, jnp.zeros_like(noise)), jnp.arange(rounds))
    return x
