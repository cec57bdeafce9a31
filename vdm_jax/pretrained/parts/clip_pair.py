"""Loads CLIP as a pair, both encoders and the tokenizer of one `CLIPModel` folder, to compare pictures with texts."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.names import Naming, Part, load_part
from vdm_jax.pretrained.parts.clip import read_model, read_weights, translate
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

    text: Part
    image: Part
    tokenize: PromptTokenizer


def load_clip(folder: str | Path, *, mesh: Mesh | None = None) -> PublishedClip:
    """Loads both encoders in float32, and the tokenizer.

    Raises:
        InputError: no such folder, another model, a setting that is not implemented, pickles, tensors that do not fit
            the config, or no tokenizer.
    """
    folder = Path(folder)
    config = read_model(folder, "clip", f"CLIP is published as {PUBLISHED}")
    weights = read_weights(folder)
    weights.part("logit_scale")  # of the training loss
    encoders = []
    for part, prefixes in PREFIXES.items():
        encoder = translate_part(part, config)
        encoders.append(load_part(weights.part(*prefixes), *encoder, mesh=mesh, where=str(folder)))
    if weights:
        raise InputError(f"{folder} holds {len(weights)} tensors that CLIP does not have ({next(iter(weights))}, …)")
    length = encoders[0].config["max_position_embeddings"]
    return PublishedClip(*encoders, load_tokenizer(folder, length=length))


def translate_part(part: str, config: Config) -> tuple[type[nnx.Module], dict[str, Any], Naming, Config]:
    """Returns (module, its arguments, names of its parameters, its complete config) of "text" or "vision"."""
    # Older files list every setting of every model: only CLIP's settings are read.
    settings = config.get(f"{part}_config") or {}
    settings = DEFAULTS[part] | {key: value for key, value in settings.items() if key in DEFAULTS[part]}
    settings |= {"model_type": f"clip_{part}_model", "projection_dim": config.get("projection_dim", 512)}
    module, arguments, naming = translate(settings)
    if part == "text":
        arguments["projection"] = settings["projection_dim"]
        naming = naming._replace(table=(*naming.table, ("^text_model/projection/", "text_projection/")))
    return module, arguments, naming, settings
