"""Runs and numbers of version 0.1.0: its run folders load and draw the same, and training computes the same losses."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.released.compare_losses import RELEASED, TOLERANCE, first_losses
from vdm_jax import Pipeline, load
from vdm_jax.config import check_keys, read_config
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.released import REMOVED, is_released, released_path, removed_key, translate_config
from vdm_jax.training.loop import train

FOLDER = Path(__file__).parent / "released"
RUN = FOLDER / "tiny_run"
PROMPTS = ["the digit 3 moves left", ""]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(load(RUN))


def test_a_run_of_version_0_1_0_loads(pipeline):
    model = pipeline.model
    assert (model.step, model.tell, model.prediction, model.shape) == (20, "channels", "v", (8, 16, 16, 1))
    assert pipeline.settings.steps == 4
    check_keys(read_config(RUN))


SETTINGS = {
    "text": dict(guidance=3.0),
    "concat": dict(respect="concat", guidance=2.0),
    "replace": dict(respect="replace", guidance=1.0, eta=0.5),
    "reconstruct": dict(respect="reconstruct", guidance=1.0, reconstruction=2.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_draws_what_version_0_1_0_drew(pipeline, name):
    video = np.random.default_rng(0).uniform(-1, 1, (2, *pipeline.model.shape)).astype(np.float32)
    mask = np.zeros((1, *pipeline.model.shape[:3], 1), bool)
    mask[:, :3] = True
    known = None if name == "text" else Known(video, mask)
    videos = np.concatenate(list(pipeline.batches(PROMPTS, seed=7, known=known, **SETTINGS[name])))
    np.testing.assert_allclose(videos, np.load(FOLDER / "drawings.npz")[name], atol=1e-4)


def test_only_version_0_1_0_trains_it_further(tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    with pytest.raises(InputError, match=r"run was begun by version 0\.1\.0, which alone can continue it") as caught:
        train(read_config(run), run)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.mark.parametrize("name", RELEASED)
def test_the_first_losses_are_those_of_version_0_1_0(name, data_dir):
    losses = first_losses(name, 6, data_dir, make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(losses, RELEASED[name][:6], rtol=TOLERANCE)


# ------------------------------------------------------------------------------------------ keys and names


def released_values(**changes):
    values = json.loads((RUN / "config.json").read_text())
    for path, value in changes.items():
        group, key = path.split("__")
        values[group][key] = value
    return values


def test_a_config_of_version_0_1_0_has_the_keys_of_this_version():
    values = released_values(data__caption_dropout=0.1)
    assert is_released(values)
    translated = translate_config(values)
    assert translated["model"]["network"] == {"kind": "unet"} | values["model"]["unet"]
    assert translated["model"]["text"] == {"kind": "bytes"} | values["model"]["text"]
    assert translated["model"]["codec"] == {"kind": "pixels"}
    assert translated["known"] == values["known"] | {"tell": "channels"}
    assert translated["train"] == {"parts": "all", "rank": 8}
    assert "caption_dropout" not in translated["data"]
    assert translate_config(translated) is translated  # a config of this version stays as it is
    values = released_values(model__text={"length": 0})
    assert translate_config(values)["model"]["text"] == {"kind": "none"}


def test_a_run_of_a_published_model_names_its_folder_for_each_part():
    loaded = dict(folder="models/sd", motion_adapter="models/motion", new_motion={}, train="lora", rank=4, unet={})
    translated = translate_config(released_values() | {"pretrained": loaded | {"unet": {"remat": "full"}}})
    network = {"folder": "models/sd", "remat": "full", "motion_adapter": "models/motion", "new_motion": {}}
    assert translated["model"] | {"dtype": ""} == {
        "dtype": "",
        "network": network,
        "text": {"folder": "models/sd"},
        "codec": {"folder": "models/sd"},
    }
    assert translated["train"] == {"parts": "lora", "rank": 4}


PATHS = {
    "network/stem/project/kernel": "unet/stem/project/kernel",
    "network/time/first/kernel": "unet/time_in/kernel",
    "network/time/second/bias": "unet/time_out/bias",
    "network/pooled/kernel": "unet/pooled/kernel",
    "network/down/0/1/space_conv/conv1/kernel": "unet/down/0/1/space_conv/conv1/kernel",
    "network/middle1/time_conv/project/kernel": "unet/middle1/time_conv/project/kernel",
    "network/middle1/space_attention/attention/qkv/kernel": "unet/middle1/space_attention/qkv/kernel",
    "network/middle1/space_attention/attention/text_kv/kernel": "unet/middle1/space_attention/context_kv/kernel",
    "network/middle1/space_attention/cross/q/kernel": "unet/middle1/space_attention/cross_q/kernel",
    "network/middle1/space_attention/cross/text_kv/kernel": "unet/middle1/space_attention/context_kv/kernel",
    "network/middle1/space_attention/cross/out/bias": "unet/middle1/space_attention/cross_out/bias",
    "network/middle1/space_attention/cross_norm/scale": "unet/middle1/space_attention/cross_norm/scale",
    "network/up/1/0/time_attention/attention/bias": "unet/up/1/0/time_attention/bias",
    "text/blocks/1/attention/out/kernel": "text/blocks/1/out/kernel",
    "text/blocks/1/norm1/scale": "text/blocks/1/norm1/scale",
    "text/embed_ngrams/0/embedding": "text/embed_ngrams/0/embedding",
}


def test_parameters_have_the_paths_of_version_0_1_0():
    assert {now: released_path(now, own=True) for now in PATHS} == PATHS
    # Networks out of a published folder, in changes of low rank.
    published = {
        "network/stem/conv/kernel": "unet/conv_in/kernel",
        "network/head/conv/bias": "unet/conv_out/bias",
        "network/stem_attention/norm/scale": "unet/stem_time/norm/scale",
        "network/scalars/first/kernel": "unet/added_mlp/first/kernel",
        "network/time/first/kernel": "unet/time/first/kernel",
        "network/down/0/0/space_attention/blocks/0/attention1/q/kernel": (
            "unet/down/0/0/space_attention/blocks/0/attention1/q/kernel"
        ),
    }
    assert {now: released_path(now, own=False) for now in published} == published


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_has_one_line_about_its_replacement(key):
    assert removed_key(key) == f"config.{key} was removed: use config.{REMOVED[key]}"
    assert (
        removed_key("model.unet.channels")
        == "config.model.unet.channels was removed: use config.model.network.channels"
    )
    assert removed_key("model.dtype") is None
    assert removed_key("model.united") is None
