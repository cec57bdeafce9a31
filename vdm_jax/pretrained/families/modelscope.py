"""ModelScope's text-to-video network (UNet3DConditionModel; Wang et al. 2023, arXiv 2308.06571)."""

from typing import Any

from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.families.unets import EVERYWHERE, IMAGE_DEFAULTS, KEYS, attention, common, unet_names
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming


def unet(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `UNet` and the names of its parameters."""
    arguments = common(config, "3D")
    # diffusers 0.15 wrote the image networks' keys, too; every transformer here has matrices at both ends.
    older = IMAGE_DEFAULTS | {"mid_block_type": "UNetMidBlock3DCrossAttn", "use_linear_projection": True}
    check_settings(config, {*KEYS, "attention_head_dim"}, EVERYWHERE | older)
    size, groups = config["attention_head_dim"], arguments["groups"]  # here the key does hold the size of a head
    heads = [width // size for width in config["block_out_channels"]]
    arguments |= {
        "time_conv": dict(kind="stack", groups=groups),
        "space_attention": attention(config, heads, head_size=size),
        "time_attention": attention(config, heads, head_size=size, across_frames=True),
        "stem_attention": dict(heads=8, head_size=size, groups=groups, across_frames=True),
    }
    slots = {"space_conv": "resnets", "time_conv": "temp_convs"}
    return arguments, Naming(unet_names(**slots, space_attention="attentions", time_attention="temp_attentions"))


MODELSCOPE = Family(unet, frames=16, side=32, guidance=9.0)
