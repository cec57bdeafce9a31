"""CLIP without PyTorch: against answers that were kept, tokens from small files, and what folders are refused."""

import json
import logging

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from tests.pretrained.make_golden_clip import ENCODERS, GOLDEN, image, save, tokens, write_vocabulary
from tests.pretrained.networks import numbers, relative, tensor
from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.clip import clip_image_input
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.clip import load_image_encoder, load_text_encoder, translate
from vdm_jax.pretrained.tokenizers import load_tokenizer

TEXT, IMAGE = ENCODERS["text, quick"], ENCODERS["image, exact"]


def write(folder, config, change=dict):
    """A folder of a config in the hub's names, with changes to its tensors."""
    module, arguments, naming = translate(config)
    abstract = nnx.split(nnx.eval_shape(lambda: module(**arguments, rngs=Keys(0))))[1]
    shapes = torch_shapes(nnx.to_pure_dict(abstract), naming)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change({name: tensor(name, shape) for name, shape in shapes.items()}), folder / "model.safetensors")
    return folder


def load(folder, config, **options):
    return (load_text_encoder if "vocab_size" in config else load_image_encoder)(folder, **options)


def answers(encoder, given):
    graphdef = encoder.graphdef
    out = jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(encoder.params, given)
    return np.concatenate([out.tokens, out.pooled[:, None]], 1) if isinstance(out, tuple) else np.asarray(out)


@pytest.mark.parametrize("name", ENCODERS)
def test_answers_are_those_that_were_kept(name, tmp_path):
    config = ENCODERS[name]
    given = image(config) if "image_size" in config else tokens(12)
    assert relative(answers(load(write(tmp_path, config), config), given), np.load(GOLDEN)[name]) < 1e-5


def test_texts_are_read_in_any_batch_and_padding_counts(tmp_path):
    loaded = load_text_encoder(write(tmp_path, TEXT))
    call = jax.jit(lambda tokens: nnx.merge(loaded.graphdef, loaded.params)(tokens))
    two, one = call(tokens(12)), call(tokens(12)[None, :1])
    np.testing.assert_allclose(one.tokens[0], two.tokens[:1], atol=1e-5)
    np.testing.assert_allclose(one.pooled[0], two.pooled[:1], atol=1e-5)
    assert one.mask.shape == (1, 1, 12)
    assert two.mask.all()
    with pytest.raises(InputError, match="text of 13 tokens must have at most 12"):
        call(tokens(13))


def test_a_dtype_is_for_the_computation_alone(tmp_path):
    for name, given in (("text, quick", tokens(12)), ("image, exact", image(IMAGE))):
        config = ENCODERS[name]
        halved = write(tmp_path, config, lambda tensors: {n: t.astype(np.float16) for n, t in tensors.items()})
        loaded = load(halved, config, dtype="bfloat16")
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}
        found = answers(loaded, given)
        assert found.dtype == "bfloat16"
        assert 1e-3 < relative(found.astype(np.float32), np.load(GOLDEN)[name]) < 0.03


