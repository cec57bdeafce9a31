"""Error lines for wrong config keys, from a flag and from a config file."""

import sys

import ml_collections
import pytest
from ml_collections.config_flags import config_path

from vdm_jax.command import _unknown_key
from vdm_jax.released import REMOVED, removed_key


@pytest.fixture
def config():
    groups = {"steps": 3, "data": {"frames": 8}, "model": {"network": {"channels": 8}}}
    config = ml_collections.ConfigDict(groups).lock()
    config.model.network.unlock()
    return config


def test_a_removed_key_names_its_replacement():
    assert removed_key("pretrained.folder") == "config.pretrained.folder was removed: use config.model.network.folder"
    assert removed_key("pretrained.train").endswith("use config.train.parts")
    assert removed_key("pretrained.unet.remat").endswith("use config.model.network.remat")
    assert removed_key("pretrained").endswith("use config.model.network")
    assert removed_key("model.unet").endswith("use config.model.network")
    assert removed_key("data.caption_dropout").endswith("use config.objective.null_probability")
    for key in ("known.mixture", "model.unets", "data.frames", "pretrainedx"):
        assert removed_key(key) is None


def line_of(error):
    return str(_unknown_key(error))


@pytest.mark.parametrize("key", [*REMOVED, "model.unet.channels", "pretrained.unet.remat"])
def test_a_removed_key_in_a_flag(config, key, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=a.py", f"--config.{key}=1"])
    with pytest.raises((KeyError, AttributeError)) as error:
        config_path.get_type(key, config)
    assert line_of(error.value) == removed_key(key)


def test_a_removed_key_in_a_config_file(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=a.py"])
    with pytest.raises(AttributeError) as error:
        config.pretrained.train = "time"
    assert line_of(error.value) == removed_key("pretrained.train")
    with pytest.raises(AttributeError) as error:
        config.model.unet.patch = 2
    assert line_of(error.value) == removed_key("model.unet.patch")


def test_an_unknown_key_names_the_nearest(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config.data.frame=3"])
    with pytest.raises((KeyError, AttributeError)) as error:
        config_path.get_type("data.frame", config)
    assert line_of(error.value) == "'frame' is not in the config; did you mean 'frames'?"
    with pytest.raises(AttributeError) as error:
        config.step = 3
    assert line_of(error.value) == "'step' is not in the config; did you mean 'steps'?"
    with pytest.raises(AttributeError) as error:
        _ = config.model.network.depth
    assert line_of(error.value) == (
        "'depth' is not in the config; a new key of an open group is set in the config file"
    )


def test_other_errors_are_not_about_keys(config):
    for error in (KeyError("DATA_DIR"), AttributeError("x"), ValueError("y")):
        with pytest.raises(type(error)) as raised:
            raise error
        assert _unknown_key(raised.value) is None
    with pytest.raises(TypeError) as raised:
        config.steps = "many"
    assert _unknown_key(raised.value) is None
