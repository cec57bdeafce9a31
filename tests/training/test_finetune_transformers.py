"""Tuned transformers come back in the published format, and learn the null text where it is learned.

Weights are random.
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pretrained.networks import relative
from tests.pretrained.pipelines import write_wan
from tests.pretrained.tiny_open_sora import temporal_tensors, write_open_sora
from tests.tiny_config import get_config
from tests.training.test_finetune import SGD
from vdm_jax import Pipeline, load
from vdm_jax.build import build, objective_of, split_of
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.pretrained.names import Part
from vdm_jax.pretrained.networks import write_network
from vdm_jax.split import join
from vdm_jax.training.losses import denoising
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step

ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    write_wan(folder / "wan")
    return folder


def train(folder, parts, drop=0.5):
    """Returns the model of a folder, the split, and the state after two steps in which a share of texts is dropped."""
    config = get_config()
    config.data.frames, config.data.height, config.data.width = 5, 16, 16
    config.model.network = config.model.text = config.model.codec = {"folder": str(folder)}
    config.model.text = {"folder": str(folder), "length": 7}
    config.train.update(parts=parts, rank=2)
    config.objective.null_probability = drop
    model = build(config, ONE)
    split = split_of(config, model)
    step = make_train_step(denoising(model, objective_of(config)), SGD, ONE, seed=0)
    _, initialise = plan_state(split.trained, split.initialise, SGD, ONE, *split.arrays)
    rng, state = np.random.default_rng(0), initialise()
    video = rng.integers(256, size=(4, 5, 16, 16, 3)).astype(np.uint8)
    batch = {"video": video, "tokens": np.stack([model.tokenize(text) for text in ("a cat", "the", "", "cat")])}
    for _ in range(2):
        state, metrics = step(state, jax.device_put(batch, batch_sharding(ONE)), split.frozen)
        assert (int(state.skipped), bool(metrics["loss"] > 0.1)) == (0, True)
    return model, split, state


def test_a_tuned_network_comes_back_in_the_published_format(folder, tmp_path):
    model, split, state = train(folder / "wan", "all")
    params = join(state.params, split.frozen)
    write_network(Part(model.network, params["network"], model.network_config), tmp_path)
    before = load_file(folder / "wan" / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {name: x.shape for name, x in after.items()} == {name: x.shape for name, x in before.items()}
    assert any((after[name] != before[name]).any() for name in before)
    (tmp_path / "transformer").mkdir()
    for path in tmp_path.glob("*.*"):
        path.rename(tmp_path / "transformer" / path.name)
    for path in (folder / "wan").iterdir():
        if path.name != "transformer":
            (tmp_path / path.name).symlink_to(path)
    loaded = load(tmp_path, frames=5, size=(16, 16), mesh=ONE)
    jax.tree.map(np.testing.assert_array_equal, loaded.params["network"], params["network"])
    drawn = Pipeline(loaded, ONE)(["a cat"], steps=2)
    begun = Pipeline(load(folder / "wan", frames=5, size=(16, 16), mesh=ONE), ONE)(["a cat"], steps=2)
    assert relative(drawn, begun) > 1e-3


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_open_soras_null_text_stands_for_dropped_texts(monkeypatch, tmp_path, drop):
    folder = write_open_sora(tmp_path / "open_sora", temporal_tensors(monkeypatch))
    model, split, state = train(folder, "all", drop)
    assert (model.prediction, model.scalars) == ("reverse_flow", (24.0,))
    before, after = (params["network"]["null_text"] for params in (model.params, join(state.params, split.frozen)))
    changed = (np.asarray(after) != np.asarray(before)).any(-1)
    assert changed[:2].all() == (drop > 0)  # the shortest text has one word and its end
    assert not changed[6:].any()  # no text is so long
