"""One step: the same update however it is computed, and none at all where a number is not finite."""

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.training.losses import Loss
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step


@pytest.fixture
def mesh(on_devices):
    return on_devices(8, data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("one_program", [False, True])
def test_one_program_or_two_compiled_beforehand_take_the_same_step(
    make_step, make_state, batch, mesh, difference, one_program
):
    expected, metrics = make_step()(make_state(), batch, {})
    placed = jax.device_put(batch, batch_sharding(mesh))
    with ThreadPoolExecutor() as background:
        step = make_step(mesh=mesh, one_program=one_program).compile(background, make_state(mesh), placed, {})()
    assert len(step.programs) == 2 - one_program
    after, metrics_after = step(make_state(mesh), placed, {})
    assert difference(expected, after) < 1e-5
    assert metrics.keys() == metrics_after.keys()


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (1, 4), (8, 1)])
def test_gradients_are_clipped_by_the_norm_of_all(make_step, make_state, batch, on_devices, mesh, devices, accumulate):
    most = 0.01
    clipped = make_optimizer("sgd", lambda step: 1.0, clip=most)
    mesh = mesh if devices == 8 else on_devices(1)
    params = jax.device_get(make_state().params)
    before = dataclasses.replace(jax.device_get(make_state()), opt_state=clipped.init(params))
    placed = jax.device_put(batch, batch_sharding(mesh))
    step = make_step(mesh=mesh, accumulate=accumulate, tx=clipped)
    after, metrics = step(make_state(mesh, before), placed, {})
    assert metrics["grad_norm"] > 2 * most
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, params)
    assert float(optax.tree.norm(moved)) == pytest.approx(most, rel=1e-3)


def test_any_loss_is_minimised(on_devices):
    """Least squares of one number: the loss, its gradient and the update are known."""

    def prepare(frozen, batch, key):
        return {"x": batch["x"] + frozen["shift"]}

    def value(trained, frozen, batch, key):
        loss = jnp.mean((trained["a"] - batch["x"]) ** 2)
        return loss, {"loss": loss, "mean": batch["x"].mean()}

    tx = make_optimizer("sgd", lambda step: 0.1)
    _, initialise = plan_state(
        {"a": jax.ShapeDtypeStruct((), "float32")}, lambda: {"a": jnp.float32(1)}, tx, on_devices(1)
    )
    for accumulate in (1, 2):
        step = make_train_step(Loss(prepare, value), tx, on_devices(1), seed=0, accumulate=accumulate)
        state, metrics = step(initialise(), {"x": jnp.arange(4.0)}, {"shift": jnp.float32(2)})
        # x = 2, 3, 4, 5; the derivative at a = 1 is 2 (1 − 3.5).
        assert float(state.params["a"]) == pytest.approx(1.5)
        assert float(metrics["loss"]) == pytest.approx(7.5)
        assert (float(metrics["mean"]), float(metrics["grad_norm"])) == pytest.approx((3.5, 5.0))


def test_a_batch_that_does_not_divide_into_parts_is_refused(make_step, make_state, batch):
    with pytest.raises(InputError, match="batch_size=16 must be a multiple of accumulate=3"):
        make_step(accumulate=3)(make_state(), batch, {})


def test_every_step_leaves_the_state_in_its_shards_and_needs_no_second_compilation(
    make_step, make_state, batch, mesh, caplog
):
    step, state = make_step(mesh=mesh), make_state(mesh)
    before = jax.tree.map(lambda x: x.sharding, state)
    placed = jax.device_put(batch, batch_sharding(mesh))
    with jax.log_compiles(), warnings.catch_warnings(action="ignore"):
        for _ in range(3):
            state, _ = step(state, placed, {})
            jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)), state, before)
    for program in ("gradients", "update"):
        assert sum(f"Compiling jit({program})" in message for message in caplog.messages) == 1


def test_the_average_follows_the_parameters_as_its_decay_says(make_step, make_state, batch, difference):
    step, before = make_step(), make_state()
    first, _ = step(make_state(), batch, {})
    average = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.ema, first.params)
    assert difference(average, first.ema) < 1e-6
    after = jax.device_get(first)
    second, _ = step(first, batch, {})
    average = jax.tree.map(lambda a, b: 0.15 * a + 0.85 * b, after.ema, second.params)  # 2/11 > 0.15
    assert difference(average, second.ema) < 1e-6


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(make_step, make_state, batch, difference):
    step, healthy = make_step(), make_state()
    network = healthy.params["network"]
    broken = network | {"up": network["up"] | {"bias": network["up"]["bias"].at[0].set(jnp.nan)}}
    poisoned = dataclasses.replace(healthy, params=healthy.params | {"network": broken})
    before = jax.device_get(poisoned)
    for count in (1, 2):
        poisoned, metrics = step(poisoned, batch, {})
        assert not np.isfinite(metrics["loss"])
        assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (count, count)
    after = jax.device_get(poisoned)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert after.step == 2

    cured = dataclasses.replace(poisoned, params=make_state().params)
    cured, metrics = step(cured, batch, {})
    assert np.isfinite(metrics["loss"])
    assert (cured.step, cured.skipped, cured.skipped_in_a_row) == (3, 2, 0)
    assert difference(cured.params, make_state().params) > 0


def test_the_state_is_donated(make_step, make_state, batch):
    state = make_state()
    make_step()(state, batch, {})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_randomness_is_a_function_of_seed_and_step(make_step, make_state, batch):
    def loss(step, number):
        state = dataclasses.replace(make_state(), step=jnp.int32(number))
        return float(step(state, batch, {})[1]["loss"])

    first, other = make_step(seed=0), make_step(seed=1)
    assert loss(first, 0) == loss(first, 0)
    assert len({loss(step, number) for step in (first, other) for number in (0, 1)}) == 4
