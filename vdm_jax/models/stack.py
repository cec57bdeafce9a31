"""Runs equal blocks by one scan over stacked parameters: compile time does not grow with the number of blocks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.typing import Array, PyTree

# What a block keeps for the backward pass, by name; the rest is computed again.
REMAT = {
    "none": None,  # everything is kept
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """Holds `depth` equal blocks, each applied to the output of the one before.

    Attributes and parameter paths are those of a single block; every parameter has a leading axis of length `depth`.
    """

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, *, remat: str = "none", rngs: nnx.Rngs
    ):
        """Draws the same parameters as `depth` calls of `make_block(rngs)`.

        Raises:
            InputError: `depth` is below 1, or `remat` is not a name in `REMAT`.
        """
        if depth < 1:
            raise InputError(f"depth={depth} must be at least 1")
        if remat not in REMAT:
            raise InputError(f"remat={remat!r} must be one of {', '.join(REMAT)}")
        counter = Keys(0)
        self._block, _ = nnx.split(nnx.eval_shape(lambda: make_block(counter)))
        self.remat = remat

        def initialise(_, keys):
            return None, nnx.to_pure_dict(nnx.state(make_block(_Replay(keys))))

        _, params = jax.lax.scan(initialise, None, _draw(rngs, depth * counter.count).reshape(depth, counter.count))
        for name, value in vars(nnx.merge(self._block, params)).items():
            if name not in vars(self):  # Flax's own attributes stay
                setattr(self, name, value)

    def __call__(self, x: PyTree, *args: Any, each: dict[str, PyTree] | None = None, **kwargs: Any) -> PyTree:
        """Applies `x = block(x, *args, **kwargs)` for each block, with the same `args` and `kwargs`.

        `each` holds keyword arguments that differ from block to block, such as dropout keys, on a leading axis.
        """

        def step(x, inputs):
            params, own = inputs
            return nnx.merge(self._block, params)(x, *args, **own, **kwargs), None

        if self.remat != "none":
            step = jax.checkpoint(
                step, policy=REMAT[self.remat], prevent_cse=False
            )  # no barrier: a scan merges nothing
        x, _ = jax.lax.scan(step, x, (nnx.to_pure_dict(nnx.state(self)), each or {}))
        return x


class _Replay(nnx.Rngs):
    """Returns given keys, one after the other."""

    def __init__(self, keys: Array):
        object.__setattr__(self, "params", iter(keys).__next__)


def _draw(rngs: nnx.Rngs, count: int) -> Array:
    """Returns the next keys of `rngs`."""
    return rngs.draw(count) if isinstance(rngs, Keys) else jnp.stack([rngs.params() for _ in range(count)])
