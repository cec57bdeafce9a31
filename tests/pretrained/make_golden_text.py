"""Tiny T5, UMT5 and BERT encoders and their inputs; and makes golden_text.npz: what transformers answers to them, and a
tiny sentencepiece model with the tokens of some texts.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden_text
"""

import io
import json
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tests.pretrained.networks import numbers, tensor
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.bert import Bert
from vdm_jax.models.text.t5 import T5
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts import bert, t5

_T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 60,
    "d_model": 16,
    "d_ff": 24,
    "d_kv": 6,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "dropout_rate": 0.1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_UMT5 = _T5 | {"architectures": ["UMT5EncoderModel"], "model_type": "umt5"}
_DEEPER = {
    "num_layers": 5,
    "num_heads": 3,
    "d_kv": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 0.01,
}
_BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}
ENCODERS = {
    "t5": _T5,
    "t5, deeper": _T5 | _DEEPER,
    "umt5": _UMT5,
    "umt5, deeper": _UMT5 | _DEEPER | {"relative_attention_num_buckets": 8},
    "bert": _BERT,
    "bert, deeper": _BERT | {"num_hidden_layers": 5, "num_attention_heads": 4, "layer_norm_eps": 1e-3},
}
GOLDEN = Path(__file__).parent / "golden_text.npz"

TEXTS = (
    "",
    " ",
    "a cat",
    "  the  cat\tsat \n on a mat ",
    "\u00a0\u3000the\u200bcat\u00a0",
    "ﬁne ﬁ́ cafe\u0301 caf\u00e9 ½",
    "▁the▁▁cat▁",
    "</s> <pad> <unk> the</s>",
    "日本語 🎬 the 🎬🎬",
    "<b> the<b> <b>cat",
    "one two three " * 5,
)
# Characters and what stands for them, in hexadecimal numbers: white space, a ligature, an accent, a fraction.
_TABLE = ("9\t20", "A\t20", "A0\t20", "3000\t20", "200B\t", "FB01\t66 69", "65 301\tE9", "BD\t31 2044 32", "43\t63")
WORDS = "the cat sat on a mat one two three fine café 1⁄2 and then some other cats moved to the left or right"


def tokens(length: int, rows: int = 3) -> np.ndarray:
    """Texts of different lengths, padded with zeros."""
    texts = np.abs(1000 * numbers("tokens", (rows, length))).astype(np.int32) % 57 + 3
    for row, last in zip(texts, (length, length // 2, 1), strict=True):
        row[last:] = 0
        row[last - 1] = 1
    return texts


def abstract(config: dict, **options):
    """The module of a config as shapes, and the names of its tensors."""
    kind, part = (Bert, bert) if config["model_type"] == "bert" else (T5, t5)
    arguments, naming = part.translate(config)
    return nnx.eval_shape(lambda: kind(**arguments, **options, rngs=Keys(0))), naming


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor."""
    module, naming = abstract(config)
    return torch_shapes(nnx.to_pure_dict(nnx.split(module)[1]), naming)


def write(folder: Path, config: dict, change=dict) -> Path:
    """A folder of a config in the hub's names, with changes to its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor(name, shape) for name, shape in shapes(config).items()}
    save_file(change(tensors), folder / "model.safetensors")
    return folder


def train_sentencepiece(folder: Path, **options) -> bytes:
    """A sentencepiece model with T5's special tokens, trained on few words."""
    import sentencepiece

    (folder / "table.tsv").write_text("\n".join(_TABLE) + "\n")
    out, defaults = io.BytesIO(), dict(vocab_size=48, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False)
    if "normalization_rule_name" not in options:
        options["normalization_rule_tsv"] = str(folder / "table.tsv")
    corpus = [WORDS, *WORDS.split()] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, num_threads=1, minloglevel=2, **defaults | options
    )
    return out.getvalue()


if __name__ == "__main__":
    import tempfile

    import sentencepiece

    from tests.parity.test_text import answers, encoder

    kept = {name: answers(encoder(config), tokens(9)) for name, config in ENCODERS.items()}
    with tempfile.TemporaryDirectory() as folder:
        model = train_sentencepiece(Path(folder), user_defined_symbols=["<b>"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    kept |= {f"tokens of {text!r}": np.int32(processor.encode(text)) for text in TEXTS}
    np.savez_compressed(GOLDEN, spiece=np.frombuffer(model, np.uint8), **kept)
