"""Lists the published families by the class name in a network's config.json; each has a file."""

from typing import Any

from vdm_jax.errors import InputError
from vdm_jax.pretrained.families.animatediff import ANIMATEDIFF
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.families.latte import LATTE
from vdm_jax.pretrained.families.modelscope import MODELSCOPE
from vdm_jax.pretrained.families.open_sora import OPEN_SORA
from vdm_jax.pretrained.families.open_sora_2 import OPEN_SORA_2
from vdm_jax.pretrained.families.stable_diffusion import STABLE_DIFFUSION
from vdm_jax.pretrained.families.stable_video_diffusion import STABLE_VIDEO_DIFFUSION
from vdm_jax.pretrained.families.wan import WAN
from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.names import Naming

FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": STABLE_DIFFUSION,
    "UNet3DConditionModel": MODELSCOPE,
    "UNetMotionModel": ANIMATEDIFF,
    "UNetSpatioTemporalConditionModel": STABLE_VIDEO_DIFFUSION,
    "LatteTransformer3DModel": LATTE,
    "STDiT3": OPEN_SORA,
    "Open_Sora_v2": OPEN_SORA_2,
    "WanTransformer3DModel": WAN,
}


def translate(config: Config, **motion: Any) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of the network and the names of its parameters for a config.json.

    `motion` are choices for motion modules that no config holds: per_frame_norm, window.

    Raises:
        InputError: an unknown family, or a setting that is not implemented.
    """
    name = config["_class_name"]
    if name not in FAMILIES:
        raise InputError(f"_class_name={name!r} must be one of {', '.join(FAMILIES)}")
    motion = {key: value for key, value in motion.items() if value}
    if motion and FAMILIES[name] is not ANIMATEDIFF:
        key, value = next(iter(motion.items()))
        option = f"free_noise={','.join(map(str, value))}" if key == "window" else f"{key}={value}"
        raise InputError(f"{option} needs a network with motion modules (AnimateDiff)")
    try:
        return FAMILIES[name].network(config, **motion)
    except KeyError as error:
        raise InputError(f"{name}: its config must have {error}") from error
