"""What is saved comes back, on any mesh; what is damaged is passed over."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.checkpoints import Checkpoints, restore_ema, restore_latest
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import shardings


def params(mesh=None):
    """Returns the parameters of a small network, sharded on a mesh (default: the first device)."""
    rng = np.random.default_rng(0)
    tree = {
        "text": {"blocks": {0: {"qkv": {"kernel": rng.normal(size=(8, 24)).astype(np.float32)}}}},
        "up": {"kernel": rng.normal(size=(4, 16)).astype(np.float32), "bias": np.ones(16, np.float32)},
    }
    return jax.device_put(tree, shardings(mesh or make_mesh(devices=jax.devices()[:1]), tree))


def parts(step, mesh=None):
    """Returns the parts of a run at a step."""
    rest = {"step": jnp.int32(step), "skipped": jnp.int32(step // 10)}
    trained, average = (jax.tree.map(lambda p, s=sign: p + s * step, params(mesh)) for sign in (1, -1))
    return {"params": trained, "ema": average, "rest": rest, "data": {"next_batch": step}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder with checkpoints of steps 10 to 50, of which the last and every twentieth are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1, keep_every=20)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, parts(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Returns a copy to do damage to."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def truncate(checkpoint):
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def test_the_newest_comes_back_bit_for_bit(saved):
    assert_equal(restore_latest(saved, parts(0)), parts(50) | {"step": 50})


def test_the_last_and_every_twentieth_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["20", "40", "50"]


def test_without_a_checkpoint_nothing_comes_back(tmp_path):
    assert restore_latest(tmp_path / "checkpoints", parts(0)) is None
    with pytest.raises(InputError, match="holds no checkpoint; train the run first"):
        restore_ema(tmp_path / "checkpoints", params())


def test_arrays_are_read_into_the_shards_of_another_mesh(saved):
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    loaded = restore_latest(saved, parts(0, mesh))
    assert_equal(loaded, parts(50) | {"step": 50})

    def same_place(a, b):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)

    jax.tree.map(same_place, loaded["ema"], params(mesh))
    assert loaded["ema"]["up"]["kernel"].addressable_shards[0].data.shape == (1, 8)


@pytest.mark.parametrize("part", ["", "params", "rest", "data"])
def test_a_damaged_one_is_passed_over_with_one_line(folder, caplog, part):
    truncate(folder / "50" / part)
    with caplog.at_level(logging.WARNING):
        loaded = restore_latest(folder, parts(0))
    assert_equal(loaded, parts(40) | {"step": 40})
    lines = [r.getMessage() for r in caplog.records if r.name == "root"]
    assert len(lines) == 1
    assert f"checkpoint {folder}/50 cannot be read, 40 is used instead" in lines[0]


def test_saving_goes_on_over_a_damaged_one(folder):
    truncate(folder / "50")
    checkpoints = Checkpoints(folder, keep=1)
    for step in (45, 50):
        checkpoints.save(step, parts(step))
        checkpoints._orbax.wait()
        assert restore_latest(folder, parts(0))["step"] == step
    checkpoints.close()


def test_a_half_written_one_is_not_seen_and_can_be_written_again(folder):
    shutil.copytree(folder / "50", folder / "60.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "60.orbax-checkpoint-tmp" / "rest")
    assert restore_latest(folder, parts(0))["step"] == 50
    checkpoints = Checkpoints(folder)
    checkpoints.save(60, parts(60))
    checkpoints.close()
    assert_equal(restore_latest(folder, parts(0)), parts(60) | {"step": 60})


def test_the_average_is_read_alone(folder):
    for part in ("params", "rest", "data"):
        shutil.rmtree(folder / "50" / part)
    step, ema = restore_ema(folder, params())
    assert step == 50
    assert_equal(ema, parts(50)["ema"])


@pytest.mark.parametrize("change", ["shape", "more", "fewer"])
def test_parameters_of_another_network_are_refused_in_one_line(saved, caplog, change):
    ema = params()
    if change == "shape":
        ema["up"] = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 2 * x.shape[-1])), ema["up"])
    elif change == "more":
        ema["more"] = jnp.zeros(3)
    else:
        del ema["up"]
    with pytest.raises(InputError, match=r"steps 50, 40, 20\) can be read into this model") as caught:
        restore_ema(saved, ema)
    expected = {
        "shape": "up/bias has shape (16,) there and (32,) here",
        "more": "more has shape none there and (3,) here",
    }
    assert expected.get(change, "up/bias has shape (16,) there and none here") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records
