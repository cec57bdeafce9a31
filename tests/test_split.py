"""Which parameters are trained, that the parts join to the whole, and videos that begin as images."""

import dataclasses
import functools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vdm_jax import Pipeline, load
from vdm_jax.build import begin_with, build, load_trained, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import default_config
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import path_name
from vdm_jax.split import divide, in_common, join, low_rank, make_split
from vdm_jax.training.loop import train
from vdm_jax.video import write_video


@pytest.fixture
def params():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layer = {"blocks": {0: {"attention1": {"q": {"kernel": array(6, 4)}, "out": {"kernel": array(4, 6)}}}}}
    out = {"kernel": array(4, 6), "bias": array(6)}
    own = {"attention": {"qkv": {"kernel": array(6, 12)}, "out": out}, "norm": {"scale": array(6)}}
    down = {"space_attention": layer, "time_attention": jax.tree.map(lambda x: x + 1, layer)}
    up = {"time_conv": {"project": {"kernel": array(18, 6)}}, "time_attention": own}
    return {
        "text": {"embed": array(5, 4), "blocks": {0: {"attention": own["attention"]}}},
        "network": {
            "stem": {"conv": {"kernel": array(3, 6)}},
            "stem_attention": {"norm": {"scale": array(6)}},
            "time": {"first": {"kernel": array(6, 6)}},  # the embedding of the noise level: no time slot
            "down": {0: {0: down}},
            "up": {0: {0: up}},
        },
        "codec": {"decoder": {"kernel": array(3, 3)}},
    }


