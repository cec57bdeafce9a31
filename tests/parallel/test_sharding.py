"""Shardings of parameters and activations: where arrays lie, equal results, and what devices exchange."""

import concurrent.futures
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.parallel.hlo import communicated
from vdm_jax.build import build
from vdm_jax.config import default_config
from vdm_jax.diffusion.objective import Objective
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import (
    ActivationLayout,
    _share,
    batch_sharding,
    check_batch,
    full_batches,
    path_name,
    shardings,
)
from vdm_jax.training.losses import denoising
from vdm_jax.training.state import TrainState, plan_state, state_shardings
from vdm_jax.training.step import make_train_step

BATCH, FRAMES, SIZE, LENGTH = 8, 4, 8, 6
MESHES = {
    "one_device": None,
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "context": {"data": 2, "fsdp": 2, "context": 2},
}


def make_config(**network):
    """Returns the config of three layers with every slot filled, and of a text encoder."""
    config = default_config()
    config.data.update(frames=FRAMES, height=SIZE, width=SIZE, channels=3)
    sizes = {"channels": 16, "multipliers": (1,), "blocks": 0, "head_size": 8, "time_conv": True}
    config.model.network.update(sizes | network)
    config.model.text.update(width=16, depth=1, length=LENGTH, head_size=8)
    return config


MODEL = build(make_config())


def shapes_of(make):
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(params)


def specs(mesh, params):
    leaves = jax.tree_util.tree_leaves_with_path(shardings(mesh, params))
    return {path_name(path): sharding.spec for path, sharding in leaves}


def mesh_of(name):
    sizes = MESHES[name]
    return make_mesh(devices=jax.devices()[:1]) if sizes is None else make_mesh(**sizes)


# --- The table ---

BLOCK = "network/middle1"
COLUMNS, ROWS = P("fsdp", "tensor"), P("tensor", "fsdp")
INTENDED = {
    f"{BLOCK}/space_conv/conv1/kernel": P(None, None, "fsdp", "tensor"),
    f"{BLOCK}/space_conv/conv1/bias": P("tensor"),
    f"{BLOCK}/space_conv/modulation/kernel": COLUMNS,
    f"{BLOCK}/space_conv/modulation/bias": P("tensor"),
    f"{BLOCK}/space_conv/norm1/scale": P(),
    f"{BLOCK}/space_conv/norm2/scale": P("tensor"),
    f"{BLOCK}/space_conv/norm2/bias": P("tensor"),
    f"{BLOCK}/space_conv/conv2/kernel": P(None, None, "tensor", "fsdp"),
    f"{BLOCK}/space_conv/conv2/bias": P(),
    f"{BLOCK}/time_conv/project/kernel": P("fsdp", None),
    f"{BLOCK}/space_attention/attention/qkv/kernel": COLUMNS,
    f"{BLOCK}/space_attention/attention/text_kv/kernel": COLUMNS,
    f"{BLOCK}/space_attention/attention/out/kernel": ROWS,
    f"{BLOCK}/space_attention/attention/out/bias": P(),
    f"{BLOCK}/time_attention/attention/qkv/kernel": COLUMNS,
    f"{BLOCK}/time_attention/attention/bias": P(),
    "network/up/0/0/space_conv/shortcut/kernel": P("fsdp", None),
    "network/stem/project/kernel": P(None, None),  # three channels: fsdp does not divide them
    "network/head/project/kernel": P("fsdp", None),
    "network/time/first/kernel": P("fsdp", None),
    "network/time/second/kernel": P("fsdp", None),
    "network/pooled/kernel": P("fsdp", None),
    "network/norm/scale": P(),
    "text/embed/embedding": P(),
    "text/blocks/0/norm2/scale": P(),
    "text/blocks/0/attention/qkv/kernel": COLUMNS,
    "text/blocks/0/attention/out/kernel": ROWS,
    "text/blocks/0/up/kernel": COLUMNS,
    "text/blocks/0/up/bias": P("tensor"),
    "text/blocks/0/down/kernel": ROWS,
    "text/blocks/0/down/bias": P(),
}


def test_every_kind_of_parameter_is_placed_as_intended():
    actual = specs(make_mesh(data=2, fsdp=2, tensor=2), MODEL.params)
    assert {name: actual[name] for name in INTENDED} == INTENDED
    # The other layers have the same parts, so the table names every kind of parameter.
    kinds = {tuple(name.split("/")[-3:]) for name in INTENDED} | {("network", "norm", "bias")}
    tails = {kind[-2:] for kind in kinds}
    for name, spec in actual.items():
        parts = tuple(name.split("/"))
        assert parts[-2:] in tails or spec == P(), name


