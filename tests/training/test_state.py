"""The first state: equal on every mesh, every leaf in its shards, nothing shared that a step would donate twice."""

import jax
import numpy as np

from vdm_jax.training.state import to_parts


def test_the_same_seed_gives_the_same_parameters_on_every_mesh(plan, on_devices):
    first = plan(on_devices(1), seed=7)[1]()
    sharded = plan(on_devices(8, fsdp=4, tensor=2), seed=7)[1]()
    other = plan(on_devices(1), seed=8)[1]()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(sharded))
    assert not np.array_equal(first.params["network"]["up"]["kernel"], other.params["network"]["up"]["kernel"])


def test_the_state_is_as_it_was_planned(plan, on_devices):
    planned, initialise = plan(on_devices(8, fsdp=4, tensor=2))
    for shape, array in zip(jax.tree.leaves(planned), jax.tree.leaves(initialise()), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_average_and_moments_are_sharded_like_their_parameters(plan, on_devices):
    state = plan(on_devices(8, fsdp=4, tensor=2))[1]()
    adam = state.opt_state[1][0]
    for copy in (state.ema, adam.mu, adam.nu):
        jax.tree.map(lambda p, c: np.testing.assert_(c.sharding == p.sharding), state.params, copy)
    assert not state.params["network"]["up"]["kernel"].sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated


def test_the_average_starts_as_a_copy_of_the_parameters(plan, on_devices):
    state = plan(on_devices(1))[1]()
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.params, state.ema, state.opt_state))]
    assert len(set(pointers)) == len(pointers)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (0, 0, 0)


def test_a_checkpoint_has_the_average_as_a_part_of_its_own(plan, on_devices):
    state = plan(on_devices(1))[0]
    parts = to_parts(state)
    assert (parts["params"], parts["ema"]) == (state.params, state.ema)
    assert set(parts["rest"]) == {"step", "opt_state", "skipped", "skipped_in_a_row"}