def test_both_namings_are_loaded_from_a_pipeline_into_shards(tmp_path):
    def renamed(tensors):
        positions = {"embeddings.position_ids": np.arange(12)[None]}
        return {name.removeprefix("text_model."): t for name, t in tensors.items()} | positions

    hub = write(tmp_path / "hub/text_encoder", TEXT)
    (tmp_path / "hub/model_index.json").write_text("{}")
    new = write(tmp_path / "new", TEXT, renamed)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    loaded, again = load_text_encoder(tmp_path / "hub", mesh=mesh), load_text_encoder(new)
    assert loaded.params["blocks"]["up"]["kernel"].sharding.shard_shape((2, 24, 40)) == (2, 12, 20)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, again.params)
    save(again, tmp_path / "saved")
    before, after = (load_file(folder / "model.safetensors") for folder in (hub, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_an_image_has_its_encoders_size(tmp_path):
    loaded = load_image_encoder(write(tmp_path, IMAGE))
    with pytest.raises(InputError, match="image of 30×28×3 must be 30×30×3"):
        answers(loaded, np.zeros((1, 30, 28, 3), np.float32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TEXT | {"hidden_act": "relu"}, "hidden_act='relu' is not implemented; it must be one of quick_gelu, gelu"),
        (TEXT | {"use_attention_mask": True}, "use_attention_mask=True is not implemented; it must be False"),
        (TEXT | {"something": 1}, "CLIPTextModel: something=1 is not known"),
        (TEXT | {"eos_token_id": [1, 2]}, r"eos_token_id=\[1, 2\] is not implemented; it must be a whole number"),
        (TEXT | {"layer_norm_eps": None}, "layer_norm_eps=None is not implemented; it must be a number between"),
        (TEXT | {"num_attention_heads": 5}, "hidden_size=24 must be a multiple of num_attention_heads=5"),
        (TEXT | {"architectures": ["CLIPTextModelWithProjection"]}, r"architectures=.* it must be \['CLIPTextModel'\]"),
        (TEXT | {"model_type": "t5"}, "model_type='t5' must be one of clip_text_model, clip_vision_model"),
        (IMAGE | {"image_size": [30, 40]}, r"image_size=\[30, 40\] is not implemented; it must be a whole number"),
        (
            {key: value for key, value in IMAGE.items() if key != "projection_dim"},
            "the config must have projection_dim",
        ),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        translate(config)


def test_what_transformers_adds_of_its_own_changes_nothing():
    assert translate(TEXT | {"_attn_implementation_autoset": True}) == translate(TEXT)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json must hold an object, not list"):
        load_text_encoder(tmp_path)
    with pytest.raises(InputError, match="model_type='clip_vision_model' must be 'clip_text_model'"):
        load_text_encoder(write(tmp_path / "image", IMAGE))
    more = write(tmp_path / "more", TEXT, lambda tensors: tensors | {"text_projection.weight": np.ones((16, 24))})
    with pytest.raises(InputError, match=r"1 unexpected \(text_projection\.weight\)"):
        load_text_encoder(more)
    with pytest.raises(InputError, match="patch=31 must be at least 1 and at most the image's size=30"):
        load_image_encoder(write(tmp_path / "more", IMAGE | {"patch_size": 31}))


# Text → tokens between the start and the end, as transformers has them.
TOKENS = {
    "": [],
    "The  CAT!!": [515, 513, 516],
    "Cafés, 12½ thing": [512, 69, 518, 267, 272, 273, 126, 377, 514, 520],
    "Cafe\u0301s,\t12½\nthing": [512, 69, 518, 267, 272, 273, 126, 377, 514, 520],
    "🎬 don't <|endoftext|>": [172, 253, 236, 361, 67, 78, 333, 6, 339, 522],
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("pad", "number"), [("<|endoftext|>", 522), ("!", 0)])
def test_tokens(pad, number, whole, tmp_path):
    folder = write_vocabulary(tmp_path / "tokenizer", pad)
    (tmp_path / "model_index.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    if whole:
        tokenizer.backend.enable_truncation(5)
        tokenizer.backend.enable_padding(length=5)
        tokenizer.backend.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        tokenizer = load_tokenizer(tmp_path)
    for text, kept in TOKENS.items():
        if pad == "!":  # which is then padding wherever it stands, and no word ends with it
            kept = [part for token in kept for part in ([0, 0] if token == 516 else [token])]
        found = tokenizer(text)
        assert found.dtype == np.int32
        assert found.tolist() == [521, *kept, 522] + [number] * (75 - len(kept)), text


def test_a_long_text_is_cut_and_what_is_lost_is_said_once(tmp_path, caplog):
    tokenizer = load_tokenizer(write_vocabulary(tmp_path), length=6)
    with caplog.at_level(logging.WARNING):
        assert tokenizer("the cat the cat").tolist() == [521, 515, 513, 515, 513, 522]
        assert not caplog.records
        for _ in range(2):
            assert tokenizer("The cat, the  CAT é").tolist() == [521, 515, 513, 267, 515, 522]
    assert [record.getMessage() for record in caplog.records] == ["a text of 7 tokens is cut after 4; lost: 'CAT é'"]
    shorter = load_tokenizer(write_vocabulary(tmp_path, model_max_length=5))
    assert len(shorter("")) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, "tokenizer_class='T5Tokenizer' is not implemented; it must be 'CLIPTok"),
        ({"do_lower_case": False}, "do_lower_case=False is not implemented; it must be True"),
        ({"model_max_length": 1}, "length=1 must be at least 2"),
        ({"additional_special_tokens": ["<a>", "<|endoftext|>"]}, "added tokens <a> are not implemented"),
        ({"added_tokens_decoder": {"523": {"content": "<b>"}}}, "added tokens <b> are not implemented"),
    ],
)
def test_a_tokenizers_setting_that_is_not_implemented_is_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_tokenizer(write_vocabulary(tmp_path, **settings))


def test_other_tokenizers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"vocab\.json is missing, and there is no tokenizer\.json"):
        load_tokenizer(tmp_path)
    folder = write_vocabulary(tmp_path, "<pad>")
    with pytest.raises(InputError, match="pad_token='<pad>' is not in the vocabulary"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_text("q q\n")
    with pytest.raises(InputError, match="holds no tokenizer that can be read"):
        load_tokenizer(folder)
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="is not a CLIP tokenizer: it must hold byte pairs"):
        load_tokenizer(folder)


def test_an_image_of_one_colour_is_normalised_alone():
    found = jax.jit(clip_image_input)(np.full((1, 40, 300, 3), 0.5, np.float32))
    assert found.shape == (1, 224, 224, 3)
    expected = (0.75 - np.float32([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)
    with pytest.raises(InputError, match="image of 1 pixels along an axis must have at least 2"):
        jax.jit(clip_image_input)(np.zeros((1, 1, 9, 3), np.float32))


def test_a_resized_image_is_the_one_that_was_kept():
    given, kept = numbers("photograph", (1, 50, 33, 3)), np.load(GOLDEN)["resized"]
    np.testing.assert_allclose(jax.jit(clip_image_input, static_argnums=1)(given, 16), kept, atol=1e-5)
