"""What is known of a video, and two ways in which a sampler respects it (Ho et al. 2022, section 3.1).

Both wrap a denoiser `(z, t) -> (x̂, ε̂)`, so that they serve every solver, and each other: the paper's
reconstruction guidance is `replaced(reconstructed(denoise))`. The third way, a network that was trained to be told
what is known, is in `conditioning`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.prediction import per_sample, to_x_eps
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import KNOWN, process_noise
from vdm_jax.typing import Array, Bool, Float, Key, Scalar


class Known(NamedTuple):
    """A video of which only what lies under the mask is known; elsewhere its values count for nothing."""

    video: Float[Array, "B *shape"]
    mask: Bool[Array, "B ..."]  # of the video's shape, or 1 where it is the same along an axis

    def put(self, x: Float[Array, "B *shape"]) -> Float[Array, "B *shape"]:
        """x with what is known in its place."""
        return jnp.where(self.mask, self.video, x)


def replaced(
    denoise: Callable, known: Known, process: Process, keys: Key[Array, "B"], *, exact: bool = True
) -> Callable:
    """The denoiser that sees a sample of q(z_t | known) in the known part: the replacement method.

    Its noise is drawn anew at each time; where frames share noise (`frame_correlation`), they share none with what is
    known. The known part of its answer is the known video itself, or with `exact` false what the network makes of it:
    no pixel is pasted, and no edge cut.
    """

    def denoise_with_known(z: Float[Array, "B *shape"], t: Float[Array, "B"]):
        alpha, sigma = (per_sample(value, z) for value in process.alpha_sigma(t))
        # The time's bits tell the calls apart: solvers do not number them.
        moment = jax.lax.bitcast_convert_type(t[0].astype(jnp.float32), jnp.int32)
        noise = process_noise(process, keys, KNOWN, z.shape[1:], z.dtype, moment)
        x_hat, eps_hat = denoise(jnp.where(known.mask, alpha * known.video + sigma * noise, z), t)
        return (known.put(x_hat) if exact else x_hat), jnp.where(known.mask, noise, eps_hat)

    return denoise_with_known


def reconstructed(
    denoise: Callable,
    target: Float[Array, "B *measured"],
    measure: Callable[[Float[Array, "B *shape"]], Float[Array, "B *measured"]],
    process: Process,
    weight: float | int | Scalar,
) -> Callable:
    """The denoiser that is drawn to videos whose measurement is the target: reconstruction guidance.

    x̃ = x̂ − (w α_t / 2) ∇_z ‖target − measure(x̂(z))‖² (Ho et al. 2022, section 3.1).
    The gradient goes through the network: a call costs as much as several, and more memory.
    """

    def denoise_towards(z: Float[Array, "B *shape"], t: Float[Array, "B"]):
        def error(z):
            x_hat, _ = denoise(z, t)
            return jnp.sum((target - measure(x_hat)) ** 2), x_hat

        gradient, x_hat = jax.grad(error, has_aux=True)(z)
        alpha, sigma = process.alpha_sigma(t)
        return to_x_eps("x", x_hat - weight * per_sample(alpha, z) / 2 * gradient, z, alpha, sigma)

    return denoise_towards


def under(mask: Bool[Array, "B ..."]) -> Callable[[Array], Array]:
    """The measurement that sees a video under the mask, and zeros elsewhere."""
    return lambda x: jnp.where(mask, x, 0)
