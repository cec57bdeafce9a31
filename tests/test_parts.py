"""New parts and loaded parts in one model: a new U-Net in a published autoencoder's latents, with published CLIP."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.pipelines import write_image_to_video, write_pipeline
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS, tensors_of
from vdm_jax import Pipeline
from vdm_jax.build import build, load, objective_of, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import default_config, write_config
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.training.losses import denoising
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step

FRAMES, SIDE = 4, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("published"), "modelscope")


@pytest.fixture
def config(folder):
    return mixed_config(folder)


def mixed_config(folder):
    config = default_config()
    config.data.update(frames=FRAMES, height=SIDE, width=SIDE, channels=3)
    config.model.network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=4, patch=2)
    config.model.text = dict(folder=str(folder))
    config.model.codec = dict(folder=str(folder))
    config.known.mixture = dict(nothing=1.0, first=1.0)
    config.sample.update(steps=2, guidance=2.0)
    return config


def loaded_config(folder):
    """Returns a config whose three parts are loaded."""
    config = mixed_config(folder)
    config.model.network = dict(folder=str(folder))
    config.known.mixture = {}
    return config


@pytest.fixture
def causal_config(tmp_path):
    """Returns a config of a new network in the latents of a causal autoencoder, three for five frames."""
    published = VIDEO_AUTOENCODERS["wan, half in time"][0]
    (tmp_path / "config.json").write_text(json.dumps(published))
    save_file(tensors_of(published), tmp_path / "diffusion_pytorch_model.safetensors")
    config = mixed_config(tmp_path)
    config.data.frames, config.model.text = 5, default_config().model.text
    return config


def test_a_new_network_draws_in_the_latents_of_a_causal_autoencoder(causal_config):
    model = build(causal_config)
    assert (model.shape, model.latent_shape) == ((5, SIDE, SIDE, 3), (3, SIDE // 2, SIDE // 2, 4))
    split = split_of(causal_config, model)
    model = dataclasses.replace(model, params=split.frozen | split.initialise(*split.arrays))
    known = Known(np.ones((1, 5, SIDE, SIDE, 3), np.float32), np.arange(5)[None, :, None, None, None] < 1)
    videos = Pipeline(model)(["a text"], known=known)
    assert videos.shape == (1, 5, SIDE, SIDE, 3)
    assert np.isfinite(videos).all()
    assert (videos[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dict(frames=6), r"frames=6 must be 1 \+ a multiple of 2 \(the autoencoder's\): 5 or 7"),
        (dict(joint_images=2), "data.joint_images=2 must be 0: a latent of the autoencoder stands for several frames"),
    ],
)
def test_frames_that_do_not_fit_a_causal_autoencoder(causal_config, data, message):
    causal_config.data.update(data)
    with pytest.raises(InputError, match=message):
        build(causal_config)


def take_step(config, mesh):
    """Returns (model, split, state after a step, metrics)."""
    model = build(config, mesh)
    split, tx = split_of(config, model), make_optimizer("sgd", lambda step: 1.0)
    step = make_train_step(denoising(model, objective_of(config)), tx, mesh, seed=0)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(256, size=(4, FRAMES, SIDE, SIDE, 3)).astype(np.uint8),
        "tokens": np.stack([model.tokenize(text) for text in ("the cat", "in 12", "", "cat")]),
    }
    _, initialise = plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)
    return model, split, *step(initialise(), jax.device_put(batch, batch_sharding(mesh)), split.frozen)


@pytest.fixture(scope="module")
def trained(folder):
    return take_step(mixed_config(folder), make_mesh(data=4, tensor=2))


def test_the_new_network_is_trained_and_loaded_parts_are_not(trained, folder):
    model, split, state, metrics = trained
    assert model.loaded == {"text", "codec"}
    assert model.latent_shape == (FRAMES, SIDE // 2, SIDE // 2, 4)
    assert model.text.width == 8
    assert (int(state.skipped), bool(metrics["loss"] > 0.1)) == (0, True)
    assert set(split.trained) == {"network"}
    assert set(split.frozen) == {"text", "codec"}
    started = split.initialise(*split.arrays)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), jax.device_get(state.params), jax.device_get(started))
    assert any(jax.tree.leaves(changed))
    fresh = build(mixed_config(folder))  # loaded once more
    for name in ("text", "codec"):
        jax.tree.map(np.testing.assert_array_equal, split.frozen[name], fresh.params[name])


@pytest.fixture(scope="module")
def run(trained, folder, tmp_path_factory):
    """Returns the folder of a run whose network does something."""
    run, (_, _, state, _) = tmp_path_factory.mktemp("run"), trained
    write_config(run, mixed_config(folder))
    rng = np.random.default_rng(0)
    ema = jax.tree.map(lambda x: jax.device_put(rng.normal(0, 0.2, x.shape).astype(x.dtype), x.sharding), state.ema)
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(1, {"ema": ema})
    checkpoints.close()
    return run, ema


def test_a_run_holds_its_network_and_finds_the_other_parts(run):
    folder, ema = run
    model = load(folder)
    assert model.step == 1
    jax.tree.map(np.testing.assert_array_equal, model.params["network"], ema["network"])
    assert not (folder / "frozen").exists()  # published folders hold the other parts


@pytest.mark.parametrize("respect", ["replace", "concat"])
def test_a_known_first_frame_stays(run, respect):
    pipeline = Pipeline(load(run[0]))
    assert pipeline.settings.respect == "concat"
    video = np.random.default_rng(0).uniform(-1, 1, (1, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    known = Known(video, (np.arange(FRAMES) == 0)[None, :, None, None, None])

    def draw(known, **changes):
        draw = pipeline.batches(["the cat", ""], seed=3, known=known, respect=respect, **changes)
        return np.concatenate(list(draw))

    videos = draw(known)
    assert videos.shape == (2, FRAMES, SIDE, SIDE, 3)
    np.testing.assert_array_equal(videos[:, 0], np.tile(video[:, 0], (2, 1, 1, 1)))
    changed = np.abs(draw(known._replace(video=-video)) - videos)[:, 1:]
    assert changed.max() > 5e-5  # latents are five times smaller than pixels, and the decoder is random
    assert np.abs(draw(known, guidance=1.0) - videos).max() > 5e-5  # the prompt counts


def test_a_loaded_network_trains_on_its_own_prediction(folder):
    config = loaded_config(folder)
    config.model.text = dict(kind="bytes", width=8, depth=0, length=16, head_size=8)
    config.train.parts = r"network/(head|time)/"
    with pytest.raises(InputError, match=r"train\.parts='network/\(head\|time\)/' leaves \d+ new parameters untrained"):
        split_of(config, build(config))
    config = loaded_config(folder)
    config.train.parts = r"network/(head|time)/"
    model = build(config, make_mesh(devices=jax.devices()[:1]))
    assert model.prediction == "eps"
    split, programs = split_of(config, model), set()
    batch = {
        "video": jax.ShapeDtypeStruct((2, FRAMES, SIDE, SIDE, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((2, 77), np.int32),
    }
    for prediction in ("eps", "v"):
        config.objective.prediction = prediction
        loss = denoising(model, objective_of(config))

        def value(trained, frozen, batch, loss=loss):
            key = jax.random.key(0)
            return loss.value(trained, frozen, loss.prepare(frozen, batch, key), key)

        programs.add(jax.jit(value).lower(split.trained, split.frozen, batch).as_text())
    assert len(programs) == 1


def test_a_new_text_encoder_may_tell_a_loaded_network(folder):
    config = loaded_config(folder)
    config.model.text = dict(kind="bytes", width=8, depth=0, length=16, head_size=8)
    model = build(config)
    assert model.loaded == {"network", "codec"}
    assert set(split_of(config, model).trained) == {"network", "text"}


# ---------------------------------------------------------------------------------------------- bad input


def refused(message, config):
    with pytest.raises(InputError, match=message) as caught:
        split_of(config, build(config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.height": 15}, r"height=15 must be a multiple of 2 \(the autoencoder's\)"),
        ({"data.width": 18}, r"latents of 4 × 8 × 9: width=9 must be a multiple of 2 \(patch and levels"),
        ({"data.channels": 1}, r"channels=1 must be 3 \(the autoencoder's\)"),
        ({"train.parts": "network/middle7"}, r"train\.parts='network/middle7': the model has no such parameters"),
        ({"train.parts": "("}, r"train\.parts='\(' is neither all, time, attention, lora nor a regular expression"),
        ({"train.parts": "."}, r"train\.parts='\.' matches the codec, which the denoising loss does not train"),
        ({"train.parts": "time"}, r"train\.parts='time' leaves \d+ new parameters untrained \(network/"),
        ({"train.parts": "lora"}, r"train\.parts='lora' leaves \d+ new parameters untrained \(network/"),
        ({"model.codec.folder": "nowhere"}, r"nowhere.* (is not a folder|cannot be read)"),
    ],
)
def test_a_part_that_does_not_fit_is_one_line(config, changes, message):
    config.update_from_flattened_dict(changes)
    refused(message, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": dict(name="cosine", shift=2.0)}, r"process=.*'shift': 2\.0.* is not for a loaded network"),
        ({"model.codec": dict(kind="pixels")}, r"latents of 3 channels do not fit the network in .* which draws 4"),
        (
            {"model.text": dict(kind="bytes", width=16, depth=0, length=16, head_size=16)},
            r"model\.text has width 16, but the network in .* reads texts of width 8",
        ),
        ({"model.text": dict(kind="none")}, r"model\.text has width none, but the network in .* of width 8"),
        ({"known.mixture": dict(first=1.0)}, r"joint_images and known\.mixture are not for a loaded network"),
        ({"data.joint_images": 2}, r"joint_images and known\.mixture are not for a loaded network"),
        ({"model.network.depth": 3}, r"config\.model\.network.*depth"),
        ({"model.network.new_motion": dict(motion_heads=2)}, "new_motion=.* is for an image model"),
        ({"train.rank": 99, "train.parts": "lora"}, r"train\.rank=99 must be at least 1 and at most"),
        ({"init_from": ""}, None),
    ],
)
def test_settings_of_a_loaded_network_are_one_line(folder, changes, message):
    config = loaded_config(folder)
    for name, value in changes.items():
        group, _, key = name.rpartition(".")
        parent = functools.reduce(lambda group, key: group[key], group.split(".") if group else [], config)
        parent[key] = value
    if message is None:
        split_of(config, build(config))
    else:
        refused(message, config)


def test_a_published_model_that_cannot_be_trained_is_one_line(folder, tmp_path):
    svd = write_image_to_video(tmp_path / "svd")
    config = loaded_config(folder)
    config.model.network.folder = config.model.codec.folder = str(svd)
    refused("training UNetSpatioTemporalConditionModel is not implemented", config)
    other = tmp_path / "other"
    other.mkdir()
    (other / "unet").mkdir()
    (other / "model_index.json").write_text("{}")
    (other / "unet" / "config.json").write_text(json.dumps({"_class_name": "Transformer3D"}))
    config.model.network.folder = str(other)
    refused("'?Transformer3D'?", config)


# ---------------------------------------------------------------------------------------- parts of other runs


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """Returns the folder of a run with a text encoder of its own, and that encoder's parameters."""
    config, run = default_config(), tmp_path_factory.mktemp("text")
    config.data.update(frames=FRAMES, height=SIDE, width=SIDE, channels=3)
    config.model.network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=4)
    config.model.text = dict(kind="bytes", width=8, depth=0, length=16, head_size=8)
    write_config(run, config)
    rng, checkpoints = np.random.default_rng(1), Checkpoints(run / "checkpoints")
    ema = jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), build(config).params)
    checkpoints.save(3, {"ema": ema})
    checkpoints.close()
    return run, ema["text"]


