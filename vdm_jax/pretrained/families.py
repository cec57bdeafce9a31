"""The published families of U-Nets: what a config.json means for `LatentUNet`, and the names of its parameters.

One function a family. A setting that is not implemented is an error, never ignored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from vdm_jax.errors import InputError
from vdm_jax.pretrained.names import Naming, unet_names

Config = dict[str, Any]
IGNORED = ("_class_name", "_diffusers_version", "_name_or_path", "sample_size", "num_frames")


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """(arguments of `LatentUNet`, names and layouts of its parameters) of a config.

    Raises:
        InputError: an unknown family, or a setting that is not implemented.
    """
    name = config["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"_class_name={name!r} must be one of {', '.join(FAMILIES)}")
    try:
        return FAMILIES[name](config)
    except KeyError as error:
        raise InputError(f"{name}: its config must have {error}") from error


def _stable_diffusion(config: Config) -> tuple[dict[str, Any], Naming]:
    """Stable Diffusion 1 and 2 (UNet2DConditionModel): an image network, whose frames do not see each other."""
    common = _common(config, "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    heads = _per_level(config, "attention_head_dim")  # it is the number of heads
    known = {*common.keys, "attention_head_dim", "use_linear_projection", "transformer_layers_per_block"}
    check(config, known, _IMAGE_DEFAULTS)
    arguments = common.arguments | _attending(common, heads) | {"layers": _one(config, "transformer_layers_per_block")}
    table = unet_names(space_conv="resnets", space_attention="attentions")
    return arguments, Naming(table, _pointwise(config))


def _modelscope(config: Config) -> tuple[dict[str, Any], Naming]:
    """ModelScope's text-to-video network (UNet3DConditionModel; Wang et al. 2023, arXiv 2308.06571)."""
    common = _common(config, "CrossAttnDownBlock3D", "DownBlock3D", "CrossAttnUpBlock3D", "UpBlock3D")
    check(config, {*common.keys, "attention_head_dim"}, {"num_attention_heads": None})
    size = config["attention_head_dim"]  # here it is what it says
    heads = [width // size for width in config["block_out_channels"]]
    arguments = common.arguments | _attending(common, heads) | {"time": "stack", "head_size": size, "stem_heads": 8}
    slots = {"space_conv": "resnets", "time_conv": "temp_convs"}
    table = unet_names(**slots, space_attention="attentions", time_attention="temp_attentions")
    return arguments, Naming(table)


def _animatediff(config: Config) -> tuple[dict[str, Any], Naming]:
    """Stable Diffusion with AnimateDiff's motion modules (UNetMotionModel; Guo et al. 2024, arXiv 2307.04725)."""
    common = _common(config, "CrossAttnDownBlockMotion", "DownBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion")
    layers, time_layers = "transformer_layers_per_block", "temporal_transformer_layers_per_block"
    known = {*common.keys, layers, time_layers, "num_attention_heads", "motion_num_attention_heads"}
    known |= {"motion_max_seq_length", "use_motion_mid_block", "use_linear_projection"}
    middle = {
        "transformer_layers_per_mid_block": (None, _one(config, layers)),
        "temporal_transformer_layers_per_mid_block": (None, _one(config, time_layers)),
        "mid_block_layers": 1,
    }
    nothing = ("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type", "addition_time_embed_dim")
    nothing += ("reverse_transformer_layers_per_block", "reverse_temporal_transformer_layers_per_block")
    nothing += ("reverse_motion_num_attention_heads", "projection_class_embeddings_input_dim")
    check(config, known, dict.fromkeys(nothing) | middle)
    arguments = common.arguments | _attending(common, _per_level(config, "num_attention_heads"))
    arguments |= {
        "layers": _one(config, layers),
        "time": "motion",
        "time_heads": _per_level(config, "motion_num_attention_heads"),
        "time_layers": _one(config, time_layers),
        "middle_motion": config["use_motion_mid_block"],
        "max_frames": config["motion_max_seq_length"],
    }
    table = unet_names(space_conv="resnets", space_attention="attentions", time_attention="motion_modules")
    return arguments, Naming(table, _pointwise(config))


def _stable_video_diffusion(config: Config) -> tuple[dict[str, Any], Naming]:
    """Stable Video Diffusion (UNetSpatioTemporalConditionModel; Blattmann et al. 2023, arXiv 2311.15127)."""
    kind = "BlockSpatioTemporal"
    common = _common(config, f"CrossAttnDown{kind}", f"Down{kind}", f"CrossAttnUp{kind}", f"Up{kind}")
    added, width = "addition_time_embed_dim", "projection_class_embeddings_input_dim"
    check(config, {*common.keys, "num_attention_heads", "transformer_layers_per_block", added, width}, {})
    arguments = common.arguments | _attending(common, _per_level(config, "num_attention_heads"))
    arguments |= {
        "layers": _one(config, "transformer_layers_per_block"),
        "time": "blended",
        "added": (config[added], config[width] // config[added]),
        # As the published code has them, by kind of block.
        "epsilon_down": [1e-6 if attends else 1e-5 for attends in common.attends],
        "epsilon_middle": 1e-5,
        "epsilon_up": 1e-6,
    }
    table = unet_names(space_conv="resnets", time_conv="resnets", space_attention="attentions")
    inside = (
        (r"^((down|up)/\d+/\d+|middle\d)/space_conv/", r"\1/space_conv/spatial_res_block/"),
        (r"^((down|up)/\d+/\d+|middle\d)/time_conv/block/", r"\1/time_conv/temporal_res_block/"),
    )
    return arguments, Naming((*inside, *table))


FAMILIES: dict[str, Callable[[Config], tuple[dict[str, Any], Naming]]] = {
    "UNet2DConditionModel": _stable_diffusion,
    "UNet3DConditionModel": _modelscope,
    "UNetMotionModel": _animatediff,
    "UNetSpatioTemporalConditionModel": _stable_video_diffusion,
}


# What an adapter's config does not say; published ones are older than some of the keys.
_ADAPTER_DEFAULTS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "motion_layers_per_block": 2,
    "motion_transformer_layers_per_block": 1,
    "motion_mid_block_layers_per_block": 1,
    "motion_transformer_layers_per_mid_block": 1,
    "motion_num_attention_heads": 8,
    "motion_norm_num_groups": 32,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}


def with_motion(config: Config, adapter: Config) -> Config:
    """The config of an image network with a motion adapter's modules in it.

    Raises:
        InputError: they do not fit, or the adapter has a setting that is not implemented.
    """
    if config["_class_name"] != "UNet2DConditionModel" or adapter["_class_name"] != "MotionAdapter":
        pair = f"{config['_class_name']} and {adapter['_class_name']}"
        raise InputError(f"a motion adapter goes into an image network (UNet2DConditionModel), not {pair}")
    translate(config)
    adapter = _ADAPTER_DEFAULTS | adapter
    layers = adapter["motion_transformer_layers_per_block"]
    known = {"motion_transformer_layers_per_block", "motion_num_attention_heads", "motion_max_seq_length"}
    must = {
        "block_out_channels": config["block_out_channels"],
        "motion_layers_per_block": config["layers_per_block"],
        "motion_norm_num_groups": config["norm_num_groups"],
        "motion_mid_block_layers_per_block": 1,
        "motion_transformer_layers_per_mid_block": layers,
        "conv_in_channels": None,
    }
    check(adapter, known | {"use_motion_mid_block"}, must)
    shared = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "norm_eps")
    shared += ("cross_attention_dim", "transformer_layers_per_block", "use_linear_projection", "act_fn", "sample_size")
    return {
        "_class_name": "UNetMotionModel",
        **{key: config[key] for key in shared if key in config},
        "down_block_types": [name.replace("2D", "Motion") for name in config["down_block_types"]],
        "up_block_types": [name.replace("2D", "Motion") for name in config["up_block_types"]],
        "num_attention_heads": config["attention_head_dim"],
        "temporal_transformer_layers_per_block": layers,
        "temporal_transformer_layers_per_mid_block": layers,
        **{key: adapter[key] for key in ("motion_num_attention_heads", "motion_max_seq_length")},
        "use_motion_mid_block": adapter["use_motion_mid_block"],
    }


