"""T5, UMT5 and BERT compute what transformers computes, have their parameters at full size, and read their tokens."""

import math
import random
import warnings

import jax
import pytest
from flax import nnx

from tests.pretrained.make_golden_text import ENCODERS, TEXTS, WORDS, shapes, tokens, train_sentencepiece
from tests.pretrained.networks import relative, tensor
from vdm_jax.pretrained.load import TEXTS as LOADERS
from vdm_jax.pretrained.sentencepiece import read_sentencepiece
from vdm_jax.pretrained.tokenizers import CLEANING, load_bert_tokenizer, load_t5_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def made(config):
    kind = config["architectures"][0]
    family = {"t5": "T5", "umt5": "UMT5", "bert": "Bert"}[config["model_type"]]
    return getattr(transformers, kind)(getattr(transformers, f"{family}Config").from_dict(config))


def encoder(config):
    """The module of a config with the weights of its parameters' names."""
    module = made(config)
    weights = {name: torch.from_numpy(tensor(name, tuple(p.shape))) for name, p in module.named_parameters()}
    module.load_state_dict(weights, strict=False)  # tied tensors have a second name
    return module.eval()


@torch.no_grad()
def answers(module, given, masked=True):
    """The last hidden states, padding too."""
    given = torch.from_numpy(given).long()
    mask = (given > 0) if masked else torch.ones_like(given)
    return module(input_ids=given, attention_mask=mask.long()).last_hidden_state.numpy()


def ours(folder, config, given, **options):
    loaded = LOADERS[config["model_type"]][0](folder, **options)
    graphdef = loaded.graphdef
    return jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(loaded.params, given)


