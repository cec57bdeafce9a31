"""The first z of a sampler, from keys."""

import jax.numpy as jnp

from vdm_jax.diffusion.sampler import INITIAL, noise_to_z, process_noise


def initial_noise(keys, shape, process, time=1.0):
    """Draws the z to start from, of the given shape for each key."""
    return noise_to_z(process_noise(process, keys, INITIAL, shape, jnp.float32), process, time)
