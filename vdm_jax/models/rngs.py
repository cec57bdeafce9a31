"""Random keys for making a module: the keys of `nnx.Rngs`, counted in Python."""

import jax
import jax.numpy as jnp
from flax import nnx


class Keys(nnx.Rngs):
    """The keys of `nnx.Rngs(seed)`, for making a module under a trace.

    There Flax's counter is a traced array, and each update searches everything that was traced before: a network of
    1,400 arrays takes half a minute (flax 0.12, November 2026).
    """

    def __init__(self, seed: int):
        object.__setattr__(self, "_seed", seed)
        object.__setattr__(self, "count", 0)

    def params(self) -> jax.Array:
        """Returns the next key."""
        key = jax.random.fold_in(jax.random.key(self._seed), self.count)
        object.__setattr__(self, "count", self.count + 1)
        return key

    def draw(self, number: int) -> jax.Array:
        """Returns the next keys in one array. 400 keys drawn one by one take nine seconds to compile."""
        counts = self.count + jnp.arange(number)
        object.__setattr__(self, "count", self.count + number)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), counts)