def names(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


# ------------------------------------------------------------------------------------------------- parts


def test_parts_are_what_they_are_called_and_join_to_the_whole(params):
    everything = names(params)
    network = {name for name in everything if name.startswith("network/")}
    for part, expected in {
        "all": network | {name for name in everything if name.startswith("text/")},
        "time": {name for name in network if "time_" in name or "stem_attention" in name},
        "lora": {name for name in network if name.endswith(("q/kernel", "qkv/kernel", "out/kernel"))},
        "attention": {name for name in network if name.split("/")[-2] in ("q", "qkv", "out")},
        r"/up/": {name for name in network if "/up/" in name},
        r"^network/(stem|down)/.*kernel$": {
            name for name in network if name.split("/")[1] in ("stem", "down") and name.endswith("kernel")
        },
    }.items():
        trained, frozen = divide(params, part)
        assert names(trained) == expected, part
        assert names(frozen) == everything - expected
        assert_equal(join(trained, frozen), params)


def test_a_loaded_text_encoder_is_not_trained_with_all(params):
    trained, frozen = divide(params, "all", loaded={"text", "codec"})
    assert set(trained) == {"network"}
    assert set(frozen) == {"text", "codec"}
    trained, _ = divide(params, "^text/embed", loaded={"text", "codec"})  # but a pattern may name it
    assert names(trained) == {"text/embed"}


def test_low_rank_changes_begin_as_none_and_add_their_product(params):
    matrices, _ = divide(params, "lora")
    changes = low_rank(matrices, 2, jax.random.key(0))
    assert_equal(join(changes, params), params)
    q, other = (
        changes["network"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
        for slot in ("space_attention", "time_attention")
    )
    assert np.abs(q["lora_down"] - other["lora_down"]).max() > 0.1  # each its own
    changes = jax.tree.map(lambda x: x + 0.5, changes)
    whole = join(changes, params)
    slot = "space_attention"
    change = whole["network"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    change = change - params["network"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    np.testing.assert_allclose(change, (q["lora_down"] + 0.5) @ (q["lora_up"] + 0.5), atol=1e-6)
    np.testing.assert_array_equal(whole["text"]["embed"], params["text"]["embed"])


def test_a_part_that_does_not_exist_cannot_be_trained(params):
    with pytest.raises(InputError, match=r"train\.parts='some': the model has no such parameters"):
        divide(params, "some")
    with pytest.raises(InputError, match=r"train.parts='\[' is neither all, time, attention, lora nor a regular"):
        divide(params, "[")
    with pytest.raises(InputError, match=r"train\.parts='time': the model has no such parameters"):
        divide({"text": params["text"], "network": {"stem": params["network"]["stem"]}}, "time")
    for rank in (0, 5):
        with pytest.raises(InputError, match=f"train.rank={rank} must be at least 1 and at most 4"):
            low_rank(divide(params, "lora")[0], rank, jax.random.key(0))


def test_trained_parameters_begin_as_loaded_or_new_ones(params):
    """New parameters are shapes; a split computes them and copies the loaded ones."""
    values = jax.tree.map(lambda x: x + 7, {"network": params["network"]})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values)
    fresh = flatten_dict(params) | {path: leaf for path, leaf in flatten_dict(shapes).items() if "up" in path}
    split = make_split(unflatten_dict(fresh), "all", 1, seed=0, loaded={"text", "codec"}, make_new=lambda: values)
    assert jax.tree.map(jnp.shape, split.trained) == jax.tree.map(jnp.shape, {"network": params["network"]})
    begun = jax.jit(split.initialise)(*split.arrays)
    for path, leaf in flatten_dict(begun).items():
        expected = values if "up" in path else params
        np.testing.assert_array_equal(leaf, flatten_dict(expected)[path])
    assert_equal(join(begun, split.frozen)["codec"], params["codec"])
    make_split(unflatten_dict(fresh), r"/(up|time)/", 1, seed=0, make_new=lambda: values)
    with pytest.raises(InputError, match=r"train.parts='stem/' leaves 5 new parameters untrained \(network/up/0/0/"):
        make_split(unflatten_dict(fresh), "stem/", 1, seed=0, make_new=lambda: values)
    with pytest.raises(InputError, match=r"train.parts='lora' leaves \d new parameters untrained"):
        make_split(unflatten_dict(fresh), "lora", 1, seed=0, make_new=lambda: values)


def test_parameters_in_common_have_one_shape():
    here = {"a": {"x": jnp.ones(2), "y": jnp.ones(3)}, "b": jnp.ones(1)}
    there = {"a": {"x": jnp.zeros(2)}, "c": jnp.ones(1)}
    common = in_common(here, there, "init_from=run")
    assert list(common) == [("a", "x")]
    assert not common["a", "x"].any()
    with pytest.raises(InputError, match=r"init_from=run: a/x has shape \(3,\) there and \(2,\) here"):
        in_common(here, {"a": {"x": jnp.zeros(3)}}, "init_from=run")
    with pytest.raises(InputError, match="init_from=run has no parameter of this network"):
        in_common(here, {"c": jnp.ones(1)}, "init_from=run")


# ------------------------------------------------------------------ a video network begins as an image network


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Returns a folder of nine captioned videos of noise."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(9):
        write_video(folder / f"{number}.gif", rng.integers(256, size=(5, 8, 8, 3)).astype(np.uint8), fps=8)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def image_config(videos):
    config = default_config()
    config.steps, config.batch_size, config.log_every, config.tensorboard = 2, 8, 1, False
    config.data.update(name="folder", data_dir=str(videos), frames=1, height=8, width=8, channels=3)
    network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=8, patch=4, time_attention=False)
    config.model.network = network
    config.model.text = dict(kind="bytes", width=16, depth=0, length=16, head_size=16)
    config.optimizer.update(warmup=0, learning_rate=1e-2, decay="constant")
    config.sample.update(steps=2, guidance=2.0)
    return config


def video_config(videos, parts="time", init_from=""):
    config = image_config(videos)
    config.data.frames = 4
    config.model.network.update(time_conv=True, time_attention=True)
    config.train.parts, config.train.rank, config.init_from = parts, 2, str(init_from)
    return config


@pytest.fixture(scope="module")
def images(videos, tmp_path_factory):
    """Returns the run of an image network, its config, and its averaged parameters, none of which is zero."""
    folder = tmp_path_factory.mktemp("images")
    config = image_config(videos)
    state = train(config, folder)

    def disturbed(x):
        noise = np.float32(0.2 * np.sin(np.arange(x.size)).reshape(x.shape))
        return jax.device_put(np.asarray(x) + noise, x.sharding)

    ema = jax.tree.map(disturbed, state.ema)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, {"ema": ema})
    checkpoints.close()
    return folder, config, jax.device_get(ema)


def predict(model, z):
    time = jnp.float32([900, 30])

    @functools.partial(jax.jit, static_argnums=0)
    def call(model, params, z):
        tokens = jnp.stack([model.tokenize("a"), model.tokenize("b")])[:, None]
        return model.merge(params)(z, time, Conditions(model.encode(params, tokens)))

    return np.asarray(call(model.static, model.params, z))


def begun(config, folder, mesh):
    """Returns the model of a config that begins with a run, and the arrays it has from there."""
    model = begin_with(build(config), folder, mesh)
    split = split_of(config, model)
    return dataclasses.replace(model, params=join(jax.jit(split.initialise)(*split.arrays), split.frozen))


@pytest.mark.parametrize("parts", ["all", "time"])
def test_a_video_network_begins_as_an_image_network_frame_by_frame(images, videos, caplog, parts):
    folder, config, params = images
    with caplog.at_level(logging.INFO):
        model = begun(video_config(videos, parts), folder, make_mesh(fsdp=2, data=4))
    old, new = len(names(params)), len(names(model.params))
    assert f"begins with {old} of its {new} arrays from {folder} at step 3" in caplog.text
    assert old < new
    z = jnp.float32(np.random.default_rng(0).normal(size=(2, 4, 8, 8, 3)))
    image = dataclasses.replace(build(config), params=params)
    frames = [predict(image, z[:, t : t + 1]) for t in range(4)]
    whole = predict(model, z)
    np.testing.assert_allclose(whole, np.concatenate(frames, 1), atol=1e-4)
    assert np.std(whole) > 0.1


@pytest.fixture(scope="module")
def motion(images, videos, tmp_path_factory):
    """Returns (folder, config, state) of a run that trained time slots in the frozen image network.

    The image network's folder is gone afterwards.
    """
    workdir, first = tmp_path_factory.mktemp("motion"), tmp_path_factory.mktemp("copy") / "images"
    shutil.copytree(images[0], first)
    config = video_config(videos, init_from=first)
    state = train(config, workdir)
    shutil.rmtree(first)
    return workdir, config, jax.device_get(state)


def test_only_time_slots_are_trained_in_a_frozen_image_network(motion, images):
    workdir, _, state = motion
    assert all("/time_" in name for name in names(state.params))
    model = load(workdir)
    assert model.step == 2
    kept = {path: leaf for path, leaf in flatten_dict(model.params).items() if path in flatten_dict(images[2])}
    assert_equal(unflatten_dict(kept), images[2])
    trained = {path: leaf for path, leaf in flatten_dict(model.params).items() if path not in kept}
    assert_equal(unflatten_dict(trained), state.ema)
    assert any(leaf.any() for path, leaf in trained.items() if path[-2] in ("out", "project"))  # zero at first


def test_the_run_folder_describes_itself(motion, images):
    workdir, *_ = motion
    listed = json.loads((workdir / "frozen" / "names.json").read_text())
    assert set(listed) == names(images[2])
    videos = Pipeline(load(workdir))(["a", "b"], seed=0)
    assert videos.shape == (2, 4, 8, 8, 3)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = Pipeline(load(workdir, mesh=mesh), mesh)(["a", "b"], seed=0)
    np.testing.assert_allclose(sharded, videos, atol=1e-4)


def test_such_a_run_goes_on_without_the_run_it_began_with(motion, tmp_path):
    workdir, config, state = motion
    copy = shutil.copytree(workdir, tmp_path / "run")
    config = config.copy_and_resolve_references()
    config.steps = 3
    after = jax.device_get(train(config, copy))
    assert int(after.step) == 3
    assert names(after.params) == names(state.params)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert any(jax.tree.leaves(changed))
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="no run folder"):  # and would begin anew
        train(config, copy)


