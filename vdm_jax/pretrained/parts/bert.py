"""Loads BERT's encoder in the format of transformers, also out of files with heads or with the names of TensorFlow.

A setting that is not implemented is an error, never ignored.
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vdm_jax.models.text.bert import Bert
from vdm_jax.pretrained.folder import Config, component, read_json
from vdm_jax.pretrained.names import Naming, Part, Table, load_part
from vdm_jax.pretrained.parts.clip import IGNORED, STACKED, arguments_of, read_weights

_TABLE: Table = (
    (r"^embed/", "embeddings/word_embeddings/"),
    (r"^positions$", "embeddings/position_embeddings/weight"),
    (r"^types$", "embeddings/token_type_embeddings/weight"),
    (r"^norm/", "embeddings/LayerNorm/"),
    (r"^blocks/", "encoder/layer/"),
    (r"/attention/q/", "/attention/self/query/"),
    (r"/attention/k/", "/attention/self/key/"),
    (r"/attention/v/", "/attention/self/value/"),
    (r"/attention/out/", "/attention/output/dense/"),
    (r"/norm1/", "/attention/output/LayerNorm/"),
    (r"/norm2/", "/output/LayerNorm/"),
    (r"/up/", "/intermediate/dense/"),
    (r"/down/", "/output/dense/"),
    (r"/(kernel|scale|embedding)$", "/weight"),
)
_KEYS = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "length",
    "type_vocab_size": "types",
    "hidden_size": "width",
    "intermediate_size": "middle",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
_MUST = {
    "architectures": (["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"], None),
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "pad_token_id": (0, None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
# Settings of training, of heads, and of other programs.
_IGNORED = (*IGNORED, "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")
_IGNORED += ("bos_token_id", "eos_token_id")


def load_bert(
    folder: str | Path,
    *,
    padding: str = "masked",
    mesh: Mesh | None = None,
    dtype: str = "float32",
    params_dtype: str = "float32",
) -> Part:
    """Loads a `Bert` from its folder, or from its pipeline's folder, without heads and the pooled first token.

    Args:
        folder: in the format of transformers.
        padding: what the network sees of padding (`models.text.padding`).
        mesh: default: all devices along data.
        dtype, params_dtype: of the computation, and of the parameters.

    Raises:
        InputError: another model, an unknown setting, pickles, or tensors that do not fit the config.
    """
    folder = component(folder, "text_encoder")
    config = read_json(folder / "config.json")
    arguments, naming = translate(config)
    weights = read_weights(folder)
    weights.part("cls.", "pooler.", "bert.pooler.")
    if any(name.startswith("bert.") for name in weights):
        naming = naming._replace(table=(*naming.table, (r"^", "bert/")))
    if any(name.endswith(".gamma") for name in weights):
        older = ((r"/LayerNorm/weight$", "/LayerNorm/gamma"), (r"/LayerNorm/bias$", "/LayerNorm/beta"))
        naming = naming._replace(table=(*naming.table, *older))
    options = dict(padding=padding, dtype=dtype)
    return load_part(
        weights, Bert, arguments | options, naming, config, mesh=mesh, where=str(folder), dtype=params_dtype
    )


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `Bert`, names of its parameters) of a config.

    Raises:
        InputError: a setting that is not implemented.
    """
    return arguments_of("BERT", config, _KEYS, _IGNORED, _MUST), Naming(_TABLE, stacked=STACKED)