# ------------------------------------------------------------------------------------------- parts of configs

_SHORTCUT = r"shortcut/kernel$"
_EVERYWHERE = {
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "time_cond_proj_dim": None,
}
_IMAGE_DEFAULTS = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": (False, True, None),  # softmax is float32 here in any case
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}


@dataclasses.dataclass(frozen=True)
class _Common:
    """What all families have: arguments, the keys they come from, and which levels attend."""

    arguments: dict[str, Any]
    attends: list[bool]
    keys: tuple[str, ...] = (
        "in_channels",
        "out_channels",
        "block_out_channels",
        "layers_per_block",
        "norm_num_groups",
        "norm_eps",
        "cross_attention_dim",
        "down_block_types",
        "up_block_types",
    )


def _common(config: Config, attending: str, plain: str, attending_up: str, plain_up: str) -> _Common:
    """Raises InputError where a level is of another kind, or goes up otherwise than it went down."""
    down, up = config["down_block_types"], config["up_block_types"]
    for name in down:
        if name not in (attending, plain):
            raise InputError(f"down_block_types: {name} is not implemented; {attending} and {plain} are")
    attends = [name == attending for name in down]
    mirrored = [attending_up if a else plain_up for a in reversed(attends)]
    if list(up) != mirrored:
        raise InputError(f"up_block_types={list(up)} must mirror the way down: {mirrored}")
    epsilon = config.get("norm_eps", 1e-5)
    arguments = dict(
        channels_in=config["in_channels"],
        channels_out=config["out_channels"],
        widths=tuple(config["block_out_channels"]),
        blocks=_one(config, "layers_per_block"),
        groups=config.get("norm_num_groups", 32),
        context_width=_one(config, "cross_attention_dim"),
        epsilon_down=[epsilon] * len(down),
        epsilon_middle=epsilon,
        epsilon_up=epsilon,
    )
    return _Common(arguments, attends)


