"""One step: the same update however it is computed, and none at all where a number is not finite."""

import dataclasses
import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vdm_jax.diffusion import objective as objective_module
from vdm_jax.diffusion.conditioning import Conditioning, draw_told
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import make_process
from vdm_jax.models.denoiser import Denoiser
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.training import step as step_module
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import create_state
from vdm_jax.training.step import make_train_step

NULL = np.zeros(5, np.int32)
SGD = make_optimizer("sgd", lambda step: 0.1)


@pytest.fixture(scope="module")
def make_step(toy, tx, on_devices):
    """A step of the toy network; each is compiled once for all tests."""

    @functools.cache
    def make(mesh=None, null_probability=0.1, seed=0, accumulate=1, told=False, tx=tx, one_program=None):
        return make_train_step(
            toy[0],
            Objective(null_probability=null_probability),
            make_process("cosine"),
            tx,
            mesh or on_devices(1),
            seed=seed,
            null_tokens=NULL,
            conditioning=Conditioning({"first_k": 1.0, "inside": 1.0}, noise=0.5) if told else None,
            images=2,
            accumulate=accumulate,
            ema=0.15,
            one_program=one_program,
        )

    return make


def difference(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


@pytest.mark.parametrize("one_program", [False, True])
def test_one_program_or_two_compiled_beforehand_take_the_same_step(make_step, toy, batch, on_devices, one_program):
    mesh = on_devices(8, data=2, fsdp=2, tensor=2)
    whole, metrics = make_step()(toy[1](), batch)
    placed = jax.device_put(batch, batch_sharding(mesh))
    with ThreadPoolExecutor() as background:
        step = make_step(mesh, one_program=one_program).compile(background, toy[1](mesh), placed)()
    assert len(step.programs) == 2 - one_program
    after, metrics_after = step(toy[1](mesh), placed)
    assert difference(whole, after) < 1e-5
    assert metrics.keys() == metrics_after.keys()


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (1, 4), (8, 1)])
def test_gradients_are_clipped_by_the_norm_of_all(make_step, toy, batch, on_devices, devices, accumulate):
    most = 0.01
    clipped = make_optimizer("sgd", lambda step: 1.0, clip=most)
    mesh = on_devices(8, data=2, fsdp=2, tensor=2) if devices == 8 else on_devices(1)
    params = jax.device_get(toy[1]().params)
    before = dataclasses.replace(jax.device_get(toy[1]()), opt_state=clipped.init(params))
    placed = jax.device_put(batch, batch_sharding(mesh))
    after, metrics = make_step(mesh, accumulate=accumulate, tx=clipped)(toy[1](mesh, before), placed)
    assert metrics["grad_norm"] > 2 * most
    moved = jax.tree.map(lambda a, b: np.asarray(a) - b, after.params, params)
    assert float(optax.tree.norm(moved)) == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize("told", [False, True])
def test_accumulation_gives_the_update_of_the_whole_batch(make_step, toy, batch, told):
    whole, metrics = make_step(told=told)(toy[1](), batch)
    parts, metrics_of_parts = make_step(accumulate=4, told=told)(toy[1](), batch)
    before = toy[1]()
    assert difference(whole.params, before.params) > 5e-3
    # Adam divides by the gradient's size: its own relative error is what is compared.
    assert difference(whole.params, parts.params) < 1e-5
    assert difference(whole.opt_state, parts.opt_state) < 1e-6
    for name in ("loss", "mse", "grad_norm"):
        assert metrics[name] == pytest.approx(float(metrics_of_parts[name]), rel=1e-5)


def test_a_network_that_is_told_hears_something_new_in_every_step(make_step, toy, batch):
    losses = [float(make_step(told=told)(toy[1](), batch)[1]["loss"]) for told in (False, True, True)]
    assert losses[1] == losses[2] != losses[0]
    seen = []

    def noted(conditioning, x, key, images):
        jax.debug.callback(seen.append, jax.random.key_data(key))
        return draw_told(conditioning, x, key, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "draw_told", noted)
        step = make_step(told=True, seed=9)  # no other test's
        step(step(toy[1](), batch)[0], batch)
    jax.effects_barrier()
    assert len(seen) == 2
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize(("accumulate", "told"), [(1, False), (2, False), (2, True)])
def test_eight_devices_take_the_step_of_one(make_step, toy, batch, on_devices, accumulate, told):
    mesh = on_devices(8, data=2, fsdp=2, tensor=2)
    one, metrics = make_step(told=told)(toy[1](), batch)
    placed = jax.device_put(batch, batch_sharding(mesh))
    eight, metrics_of_eight = make_step(mesh, accumulate=accumulate, told=told)(toy[1](mesh), placed)
    assert difference(one, eight) < 1e-5
    assert metrics["loss"] == pytest.approx(float(metrics_of_eight["loss"]), rel=1e-5)


