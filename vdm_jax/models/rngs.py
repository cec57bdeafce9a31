"""Keys for making a module, as `nnx.Rngs` gives them, but counted in Python."""

import jax
from flax import nnx


class Keys(nnx.Rngs):
    """The keys of `nnx.Rngs(seed)`, for tracing a module's making.

    Under a trace Flax's counter is a traced array, whose every update looks through all that was traced before: a
    network of 1,400 arrays takes half a minute (flax 0.12, November 2026).
    """

    def __init__(self, seed: int):
        object.__setattr__(self, "_seed", seed)
        object.__setattr__(self, "_count", 0)

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(jax.random.key(self._seed), self._count)
        object.__setattr__(self, "_count", self._count + 1)
        return key
