"""Loads CLIP as a pair, both encoders and the tokenizer of one `CLIPModel` folder, to compare pictures with texts."""

import dataclasses
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.names import Naming
from vdm_jax.pretrained.parts.clip import Config, PublishedEncoder, published, read_json, read_weights, translate
from vdm_jax.pretrained.tokenizers import PromptTokenizer, load_tokenizer

PUBLISHED = "a folder with config.json, model.safetensors and tokenizer files, such as openai/clip-vit-large-patch14"

# Defaults: newer configs hold only the values that differ.
_COMMON = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_TEXT |= {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_VISION |= {"image_size": 224, "patch_size": 32, "num_channels": 3}
DEFAULTS = {"text": _COMMON | _TEXT, "vision": _COMMON | _VISION}
PREFIXES = {"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "visual_projection.")}


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedClip:
    """CLIP: the pooled vector of `text` and the output of `image` lie in the same space."""

    text: PublishedEncoder
    image: PublishedEncoder
    tokenize: PromptTokenizer


def load_clip(folder: str | Path, *, mesh: Mesh | None = None) -> PublishedClip:
    """Loads both encoders in float32, and the tokenizer.

    Raises:
        InputError: no such folder, another model, a setting that is not implemented, pickles, tensors that do not fit
            the config, or no tokenizer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; CLIP is published as {PUBLISHED}")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise InputError(f"{folder}: model_type={config.get('model_type')!r} must be 'clip'")
    weights = read_weights(folder)
    weights.part("logit_scale")  # of the training loss
    encoders = []
    for part, prefixes in PREFIXES.items():
        abstract, naming, part_config = abstract_of(part, config)
        encoders.append(published(abstract, weights.part(*prefixes), naming, mesh, str(folder), part_config))
    if weights:
        raise InputError(f"{folder} holds {len(weights)} tensors that CLIP does not have ({next(iter(weights))}, …)")
    length = encoders[0].config["max_position_embeddings"]
    return PublishedClip(*encoders, load_tokenizer(folder, length=length))


def abstract_of(part: str, config: Config) -> tuple[nnx.Module, Naming, Config]:
    """Returns the encoder of "text" or "vision" as shapes, the names of its parameters, and its complete config."""
    # Older files list every setting of every model: only CLIP's settings are read.
    settings = config.get(f"{part}_config") or {}
    settings = DEFAULTS[part] | {key: value for key, value in settings.items() if key in DEFAULTS[part]}
    settings |= {"model_type": f"clip_{part}_model", "projection_dim": config.get("projection_dim", 512)}
    module, arguments, naming = translate(settings)
    if part == "text":
        arguments["projection"] = settings["projection_dim"]
        naming = naming._replace(table=(*naming.table, ("^text_model/projection/", "text_projection/")))
    return nnx.eval_shape(lambda: module(**arguments, rngs=Keys(0))), naming, settings