def test_a_pointwise_convolution_is_cut_like_a_wide_one():
    params = build(make_config(kernel=1, space_position=True)).params
    actual = specs(make_mesh(data=2, fsdp=2, tensor=2), params)
    assert actual[f"{BLOCK}/space_conv/conv1/kernel"] == COLUMNS
    assert actual[f"{BLOCK}/space_conv/conv2/kernel"] == ROWS


def test_the_window_of_a_convolution_stays_whole():
    params = {"conv_in": {"kernel": jax.ShapeDtypeStruct((3, 3, 6, 8), jnp.float32)}}
    assert specs(make_mesh(data=1, fsdp=2, tensor=4), params) == {"conv_in/kernel": P(None, None, "fsdp", None)}


@pytest.mark.parametrize(
    ("processes", "process", "expected"),
    [
        ([[0], [0], [0], [0]], 0, (0, 1)),
        ([[0], [0], [1], [1]], 1, (1, 2)),
        ([[0, 0], [1, 1]], 1, (1, 2)),
        ([[0, 1]], 1, (0, 1)),  # both hold the same rows: a tensor or context axis joins them
        ([[0, 1], [2, 3]], 1, (0, 2)),
        ([[0, 1], [2, 3]], 2, (1, 2)),
        ([[0], [1], [0], [1]], 1, (1, 2)),  # the order of a torus
        ([[1, 3], [0, 2], [0, 2], [1, 3]], 0, (1, 2)),
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_share(processes, process, expected):
    assert _share(np.array(processes), process) == expected


def test_rows_that_overlap_in_part_are_refused():
    for process in range(2):  # each process, or one would wait for the other
        with pytest.raises(InputError, match=r"of its 3 parts, process 0 holds 0; process 1 holds 1, 2 \(change"):
            _share(np.array([[0], [1], [1]]), process)
        with pytest.raises(InputError, match="of its 2 parts, process 0 holds 0, 1; process 1 holds 1 "):
            _share(np.array([[0, 0], [0, 1]]), process)


def test_dimensions_that_an_axis_does_not_divide_stay_whole():
    params = {"qkv": {"kernel": jax.ShapeDtypeStruct((6, 8), jnp.float32)}}
    assert specs(make_mesh(data=1, fsdp=4, tensor=2), params) == {"qkv/kernel": P(None, "tensor")}
    assert specs(make_mesh(data=1, fsdp=2, tensor=4), params) == {"qkv/kernel": P("fsdp", "tensor")}


def test_optimizer_and_ema_are_placed_like_their_parameters():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    mesh = make_mesh(data=2, fsdp=2, context=1, tensor=2)
    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), MODEL.params)
    state = plan_state(MODEL.params, zeros, tx, mesh)[1]()
    adam = state.opt_state[1][0]
    params = jax.tree_util.tree_leaves_with_path(state.params)
    for copy in (state.ema, adam.mu, adam.nu):
        for (path, leaf), other in zip(params, jax.tree.leaves(copy), strict=True):
            assert other.sharding == leaf.sharding, path_name(path)
    cut = [path_name(path) for path, leaf in params if leaf.addressable_shards[0].data.size < leaf.size]
    assert f"{BLOCK}/space_attention/attention/qkv/kernel" in cut
    assert adam.count.sharding.is_fully_replicated
    # The optimizer holds two moments of each parameter and no other arrays.
    assert sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state.opt_state)) == 2 * len(params)


def test_a_batch_must_divide_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    check_batch(mesh, 8)
    with pytest.raises(InputError, match="batch_size=6 must be a multiple of data × fsdp = 4"):
        check_batch(mesh, 6)
    assert batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)


def test_full_batches_hold_every_row_and_have_one_size():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for count, size, sizes in ((7, 3, [4, 4]), (9, 8, [8, 8]), (1, 8, [4]), (8, 64, [8])):
        batches = list(full_batches(count, size, mesh))
        assert [len(rows) for _, rows in batches] == sizes
        assert [rows[0] for _, rows in batches] == [start for start, _ in batches]
        held = [row for start, rows in batches for row in rows[: count - start]]
        assert held == list(range(count))


# --- The compiled training step ---


