"""Which parameters are trained, and that the whole comes together again."""

import dataclasses
import functools
import logging
from pathlib import Path
from runpy import run_path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from vdm_jax.training.checkpoints import Checkpoints
from vdm_jax.training.trainee import begin_with, divide, from_scratch, join, low_rank

from vdm_jax import configuration
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import path_name
from vdm_jax.training.state import plan_state

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))


@pytest.fixture
def params():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jax.numpy.asarray(rng.normal(size=shape), np.float32)

    layer = {"blocks": {0: {"attention1": {"q": {"kernel": array(6, 4)}, "out": {"kernel": array(4, 6)}}}}}
    return {
        "text": {"embed": array(5, 4)},
        "unet": {
            "conv_in": {"kernel": array(3, 6)},
            "down": {0: {0: {"space_attention": layer, "time_attention": jax.tree.map(lambda x: x + 1, layer)}}},
            "stem_time": {"norm": {"scale": array(6)}},
        },
    }


def names(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_parts_are_what_they_are_called_and_join_to_the_whole(params):
    everything = names(params)
    for part, expected in {
        "all": {name for name in everything if name.startswith("unet/")},
        "time": {name for name in everything if "time" in name},
        "lora": {name for name in everything if "attention1" in name},
    }.items():
        trained, frozen = divide(params, part)
        assert names(trained) == expected
        assert names(frozen) == everything - expected
        whole = join(trained, frozen)
        assert jax.tree.structure(whole) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_low_rank_changes_begin_as_none_and_add_their_product(params):
    matrices, _ = divide(params, "lora")
    changes = low_rank(matrices, 2, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, join(changes, params), params)
    q, other = (
        changes["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
        for slot in ("space_attention", "time_attention")
    )
    assert np.abs(q["lora_down"] - other["lora_down"]).max() > 0.1  # each its own
    changes = jax.tree.map(lambda x: x + 0.5, changes)
    whole = join(changes, params)
    slot = "space_attention"
    change = whole["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    change = change - params["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    np.testing.assert_allclose(change, (q["lora_down"] + 0.5) @ (q["lora_up"] + 0.5), atol=1e-6)
    np.testing.assert_array_equal(whole["text"]["embed"], params["text"]["embed"])


def test_what_there_is_not_cannot_be_trained(params):
    with pytest.raises(InputError, match="train='some' must be one of all, time, lora"):
        divide(params, "some")
    with pytest.raises(InputError, match="train='time': the network has no such parameters"):
        divide({"text": params["text"], "unet": {"conv_in": params["unet"]["conv_in"]}}, "time")
    with pytest.raises(InputError, match="rank=5 must be at least 1 and at most 4"):
        low_rank(divide(params, "lora")[0], 5, jax.random.key(0))


def shaped_by(unet, frames=4):
    config = tiny["get_config"]()
    config.data.frames = frames
    config.model.unet.update(unet)
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The run of an image network in which every projection does something; its config and parameters."""
    folder = tmp_path_factory.mktemp("images")
    config = shaped_by({"patch_time": 1, "time_attention": False}, frames=1)
    configuration.write_config(folder, config)
    tx, _ = configuration.optimizer_of(config)
    state = plan_state(from_scratch(config).shapes, from_scratch(config).initialise, tx, make_mesh(fsdp=2, data=4))[1]()
    ema = jax.tree.map(
        lambda x: jax.device_put(
            np.asarray(x) + np.float32(0.2 * np.sin(np.arange(x.size)).reshape(x.shape)), x.sharding
        ),
        state.ema,
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, dataclasses.replace(state, ema=ema), {"next_batch": 3})
    checkpoints.close()
    return folder, config, ema


def test_a_video_network_begins_as_an_image_network_frame_by_frame(images, caplog):
    folder, config, params = images
    trainee = from_scratch(shaped_by({"patch_time": 1, "time_conv": True}))
    with caplog.at_level(logging.INFO):
        begun = begin_with(trainee, folder, make_mesh(fsdp=2, data=4))
    tx, _ = configuration.optimizer_of(config)
    state = plan_state(begun.shapes, begun.initialise, tx, make_mesh(fsdp=2, data=4), *begun.given)[1]()
    begins = state.params
    old, new = len(names(params)), len(names(begins))
    assert f"begins with {old} of its {new} arrays from {folder} at step 3" in caplog.text
    assert old < new

    rng = np.random.default_rng(0)
    z, time = jnp.float32(rng.normal(size=(2, 4, 8, 8, 3))), jnp.float32([900, 30])

    @functools.partial(jax.jit, static_argnums=0)
    def predict(graphdef, params, z):
        model = nnx.merge(graphdef, params)
        return model(z, time, model.encode(jnp.stack([model.tokenize("a"), model.tokenize("b")])))

    whole = predict(trainee.graphdef, begins, z)
    image = from_scratch(config).graphdef
    frames = [predict(image, params, z[:, t : t + 1]) for t in range(4)]
    np.testing.assert_allclose(whole, np.concatenate(frames, 1), atol=1e-5)
    assert np.std(whole) > 0.1


def test_what_a_network_cannot_begin_with(images):
    folder, *_ = images
    mesh = make_mesh()
    with pytest.raises(InputError, match=r"init_from=.*unet/\w+/project/\w+ has shape \(48.* there and \(96.* here"):
        begin_with(from_scratch(shaped_by({})), folder, mesh)
    published = dataclasses.replace(from_scratch(shaped_by({})), frozen={"network": {}})
    with pytest.raises(InputError, match="a published model begins as it was loaded"):
        begin_with(published, folder, mesh)
    with pytest.raises(InputError, match="no run folder"):
        begin_with(from_scratch(shaped_by({})), folder / "none", mesh)
