"""Keys for making a module."""

import jax
import numpy as np
from flax import nnx

from vdm_jax.models.rngs import Keys


def test_they_are_those_of_flax():
    for seed in (0, 7):
        ours, theirs = Keys(seed), nnx.Rngs(seed)
        for _ in range(3):
            np.testing.assert_array_equal(jax.random.key_data(ours.params()), jax.random.key_data(theirs.params()))
        for key in ours.draw(2):
            np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(theirs.params()))
        assert ours.count == 5


def test_a_module_is_made_of_them_under_a_trace():
    def make(keys):
        return nnx.to_pure_dict(nnx.split(nnx.Linear(2, 3, rngs=keys))[1])

    traced = jax.jit(lambda: make(Keys(1)))()
    jax.tree.map(np.testing.assert_array_equal, traced, make(nnx.Rngs(1)))
