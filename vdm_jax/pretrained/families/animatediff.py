"""AnimateDiff (UNetMotionModel; Guo et al. 2024, arXiv 2307.04725): motion modules in an image network."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.models.positions import interleaved_code
from vdm_jax.pretrained.families import stable_diffusion, unets
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.folder import Config, Weights, check_settings
from vdm_jax.pretrained.names import Naming

POSITIONS = "pos_embed.pe"  # the position codes in the files of motion modules, which are constants

# What AnimateDiff's documentation changes in the scheduler of an image model (linear betas!); all else stays.
SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "linear",
    "timestep_spacing": "linspace",
    "steps_offset": 1,
    "clip_sample": False,
}


def scheduler(config: Config) -> Config:
    """Returns AnimateDiff's scheduler for an image model with the given scheduler."""
    return config | SCHEDULER


def unet(
    config: Config, *, per_frame_norm: bool = False, window: tuple[int, int] | None = None
) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `UNet` and the names of its parameters.

    Args:
        per_frame_norm: motion modules normalise each frame by itself, as in the original AnimateDiff code; diffusers
            normalises all frames together.
        window: (length, stride) of overlapping windows; motion modules see one window at a time, so that a video can
            have any number of frames (FreeNoise, Qiu et al. 2023, arXiv 2310.15169). None: all frames at once.
    """
    arguments = unets.common(config, "Motion")
    layers, time_layers = "transformer_layers_per_block", "temporal_transformer_layers_per_block"
    known = {*unets.KEYS, layers, time_layers, "num_attention_heads", "motion_num_attention_heads"}
    known |= {"motion_max_seq_length", "use_motion_mid_block", "use_linear_projection"}
    layers, time_layers = (unets.same_everywhere(config, key) for key in (layers, time_layers))
    middle = {
        "transformer_layers_per_mid_block": (None, layers),
        "temporal_transformer_layers_per_mid_block": (None, time_layers),
        "mid_block_layers": 1,
    }
    empty = ("reverse_temporal_transformer_layers_per_block", "reverse_motion_num_attention_heads")
    known |= {"attention_head_dim"}  # of the image network: num_attention_heads has replaced it
    check_settings(config, known, unets.EVERYWHERE | unets.IMAGE_DEFAULTS | dict.fromkeys(empty) | middle)
    longest = config["motion_max_seq_length"]
    if window is not None and not 1 <= window[1] <= window[0] <= longest:
        raise InputError(
            f"free_noise={window[0]},{window[1]} must be a context length of at most {longest} frames (positions of "
            "the motion modules), and a stride from 1 to that length"
        )

    motion = dict(kind="transformer", groups=arguments["groups"], layers=time_layers, position=True, window=window)
    motion |= dict(across_frames=not per_frame_norm)
    down = [motion | {"heads": n} for n in unets.per_level(config, "motion_num_attention_heads")]
    arguments |= {
        "space_attention": unets.attention(config, unets.per_level(config, "num_attention_heads"), layers=layers),
        "time_attention": {"down": down, "middle": down[-1] if config["use_motion_mid_block"] else None},
        "max_frames": longest,
        "window": window,
    }
    table = unets.unet_names(space_conv="resnets", space_attention="attentions", time_attention="motion_modules")
    return arguments, Naming(table, unets.pointwise(config))


ANIMATEDIFF = Family(unet, frames=16, scheduler=scheduler)

# Settings of new motion modules: the values of AnimateDiff's second version. Some published adapters lack some keys.
NEW_MOTION: Config = {
    "motion_num_attention_heads": 8,
    "motion_transformer_layers_per_block": 1,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}


def new_adapter(settings: Mapping[str, Any]) -> Config:
    """Returns the config of new motion modules. Raises InputError for an unknown setting."""
    if unknown := settings.keys() - NEW_MOTION.keys():
        raise InputError(f"new_motion: {min(unknown)} is no setting; there are {', '.join(NEW_MOTION)}")
    return {"_class_name": "MotionAdapter", **settings}


def with_motion(config: Config, adapter: Config) -> Config:
    """Returns the config of an image network with the motion modules of an adapter.

    Raises:
        InputError: the adapter does not fit, or has a setting that is not implemented.
    """
    if config["_class_name"] != "UNet2DConditionModel" or adapter["_class_name"] != "MotionAdapter":
        pair = f"{config['_class_name']} and {adapter['_class_name']}"
        raise InputError(f"a motion adapter goes into an image network (UNet2DConditionModel), not {pair}")
    stable_diffusion.unet(config)
    if config["in_channels"] != config["out_channels"]:
        taken, drawn = config["in_channels"], config["out_channels"]
        raise InputError(f"in_channels={taken} (inpainting) must be {drawn} for a motion adapter, as many as are drawn")
    adapter = NEW_MOTION | adapter
    layers = adapter["motion_transformer_layers_per_block"]
    must = {
        "block_out_channels": config["block_out_channels"],
        "motion_layers_per_block": config["layers_per_block"],
        "motion_norm_num_groups": config["norm_num_groups"],
        "motion_mid_block_layers_per_block": 1,
        "motion_transformer_layers_per_mid_block": layers,
        "motion_activation_fn": "geglu",
        "motion_attention_bias": False,
        "motion_cross_attention_dim": None,
        "conv_in_channels": None,
    }
    check_settings(adapter, NEW_MOTION, must)
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
        **{key: adapter[key] for key in NEW_MOTION if key != "motion_transformer_layers_per_block"},
    }


def take_positions(weights: Weights) -> None:
    """Removes the position codes from the weights. Raises InputError for a code that is not sinusoidal."""
    for name in [name for name in weights if name.endswith(POSITIONS)]:
        code = weights.take(name)
        if not np.allclose(code[0], np.asarray(interleaved_code(*code.shape[1:])), atol=2e-3):
            raise InputError(f"{name} is not the sinusoidal code; other positions are not implemented")


def put_positions(tensors: dict[str, np.ndarray], config: Config) -> None:
    """Adds the position codes that diffusers keeps in its files."""
    length = config["motion_max_seq_length"]
    for name, tensor in list(tensors.items()):
        if "motion_modules" in name and name.endswith("norm1.weight"):
            tensors[name.replace("norm1.weight", POSITIONS)] = np.asarray(interleaved_code(length, len(tensor)))[None]
