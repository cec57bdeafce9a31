"""The exact denoiser of Gaussian videos, whose distributions are formulas."""

import jax.numpy as jnp


def exact_denoiser(process, mean, covariance):
    """Returns E[x | z] and E[ε | z] for frames x ~ N(mean, covariance) of one pixel, at one time or one per frame.

    With α and σ on the diagonals of A and S, z ~ N(A μ, A Σ A + S²). Both are finite at σ = 0. All videos of a batch
    have the same times.
    """
    mean, covariance = jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)

    def denoise(z, t):
        alpha, sigma = (jnp.broadcast_to(value[0], mean.shape) for value in process.alpha_sigma(t))
        total = alpha[:, None] * covariance * alpha + jnp.diag(sigma**2)
        whitened = (z - alpha * mean) @ jnp.linalg.inv(total).T
        return mean + alpha * whitened @ covariance, sigma * whitened

    return denoise
