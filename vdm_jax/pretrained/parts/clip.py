"""Loads and saves the CLIP encoders of published latent video models, of text and of images (transformers' format).

A setting that is not implemented is an error, never ignored.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.clip import ClipText, ClipVision
from vdm_jax.models.transformer import ACTIVATIONS
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.folder import Config, Weights, component
from vdm_jax.pretrained.lora import Lora, merge_lora
from vdm_jax.pretrained.names import Naming, Table, load_params
from vdm_jax.typing import Params

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
_HUB_TEXT: Table = (*_TEXT, (r"^", "text_model/"))
_VISION: Table = (
    (r"^class_token$", "embeddings/class_embedding"),
    (r"^patches/", "embeddings/patch_embedding/"),
    (r"^norm_in/", "pre_layrnorm/"),
    (r"^norm/", "post_layernorm/"),
    *_BLOCKS,
    (r"^(?!projection/)", "vision_model/"),
    (r"^projection/", "visual_projection/"),
)
_COMMON = {
    "hidden_size": "width",
    "intermediate_size": "middle",
    "num_attention_heads": "heads",
    "num_hidden_layers": "depth",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
_TEXT_KEYS = _COMMON | {"vocab_size": "vocabulary", "max_position_embeddings": "length", "eos_token_id": "end"}
_VISION_KEYS = _COMMON | {"image_size": "size", "patch_size": "patch", "num_channels": "channels"}
_VISION_KEYS |= {"projection_dim": "projection"}
# Settings of training, and of other programs.
_IGNORED = ("_name_or_path", "model_type", "transformers_version", "torch_dtype", "dtype", "dropout")
_IGNORED += ("_attn_implementation_autoset",)
_IGNORED += ("attention_dropout", "initializer_factor", "initializer_range")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of encoder."""

    module: type[ClipText] | type[ClipVision]
    architecture: str  # its class in transformers
    keys: dict[str, str]  # keys of its config, and the arguments of our module
    table: Table  # names of its tensors
    ignored: tuple[str, ...] = _IGNORED


_KINDS = {
    "clip_text_model": _Kind(
        ClipText,
        "CLIPTextModel",
        _TEXT_KEYS,
        _HUB_TEXT,
        (*_IGNORED, "bos_token_id", "pad_token_id", "projection_dim"),
    ),
    "clip_vision_model": _Kind(ClipVision, "CLIPVisionModelWithProjection", _VISION_KEYS, _VISION),
}


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedEncoder:
    """A loaded encoder: `nnx.merge(graphdef, params)` is the module; `config` is its config.json."""

    graphdef: nnx.GraphDef
    params: Params
    config: Config


def load_text_encoder(
    folder: str | Path,
    *,
    loras: Sequence[Lora] = (),
    mesh: Mesh | None = None,
    dtype: str = "float32",
    params_dtype: str = "float32",
) -> PublishedEncoder:
    """Loads a `ClipText` from its folder, or from its pipeline's folder.

    Args:
        folder: in the format of transformers.
        loras: their changes of a text encoder are merged into its weights.
        mesh: default: all devices along data.
        dtype, params_dtype: of the computation, and of the parameters.

    Raises:
        InputError: another model, an unknown setting, pickles, tensors that do not fit the config, or a LoRA that does
            not fit.
    """
    return _load(component(folder, "text_encoder"), "clip_text_model", mesh, dtype, params_dtype, loras)


def load_image_encoder(
    folder: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32", params_dtype: str = "float32"
) -> PublishedEncoder:
    """Loads a `ClipVision` from its folder, or from its pipeline's folder: see `load_text_encoder`."""
    return _load(component(folder, "image_encoder"), "clip_vision_model", mesh, dtype, params_dtype)


def _load(
    folder: Path, model_type: str, mesh: Mesh | None, dtype: str, params_dtype: str, loras: Sequence[Lora] = ()
) -> PublishedEncoder:
    config = read_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise InputError(f"{folder}: model_type={config.get('model_type')!r} must be {model_type!r}")
    module, arguments, naming = translate(config)
    weights = read_weights(folder)
    if module is ClipText and not any(name.startswith("text_model.") for name in weights):
        naming = naming._replace(table=_TEXT)  # transformers 5 writes no prefix
    for lora in loras:
        merge_lora(lora.where, lora.text, weights)
    abstract = nnx.eval_shape(lambda: module(**arguments, dtype=dtype, rngs=Keys(0)))
    return published(abstract, weights, naming, mesh, str(folder), config, params_dtype)


def read_weights(folder: Path) -> Weights:
    """Returns the weights of a folder without the position numbers that older files hold."""
    weights = Weights(folder)
    weights.part(*[name for name in weights if name.endswith(".position_ids")])
    return weights


def published(
    abstract: nnx.Module,
    weights: Weights,
    naming: Naming,
    mesh: Mesh | None,
    where: str,
    config: Config,
    dtype: str = "float32",
) -> PublishedEncoder:
    """Loads the weights of an abstract module onto a mesh (default: all devices along data)."""
    mesh = make_mesh() if mesh is None else mesh
    params = load_params(weights, abstract, naming, mesh=mesh, where=where, dtype=dtype)
    return PublishedEncoder(nnx.split(abstract)[0], params, config)


def read_json(path: Path) -> Config:
    """Returns the object in a JSON file. Raises InputError for a file that cannot be read, or holds no object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold an object, not {type(config).__name__}")
    return config


def translate(config: Config) -> tuple[type[ClipText] | type[ClipVision], dict[str, Any], Naming]:
    """Returns (module, its arguments, names of its parameters) of a config.

    Raises:
        InputError: another model, or a setting that is not implemented.
    """
    kind = _KINDS.get(config.get("model_type"))
    if kind is None:
        raise InputError(f"model_type={config.get('model_type')!r} must be one of {', '.join(_KINDS)}")
    must = {"architectures": ([kind.architecture], None), "use_attention_mask": (False, None)}
    arguments = arguments_of(kind.architecture, config, kind.keys, kind.ignored, must)
    if arguments.get("end") == 2:
        arguments["end"] = None  # old configs have 2 by mistake; the end token is the highest one
    return kind.module, arguments, Naming(kind.table, stacked=STACKED)


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
    for key in keys:
        if key not in config:
            raise InputError(f"{name}: the config must have {key}")
        value = config[key]
        if key == "hidden_act":
            valid, description = value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"
        elif key == "layer_norm_eps":
            valid, description = isinstance(value, int | float) and 0 < value < 1, "a number between 0 and 1"
        else:
            valid, description = type(value) is int and value > 0, "a whole number above 0"
        if not valid:
            raise InputError(f"{name}: {key}={value!r} is not implemented; it must be {description}")
    size, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 1)
    if size % heads:
        raise InputError(f"{name}: hidden_size={size} must be a multiple of num_attention_heads={heads}")
    return {argument: config[key] for key, argument in keys.items()}
