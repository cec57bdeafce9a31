"""What a network predicts, and the one place where predictions are converted.

With z = α x + σ ε, and r = √(α² + σ²):

    eps    ε                     Ho et al. 2020
    x      x                     Salimans & Ho 2022
    v      (α ε − σ x) / r       Salimans & Ho 2022, section 4 (r = 1)
    flow   ε − x                 Liu et al. 2022 with time reversed
    reverse_flow   x − ε         Liu et al. 2022, as in Open-Sora 1.2

Dividing by r gives v variance 1 on every process. With α = 1 (EDM) this v is what Stable Video Diffusion predicts.

z and any one of the quantities determine both x̂ and ε̂. `v` and both flows do so at every noise level. `eps` says
nothing about x at α = 0, and `x` nothing about ε at σ = 0. There the divisor is held at `TINY`: the answer is finite
and still satisfies z = α x̂ + σ ε̂, but x̂ (or ε̂) carries the network's error divided by `TINY`. Clip it or avoid that
end.

A time belongs to a video or to a frame: an array of times has the shape `B` or `B T`. α and σ have the shape of the
times.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

# (z, network time, condition) -> the network's raw output. The network time has the shape of the times, B or B T.
# The loss passes in the place of the condition which videos drop it.
Predict = Callable[[Array, Array, Any], Array]
# (z, t) -> (x̂, ε̂) with z = α x̂ + σ ε̂
Denoise = Callable[[Array, Array], tuple[Array, Array]]

PREDICTIONS = ("eps", "x", "v", "flow", "reverse_flow")
TINY = 1e-8


def per_sample(values: Float[Array, "B *T"], like: Float[Array, "B *shape"]) -> Float[Array, "B ..."]:
    """Appends axes of size 1, so that one value per video (B) or frame (B T) multiplies `like`, in its precision."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)).astype(like.dtype)


def to_x_eps(
    kind: str,
    output: Float[Array, "B *shape"],
    z: Float[Array, "B *shape"],
    alpha: Float[Array, "B *T"],
    sigma: Float[Array, "B *T"],
) -> tuple[Float[Array, "B *shape"], Float[Array, "B *shape"]]:
    """Converts a network's output of the given kind at z to (x̂, ε̂), so that z = α x̂ + σ ε̂."""
    check_prediction(kind)
    alpha, sigma, output = per_sample(alpha, z), per_sample(sigma, z), output.astype(z.dtype)
    if kind == "eps":
        return (z - sigma * output) / jnp.maximum(alpha, TINY), output
    if kind == "x":
        return output, (z - alpha * output) / jnp.maximum(sigma, TINY)
    if kind == "v":
        r = jnp.hypot(alpha, sigma)
        return (alpha * z / r - sigma * output) / r, (sigma * z / r + alpha * output) / r
    output = -output if kind == "reverse_flow" else output
    return (z - sigma * output) / (alpha + sigma), (z + alpha * output) / (alpha + sigma)


def from_x_eps(
    kind: str,
    x: Float[Array, "B *shape"],
    eps: Float[Array, "B *shape"],
    alpha: Float[Array, "B *T"],
    sigma: Float[Array, "B *T"],
) -> Float[Array, "B *shape"]:
    """Converts (x, ε) to the quantity of the given kind: the training target, and the inverse of `to_x_eps`."""
    check_prediction(kind)
    alpha, sigma = per_sample(alpha, x), per_sample(sigma, x)
    if kind == "eps":
        return eps
    if kind == "x":
        return x
    if kind == "v":
        return (alpha * eps - sigma * x) / jnp.hypot(alpha, sigma)
    return eps - x if kind == "flow" else x - eps


def error_factor(kind: str, log_snr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The squared error of the prediction divided by the squared error of x̂, at equal z.

    σ δε = −α δx makes it SNR for eps, 1 for x, SNR + 1 for v, (√SNR + 1)² for both flows (Salimans & Ho 2022, section
    4).
    """
    check_prediction(kind)
    snr = jnp.exp(log_snr)
    flow = (jnp.sqrt(snr) + 1) ** 2
    return {"eps": snr, "x": jnp.ones_like(snr), "v": snr + 1, "flow": flow, "reverse_flow": flow}[kind]


def check_prediction(kind: str):
    """Raises `InputError` for a kind that `PREDICTIONS` does not hold."""
    if kind not in PREDICTIONS:
        raise InputError(f"prediction {kind!r} is unknown; known are {', '.join(PREDICTIONS)}")