def _attending(common: _Common, heads: list[int]) -> dict[str, Any]:
    """The heads of levels that attend. The middle attends as the last level would, if that does not."""
    return {
        "heads": [n if attends else 0 for n, attends in zip(heads, common.attends, strict=True)],
        "middle_heads": heads[-1],
    }


def _pointwise(config: Config) -> str:
    """Stable Diffusion 1 projects into its space transformers by a convolution of one pixel."""
    return _SHORTCUT if config.get("use_linear_projection", False) else rf"{_SHORTCUT}|space_attention/project_"


def _per_level(config: Config, key: str) -> list[int]:
    value, levels = config[key], len(config["block_out_channels"])
    value = [value] * levels if isinstance(value, int) else list(value)
    if len(value) != levels or not all(isinstance(n, int) for n in value):
        raise InputError(f"{key}={config[key]} must be one number, or one for each of {levels} levels")
    return value


def _one(config: Config, key: str) -> int:
    """A number that may be given for each level, but must be the same for all."""
    value = config.get(key, 1)
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1 or not isinstance(value := values.pop(), int):
        raise InputError(f"{key}={config.get(key)} is not implemented: it must be the same at all levels")
    return value


def check(config: Config, known: set[str], must: dict[str, Any]) -> None:
    """Raises InputError for a setting that is neither known nor as it must be; a tuple gives several that will do."""
    for key, value in config.items():
        if key in known or key in IGNORED:
            continue
        if key not in must | _EVERYWHERE:
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not known")
        fit = (must | _EVERYWHERE)[key]
        if not (value in fit if isinstance(fit, tuple) else value == fit):
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not implemented; it must be {fit!r}")
