"""Stable Diffusion 1 and 2 (UNet2DConditionModel; Rombach et al. 2022): an image network.

Frames of a video do not see each other.
"""

from typing import Any

from vdm_jax.pretrained.families import unets
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming


def unet(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `UNet` and the names of its parameters."""
    arguments = unets.common(config, "2D")
    heads = unets.per_level(config, "attention_head_dim")  # the key is misnamed: it is the number of heads
    known = {*unets.KEYS, "attention_head_dim", "use_linear_projection", "transformer_layers_per_block"}
    check_settings(config, known, unets.EVERYWHERE | unets.IMAGE_DEFAULTS)
    layers = unets.same_everywhere(config, "transformer_layers_per_block")
    arguments["space_attention"] = unets.attention(config, heads, layers=layers)
    table = unets.unet_names(space_conv="resnets", space_attention="attentions")
    return arguments, Naming(table, unets.pointwise(config))


STABLE_DIFFUSION = Family(unet)