def test_a_half_written_frozen_part_is_not_read(motion, tmp_path):
    copy = shutil.copytree(motion[0], tmp_path / "run")
    (copy / "frozen" / "names.json").unlink()
    with pytest.raises(InputError, match=r"train\.parts='time' leaves \d+ new parameters untrained .*init_from"):
        load(copy)
    shutil.copy(motion[0] / "frozen" / "names.json", copy / "frozen")
    shutil.rmtree(copy / "frozen" / "0")
    with pytest.raises(InputError, match="holds no parameters: begin the run again with init_from"):
        load(copy)


def test_low_rank_changes_of_an_image_network(images, videos, tmp_path):
    config = image_config(videos)
    config.train.parts, config.train.rank, config.init_from = "lora", 2, str(images[0])
    state = jax.device_get(train(config, tmp_path))
    assert all(name.endswith(("lora_down", "lora_up")) for name in names(state.params))
    base, trained, split = load_trained(tmp_path)
    assert_equal(trained, state.ema)
    model = load(tmp_path)
    changed = {
        path_name(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(model.params), jax.tree.leaves(images[2]), strict=True
        )
        if (np.asarray(new) != old).any()
    }
    matrices = {name.rsplit("/", 1)[0] for name in names(state.params)}
    assert changed == matrices
    assert names(split.frozen) == names(images[2]) == names(base.params)


@pytest.mark.parametrize("parts", ["time", "lora", r"time_conv/"])
def test_without_a_run_to_begin_with_all_new_parameters_are_trained(videos, parts):
    config = video_config(videos, parts)
    with pytest.raises(InputError, match=r"new parameters untrained .*begin with a run that has them \(init_from\)"):
        split_of(config, build(config))


def test_what_a_network_cannot_begin_with(images, videos):
    folder, config, _ = images
    mesh = make_mesh()
    wider = video_config(videos)
    wider.model.network.patch = 2
    with pytest.raises(InputError, match=r"init_from=.*network/\w+/project/\w+ has shape \(48.* there and \(12.* here"):
        begin_with(build(wider), folder, mesh)
    loaded = dataclasses.replace(build(config), loaded=frozenset({"network"}))
    with pytest.raises(InputError, match=r"init_from=.* must be empty: a loaded network begins as it was loaded"):
        begin_with(loaded, folder, mesh)
    with pytest.raises(InputError, match="no run folder"):
        begin_with(build(config), folder / "none", mesh)


def test_a_run_keeps_what_it_trains(motion, videos):
    workdir, config, _ = motion
    config = config.copy_and_resolve_references()
    config.train.parts = "all"
    with pytest.raises(InputError, match=r"was started with config\.train\.parts='time', not 'all'"):
        train(config, workdir)
