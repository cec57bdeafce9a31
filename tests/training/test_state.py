"""The first state: equal on every mesh, every leaf in its shards, nothing shared that a step would donate twice."""

import jax
import numpy as np

from vdm_jax.training.state import create_state


def test_the_same_seed_gives_the_same_parameters_on_every_mesh(make_toy, tx, on_devices):
    one = create_state(make_toy, tx, on_devices(1), seed=7)[1]
    eight = create_state(make_toy, tx, on_devices(8, fsdp=4, tensor=2), seed=7)[1]
    other = create_state(make_toy, tx, on_devices(1), seed=8)[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(eight))
    assert not np.array_equal(one.params["up"]["kernel"], other.params["up"]["kernel"])


def test_average_and_moments_are_sharded_like_their_parameters(make_toy, tx, on_devices):
    state = create_state(make_toy, tx, on_devices(8, fsdp=4, tensor=2), seed=7)[1]
    adam = state.opt_state[1][0]
    for copy in (state.ema, adam.mu, adam.nu):
        jax.tree.map(lambda p, c: np.testing.assert_(c.sharding == p.sharding), state.params, copy)
    assert not state.params["up"]["kernel"].sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated


def test_the_average_starts_as_a_copy_of_the_parameters(make_toy, tx, on_devices):
    state = create_state(make_toy, tx, on_devices(1), seed=7)[1]
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, state.ema, state.opt_state))]
    assert len(set(pointers)) == len(pointers)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (0, 0, 0)
