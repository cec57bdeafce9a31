"""What a published family is: its network, and how its videos are sampled by default."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from vdm_jax.models.unet import UNet
from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.names import Naming
from vdm_jax.pretrained.schedulers import Schedule


@dataclasses.dataclass(frozen=True)
class Family:
    """A published family: how its network is read, and how its videos are sampled by default.

    Args:
        network: from a config.json to the arguments of `kind` and the names of its parameters.
        kind: of network.
        config: what a config.json leaves out, all of it where none is published.
        frames, side, fps: of a video; `side` is (rows, columns) of the latents, or one number for both.
        steps, guidance, known_noise: fields of `generation.settings.Settings`.
        scheduler: from the content of an image model's scheduler_config.json to the config with motion modules.
        first_frame: the network is conditioned on its first frame, not on text.
        text: arguments of `load.load_text`: how many tokens a text has, and what the network sees of padding.
        respect: how known pixels are kept by default (`generation.settings.Settings`).
        model: further fields of `Model`.
        at_size: from the shape of a video to fields of `Model` that depend on it.
        schedule: of a family whose folders have no scheduler.
    """

    network: Callable[..., tuple[dict[str, Any], Naming]]
    kind: Callable[..., nnx.Module] = UNet
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: int = 1
    side: Sequence[int] | int = 64
    fps: float = 8.0
    steps: int = 50
    guidance: float = 7.5
    known_noise: float = 0.0
    scheduler: Callable[[Config], Config] = lambda config: config
    first_frame: bool = False
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    respect: str = "replace"
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    at_size: Callable[[tuple[int, ...]], Mapping[str, Any]] = lambda shape: {}
    schedule: Schedule | None = None