class Step:
    """Runs a step of plain gradient descent on a mesh; holds its HLO, metrics and gradients."""

    RATE = 1e4  # so large that the new parameters are the gradients

    def __init__(self, name):
        mesh, rng = mesh_of(name), np.random.default_rng(0)
        params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), MODEL.params)
        self.before = params
        params = jax.tree.map(jnp.asarray, params)
        tx, counters = optax.sgd(self.RATE), [jnp.zeros((), jnp.int32) for _ in range(3)]
        ema = jax.tree.map(jnp.copy, params)
        state = TrainState(counters[0], params, ema, tx.init(params), *counters[1:])
        state = jax.device_put(state, state_shardings(state, mesh))
        batch = {
            "video": rng.integers(0, 256, (BATCH, FRAMES, SIZE, SIZE, 3), np.uint8),
            "tokens": rng.integers(1, 257, (BATCH, LENGTH)).astype(np.int32),
        }
        batch = jax.device_put(batch, batch_sharding(mesh))
        loss = denoising(MODEL, Objective(), layout=ActivationLayout(mesh))
        step = make_train_step(loss, tx, mesh, seed=0)
        with concurrent.futures.ThreadPoolExecutor() as background:
            compiled = step.compile(background, state, batch, {})()
        self.hlo = "".join(program.as_text() for program in compiled.programs)
        after, self.metrics = compiled(state, batch, {})
        intended = jax.tree.leaves(shardings(mesh, after.params))
        self.layouts_kept = [
            leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            for leaf, sharding in zip(jax.tree.leaves(after.params), intended, strict=True)
        ]
        self.gradients = jax.tree.map(lambda a, b: (b - np.asarray(a)) / self.RATE, after.params, self.before)


@pytest.fixture(scope="module")
def steps():
    return {name: Step(name) for name in MESHES}


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_loss_and_gradients_equal_one_device(steps, name):
    single, many = steps["one_device"], steps[name]
    assert float(many.metrics["loss"]) == pytest.approx(float(single.metrics["loss"]), rel=1e-5)
    assert float(many.metrics["grad_norm"]) == pytest.approx(float(single.metrics["grad_norm"]), rel=1e-5)
    paths = jax.tree_util.tree_leaves_with_path(single.gradients)
    for (path, expected), actual in zip(paths, jax.tree.leaves(many.gradients), strict=True):
        scale = np.abs(expected).max()
        assert scale > 0, path_name(path)
        np.testing.assert_allclose(actual, expected, atol=2e-5 * scale, err_msg=path_name(path))


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_a_step_keeps_the_placement_of_parameters(steps, name):
    assert all(steps[name].layouts_kept)


def gathered_activations(step):
    """Returns (shape, name) of gathered arrays, without whole parameters and without one vector per sample."""
    params = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(step.before)}
    return [
        (shape, name)
        for shape, name in communicated(step.hlo, "all-gather")
        if tuple(sorted(shape)) not in params and math.prod(shape[:-1]) > BATCH
    ]


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_the_compiled_step_gathers_no_activation(steps, name):
    assert gathered_activations(steps[name]) == []


def test_the_search_finds_gathers_of_parameters(steps):
    assert len(list(communicated(steps["fsdp"].hlo, "all-gather"))) > 10
    assert len(list(communicated(steps["data"].hlo, "all-reduce"))) > 0


def test_an_all_to_all_exchanges_frames_and_rows_on_a_context_mesh(steps):
    step = steps["context"]
    video = BATCH * FRAMES * SIZE * SIZE * 16 // 8
    exchanged = [shape for shape, _ in communicated(step.hlo, "all-to-all") if math.prod(shape) >= video / 2]
    assert len(exchanged) >= 2 * 3


def test_attention_over_all_frames_at_once_where_frames_are_spread():
    sizes = {"channels_in": 3, "channels": 16, "multipliers": (1,), "blocks": 0, "head_size": 8}
    sizes |= {"all_frames": True, "time_attention": False}
    graphdef, shapes = shapes_of(lambda rngs: UNet(**sizes, rngs=rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    z, time = rng.normal(size=(BATCH, FRAMES, SIZE, SIZE, 3)).astype(np.float32), np.arange(BATCH, dtype=np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def predict(layout, params, z, time):
        return nnx.merge(graphdef, params)(z, time, Conditions(), layout=layout)

    results = []
    for name in ("one_device", "context"):
        mesh = mesh_of(name)
        inputs = jax.device_put((z, time), batch_sharding(mesh))
        results.append(predict(ActivationLayout(mesh), jax.device_put(params, shardings(mesh, params)), *inputs))
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)
    assert np.abs(results[0]).mean() > 0.1