@pytest.mark.parametrize("length", [9, 33, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states(name, length, tmp_path):
    config = ENCODERS[name]
    module = encoder(config)
    module.save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    given = tokens(length)
    kept = answers(module, given)
    found = ours(tmp_path, config, given)
    assert relative(found.tokens, kept) < 1e-5
    real = (given > 0)[..., None]
    assert relative(found.pooled, (kept * real).sum(1) / real.sum(1)) < 1e-5
    if config["model_type"] != "bert":
        unmasked = answers(module, given, masked=False)
        assert length == 2 or relative(unmasked, kept) > 1e-2
        assert relative(ours(tmp_path, config, given, masked=False).tokens, unmasked) < 1e-5


def t5(name, d_model, d_ff, layers, heads):
    return ENCODERS[name] | dict(
        vocab_size=32_128, d_model=d_model, d_ff=d_ff, num_layers=layers, num_heads=heads, d_kv=64
    )


def bert(size, middle, layers, heads):
    sizes = dict(hidden_size=size, intermediate_size=middle, num_hidden_layers=layers, num_attention_heads=heads)
    return ENCODERS["bert"] | sizes | dict(vocab_size=30_522, max_position_embeddings=512)


FULL = {
    "t5 small": (t5("t5", 512, 1024, 8, 6), 35_332_800),
    "t5 base": (t5("t5", 768, 2048, 12, 12), 109_628_544),
    "t5 large": (t5("t5", 1024, 2816, 24, 16), 341_231_104),
    "t5 xl": (t5("t5", 2048, 5120, 24, 32), 1_223_527_424),
    "t5 xxl": (t5("t5", 4096, 10_240, 24, 64), 4_762_310_656),
    "umt5 xxl": (t5("umt5", 4096, 10_240, 24, 64) | {"vocab_size": 256_384}, 5_680_910_336),
    "minilm": (bert(384, 1536, 6, 12), 22_713_216),
    "bert base": (bert(768, 3072, 12, 12), 109_482_240),
    "bert large": (bert(1024, 4096, 24, 16), 335_141_888),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_and_shapes_are_theirs(name):
    config, count = FULL[name]
    with torch.device("meta"):
        module = made(config)
    expected = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert sum(map(math.prod, expected.values())) == count
    assert shapes(config) == {name: shape for name, shape in expected.items() if not name.startswith("pooler.")}


def test_the_names_of_a_model_with_a_head_are_read(tmp_path):
    config = ENCODERS["bert"] | {"architectures": ["BertForMaskedLM"]}
    module = encoder(config)
    module.save_pretrained(tmp_path)
    given = tokens(9)
    assert relative(ours(tmp_path, config, given).tokens, answers(module.bert, given)) < 1e-5
    config = ENCODERS["t5"] | {"architectures": ["T5ForConditionalGeneration"], "num_decoder_layers": 1}
    module = encoder(config)
    module.save_pretrained(tmp_path / "t5")
    assert relative(ours(tmp_path / "t5", config, given).tokens, answers(module.encoder, given)) < 1e-5


MODELS = {
    "nmt_nfkc": dict(normalization_rule_name="nmt_nfkc"),
    "nmt_nfkc_cf": dict(normalization_rule_name="nmt_nfkc_cf"),
    "identity": dict(normalization_rule_name="identity"),
    "a table": {},
    "bytes": dict(byte_fallback=True, vocab_size=320),
    "own symbols": dict(user_defined_symbols=["<b>", "▁<extra_id_0>"], normalization_rule_name="nmt_nfkc"),
}
EDGES = (
    "a\u00a0b",
    "ＡＢＣ　１２",
    "①②",
    "\u200bthe",
    "\ufeffcat",
    "x" * 300,
    "<extra_id_0> the<extra_id_0>",
    "\x00\x7f",
)


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece(name, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "spiece.model").write_bytes(train_sentencepiece(tmp_path, **MODELS[name]))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    rng = random.Random(0)
    signs = [*"  \t\n\u00a0\u2003\u200b\u3000\ufeff\x00\x7f▁abcXYZ0½²ﬁéß日本한🎬<>/", "\u0301", "<b>"]
    words = [*WORDS.split(), "unknown", "Cat!", "moving,", "left;", "right?", "(1/2)", "naïve", "café", "ﬁne"]
    texts = [*TEXTS, *EDGES]
    texts += ["".join(rng.choices(signs, k=rng.randint(1, 20))) for _ in range(300)]
    texts += [" ".join(rng.choices(words, k=rng.randint(1, 20))) for _ in range(200)]
    ours = load_t5_tokenizer(tmp_path, length=400)
    for text in texts:
        expected = [*theirs.encode(text), 1]
        assert ours(text).tolist() == expected + [0] * (400 - len(expected)), text
    assert read_sentencepiece(tmp_path / "spiece.model").backend.get_vocab_size() == theirs.get_piece_size()


@pytest.mark.parametrize("lower", [True, False])
def test_bert_tokens(lower, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "cat", "##s", "caf", "##e", "##é", "日", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *"abcdefgh"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(lower).lower()}}}')
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lower)
    theirs.save_pretrained(tmp_path / "whole")
    for folder in (tmp_path, tmp_path / "whole"):
        ours = load_bert_tokenizer(folder, length=12)
        for text in (*TEXTS, "The CATS cafés!! 日本", "a [MASK] [SEP]", "x" * 200, "a b c d e f g h a b c d"):
            expected = theirs(text, padding="max_length", truncation=True, max_length=12).input_ids
            assert ours(text).tolist() == expected, text


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        " A\tCat \n\n and\u00a0dog ",
        "a &amp;lt;b&amp;gt; &quot;cat&quot;",
        "&lt;p&gt; &#39;caf&eacute;&#39;",
        "",
    ],
)
def test_prompts_are_cleaned_as_by_diffusers(prompt):
    """Without ftfy, which diffusers calls where it is installed; it leaves these prompts as they are."""
    from diffusers import LattePipeline
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert CLEANING["html"](prompt) == prompt_clean(prompt)
    assert [CLEANING["lower"](prompt)] == LattePipeline._text_preprocessing(None, prompt, clean_caption=False)
