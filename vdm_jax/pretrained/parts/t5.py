"""Loads the encoders of T5 v1.1 and UMT5 in the format of transformers, also out of files with a decoder.

A setting that is not implemented is an error, never ignored.
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vdm_jax.models.text.t5 import T5
from vdm_jax.pretrained.folder import Config, component, read_json
from vdm_jax.pretrained.names import Naming, Part, Table, load_part
from vdm_jax.pretrained.parts.clip import IGNORED, STACKED, arguments_of, read_weights

_BIAS = "/layer/0/SelfAttention/relative_attention_bias/weight"
_TABLE: Table = (
    (r"^embed/embedding$", "shared/weight"),
    (r"^position_bias$", f"encoder/block/0{_BIAS}"),
    (r"^norm/", "encoder/final_layer_norm/"),
    (r"^blocks/", "encoder/block/"),
    (r"/position_bias$", _BIAS),
    (r"/norm1/", "/layer/0/layer_norm/"),
    (r"/attention/([qkv])/", r"/layer/0/SelfAttention/\1/"),
    (r"/attention/out/", "/layer/0/SelfAttention/o/"),
    (r"/norm2/", "/layer/1/layer_norm/"),
    (r"/gate_up/", "/layer/1/DenseReluDense/wi_0/"),
    (r"/up/", "/layer/1/DenseReluDense/wi_1/"),
    (r"/down/", "/layer/1/DenseReluDense/wo/"),
    (r"/(kernel|scale)$", "/weight"),
)
_KEYS = {
    "vocab_size": "vocabulary",
    "d_model": "width",
    "d_ff": "middle",
    "num_layers": "depth",
    "num_heads": "heads",
    "d_kv": "head_size",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_eps": "epsilon",
}
# Of each model_type, its classes in transformers.
_CLASSES = {"t5": "T5", "umt5": "UMT5"}
_MUST = {
    "model_type": tuple(_CLASSES),
    "feed_forward_proj": ("gated-gelu",),
    "is_gated_act": (True,),
    "dense_act_fn": ("gelu_new",),
    "pad_token_id": (0,),
    "eos_token_id": (1,),
    "is_decoder": (False,),
}
# Settings of training, of the decoder, and of other programs.
_IGNORED = (*IGNORED, "initializer_factor", "classifier_dropout", "dropout_rate", "output_past", "num_decoder_layers")
_IGNORED += ("task_specific_params", "decoder_start_token_id", "is_encoder_decoder", "scale_decoder_outputs")
_IGNORED += ("n_positions", "scalable_attention", "tokenizer_class")


def load_t5(
    folder: str | Path,
    *,
    masked: bool = True,
    padding: str = "masked",
    mesh: Mesh | None = None,
    dtype: str = "float32",
    params_dtype: str = "float32",
) -> Part:
    """Loads a `T5` from its folder, or from its pipeline's folder.

    Args:
        folder: in the format of transformers.
        masked: the encoder does not attend to padding.
        padding: what the network sees of padding (`models.text.padding`).
        mesh: default: all devices along data.
        dtype, params_dtype: of the computation, and of the parameters. Activations do not fit into float16.

    Raises:
        InputError: another model, an unknown setting, pickles, or tensors that do not fit the config.
    """
    folder = component(folder, "text_encoder")
    config = read_json(folder / "config.json")
    arguments, naming = translate(config)
    weights = read_weights(folder)
    weights.part("decoder.", "lm_head.")
    if "shared.weight" in weights:
        weights.part("encoder.embed_tokens.")  # the same numbers
    else:
        naming = naming._replace(table=(*naming.table, (r"^shared/", "encoder/embed_tokens/")))
    options = dict(masked=masked, padding=padding, dtype=dtype)
    return load_part(weights, T5, arguments | options, naming, config, mesh=mesh, where=str(folder), dtype=params_dtype)


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `T5`, names of its parameters) of a config.

    Raises:
        InputError: a setting that is not implemented, such as the ReLU of the first T5.
    """
    name = _CLASSES.get(config.get("model_type"), "T5")
    settings = {"feed_forward_proj": "relu", "relative_attention_max_distance": 128} | config  # transformers' defaults
    settings = {"layer_norm_eps" if key == "layer_norm_epsilon" else key: value for key, value in settings.items()}
    architectures = tuple([f"{name}{kind}"] for kind in ("EncoderModel", "ForConditionalGeneration", "Model"))
    must = _MUST | {"architectures": (*architectures, None)}
    arguments = arguments_of(f"{name} encoder", settings, _KEYS, _IGNORED, must)
    return arguments | {"shared": name == "T5"}, Naming(_TABLE, stacked=STACKED)
