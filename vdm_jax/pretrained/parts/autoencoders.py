"""Loads published autoencoders: from config.json to `Autoencoder`, and the names of its parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.pretrained.folder import Config, Weights, check_settings, component, read_config
from vdm_jax.pretrained.names import BLOCKS, Naming, Part, load_part

PARTS = ("to_q", "to_k", "to_v", "to_out/0")  # names of the attention's projections
OLD_PARTS = ("query", "key", "value", "proj_attn")  # in older files: matrices, or convolutions of one pixel
SCALE = 0.18215  # the default scaling_factor of configs


def load_autoencoder(
    folder: str | Path, mesh: Mesh | None = None, dtype: str = "float32", params_dtype: str = "float32"
) -> Part:
    """Loads an autoencoder from its folder, or from its pipeline's folder.

    `dtype` is the type of the computation, `params_dtype` of the parameters. The config's force_upcast has no effect:
    it asks for float32, the default here.

    Raises:
        InputError: an unknown family or setting, pickles, or tensors that do not fit the config.
    """
    config, where = read_config(folder, "vae"), component(folder, "vae")
    arguments, _ = translate(config)
    weights = Weights(where)
    naming = naming_of(weights, arguments["in_time"])
    arguments["dtype"] = dtype
    return load_part(weights, Autoencoder, arguments, naming, config, mesh=mesh, where=str(where), dtype=params_dtype)


FAMILIES = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")
# The argument of each key, and the default of configs without it.
_KEYS = {
    "in_channels": ("channels_in", 3),
    "out_channels": ("channels_out", 3),
    "latent_channels": ("latent_channels", 4),
    "block_out_channels": ("widths", (64,)),
    "layers_per_block": ("blocks", 1),
}
_IMAGE_KEYS = {
    "norm_num_groups": ("groups", 32),
    "use_quant_conv": ("quant", True),
    "use_post_quant_conv": ("post_quant", True),
}
_IN_TIME = {"groups": 32, "quant": True, "post_quant": False}  # fixed in diffusers
_IMAGE_MUST = {"shift_factor": None, "latents_mean": None, "latents_std": None, "mid_block_add_attention": True}


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `Autoencoder`, names of its parameters). Raises InputError for an unknown setting."""
    name = config["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"_class_name={name!r} must be one of {', '.join(FAMILIES)}")
    in_time = name == "AutoencoderKLTemporalDecoder"
    keys = _KEYS if in_time else _KEYS | _IMAGE_KEYS
    arguments = {argument: config.get(key, default) for key, (argument, default) in keys.items()}
    arguments["widths"] = tuple(arguments["widths"])
    levels = len(arguments["widths"])
    must: dict[str, Any] = {"act_fn": "silu", "down_block_types": ["DownEncoderBlock2D"] * levels}
    must |= {} if in_time else _IMAGE_MUST | {"up_block_types": ["UpDecoderBlock2D"] * levels}
    check_settings(config, {*keys, "scaling_factor", "force_upcast"}, must)
    return arguments | {"in_time": in_time} | (_IN_TIME if in_time else {}), _naming(in_time)


def _naming(in_time: bool, parts: Sequence[str] = PARTS) -> Naming:
    attention = "/mid_block/attentions/0"
    projections = zip(("q", "k", "v", "out"), parts, strict=True)
    table = [
        (r"^(post_)?quant/", r"\1quant_conv/"),
        (r"^(en|de)coder/norm/", r"\1coder/conv_norm_out/"),
        (r"/(down|up)sample/(\d+)/", r"/\1_blocks/\2/\1samplers/0/"),
        (r"/(down|up)/(\d+)/(\d+)/", r"/\1_blocks/\2/resnets/\3/"),
        (r"/middle/layers/(\d+)/", r"/mid_block/resnets/\1/"),
        (r"/middle/attention/norm/", f"{attention}/group_norm/"),
        *((f"/middle/attention/attention/{name}/", f"{attention}/{part}/") for name, part in projections),
        (r"/time_out/", "/time_conv_out/"),
        (r"^encoder/(.*)/space_conv/", r"encoder/\1/"),
        (r"/space_conv/", "/spatial_res_block/" if in_time else "/"),
        (r"/time_conv/block/", "/temporal_res_block/"),
        (r"/time_conv/blend/", "/blend/"),
    ]
    over_time = r"(time_conv/block/conv[12]|time_out)/kernel$"
    return Naming((*table, *BLOCKS), pointwise=r"(shortcut|quant)/kernel$", over_time=over_time)


def naming_of(weights: Weights, in_time: bool) -> Naming:
    """Returns the names and layouts of a file, by the present or the old names."""
    first = next((name for name in weights if name.endswith(f"attentions.0.{OLD_PARTS[0]}.weight")), None)
    naming = _naming(in_time, OLD_PARTS if first else PARTS)
    if first is None or len(weights.shape(first)) == 2:
        return naming
    return naming._replace(pointwise=rf"{naming.pointwise}|attention/(q|k|v|out)/kernel$")
