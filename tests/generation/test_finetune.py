"""Going on with the training of a published model. Weights are random."""

import functools
import json

import jax
import numpy as np
import pytest

from tests.pretrained.pipelines import write_image_to_video, write_pipeline
from tests.tiny_config import get_config
from vdm_jax.errors import InputError
from vdm_jax.generation.finetune import load_changes, load_trainee
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import batch_sharding, path_name
from vdm_jax.training.checkpoints import Checkpoints
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    write_pipeline(place / "image", "image")
    write_image_to_video(place / "svd")
    write_pipeline(place / "modelscope")
    return place


def config_of(place, **changes):
    config = get_config()
    config.data.height = config.data.width = 16
    config.pretrained.update({"folder": str(place / "image"), "train": "time", "rank": 2} | changes)
    return config


def leaves(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def step(place):
    """(trainee, its pipeline, the state after one step, its metrics) of a part on a mesh."""

    @functools.cache
    def step(part, count=1, **sizes):
        mesh = make_mesh(**sizes, devices=jax.devices()[:count])
        folder = str(place / ("modelscope" if part == "lora" else "image"))
        trainee, base = load_trainee(config_of(place, train=part, folder=folder), mesh)
        tx = make_optimizer("sgd", lambda step: 1.0)
        how = {"seed": 0, "null_tokens": trainee.null_tokens, "assemble": trainee.assemble, "clean": trainee.clean}
        take = make_train_step(trainee.graphdef, trainee.objective, trainee.process, tx, mesh, **how)
        rng = np.random.default_rng(0)
        batch = {
            "video": rng.integers(256, size=(4, 4, 16, 16, 3)).astype(np.uint8),
            "tokens": np.stack([trainee.tokenize(text) for text in ("the cat", "in 12", "", "cat")]),
        }
        _, initialise = plan_state(trainee.shapes, trainee.initialise, tx, mesh, *trainee.given)
        return trainee, base, *take(initialise(), jax.device_put(batch, batch_sharding(mesh)), trainee.frozen)

    return step


@pytest.mark.parametrize("part", ["time", "lora"])
def test_only_the_part_is_trained(step, part):
    trainee, base, state, metrics = step(part)
    assert (int(state.skipped), bool(metrics["loss"] > 0.1)) == (0, True)
    before, after = leaves(base.params), leaves(trainee.assemble(state.params, trainee.frozen))
    changed = {name for name in after if (after[name] != before[name]).any()}
    assert changed
    if part == "time":  # a last matrix of 0 lets nothing through to the others in the first step
        assert changed == {name for name in after if "time_attention/project_out/" in name}
        assert all("time_attention" in name for name in leaves(state.params))
    else:
        assert {name.split("/")[-2] for name in changed} <= {"q", "k", "v", "out"}
        assert all(name.endswith(("lora_down", "lora_up")) for name in leaves(state.params))


def test_sharded_parameters_train_as_whole_ones(step):
    _, _, one, metrics = step("lora")
    _, _, many, metrics_of_many = step("lora", 8, data=2, fsdp=2, tensor=2)
    assert metrics["loss"] == pytest.approx(float(metrics_of_many["loss"]), rel=1e-5)
    for name, array in leaves(one.params).items():
        np.testing.assert_allclose(leaves(many.params)[name], array, rtol=1e-3, atol=1e-5)


def test_noise_is_put_on_what_the_codec_makes_of_videos(step):
    trainee, base, *_ = step("time")
    video = jax.ShapeDtypeStruct((1, 4, 16, 16, 3), np.float32)
    clean = jax.make_jaxpr(lambda codec, video: trainee.clean({"codec": codec}, video))(trainee.frozen["codec"], video)
    assert clean.out_avals[0].shape == (1, 4, 8, 8, 4)
    assert str(clean) == str(jax.make_jaxpr(base.codec.encode)(base.codec.params, video))
    jax.tree.map(np.testing.assert_array_equal, trainee.frozen["codec"], base.codec.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "svd"}, "training UNetSpatioTemporalConditionModel is not implemented"),
        ({"folder": "nowhere"}, "nowhere is not a folder"),
        ({"train": "some"}, "pretrained.train='some' must be one of all, time, lora"),
        ({"new_motion": {"motion_heads": 2}}, "motion_heads is no setting"),
        ({"unet": {"depth": 2}}, "config.pretrained.unet=.*depth"),
    ],
)
def test_what_cannot_be_trained_is_refused(place, changes, message):
    if "folder" in changes:
        changes = changes | {"folder": str(place / changes["folder"])}
    with pytest.raises(InputError, match=message):
        load_trainee(config_of(place, **changes), make_mesh())


def test_stills_and_masks_are_refused(place):
    config = config_of(place)
    config.data.joint_images = 2
    with pytest.raises(InputError, match="joint_images"):
        load_trainee(config, make_mesh())


def write_run(run, config):
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    return run


def test_low_rank_changes_of_a_run(place, tmp_path):
    config = config_of(place, train="lora", folder=str(place / "modelscope"))
    run, mesh = write_run(tmp_path / "run", config), make_mesh(devices=jax.devices()[:1])
    trainee, _ = load_trainee(config, mesh)
    _, initialise = plan_state(trainee.shapes, trainee.initialise, make_optimizer("sgd", lambda step: 1.0), mesh)
    state, checkpoints = initialise(), Checkpoints(run / "checkpoints")
    checkpoints.save(3, state, {"next_batch": 0})
    checkpoints.close()
    step, changes, unet = load_changes(run)
    assert (step, unet["_class_name"]) == (3, "UNet3DConditionModel")
    jax.tree.map(np.testing.assert_array_equal, changes, state.ema["unet"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "time"}, "pretrained.train='time', not 'lora': there are no low-rank changes"),
        ({"train": "lora"}, "pretrained.train='lora' on an image model needs a motion_adapter"),
    ],
)
def test_runs_without_a_lora(place, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_changes(write_run(tmp_path / "run", config_of(place, **changes)))
