"""The common parts of the published U-Nets: keys of their configs, and names of their parameters.

A setting that is not implemented is an error, never ignored.
"""

from collections.abc import Sequence
from typing import Any

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.names import BLOCKS, Table

EVERYWHERE = {"downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu", "time_cond_proj_dim": None}
# Keys that must be None in image networks, with motion modules or without.
EMPTY = dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type", "addition_time_embed_dim"))
EMPTY |= dict.fromkeys(("reverse_transformer_layers_per_block", "projection_class_embeddings_input_dim"))
IMAGE_DEFAULTS = EMPTY | dict.fromkeys(("num_attention_heads", "class_embed_type", "num_class_embeds"))
IMAGE_DEFAULTS |= dict.fromkeys(("time_embedding_dim", "time_embedding_act_fn", "timestep_post_act"))
IMAGE_DEFAULTS |= dict.fromkeys(("mid_block_only_cross_attention", "cross_attention_norm"))
IMAGE_DEFAULTS |= dict.fromkeys(("center_input_sample", "only_cross_attention", "dual_cross_attention"), False)
IMAGE_DEFAULTS |= dict.fromkeys(("resnet_skip_time_act", "class_embeddings_concat"), False)
IMAGE_DEFAULTS |= {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "dropout": 0.0,
    "upcast_attention": (False, True, None),  # our softmax is float32 in any case
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "addition_embed_type_num_heads": 64,
}


# The keys that all families have.
KEYS = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "norm_eps")
KEYS += ("cross_attention_dim", "down_block_types", "up_block_types")


def common(config: Config, kind: str) -> dict[str, Any]:
    """Returns the arguments that all families have; `kind` is in the names of a config's levels, such as "3D".

    Raises:
        InputError: another kind of level, or a way up that does not mirror the way down.
    """
    attending, plain = f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"
    down, up = config["down_block_types"], config["up_block_types"]
    for name in down:
        if name not in (attending, plain):
            raise InputError(f"down_block_types: {name} is not implemented; {attending} and {plain} are")
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    if list(up) != mirrored:
        raise InputError(f"up_block_types={list(up)} must mirror the way down: {mirrored}")
    epsilon = config.get("norm_eps", 1e-5)
    return dict(
        channels_in=config["in_channels"],
        channels_out=config["out_channels"],
        widths=tuple(config["block_out_channels"]),
        blocks=same_everywhere(config, "layers_per_block"),
        groups=config.get("norm_num_groups", 32),
        stem="conv",
        resample="conv",
        text_width=same_everywhere(config, "cross_attention_dim"),
        epsilon=epsilon,
        space_conv=dict(kind="residual", groups=config.get("norm_num_groups", 32), epsilon=epsilon),
        time_attention=False,
    )


def attention(config: Config, heads: Sequence[int], kind: str = "transformer", **arguments: Any) -> dict[str, Any]:
    """Fills an attention slot at the levels that have attention; the middle has the heads of the last level."""
    fillings = [dict(kind=kind, heads=n, groups=config.get("norm_num_groups", 32), **arguments) for n in heads]
    attends = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    down = [filling if attend else None for filling, attend in zip(fillings, attends, strict=True)]
    return {"down": down, "middle": fillings[-1]}


def pointwise(config: Config) -> str:
    """Returns the pattern of pointwise convolutions: Stable Diffusion 1 has them at both ends of space transformers."""
    return r"shortcut/kernel$" if config.get("use_linear_projection") else r"shortcut/kernel$|space_attention/project_"


def per_level(config: Config, key: str) -> list[int]:
    """Returns one number for each level. Raises InputError for anything else."""
    value, levels = config[key], len(config["block_out_channels"])
    value = [value] * levels if isinstance(value, int) else list(value)
    if len(value) != levels or not all(isinstance(n, int) for n in value):
        raise InputError(f"{key}={config[key]} must be one number, or one for each of {levels} levels")
    return value


def same_everywhere(config: Config, key: str) -> int:
    """Returns a number that is the same at all levels. Raises InputError if levels differ."""
    value = config.get(key, 1)
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1 or not isinstance(value := values.pop(), int):
        raise InputError(f"{key}={config.get(key)} is not implemented: it must be the same at all levels")
    return value


def unet_names(**slots: str) -> Table:
    """Returns the table of a U-Net; `slots` has the published name of each slot's list of blocks."""
    table = [
        (r"^stem/conv/", "conv_in/"),
        (r"^head/conv/", "conv_out/"),
        (r"^time/first/", "time_embedding/linear_1/"),
        (r"^time/second/", "time_embedding/linear_2/"),
        (r"^scalars/first/", "add_embedding/linear_1/"),
        (r"^scalars/second/", "add_embedding/linear_2/"),
        (r"^stem_attention/", "transformer_in/"),
        (r"^norm/", "conv_norm_out/"),
        (r"^(down|up)sample/(\d+)/", r"\1_blocks/\2/\1samplers/0/"),
    ]
    for slot, name in slots.items():
        table += [
            (rf"^(down|up)/(\d+)/(\d+)/{slot}/", rf"\1_blocks/\2/{name}/\3/"),
            (rf"^middle1/{slot}/", f"mid_block/{name}/0/"),
            (rf"^middle2/{slot}/", f"mid_block/{name}/1/"),
        ]
    return (*table, *BLOCKS)
