"""Modules without zeros (a fresh block that starts as the identity would hide what it computes), and references."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def normal(seed, *shape):
    """Returns standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomised(make, scale=0.5, zero=None):
    """Returns the module that `make` makes with every parameter drawn anew; paths that hold `zero` are zero."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype)
        return 0 * value if zero and zero in jax.tree_util.keystr(path) else value

    graphdef, params = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, params))


def softmax_attention(query, key, value, bias=0.0, mask=True):
    """Returns softmax(q kᵀ/√D + bias) v over the last two axes, in float64."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    scores = np.where(mask, query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]) + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value
