"""How activations lie on a device mesh; networks call it, `parallel.sharding` has the version for a mesh."""

from collections.abc import Callable

from vdm_jax.typing import Array, Float


class Layout:
    """The layout of a single device: it constrains nothing."""

    def __call__(self, x: Float[Array, "B T H W C"], where: str) -> Float[Array, "B T H W C"]:
        """Returns x as it should lie in a block that mixes positions in "space" or in "time".

        Call it on both sides of a block. The backward pass enters at the far side: without a layout there, the gradient
        of the last weights multiplies an input in one layout by a gradient in another, and XLA (JAX 0.10 and 0.12) then
        forgets to sum over `data`.
        """
        return x

    def heads(self, x: Float[Array, "B T P N D"], back: bool = False) -> Float[Array, "B T P N D"]:
        """Returns queries, keys or values as they should lie for attention over all tokens; `back`: its result."""
        return x

    def per_position(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C2"]:
        """Applies a function of vectors to each position.

        The positions are one axis: on CPUs the gradient of a matrix is slower over four of them
        (`experiments/benchmark_layers.py` measures both).
        """
        return function(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def per_frame(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        """Applies a function of (B·T) images, such as a 2-D convolution: the fast kernels of every backend."""
        images = function(x.reshape(-1, *x.shape[2:]))
        return images.reshape(*x.shape[:2], *images.shape[1:])


ONE_DEVICE = Layout()
