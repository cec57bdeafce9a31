"""CLIP's pair: its folder is read whole, and what is no pair is refused."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.make_golden_clip import tokens
from tests.pretrained.make_golden_features import CLIP, GOLDEN, named, write_clip, write_folder
from tests.pretrained.networks import relative
from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.clip_pair import PREFIXES, load_clip, translate_part


def abstract_of(part, config):
    module, arguments, naming, _ = translate_part(part, config)
    return nnx.eval_shape(lambda: module(**arguments, rngs=Keys(0))), naming


def tensors():
    """By the hub's names."""
    found = {"logit_scale": np.float32([1]), "text_model.embeddings.position_ids": np.arange(12)[None]}
    for part in PREFIXES:
        abstract, naming = abstract_of(part, CLIP)
        found |= named(torch_shapes(nnx.to_pure_dict(nnx.split(abstract)[1]), naming))
    return found


def test_texts_are_read_into_the_space_of_both(tmp_path):
    pair = load_clip(write_clip(tmp_path, tensors()))
    graphdef = pair.text.graphdef
    found = jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(pair.text.params, tokens(12, end=522))
    assert relative(found.pooled, np.load(GOLDEN)["clip, texts"]) < 1e-5
    assert found.tokens.shape == (2, 12, 24)
    assert pair.tokenize("the cat").tolist() == [521, 515, 513] + [522] * 9
    assert {"text_projection.weight", "visual_projection.weight"} <= tensors().keys()


def test_what_is_default_may_be_left_out():
    small = {"model_type": "clip", "text_config": {"hidden_size": 64, "bad_words_ids": None}}
    config = translate_part("text", small)[-1]
    assert (config["hidden_size"], config["vocab_size"], config["hidden_act"]) == (64, 49408, "quick_gelu")
    assert abstract_of("text", small)[0].projection.kernel.shape == (64, 512)
    assert abstract_of("vision", small)[0].patches.kernel.shape == (32, 32, 3, 768)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none is not a folder; CLIP is published as a folder with config\.json"):
        load_clip(tmp_path / "none")
    with pytest.raises(InputError, match="model_type='clip_text_model' must be 'clip'"):
        load_clip(write_folder(tmp_path / "text", CLIP["text_config"], {}))
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_clip(write_folder(tmp_path / "bare", CLIP, tensors()))
    with pytest.raises(InputError, match=r"holds 1 tensors that CLIP does not have \(new, …\)"):
        load_clip(write_clip(tmp_path / "more", tensors() | {"new": np.ones(1)}))
    less = {name: tensor for name, tensor in tensors().items() if name != "text_projection.weight"}
    with pytest.raises(InputError, match=r"1 missing \(text_projection\.weight\)"):
        load_clip(write_clip(tmp_path / "less", less))
    relu = CLIP | {"text_config": CLIP["text_config"] | {"hidden_act": "relu"}}
    with pytest.raises(InputError, match="hidden_act='relu' is not implemented"):
        load_clip(write_folder(tmp_path / "relu", relu, tensors()))
