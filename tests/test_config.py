"""The keys of a config, and the config of a run folder."""

import json
from pathlib import Path

import pytest

from vdm_jax.config import (
    check_keys,
    check_numbers,
    check_run,
    default_config,
    flatten,
    is_free,
    read_config,
    read_file,
    source_arguments,
    with_base,
    write_config,
)
from vdm_jax.errors import InputError


def test_keys_that_do_not_exist_are_refused():
    config = default_config()
    with pytest.raises(AttributeError, match="stepz"):
        config.stepz = 3
    with pytest.raises(AttributeError, match="evry"):
        config.checkpoint.evry = 3
    for group in ("process", "objective", "model.network", "model.text", "known.mixture", "optimizer.options"):
        parent = config
        for name in group.split("."):
            parent = parent[name]
        parent.more = 3  # the function that takes the group checks it


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "checkpoint",
            {"every": 500},
            "config.checkpoint.keep is missing: a group that is replaced needs all its keys",
        ),
        ("optimizer", dict(default_config().optimizer) | {"weight_decay": 0.1}, "config.optimizer.weight_decay is not"),
        ("mesh", {"data": 1, "fsdp": 1, "context": 1, "tensor": 1, "expert": 2}, "config.mesh.expert is not known"),
        ("train", {"parts": "all"}, "config.train.rank is missing"),
        ("model", {"dtype": "float32", "network": {}}, r"config\.model\.(text|codec) is missing"),
    ],
)
def test_a_group_that_is_replaced_has_the_keys_of_the_old(key, value, message):
    config = default_config()
    check_keys(config)
    config[key] = value
    with pytest.raises(InputError, match=message):
        check_keys(config)


def test_a_config_that_lacks_a_group_is_refused():
    config = default_config().unlock()
    del config.profile
    with pytest.raises(InputError, match=r"config\.profile is missing"):
        check_keys(config)
    config.profile = 3
    with pytest.raises(InputError, match=r"config\.profile=3 must be a group with the keys start, steps"):
        check_keys(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "config.steps=0 must be at least 1"),
        ("batch_size", None, "config.batch_size=None must be at least 1"),
        ("data.joint_images", -1, "config.data.joint_images=-1 must be at least 0"),
        ("seed", 2**32, r"config.seed=4294967296 must be below 2\*\*32"),
        ("ema", 1.0, "config.ema=1.0 must be at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(key, value, message):
    config = default_config().unlock()
    check_numbers(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        check_numbers(config)


def test_zero_and_nothing_stand_for_defaults_of_the_source():
    arguments = source_arguments(default_config())
    assert (arguments["size"], arguments["fps"], arguments["builder_config"]) == ((16, 16), None, None)


# ------------------------------------------------------------------------------------------- a run folder


def test_a_written_config_is_read_again(tmp_path):
    config = default_config()
    config.model.network = dict(kind="unet", channels=8, multipliers=(1, 2), time_conv=(False, dict(kind="three")))
    config.known.mixture = dict(first=0.5)
    write_config(tmp_path, config)
    assert json.loads(read_config(tmp_path).to_json()) == json.loads(config.to_json())


def test_a_key_that_is_newer_than_a_run_has_its_default(tmp_path):
    config = default_config()
    config.model.network = dict(kind="toy")
    write_config(tmp_path, config)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["data"]["captions"], values["data"]["joint_images"], values["optimizer"]["options"], values["known"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="it lacks known"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"known": {}}))
    assert json.loads(read_config(tmp_path).to_json()) == json.loads(config.to_json())
    check_run(tmp_path, config)
    config.data.joint_images = 2
    with pytest.raises(InputError, match=r"was started with config\.data\.joint_images=0, not 2"):
        check_run(tmp_path, config)


def test_what_is_no_config_of_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no run folder: it holds no config\.json \(train with --workdir="):
        read_config(tmp_path)
    for text, message in (
        ("{", r"config\.json cannot be read"),
        ("[]", r"config\.json is not the config of a run"),
        ('{"steps": 3}', r"is not the config of a run: it lacks accumulate, batch_size, checkpoint"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_config(tmp_path)


def test_a_run_goes_on_with_the_keys_it_began_with(tmp_path):
    config = default_config()
    check_run(tmp_path, config)  # there is no run yet
    write_config(tmp_path, config)
    config.steps, config.mesh.data, config.init_from = 20_000, 2, "runs/other"
    check_run(tmp_path, config)
    config.process.shift = 2.0
    with pytest.raises(
        InputError, match=r"was started with config\.process\.shift=None, not 2\.0: use another workdir"
    ):
        check_run(tmp_path, config)


def test_free_keys_are_keys_or_groups():
    for key in ("steps", "mesh.data", "checkpoint.every", "data.data_dir", "model.network.folder"):
        assert is_free(key)
    for key in ("seed", "data.frames", "model.network.channels", "model.network.kind", "train.parts"):
        assert not is_free(key)
    assert flatten({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "d": 2}


def test_a_config_file_may_take_an_argument_and_its_errors_are_one_line(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from vdm_jax.config import default_config\n"
        "from vdm_jax.errors import InputError\n"
        "def get_config(name='plain'):\n"
        "    if name == 'bad':\n"
        "        raise InputError('bad is no arm')\n"
        "    config = default_config()\n"
        "    config.steps = {'plain': 1, 'long': 2}[name]\n"
        "    return config\n"
    )
    assert read_file(file).steps == 1
    assert read_file(f"{file}:long").steps == 2
    with pytest.raises(InputError, match=r"^bad is no arm$"):
        read_file(f"{file}:bad")
    with pytest.raises(InputError, match=r"config .*config\.py:short cannot be read: KeyError: 'short'"):
        read_file(f"{file}:short")
    with pytest.raises(InputError, match=r"config .*none\.py cannot be read: FileNotFoundError"):
        read_file(tmp_path / "none.py")


def test_a_published_model_that_moved_is_pointed_at(tmp_path):
    for name in ("base", "other", "new", "adapter"):
        (tmp_path / name).mkdir()
    config = default_config()
    config.unlock()
    config.model.network = dict(folder=str(tmp_path / "base"), motion_adapter=str(tmp_path / "gone"))
    config.model.text = dict(folder=str(tmp_path / "base"))
    config.model.codec = dict(folder=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"runs/x needs the folder .*gone, which is not there: --motion_adapter="):
        with_base(config, "runs/x")
    moved = with_base(config, "runs/x", str(tmp_path / "new"), str(tmp_path / "adapter"))
    folders = [Path(part.folder).name for part in (moved.model.network, moved.model.text, moved.model.codec)]
    assert folders == ["new", "new", "other"]  # a codec of another model stays
    assert Path(moved.model.network.motion_adapter).name == "adapter"
    with pytest.raises(InputError, match=r"--pretrained=new: runs/x was not trained on such a folder"):
        with_base(default_config(), "runs/x", "new")
