"""Loads and saves the CLIP encoders of published latent video models, of text and of images (transformers' format).

A setting that is not implemented is an error, never ignored.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.text.clip import ClipText, ClipVision
from vdm_jax.models.transformer import ACTIVATIONS
from vdm_jax.pretrained.folder import Config, Weights, component, read_json
from vdm_jax.pretrained.lora import Lora, merge_lora
from vdm_jax.pretrained.names import Naming, Part, Table, load_part

STACKED = r"^blocks/"
_BLOCKS: Table = (
    (r"^blocks/", "encoder/layers/"),
    (r"/norm([12])/", r"/layer_norm\1/"),
    (r"/attention/([qkv]|out)/", r"/self_attn/\1_proj/"),
    (r"/up/", "/mlp/fc1/"),
    (r"/down/", "/mlp/fc2/"),
    (r"^positions$", "embeddings/position_embedding/weight"),
    (r"/(kernel|scale|embedding)$", "/weight"),
)
_TEXT: Table = ((r"^embed/", "embeddings/token_embedding/"), (r"^norm/", "final_layer_norm/"), *_BLOCKS)
_VISION: Table = (
    (r"^class_token$", "embeddings/class_embedding"),
    (r"^patches/", "embeddings/patch_embedding/"),
    (r"^norm_in/", "pre_layrnorm/"),
    (r"^norm/", "post_layernorm/"),
    *_BLOCKS,
    (r"^(?!projection/)", "vision_model/"),
    (r"^projection/", "visual_projection/"),
)
COMMON = {
    "hidden_size": "width",
    "intermediate_size": "middle",
    "num_attention_heads": "heads",
    "num_hidden_layers": "depth",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
# Settings of training, and of other programs.
IGNORED = ("_name_or_path", "model_type", "transformers_version", "torch_dtype", "dtype", "initializer_range")
IGNORED += ("_attn_implementation_autoset", "_attn_implementation", "_attn_implementation_internal")
IGNORED += ("attn_implementation", "gradient_checkpointing", "_commit_hash", "problem_type", "id2label", "label2id")
IGNORED += ("return_dict", "torchscript", "use_cache", "output_attentions", "output_hidden_states", "use_bfloat16")
IGNORED += ("tie_word_embeddings", "chunk_size_feed_forward")
_IGNORED = (*IGNORED, "dropout", "attention_dropout", "initializer_factor", "logit_scale_init_value")
# Settings of other kinds of transformers, which change the computation.
_MUST = {"use_attention_mask": (False, None), "is_decoder": (False,), "is_encoder_decoder": (False,)}
_MUST |= {"add_cross_attention": (False,), "pruned_heads": ({}, None), "quantization_config": (None,)}
# For each model_type: module, its class in transformers, names of its tensors, the argument of each key, ignored keys.
_KINDS = {
    "clip_text_model": (
        ClipText,
        "CLIPTextModel",
        (*_TEXT, (r"^", "text_model/")),
        COMMON | {"vocab_size": "vocabulary", "max_position_embeddings": "length", "eos_token_id": "end"},
        (*_IGNORED, "bos_token_id", "pad_token_id", "projection_dim"),
    ),
    "clip_vision_model": (
        ClipVision,
        "CLIPVisionModelWithProjection",
        _VISION,
        COMMON | dict(image_size="size", patch_size="patch", num_channels="channels", projection_dim="projection"),
        _IGNORED,
    ),
}


def load_encoder(
    name: str, folder: str | Path, *, loras: Sequence[Lora] = (), mesh=None, dtype="float32", params_dtype="float32"
) -> Part:
    """Loads a "text" or "vision" encoder from its folder, or from its pipeline's folder, in transformers' format.

    LoRAs for texts are merged into its weights; `dtype` is of the computation, `params_dtype` of the parameters.

    Raises:
        InputError: another model, an unknown setting, pickles, tensors that do not fit the config, or a LoRA that does
            not fit.
    """
    folder = component(folder, {"text": "text_encoder", "vision": "image_encoder"}[name])
    config = read_model(folder, f"clip_{name}_model")
    module, arguments, naming = translate(config)
    weights = read_weights(folder)
    if name == "text" and not any(tensor.startswith("text_model.") for tensor in weights):
        naming = naming._replace(table=_TEXT)  # transformers 5 writes no prefix
    for lora in loras:
        merge_lora(lora.where, lora.text, weights)
    arguments["dtype"] = dtype
    return load_part(weights, module, arguments, naming, config, mesh=mesh, where=str(folder), dtype=params_dtype)


load_text_encoder = functools.partial(load_encoder, "text")
load_image_encoder = functools.partial(load_encoder, "vision")


def read_weights(folder: Path) -> Weights:
    """Returns the weights of a folder without the position numbers that older files hold."""
    weights = Weights(folder)
    weights.part(*[name for name in weights if name.endswith(".position_ids")])
    return weights


def read_model(folder: Path, model_type: str, published: str = "") -> Config:
    """Returns the config.json of a folder of transformers. Raises InputError for another model, or no folder.

    `published` tells where a folder of this model is found.
    """
    if published and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {published}")
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise InputError(f"{folder}: model_type={config.get('model_type')!r} must be {model_type!r}")
    return config


def translate(config: Config) -> tuple[type[nnx.Module], dict[str, Any], Naming]:
    """Returns (module, its arguments, names of its parameters) of a config. Raises InputError as `load_encoder`."""
    if config.get("model_type") not in _KINDS:
        raise InputError(f"model_type={config.get('model_type')!r} must be one of {', '.join(_KINDS)}")
    module, architecture, table, keys, ignored = _KINDS[config["model_type"]]
    must = _MUST | {"architectures": ([architecture], None)}
    arguments = arguments_of(architecture, config, keys, ignored, must)
    if arguments.get("end") == 2:
        arguments["end"] = None  # old configs have 2 by mistake; the end token is the highest one
    return module, arguments, Naming(table, stacked=STACKED)


def arguments_of(
    name: str, config: Config, keys: Mapping[str, str], ignored: Collection[str], must: Mapping[str, tuple]
) -> dict[str, Any]:
    """Returns the arguments of a transformer by its config.

    `keys` has the argument of each key, `must` the implemented values of other keys.

    Raises:
        InputError: a key that is missing or unknown, or a value that is not implemented.
    """
    for key, value in config.items():
        if key not in must and key not in keys and key not in ignored:
            raise InputError(f"{name}: {key}={value!r} is not known")
        if key in must and value not in must[key]:
            raise InputError(f"{name}: {key}={value!r} is not implemented; it must be {must[key][0]!r}")
    positive = lambda value: type(value) is int and value > 0, "a whole number above 0"
    special = {
        "hidden_act": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "layer_norm_eps": (lambda value: isinstance(value, int | float) and 0 < value < 1, "a number between 0 and 1"),
    }
    for key in keys:
        if key not in config:
            raise InputError(f"{name}: the config must have {key}")
        valid, description = special.get(key, positive)
        if not valid(config[key]):
            raise InputError(f"{name}: {key}={config[key]!r} is not implemented; it must be {description}")
    size, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 1)
    if size % heads:
        raise InputError(f"{name}: hidden_size={size} must be a multiple of num_attention_heads={heads}")
    return {argument: config[key] for key, argument in keys.items()}
