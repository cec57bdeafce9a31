"""Stable Diffusion 1 and 2 (UNet2DConditionModel; Rombach et al. 2022): an image network.

Frames of a video do not see each other.
"""

from typing import Any

from vdm_jax.pretrained.families.unets import (
    EVERYWHERE,
    IMAGE_DEFAULTS,
    Family,
    attention,
    common,
    per_level,
    pointwise,
    same_everywhere,
    unet_names,
)
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming


def unet(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `UNet` and the names of its parameters."""
    shared = common(config, "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    heads = per_level(config, "attention_head_dim")  # the key is misnamed: it is the number of heads
    known = {*shared.keys, "attention_head_dim", "use_linear_projection", "transformer_layers_per_block"}
    check_settings(config, known, EVERYWHERE | IMAGE_DEFAULTS)
    layers = same_everywhere(config, "transformer_layers_per_block")
    table = unet_names(space_conv="resnets", space_attention="attentions")
    return shared.arguments | {"space_attention": attention(shared, heads, layers=layers)}, Naming(
        table, pointwise(config)
    )


STABLE_DIFFUSION = Family(unet)
