"""What is saved comes back, on any mesh; what is damaged is passed over."""

import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.training.checkpoints import Checkpoints, restore_ema, restore_state


def at_step(state, step):
    return dataclasses.replace(
        state,
        step=jnp.int32(step),
        params=jax.tree.map(lambda p: p + step, state.params),
        ema=jax.tree.map(lambda p: p - step, state.ema),
        skipped=jnp.int32(step // 10),
    )


@pytest.fixture(scope="module")
def saved(toy, tmp_path_factory):
    """A folder with checkpoints of steps 10, 20, 30, 40, of which the last two and every twentieth are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1, keep_every=20)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, at_step(toy[1](), step), {"next_batch": step})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to do damage to."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def truncate(checkpoint):
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def test_the_newest_comes_back_bit_for_bit(saved, toy):
    state, data = restore_state(saved, toy[1]())
    assert_equal(state, at_step(toy[1](), 50))
    assert data == {"next_batch": 50}


def test_the_last_and_every_twentieth_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["20", "40", "50"]


def test_where_there_is_none_nothing_comes_back(toy, tmp_path):
    assert restore_state(tmp_path / "checkpoints", toy[1]()) is None
    with pytest.raises(InputError, match="holds no checkpoint; train the run first"):
        restore_ema(tmp_path / "checkpoints", toy[1]().ema)


def test_it_is_read_into_the_shards_of_another_mesh(saved, toy, on_devices):
    mesh = on_devices(8, data=1, fsdp=4, tensor=2)
    state, _ = restore_state(saved, toy[1](mesh))
    assert_equal(state, at_step(toy[1](), 50))
    jax.tree.map(lambda a, b: np.testing.assert_(a.sharding.is_equivalent_to(b.sharding, a.ndim)), state, toy[1](mesh))


@pytest.mark.parametrize("part", ["", "params", "rest", "data"])
def test_a_damaged_one_is_passed_over_with_one_line(folder, toy, caplog, part):
    truncate(folder / "50" / part)
    with caplog.at_level(logging.WARNING):
        state, data = restore_state(folder, toy[1]())
    assert (int(state.step), data["next_batch"]) == (40, 40)
    lines = [r.getMessage() for r in caplog.records if r.name == "root"]
    assert len(lines) == 1
    assert f"checkpoint {folder}/50 cannot be read, 40 is used instead" in lines[0]


def test_training_goes_on_over_a_damaged_one(folder, toy):
    truncate(folder / "50")
    checkpoints = Checkpoints(folder, keep=1)
    for step in (45, 50):
        checkpoints.save(step, at_step(toy[1](), step), {"next_batch": step})
        checkpoints._orbax.wait()
        assert int(restore_state(folder, toy[1]())[0].step) == step
    checkpoints.close()


def test_a_half_written_one_is_not_seen_and_can_be_written_again(folder, toy):
    shutil.copytree(folder / "50", folder / "60.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "60.orbax-checkpoint-tmp" / "rest")
    assert int(restore_state(folder, toy[1]())[0].step) == 50
    checkpoints = Checkpoints(folder)
    checkpoints.save(60, at_step(toy[1](), 60), {"next_batch": 60})
    checkpoints.close()
    assert int(restore_state(folder, toy[1]())[0].step) == 60


def test_the_average_is_read_alone(folder, toy):
    for part in ("params", "rest", "data"):
        shutil.rmtree(folder / "50" / part)
    step, ema = restore_ema(folder, toy[1]().ema)
    assert step == 50
    assert_equal(ema, at_step(toy[1](), 50).ema)


@pytest.mark.parametrize("change", ["shape", "more", "fewer"])
def test_parameters_of_another_network_are_refused_in_one_line(saved, toy, caplog, change):
    ema = dict(toy[1]().ema)
    if change == "shape":
        ema["up"] = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 2 * x.shape[-1])), ema["up"])
    elif change == "more":
        ema["more"] = jnp.zeros(3)
    else:
        del ema["up"]
    with pytest.raises(InputError, match=r"steps 50, 40, 20\) can be read into this model") as caught:
        restore_ema(saved, ema)
    assert {"shape": "up/", "more": "more has shape none there and (3,) here", "fewer": "up/"}[change] in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert not caplog.records
