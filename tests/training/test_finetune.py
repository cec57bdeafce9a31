"""Training on published parts. Weights are random."""

import functools
import re

import jax
import numpy as np
import pytest

from tests.pretrained.pipelines import write_image_to_video, write_latte, write_pipeline, write_wan
from tests.tiny_config import get_config
from vdm_jax.build import build, load, load_trained, objective_of, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import write_config
from vdm_jax.diffusion.objective import Objective
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, path_name
from vdm_jax.split import join
from vdm_jax.training.losses import denoising, to_float
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step

ONE = make_mesh(devices=jax.devices()[:1])
SGD = make_optimizer("sgd", lambda step: 1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    write_pipeline(place / "image", "image")
    write_image_to_video(place / "svd")
    write_pipeline(place / "modelscope")
    write_latte(place / "latte")
    write_wan(place / "wan")
    return place


def config_of(place, folder="image", parts="time", **network):
    config = get_config()
    config.data.height = config.data.width = 16
    config.data.frames = 5 if folder == "wan" else 4
    folder = {"folder": str(place / folder)}
    config.model.network, config.model.text, config.model.codec = folder | network, folder, folder
    config.train.update(parts=parts, rank=2)
    return config


def leaves(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def step(place):
    """Returns (model, split, the state after one step, its metrics) of a part of a folder's network, on a mesh."""

    @functools.cache
    def step(folder, parts, count=1, **sizes):
        mesh = make_mesh(**sizes, devices=jax.devices()[:count])
        return take_step(config_of(place, folder, parts), mesh)

    return step


def batch_of(model):
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(256, size=(4, model.shape[0], 16, 16, 3)).astype(np.uint8),
        "tokens": np.stack([model.tokenize(text) for text in ("the cat", "in 12", "", "cat")]),
    }


def take_step(config, mesh):
    model = build(config, mesh)
    split = split_of(config, model)
    loss = denoising(model, objective_of(config), layout=ActivationLayout(mesh))
    step = make_train_step(loss, SGD, mesh, seed=0)
    _, initialise = plan_state(split.trained, split.initialise, SGD, mesh, *split.arrays)
    return model, split, *step(initialise(), jax.device_put(batch_of(model), batch_sharding(mesh)), split.frozen)


@pytest.mark.parametrize(
    ("folder", "parts"), [("image", "time"), ("modelscope", "lora"), ("modelscope", r"^network/.*/attention1/out/")]
)
def test_only_the_part_is_trained(step, folder, parts):
    model, split, state, metrics = step(folder, parts)
    assert (int(state.skipped), bool(metrics["loss"] > 0.1)) == (0, True)
    before, after = leaves(model.params), leaves(join(state.params, split.frozen))
    assert before.keys() == after.keys()
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed
    trained = leaves(state.params).keys()
    if parts == "time":  # a last matrix of 0 lets nothing through to the others in the first step
        assert changed == {name for name in after if "time_attention/project_out/" in name}
        assert all("time_attention" in name for name in trained)
    elif parts == "lora":
        assert {name.split("/")[-2] for name in changed} <= {"q", "k", "v", "out"}
        assert all(name.endswith(("lora_down", "lora_up")) for name in trained)
    else:
        assert changed == set(trained) == {name for name in after if "/attention1/out/" in name and "network" in name}


@pytest.mark.parametrize(
    ("folder", "parts", "trained"),
    [
        ("latte", "all", r"^network/"),
        ("latte", "time", r"^network/layers/time/"),
        ("latte", "lora", r"^network/layers/.*/(attention|cross)/(q|k|v|out)/kernel/lora_(down|up)$"),
        ("wan", "attention", r"^network/layers/.*/(attention|cross)/(q|k|v|out|q_norm|k_norm)/(kernel|bias|scale)$"),
        ("wan", "lora", r"^network/layers/.*/(attention|cross)/(q|k|v|out)/kernel/lora_(down|up)$"),
    ],
)
def test_a_transformer_is_trained_as_a_whole_or_in_part(step, folder, parts, trained):
    model, split, state, metrics = step(folder, parts)
    assert (int(state.skipped), bool(metrics["loss"] > 0.1)) == (0, True)
    assert model.loaded == {"network", "text", "codec"}
    names = leaves(state.params).keys()
    assert names == {name for name in names if re.search(trained, name)}
    before, after = leaves(model.params), leaves(join(state.params, split.frozen))
    matching = {name for name in after if re.search(trained.replace("/lora_(down|up)", ""), name)}
    changed = {name for name in after if (after[name] != before[name]).any()}
    softmax = {name for name in matching if name.endswith("attention/k/bias") or name.endswith("cross/k/bias")}
    assert changed | softmax == matching  # a bias of all keys changes no attention; what rounding makes of it is noise


@pytest.mark.parametrize(("folder", "counts"), [("latte", True), ("wan", False)])
def test_a_dropped_text_counts_as_many_tokens_as_in_guidance(step, folder, counts):
    model, split, state, _ = step(folder, "lora")
    assert model.null_mask == counts
    loss = denoising(model, Objective(null_probability=1.0))

    @jax.jit
    def value(batch):
        batch = loss.prepare(split.frozen, batch, jax.random.key(0))
        return loss.value(state.params, split.frozen, batch, jax.random.key(0))[0]

    short, long = (np.stack([model.tokenize(text)] * 4) for text in ("cat", "the cat the cat"))
    first, second = (value(batch_of(model) | {"tokens": tokens}) for tokens in (short, long))
    assert (first != second) == counts


def test_a_transformer_without_blocks_along_time_has_no_such_part(place):
    config = config_of(place, "wan", "time")
    with pytest.raises(InputError, match=r"train.parts='time': the model has no such parameters"):
        split_of(config, build(config, ONE))


def test_sharded_parameters_train_as_whole_ones(step):
    *_, one, metrics = step("modelscope", "lora")
    *_, many, metrics_of_many = step("modelscope", "lora", 8, data=2, fsdp=2, tensor=2)
    assert metrics["loss"] == pytest.approx(float(metrics_of_many["loss"]), rel=1e-5)
    for name, array in leaves(one.params).items():
        np.testing.assert_allclose(leaves(many.params)[name], array, rtol=1e-3, atol=1e-5)


def test_noise_is_put_on_the_latents_of_videos(step):
    model, split, *_ = step("image", "time")
    batch = batch_of(model)
    loss = denoising(model, Objective())
    ready = jax.jit(loss.prepare)(split.frozen, batch, jax.random.key(0))
    latents = model.codec.encode(model.params["codec"], to_float(jax.numpy.asarray(batch["video"])))
    assert latents.shape == (4, *model.latent_shape) == (4, 4, 8, 8, 4)
    np.testing.assert_allclose(ready["x"], latents, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, split.frozen["codec"], model.params["codec"])
    jax.tree.map(np.testing.assert_array_equal, split.frozen["text"], model.params["text"])


def test_a_new_network_is_trained_on_published_texts_and_latents(place):
    config = config_of(place, parts="all")
    config.model.network = {"kind": "unet", "channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 8, "patch": 4}
    model, split, state, metrics = take_step(config, ONE)
    assert model.loaded == {"text", "codec"}
    assert np.isfinite(metrics["loss"])
    assert list(state.params) == ["network"]
    assert sorted(split.frozen) == ["codec", "text"]
    assert set(model.sampling) >= {"solver", "grid", "clip"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "svd"}, "training UNetSpatioTemporalConditionModel is not implemented"),
        ({"folder": "nowhere"}, "nowhere is not a folder"),
        ({"new_motion": {"motion_heads": 2}}, "motion_heads is no setting"),
        ({"folder": "modelscope", "new_motion": {"motion_num_attention_heads": 2}}, "is for an image model without"),
        ({"depth": 2}, r"config\.model\.network=.*depth"),
        ({"data.joint_images": 2}, "data.joint_images and known.mixture are not for a loaded network"),
        ({"known.mixture": {"first": 1.0}}, "data.joint_images and known.mixture are not for a loaded network"),
        ({"process": {"name": "flow"}}, "is not for a loaded network, which brings its own"),
        (
            {"model.text": {"kind": "none"}},
            "model.text has width none, but the network in .* reads texts of width 8",
        ),
        ({"model.codec": {"kind": "pixels"}}, "latents of 3 channels do not fit .* draws 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(place, changes, message):
    network = {key: value for key, value in changes.items() if "." not in key and key != "process"}
    config = config_of(place, **network)
    for key, value in changes.items():
        if key not in network:
            group, _, name = f"config.{key}".rpartition(".")
            setattr(functools.reduce(getattr, group.split(".")[1:], config), name, value)
    with pytest.raises(InputError, match=message):
        build(config, ONE)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("some", "train.parts='some': the model has no such parameters"),
        ("(", r"train.parts='\(' is neither all, time, attention, lora nor a regular expression"),
        ("lora", "train.parts='lora' on an image model needs a motion_adapter: 'time' trains new ones"),
    ],
)
def test_parts_that_there_are_not_are_refused(place, parts, message):
    config = config_of(place, parts=parts)
    with pytest.raises(InputError, match=message):
        split_of(config, build(config, ONE))


def test_a_run_of_low_rank_changes_is_loaded_apart_and_merged(place, step, tmp_path):
    config = config_of(place, "modelscope", "lora")
    write_config(tmp_path, config)
    base, split, state, _ = step("modelscope", "lora")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, {"ema": state.params})
    checkpoints.close()
    model, trained, _ = load_trained(tmp_path, ONE)
    assert (model.step, model.network_config["_class_name"]) == (3, "UNet3DConditionModel")
    jax.tree.map(np.testing.assert_array_equal, trained, state.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, base.params)
    merged = load(tmp_path, mesh=ONE)
    jax.tree.map(np.testing.assert_array_equal, merged.params, join(state.params, split.frozen))
    assert merged.sampling["solver"] == "ddim"  # the folder's own
