"""FreeNoise: all windows of a long video start from the same frames of noise (Qiu et al. 2023, arXiv 2310.15169)."""

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.sampler import SHUFFLE
from vdm_jax.typing import Array, Float, Key


def rescheduled(
    noise: Float[Array, "B T *shape"], keys: Key[Array, "B"], length: int, stride: int
) -> Float[Array, "B T *shape"]:
    """Replaces the frames after the first `length` by the frames `length` before them, shuffled within each `stride`.

    T must be at least `length`, and `length` at least `stride`.
    """
    frames = noise.shape[1]
    begins = jnp.arange(0, frames - length, stride)

    def order(key):
        def repeat(order, begin):
            begin_key = jax.random.fold_in(jax.random.fold_in(key, SHUFFLE), begin)
            shuffled = jax.random.permutation(begin_key, jax.lax.dynamic_slice(order, (begin,), (stride,)))
            return jax.lax.dynamic_update_slice(order, shuffled, (begin + length,)), None

        return jax.lax.scan(repeat, jnp.arange(length + stride * len(begins)), begins)[0]

    return jax.vmap(lambda own, key: own[order(key)[:frames]])(noise, keys)
