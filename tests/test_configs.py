"""The configs of transformers build: their parts fit each other, and the full sizes are the published ones."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.pretrained.pipelines import T5_CONFIG, write_latte, write_parts, write_wan
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS
from tests.pretrained.transformers import FULL_SIZE
from vdm_jax.build import build, objective_of, split_of
from vdm_jax.config import check_keys, check_numbers, read_file
from vdm_jax.errors import InputError
from vdm_jax.generation.settings import Settings, check_sampling
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import FAMILIES
from vdm_jax.split import divide, low_rank
from vdm_jax.training.losses import denoising
from vdm_jax.training.optimizer import optimizer_of

ONE = make_mesh(devices=jax.devices()[:1])
CONFIGS = Path(__file__).parents[1] / "configs"
# Stand-ins for published parts: T5 v1.1 XXL is 4096 wide; latents have 4 channels, or Wan's 16.
WAN_LATENTS = VIDEO_AUTOENCODERS["wan"][0] | {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
VARIANCE = 1152 * 16 + 16  # of the last matrix, for a learned variance of 2 × 2 latents, which our networks leave out
LATTE_XL = 673_681_568 - VARIANCE  # the paper's 673.68 M
SIZES = {
    "latte.py:sky": LATTE_XL,
    "latte.py:ucf101": LATTE_XL + (1152 + 1) * 1152,  # the matrix after the table of classes
    "latte.py:moving_digits_class": 481_796,
    "open_sora.py:stage1": FULL_SIZE["Open-Sora 1.2"][2] - 300 * 4096,  # without the learned null text
    "wan.py:1b3": FULL_SIZE["Wan 2.1 1.3B"][2],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("parts")
    write_parts(place / "images", AUTOENCODERS["image"][0], T5_CONFIG | {"d_model": 4096})
    write_parts(place / "videos", WAN_LATENTS, T5_CONFIG | {"d_model": 4096})
    write_latte(place / "latte")
    write_wan(place / "wan")
    return place


def config_of(name, folder):
    """Returns a config whose published parts are in another folder."""
    config = read_file(CONFIGS / name)
    check_keys(config)
    check_numbers(config)
    for part in (config.model.network, config.model.text, config.model.codec):
        if "folder" in part:
            part.folder = str(folder)
    return config


def tuned(name, folder):
    """Returns the config and the model of a row that tunes a tiny published network."""
    config = config_of(name, folder)
    config.data.update(dict(frames=5 if "wan" in name else 4, height=16, width=16))
    return config, build(config, ONE)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SIZES)
def test_a_config_of_a_new_network_has_the_published_size(name, place):
    config = config_of(name, place / ("videos" if "wan" in name else "images"))
    model = build(config, ONE)
    assert count(model.params["network"]) == SIZES[name]
    objective_of(config)
    optimizer_of(config)
    check_sampling(Settings(**model.sampling), model, [""])


SMALL = dict(width=24, depth=2, heads=2, remat="none")


@pytest.mark.parametrize("name", ["latte.py:ucf101", "open_sora.py:stage1", "wan.py:1b3"])
def test_a_config_of_a_new_network_computes_a_loss_at_a_small_size(name, place):
    config = config_of(name, place / ("videos" if "wan" in name else "images"))
    frames = 5 if "wan" in name else 4
    config.data.update(dict(frames=frames, height=16, width=16))
    config.model.dtype = "float32"
    config.model.network.update(SMALL | ({"hidden": 48} if "wan" in name else {}))
    model = build(config, ONE)
    split = split_of(config, model)
    params = jax.jit(split.initialise)(*split.arrays)
    loss, key = denoising(model, objective_of(config)), jax.random.key(0)
    words = ("Archery", "Biking") if "ucf101" in name else ("the cat", "")
    video = np.random.default_rng(0).integers(256, size=(2, frames, 16, 16, 3)).astype(np.uint8)
    batch = {"video": video, "tokens": np.stack([model.tokenize(text) for text in words])}

    @jax.jit
    def value(params, batch, key):
        return loss.value(params, split.frozen, loss.prepare(split.frozen, batch, key), key)[0]

    assert 0.1 < value(params, batch, key) < 10


def test_classes_have_a_vector_each_and_so_has_none(place):
    for name, classes, width in (("ucf101", 101, 1152), ("moving_digits_class", 40, 64)):
        model = build(config_of(f"latte.py:{name}", place / "images"), ONE)
        assert count(model.params["text"]) == (classes + 1) * width
        assert model.latent_shape[0] == (8 if name == "moving_digits_class" else 16)
    with pytest.raises(
        InputError, match="'Dancing' must be empty or hold one of the 40 classes 0 left, 0 right, 0 up …; it"
    ):
        model.tokenize("Dancing")


@pytest.mark.parametrize(
    ("name", "folder", "kind"),
    [
        ("latte.py:latte_1", "latte", "LatteTransformer3DModel"),
        ("wan.py:1b3_full", "wan", "WanTransformer3DModel"),
        ("wan.py:1b3_lora", "wan", "WanTransformer3DModel"),
    ],
)
def test_a_config_tunes_a_published_network_as_it_is_sampled(name, folder, kind, place):
    config, model = tuned(name, place / folder)
    config.train.rank = 2
    assert model.loaded == {"network", "text", "codec"}
    assert model.prediction == objective_of(config).prediction
    text = config.model.text.to_dict()
    assert text.pop("folder") == str(place / folder)
    assert text == FAMILIES[kind].text
    trained = flatten_dict(split_of(config, model).trained)
    assert {path[-1] for path in trained if "lora" in path[-1]} == (
        {"lora_down", "lora_up"} if "lora" in name else set()
    )
    optimizer_of(config)
    check_sampling(Settings(**model.sampling), model, [""])


def test_the_low_rank_changes_of_wan_at_full_size(place):
    rank = read_file(CONFIGS / "wan.py:1b3_lora").train.rank
    matrices, _ = divide(build(config_of("wan.py:1b3", place / "videos"), ONE).params, "lora")
    assert count(jax.eval_shape(lambda: low_rank(matrices, rank, jax.random.key(0)))) == 23_592_960


@pytest.mark.parametrize("name", ["wan.py:1b3_lora,my/wan", "latte.py:ucf101,my/wan"])
def test_a_row_may_be_of_another_folder(name):
    assert read_file(CONFIGS / name).model.codec.folder == "my/wan"


@pytest.mark.parametrize("file", ["latte.py", "wan.py", "open_sora.py"])
def test_a_row_that_there_is_not_is_refused_with_those_that_are(file):
    with pytest.raises(InputError, match=r"ValueError: \w+ 'xl' must be (one of )?\w+"):
        read_file(CONFIGS / f"{file}:xl")
