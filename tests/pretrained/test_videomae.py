"""VideoMAE without PyTorch: against answers that were kept, and what folders are refused."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.make_golden_features import GOLDEN, VIDEOMAES, named, videomae_clips, write_folder
from tests.pretrained.networks import numbers, relative
from vdm_jax.errors import InputError
from vdm_jax.models.judges.videomae import VideoMAE
from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.videomae import load_videomae, translate

CONFIG = VIDEOMAES["videomae"]


def tensors(config):
    """By the hub's names, with a classifier's."""
    arguments, naming = translate(config)
    abstract = nnx.split(nnx.eval_shape(lambda: VideoMAE(**arguments, rngs=Keys(0))))[1]
    found = named(torch_shapes(nnx.to_pure_dict(abstract), naming))
    if "ForVideoClassification" in config["architectures"][0]:
        found |= {f"classifier.{part}": numbers(part, shape) for part, shape in (("weight", (5, 24)), ("bias", (5,)))}
    return found


def answers(network, given):
    graphdef = network.graphdef
    return jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(network.params, given)


@pytest.mark.parametrize("name", VIDEOMAES)
def test_answers_are_those_that_were_kept(name, tmp_path):
    config = VIDEOMAES[name]
    network = load_videomae(write_folder(tmp_path, config, tensors(config)), mesh=make_mesh(fsdp=2, tensor=4))
    assert relative(answers(network, videomae_clips(config)), np.load(GOLDEN)[name]) < 1e-5


def test_names_are_the_hubs():
    names = tensors(CONFIG).keys()
    assert {
        "videomae.embeddings.patch_embeddings.projection.weight",
        "videomae.encoder.layer.2.attention.attention.q_bias",
        "videomae.encoder.layer.2.attention.attention.key.weight",
        "videomae.encoder.layer.0.attention.output.dense.bias",
        "videomae.encoder.layer.0.intermediate.dense.weight",
        "videomae.encoder.layer.0.layernorm_after.weight",
        "fc_norm.bias",
    } <= names
    assert "layernorm.weight" in tensors(VIDEOMAES["videomae, headless, first"])


def test_the_last_norms_epsilon_and_the_older_spelling_of_the_biases(tmp_path):
    older = {"qkv_bias" if key == "qv_bias" else key: value for key, value in CONFIG.items()} | {"fc_norm_eps": 0.5}
    network = load_videomae(write_folder(tmp_path, older, tensors(CONFIG)))
    plain = load_videomae(write_folder(tmp_path, CONFIG, tensors(CONFIG)))
    jax.tree.map(np.testing.assert_array_equal, network.params, plain.params)
    module = nnx.merge(network.graphdef, network.params)
    assert module.norm.epsilon == 0.5
    assert module.blocks.norm1.epsilon == 1e-3


def test_a_clip_has_the_networks_shape(tmp_path):
    network = load_videomae(write_folder(tmp_path, CONFIG, tensors(CONFIG)))
    with pytest.raises(InputError, match="clips of 4×24×24×3 must be 6×24×24×3"):
        answers(network, np.zeros((1, 4, 24, 24, 3), np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "VideoMAE: hidden_act='relu' is not implemented; it must be one of quick_gelu, gelu"),
        ({"something": 1}, "VideoMAE: something=1 is not known"),
        ({"image_size": [24, 32]}, r"image_size=\[24, 32\] is not implemented; it must be a whole number"),
        ({"num_attention_heads": 5}, "hidden_size=24 must be a multiple of num_attention_heads=5"),
        ({"architectures": ["VideoMAEForPreTraining"]}, r"is not implemented; it must be \['VideoMAEForVideoClass"),
        ({"use_mean_pooling": None}, "use_mean_pooling=None is not implemented; it must be True"),
        ({"qv_bias": ...}, "the config must have qv_bias"),
        ({"num_frames": ...}, "the config must have num_frames"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(change, message):
    config = {key: value for key, value in (CONFIG | change).items() if value is not ...}
    with pytest.raises(InputError, match=message):
        translate(config)


def test_what_transformers_adds_of_its_own_changes_nothing():
    assert translate(CONFIG | {"_attn_implementation_autoset": True}) == translate(CONFIG)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none is not a folder; VideoMAE is published as vit_g_hybrid_pt_1200e_ssv2"):
        load_videomae(tmp_path / "none")
    folder = write_folder(tmp_path, CONFIG | {"model_type": "vit"}, tensors(CONFIG))
    with pytest.raises(InputError, match="model_type='vit' must be 'videomae'"):
        load_videomae(folder)
    folder = write_folder(tmp_path, CONFIG | {"use_mean_pooling": False}, tensors(CONFIG))
    with pytest.raises(InputError, match=r"2 missing \(videomae\.layernorm.*; 2 unexpected \(fc_norm\.bias"):
        load_videomae(folder)
    folder = write_folder(tmp_path, CONFIG | {"tubelet_size": 7}, tensors(CONFIG))
    with pytest.raises(InputError, match="tubelet=7 must be at most frames=6, patch=8 at most size=24"):
        load_videomae(folder)
