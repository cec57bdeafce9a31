"""Loads and saves published autoencoders: from config.json to `Autoencoder`, and the names of its parameters."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.folder import Config, Weights, check_settings, component, read_config
from vdm_jax.pretrained.names import BLOCKS, Naming, load_params
from vdm_jax.typing import Params

PARTS = ("to_q", "to_k", "to_v", "to_out/0")  # names of the attention's projections
OLD_PARTS = ("query", "key", "value", "proj_attn")  # in older files: matrices, or convolutions of one pixel


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedAutoencoder:
    """A loaded autoencoder: `nnx.merge(graphdef, params)` is the `Autoencoder`; `config` is its config.json.

    The latents of a diffusion model are the output of `encode` times `scaling_factor`.
    """

    graphdef: nnx.GraphDef
    params: Params
    scaling_factor: float
    config: Config


def load_autoencoder(
    folder: str | Path, mesh: Mesh | None = None, dtype: str = "float32", params_dtype: str = "float32"
) -> PublishedAutoencoder:
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
    module = nnx.eval_shape(lambda: Autoencoder(**arguments, dtype=dtype, rngs=Keys(0)))
    mesh = make_mesh() if mesh is None else mesh
    params = load_params(weights, module, naming, mesh=mesh, where=str(where), dtype=params_dtype)
    factor = float(config.get("scaling_factor", _DEFAULTS["scaling_factor"]))
    return PublishedAutoencoder(nnx.split(module)[0], params, factor, config)


FAMILIES = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")
# Defaults of keys that older configs do not have.
_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_IMAGE_DEFAULTS = {"norm_num_groups": 32, "use_quant_conv": True, "use_post_quant_conv": True}
_IN_TIME = {"norm_num_groups": 32, "use_quant_conv": True, "use_post_quant_conv": False}  # fixed in diffusers
_IMAGE_MUST = {"shift_factor": None, "latents_mean": None, "latents_std": None, "mid_block_add_attention": True}


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `Autoencoder`, names and layouts of its parameters) of a config.

    Raises:
        InputError: an unknown family, or a setting that is not implemented.
    """
    name = config["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"_class_name={name!r} must be one of {', '.join(FAMILIES)}")
    in_time = name == "AutoencoderKLTemporalDecoder"
    settings = _DEFAULTS | (_IN_TIME if in_time else _IMAGE_DEFAULTS) | config
    levels = len(settings["block_out_channels"])
    must: dict[str, Any] = {"act_fn": "silu", "down_block_types": ["DownEncoderBlock2D"] * levels}
    if not in_time:
        must |= _IMAGE_MUST | {"up_block_types": ["UpDecoderBlock2D"] * levels}
    known = {*_DEFAULTS, "force_upcast"} | (set() if in_time else {*_IMAGE_DEFAULTS})
    check_settings(config, known, must)
    arguments = dict(
        channels_in=settings["in_channels"],
        channels_out=settings["out_channels"],
        latent_channels=settings["latent_channels"],
        widths=tuple(settings["block_out_channels"]),
        blocks=settings["layers_per_block"],
        in_time=in_time,
        quant=settings["use_quant_conv"],
        post_quant=settings["use_post_quant_conv"],
        groups=settings["norm_num_groups"],
    )
    return arguments, _naming(in_time)


def _naming(in_time: bool, parts: Sequence[str] = PARTS) -> Naming:
    attention = "/mid_block/attentions/0"
    table = [
        (r"^(post_)?quant/", r"\1quant_conv/"),
        (r"^(en|de)coder/norm/", r"\1coder/conv_norm_out/"),
        (r"/(down|up)sample/(\d+)/", r"/\1_blocks/\2/\1samplers/0/"),
        (r"/(down|up)/(\d+)/(\d+)/", r"/\1_blocks/\2/resnets/\3/"),
        (r"/middle/layers/(\d+)/", r"/mid_block/resnets/\1/"),
        (r"/middle/attention/norm/", f"{attention}/group_norm/"),
        *(
            (f"/middle/attention/attention/{name}/", f"{attention}/{part}/")
            for name, part in zip("qkv", parts, strict=False)
        ),
        (r"/middle/attention/attention/out/", f"{attention}/{parts[-1]}/"),
        (r"/time_out/", "/time_conv_out/"),
        (r"^encoder/(.*)/space_conv/", r"encoder/\1/"),
        (r"/space_conv/", "/spatial_res_block/" if in_time else "/"),
        (r"/time_conv/block/", "/temporal_res_block/"),
        (r"/time_conv/blend/", "/blend/"),
    ]
    return Naming(
        (*table, *BLOCKS),
        pointwise=r"(shortcut|quant)/kernel$",
        over_time=r"(time_conv/block/conv[12]|time_out)/kernel$",
    )


def naming_of(weights: Weights, in_time: bool) -> Naming:
    """Returns the names and layouts of a file, by the present or the old names."""
    first = next((name for name in weights if name.endswith(f"attentions.0.{OLD_PARTS[0]}.weight")), None)
    if first is None:
        return _naming(in_time)
    naming = _naming(in_time, OLD_PARTS)
    if len(weights.shape(first)) == 2:
        return naming
    return naming._replace(pointwise=rf"{naming.pointwise}|attention/(q|k|v|out)/kernel$")