def test_every_step_leaves_the_state_in_its_shards_and_needs_no_second_compilation(
    make_step, toy, batch, on_devices, caplog
):
    mesh = on_devices(8, data=2, fsdp=2, tensor=2)
    step, state = make_step(mesh), toy[1](mesh)
    before = jax.tree.map(lambda x: x.sharding, state)
    placed = jax.device_put(batch, batch_sharding(mesh))
    with jax.log_compiles(), warnings.catch_warnings(action="ignore"):
        for _ in range(3):
            state, _ = step(state, placed)
            jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)), state, before)
    for program in ("gradients", "update"):
        assert sum(f"Compiling jit({program})" in message for message in caplog.messages) == 1


def test_the_average_follows_the_parameters_as_its_decay_says(make_step, toy, batch):
    step, before = make_step(), toy[1]()
    first, _ = step(toy[1](), batch)
    average = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.ema, first.params)
    assert difference(average, first.ema) < 1e-6
    after = jax.device_get(first)
    second, _ = step(first, batch)
    average = jax.tree.map(lambda a, b: 0.15 * a + 0.85 * b, after.ema, second.params)  # 2/11 > 0.15
    assert difference(average, second.ema) < 1e-6


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(make_step, toy, batch):
    step, healthy = make_step(), toy[1]()
    params = dict(healthy.params)
    params["up"] = {**params["up"], "bias": params["up"]["bias"].at[0].set(jnp.nan)}
    poisoned = dataclasses.replace(healthy, params=params)
    before = jax.device_get(poisoned)
    for count in (1, 2):
        poisoned, metrics = step(poisoned, batch)
        assert not np.isfinite(metrics["loss"])
        assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (count, count)
    after = jax.device_get(poisoned)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert after.step == 2

    cured = dataclasses.replace(poisoned, params=toy[1]().params)
    cured, metrics = step(cured, batch)
    assert np.isfinite(metrics["loss"])
    assert (cured.step, cured.skipped, cured.skipped_in_a_row) == (3, 2, 0)
    assert difference(cured.params, toy[1]().params) > 0


def test_the_state_is_donated(make_step, toy, batch):
    state = toy[1]()
    make_step()(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_randomness_is_a_function_of_seed_and_step(make_step, toy, batch):
    def loss(step, number):
        state = dataclasses.replace(toy[1](), step=jnp.int32(number))
        return float(step(state, batch)[1]["loss"])

    one, other = make_step(seed=0), make_step(seed=1)
    assert loss(one, 0) == loss(one, 0)
    assert len({loss(step, number) for step in (one, other) for number in (0, 1)}) == 4


def test_no_two_purposes_share_a_key():
    keys = []
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(0), number)
        keys.append(jax.random.fold_in(key, step_module.DROPOUT))
        keys.extend(jax.random.split(jax.random.fold_in(key, step_module.TOLD), 3))  # as `draw_told` does
        drawn = jax.random.fold_in(key, step_module.DRAW)
        for purpose in ("TIME", "NOISE", "DROP", "SHARED"):
            keys.append(jax.random.fold_in(drawn, getattr(objective_module, purpose)))
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == len(keys)


def test_a_dropped_caption_is_the_empty_text(make_step, toy, batch):
    empty = batch | {name: np.zeros_like(batch[name]) for name in ("tokens", "image_tokens")}
    always, never = make_step(null_probability=1.0), make_step(null_probability=0.0)
    assert float(always(toy[1](), batch)[1]["loss"]) == float(never(toy[1](), empty)[1]["loss"])
    assert float(never(toy[1](), batch)[1]["loss"]) != float(never(toy[1](), empty)[1]["loss"])


def test_a_joint_step_runs_and_a_clip_does_not_read_the_captions_of_its_stills(on_devices):
    unet = {"channels": 8, "multipliers": (1,), "blocks": 0, "patch": 4, "head_size": 8}
    text = {"width": 16, "depth": 0, "length": 8, "head_size": 16}

    def make(rngs):
        return Denoiser(channels=1, unet=unet, text=text, rngs=rngs)

    graphdef, state = create_state(make, SGD, on_devices(1), seed=0)
    # Projections that start at zero would hide what is read.
    params = jax.tree.map(lambda p: p + 0.1 * np.sin(np.arange(p.size)).reshape(p.shape), state.params)
    rng = np.random.default_rng(0)
    tokens, stills = rng.integers(1, 257, (2, 8)), rng.integers(1, 257, (2, 2, 8))
    video = rng.integers(256, size=(2, 6, 8, 8, 1)).astype(np.uint8)  # four frames and two stills

    @jax.jit
    def predict(stills):
        model = nnx.merge(graphdef, params)
        return model(
            jnp.asarray(video) / 255.0,
            jnp.full(2, 500.0),
            model.encode(jnp.asarray(tokens), stills),
            images=2,
        )

    changed = np.asarray(predict(stills) != predict(stills[::-1])).any((2, 3, 4))
    np.testing.assert_array_equal(changed, [[False] * 4 + [True] * 2] * 2)

    step = make_train_step(
        graphdef,
        Objective(),
        make_process("cosine"),
        SGD,
        on_devices(1),
        seed=0,
        null_tokens=np.eye(1, 8, dtype=np.int32)[0] * 257,
        images=2,
    )
    after, metrics = step(state, {"video": video, "tokens": tokens, "image_tokens": stills})
    assert np.isfinite(metrics["loss"])
    assert int(after.step) == 1
