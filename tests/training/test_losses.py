"""The denoising loss: what it draws, how it conditions the network, and how a batch may be divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.build import build, make_parts
from vdm_jax.config import default_config
from vdm_jax.diffusion import objective as objective_module
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.objective import Objective, loss_at
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.training import losses
from vdm_jax.training.losses import denoising, to_float

KEY = jax.random.key(0)
KINDS = ["text", "channels", "times", "time_per_frame"]
FRAMES, STILLS = 6, 2


@pytest.fixture(scope="module")
def prepared(make_loss, batch):
    """Returns a batch that is ready for a kind of loss, drawn with a key."""

    @functools.cache
    def prepare(kind, seed=0):
        return jax.jit(make_loss(kind).prepare)({}, batch, jax.random.key(seed))

    return prepare


@pytest.fixture(scope="module")
def params(make_params):
    return make_params(1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_batch_can_be_divided_and_is_a_function_of_the_key(prepared, make_loss, batch, kind):
    ready = prepared(kind)
    assert {len(x) for x in jax.tree.leaves(ready)} == {16}
    jax.tree.map(np.testing.assert_array_equal, ready, jax.jit(make_loss(kind).prepare)({}, batch, KEY))
    np.testing.assert_allclose(ready["x"], batch["video"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(ready["tokens"][:, 0], batch["tokens"])
    np.testing.assert_array_equal(ready["tokens"][:, 1:], batch["image_tokens"])
    other = prepared(kind, 1)
    drawn = [("draws", "time"), ("draws", "noise"), ("draws", "drop")]
    for name, field in drawn:
        assert np.any(getattr(ready[name], field) != getattr(other[name], field))
    for name in ready.keys() - {"x", "tokens", "draws"}:
        assert np.any(ready[name] != other[name])


def test_bytes_become_floats_between_minus_one_and_one():
    np.testing.assert_allclose(to_float(jnp.uint8([0, 255, 51])), [-1, 1, -0.6], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_objectives_loss_of_the_conditioned_network(
    prepared, params, make_loss, make_model, batch, kind
):
    """The conditions are written out here; the toy network shows each of them in its prediction."""
    ready = prepared(kind)
    value, metrics = jax.jit(make_loss(kind).value)(params, {}, ready, KEY)
    assert set(metrics) == {"loss", "mse"}
    assert float(value) == float(metrics["loss"])

    model = make_model()
    texts = jnp.concatenate([batch["tokens"][:, None], batch["image_tokens"]], axis=1)
    texts = jnp.where(ready["draws"].drop[:, None, None], 0, texts)
    embedded = params["text"]["embed"]["embedding"][texts].mean(2)
    pooled = jnp.concatenate([jnp.repeat(embedded[:, :1], FRAMES - STILLS, axis=1), embedded[:, 1:]], axis=1)
    conditions = Conditions(Text(pooled[:, :, None], jnp.ones((16, FRAMES, 1), bool), pooled), ready.get("known"))

    def predict(z, time, _):
        return model.merge(params)(z, time, conditions)

    objective = Objective(time_per_frame=kind == "time_per_frame")
    weights = ready.get("frame_weights")
    expected, _ = loss_at(objective, model.process, predict, ready["x"], ready["draws"], weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_a_dropped_caption_is_the_empty_text(make_step, make_state, batch):
    empty = batch | {name: np.zeros_like(batch[name]) for name in ("tokens", "image_tokens")}
    always, never = make_step(null_probability=1.0), make_step(null_probability=0.0)

    def loss(step, batch):
        return float(step(make_state(), batch, {})[1]["loss"])

    assert loss(always, batch) == loss(never, empty)
    assert loss(never, batch) != loss(never, empty)


def test_nothing_is_known_of_a_still(prepared):
    known = np.asarray(prepared("channels")["known"])
    assert known.shape == (16, FRAMES, 4, 4, 2)
    assert not known[:, -STILLS:].any()
    assert (known[:, :-STILLS] != 0).any((1, 2, 3, 4)).all()
    weights = np.asarray(prepared("times")["frame_weights"])
    assert (weights[:, -STILLS:] == 1).all()
    assert (weights[:, :-STILLS] == 0).any()


def test_known_channels_hold_the_video_up_to_their_noise(make_model, batch):
    masks = MaskMixture({"first": 1.0})
    loss = denoising(make_model(masks=masks), Objective(), stills=STILLS)
    ready = jax.jit(loss.prepare)({}, batch, KEY)
    np.testing.assert_allclose(ready["known"][:, 0, ..., :1], ready["x"][:, 0], atol=1e-6)
    assert (ready["known"][:, 0, ..., 1] == 1).all()
    assert not np.asarray(ready["known"][:, 1:]).any()


def test_known_frames_stand_at_the_first_time_and_do_not_count(make_model, params, batch):
    masks = MaskMixture({"first_k": 1.0, "frames": 1.0}, tell="times")
    loss = denoising(make_model(masks=masks), Objective(), stills=STILLS)
    plain = denoising(make_model(), Objective(), stills=STILLS)
    ready, without = (jax.jit(loss.prepare)({}, batch, KEY) for loss in (loss, plain))
    known = np.asarray(ready["frame_weights"]) == 0
    assert known.any()
    assert not known.all(1).any()
    time = np.broadcast_to(np.asarray(without["draws"].time)[:, None], known.shape)
    np.testing.assert_array_equal(ready["draws"].time, np.where(known, 0, time))

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: loss.value(params, {}, ready | {"x": x}, KEY)[0])(x)

    # The toy network mixes no frames: what a known frame holds cannot reach the loss.
    moves = np.abs(gradient(ready["x"])).max((2, 3, 4)) > 0
    np.testing.assert_array_equal(moves, ~known)


def test_noise_on_known_frames_moves_them_to_its_time(prepared):
    ready = prepared("times")
    known = np.asarray(ready["frame_weights"]) == 0
    times = np.where(known, ready["draws"].time, np.nan)
    assert np.nanmin(times) > 0
    rows = known.sum(1) > 1
    assert (np.nanmax(times[rows], axis=1) == np.nanmin(times[rows], axis=1)).all()  # one level for each video


def test_each_frame_has_a_time_of_its_own(prepared):
    assert prepared("text")["draws"].time.shape == (16,)
    time = np.asarray(prepared("time_per_frame")["draws"].time)
    assert time.shape == (16, FRAMES)
    assert len(np.unique(time)) == time.size


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_gives_the_update_of_the_whole_batch(make_step, make_state, batch, difference, kind):
    whole, metrics = make_step(kind)(make_state(), batch, {})
    parts, metrics_of_parts = make_step(kind, accumulate=4)(make_state(), batch, {})
    before = make_state()
    assert difference(whole.params, before.params) > 5e-3
    # Adam divides by the gradient's size: its own relative error is what is compared.
    assert difference(whole.params, parts.params) < 1e-5
    assert difference(whole.opt_state, parts.opt_state) < 1e-6
    for name in ("loss", "mse", "grad_norm"):
        assert metrics[name] == pytest.approx(float(metrics_of_parts[name]), rel=1e-5)


@pytest.mark.parametrize(("kind", "accumulate"), [("text", 1), ("text", 2), ("channels", 2), ("times", 1)])
def test_eight_devices_take_the_step_of_one(make_step, make_state, batch, on_devices, difference, kind, accumulate):
    mesh = on_devices(8, data=2, fsdp=2, tensor=2)
    one, metrics = make_step(kind)(make_state(), batch, {})
    placed = jax.device_put(batch, batch_sharding(mesh))
    eight, metrics_of_eight = make_step(kind, mesh, accumulate=accumulate)(make_state(mesh), placed, {})
    assert difference(one, eight) < 1e-5
    assert metrics["loss"] == pytest.approx(float(metrics_of_eight["loss"]), rel=1e-5)


def test_no_two_purposes_share_a_key():
    keys = []
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(0), number)
        keys.append(jax.random.fold_in(key, losses.DROPOUT))
        keys.extend(jax.random.split(jax.random.fold_in(key, losses.KNOWN), 3))  # as `draw_known` does
        drawn = jax.random.fold_in(key, losses.DRAW)
        for purpose in ("TIME", "NOISE", "DROP", "SHARED"):
            keys.append(jax.random.fold_in(drawn, getattr(objective_module, purpose)))
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == len(keys)


def test_a_clip_does_not_read_the_captions_of_its_stills():
    """Four frames and two stills of a space-time U-Net, through the loss."""
    config = default_config()
    config.data.update(frames=FRAMES, height=8, width=8, joint_images=STILLS)
    config.model.network.update(channels=8, multipliers=(1,), blocks=0, patch=4, head_size=8)
    config.model.text.update(width=16, depth=0, length=8, head_size=16)
    model = build(config)
    modules = make_parts(config, 1)
    params = {name: nnx.to_pure_dict(nnx.split(module)[1]) for name, module in modules.items()}
    # Projections that start at zero would hide what is read.
    params = jax.tree.map(lambda p: p + 0.1 * np.sin(np.arange(p.size)).reshape(p.shape), params)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(256, size=(2, FRAMES, 8, 8, 1)).astype(np.uint8),
        "tokens": rng.integers(1, 257, (2, 8)).astype(np.int32),
        "image_tokens": rng.integers(1, 257, (2, STILLS, 8)).astype(np.int32),
    }
    loss = denoising(model, Objective(null_probability=0.0), stills=STILLS)
    ready = jax.jit(loss.prepare)({}, batch, KEY)

    @jax.jit
    def errors(weights, image_tokens):
        tokens = jnp.concatenate([ready["tokens"][:, :1], image_tokens], axis=1)
        return loss.value(params, {}, ready | {"tokens": tokens, "frame_weights": weights}, KEY)[0]

    for frame in range(FRAMES):
        weights = jnp.zeros((2, FRAMES)).at[:, frame].set(1)
        changed = errors(weights, batch["image_tokens"]) != errors(weights, batch["image_tokens"][::-1])
        assert bool(changed) == (frame >= FRAMES - STILLS)
