"""Equal trainings have equal names, different trainings have different names."""

from pathlib import Path

import pytest

from vdm_jax.config import default_config, read_config, write_config
from vdm_jax.studies.run_hash import run_hash, training_of


def config_with(**changes):
    config = default_config()
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        target = config
        for part in filter(None, group.split("__")):
            target = target[part]
        target[name] = value
    return config


HASH = run_hash(default_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": 5},
        {"data__joint_images": 2},
        {"data__split": "train[:1%]"},
        {"objective__prediction": "eps"},
        {"objective__gamma": 1.0},
        {"process__frame_correlation": 0.1},
        {"process__name": "flow"},
        {"model__network__time_conv": True},
        {"model__network__space_attention": (True, False, True, True)},
        {"known__mixture": {"first": 1.0}},
        {"optimizer__options": {"b2": 0.9}},
    ],
)
def test_whatever_decides_a_training_changes_its_name(changes):
    assert run_hash(config_with(**changes)) != HASH


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 1},
        {"sample__guidance": 7.0},
        {"checkpoint__every": 3},
        {"mesh__fsdp": 4},
        {"data__data_dir": "elsewhere"},
        {"data__num_workers": 3},
        # Defaults, written out:
        {"objective__weighting": "none"},
        {"process__shift": 1.0, "process__log_snr_min": -20},
        {"model__network__channels": 64, "model__network__multipliers": (1, 2, 4, 8)},
        {"model__text__head_size": 32},
        {"known__noise": 0},
    ],
)
def test_free_keys_and_spelt_out_defaults_do_not(changes):
    config = config_with(**changes)
    assert run_hash(config) == HASH
    assert training_of(config) == {}


def test_one_number_has_one_name_however_it_is_written():
    assert run_hash(config_with(process__shift=2)) == run_hash(config_with(process__shift=2.0))
    assert run_hash(config_with(objective__gamma=3, steps=7)) == run_hash(config_with(steps=7, objective__gamma=3.0))


def test_a_preset_of_a_process_is_its_default():
    plain = config_with(process__name="stable_diffusion")
    assert run_hash(plain) != run_hash(config_with(process__name="ddpm"))
    assert run_hash(plain) == run_hash(config_with(process__name="stable_diffusion", process__beta_end=0.012))


def test_the_folder_is_the_data_where_data_is_a_folder():
    names = {run_hash(config_with(data__name="folder", data__data_dir=where)) for where in ("a", "b")}
    assert len(names) == 2


def test_what_a_run_begins_with_counts_by_its_training_not_by_its_place(tmp_path):
    images = config_with(data__frames=1)
    name = run_hash(images)
    for folder in ("one", "two", name):
        write_config(tmp_path / folder, images)
    write_config(tmp_path / "other", config_with(data__frames=1, seed=3))
    places = [str(tmp_path / x) for x in ("one", "two", name)]
    names = {run_hash(config_with(init_from=place)) for place in places}
    assert names == {run_hash(config_with(init_from=str(tmp_path / "not trained yet" / name)))}
    assert not names & {HASH, run_hash(config_with(init_from=str(tmp_path / "other")))}


def test_a_run_folder_has_the_name_of_the_config_that_it_was_trained_with(tmp_path):
    config = config_with(model__network__space_attention=(False, True, True, True), data__joint_images=3)
    write_config(Path(tmp_path), config)
    assert run_hash(read_config(tmp_path)) == run_hash(config)