def test_a_network_may_come_out_of_a_run_with_all_that_it_was_trained_for(run, folder):
    config = mixed_config(folder)
    config.model.network = dict(folder=str(run[0]))
    config.known.mixture = {}
    config.train.parts = "network/head/"
    model, base = build(config, make_mesh(devices=jax.devices()[:1])), load(run[0])
    assert model.network == base.network
    jax.tree.map(np.testing.assert_array_equal, model.params["network"], run[1]["network"])
    assert (model.process, model.prediction, model.masks) == (base.process, base.prediction, base.masks)
    assert (model.tell, model.loaded) == ("channels", {"network", "text", "codec"})
    assert set(split_of(config, model).trained) == {"network"}
    config.objective.prediction = "eps"
    assert build(config).prediction == "v"


def test_a_text_encoder_may_come_out_of_a_run_and_is_frozen(text_run, folder, tmp_path):
    where, params = text_run
    config = mixed_config(folder)
    config.model.text = dict(folder=str(where))
    model = build(config, make_mesh(devices=jax.devices()[:1]))
    assert (model.text.width, len(model.tokenize("the cat"))) == (8, 16)
    split = split_of(config, model)
    assert set(split.trained) == {"network"}
    jax.tree.map(np.testing.assert_array_equal, split.frozen["text"], params)
    write_config(tmp_path, config)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"ema": split.initialise(*split.arrays)})
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params["text"], params)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("codec", {}, r"model\.codec\.folder=.* is a run without a codec of its own"),
        ("text", {"length": 3}, "is a run, which has no option length"),
        ("network", {}, "latents of 4 channels do not fit the network in .*, which draws 3"),
    ],
)
def test_a_part_of_a_run_that_does_not_fit_is_one_line(text_run, folder, part, change, message):
    config = mixed_config(folder)
    config.model[part] = dict(folder=str(text_run[0])) | change
    config.known.mixture = {}
    refused(message, config)


def test_a_run_without_a_checkpoint_has_no_parts(folder, tmp_path):
    config = mixed_config(folder)
    write_config(tmp_path, config)
    config.model.network = dict(folder=str(tmp_path))
    refused("holds no checkpoint; train the run first", config)
