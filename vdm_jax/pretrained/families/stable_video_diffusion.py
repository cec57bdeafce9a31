"""Stable Video Diffusion (UNetSpatioTemporalConditionModel; Blattmann et al. 2023, arXiv 2311.15127).

The network is conditioned on the first frame of a video in two ways. The latents of that frame are more channels next
to the noisy latents, and its CLIP embedding takes the place of a text. In terms of generation modes the first frame is
known, and no other frame.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.models.codec import Codec
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.text.clip import clip_image_input
from vdm_jax.pretrained.families import unets
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming
from vdm_jax.typing import Array, Float, Params


def unet(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `UNet` and the names of its parameters."""
    arguments = unets.common(config, "SpatioTemporal")
    width, total = "addition_time_embed_dim", "projection_class_embeddings_input_dim"
    known = {*unets.KEYS, "num_attention_heads", "transformer_layers_per_block", width, total}
    check_settings(config, known, unets.EVERYWHERE)
    heads = unets.per_level(config, "num_attention_heads")
    layers = unets.same_everywhere(config, "transformer_layers_per_block")
    attention = unets.attention(config, heads, "space_time", layers=layers)

    def convs(kind: str) -> dict[str, Any]:
        # The epsilons of the published code, which differ by kind of block.
        exact, coarse = (dict(kind=kind, groups=arguments["groups"], epsilon=epsilon) for epsilon in (1e-6, 1e-5))
        down = [exact if filling else coarse for filling in attention["down"]]
        return {"down": down, "middle": coarse, "up": [exact] * len(down)}

    arguments |= {
        "space_conv": convs("residual"),
        "time_conv": convs("blended"),
        "space_attention": attention,
        "scalars": (config[width], config[total] // config[width]),
        "epsilon": 1e-5,
    }
    table = unets.unet_names(space_conv="resnets", time_conv="resnets", space_attention="attentions")
    inside = (
        (r"^((down|up)/\d+/\d+|middle\d)/space_conv/", r"\1/space_conv/spatial_res_block/"),
        (r"^((down|up)/\d+/\d+|middle\d)/time_conv/block/", r"\1/time_conv/temporal_res_block/"),
    )
    return arguments, Naming((*inside, *table))


def growing_weight(guidance: Array | float, steps: int, frames: int) -> list[Array]:
    """Returns a weight that grows over the frames."""
    return [jnp.linspace(1.0, guidance, frames)]


STABLE_VIDEO_DIFFUSION = Family(
    unet,
    frames=14,
    side=(72, 128),
    fps=7.0,
    steps=25,
    guidance=3.0,
    known_noise=0.02,
    first_frame=True,
    model=dict(weights=growing_weight),
)


@dataclasses.dataclass(frozen=True)
class FirstFrame:
    """Conditions on the first frame; its parameters are params["image"].

    `image` is the CLIP encoder of pictures of `size` pixels, `motion` the motion bucket (more for more motion).
    """

    image: nnx.GraphDef
    size: int
    codec: Codec
    fps: float
    motion: float | int

    def __call__(
        self, params: Params, frame: Float[Array, "B H W C"], noise: Float[Array, "B H W C"], level, frames: int
    ) -> Conditions:
        """Returns the conditions of a first frame in [-1, 1].

        `level` is the standard deviation of the noise on it, `frames` the number of frames of a latent video.
        """
        embedding = nnx.merge(self.image, params["image"])(clip_image_input(frame, self.size))
        # The latents of the picture are not scaled, as published.
        latents = self.codec.encode(params["codec"], (frame + level * noise)[:, None]) / self.codec.scale
        mask = jnp.ones((len(frame), 1, 1), bool)
        text = Text(embedding[:, None, None], mask, embedding[:, None])
        # The network was trained with the frame rate − 1.
        scalars = jnp.stack([jnp.float32(self.fps - 1), jnp.float32(self.motion), jnp.asarray(level, jnp.float32)])
        scalars = jnp.broadcast_to(scalars, (len(frame), 3))
        return Conditions(text, jnp.repeat(latents, frames, axis=1), scalars)

    def null(self, conditions: Conditions) -> Conditions:
        """Returns the unconditional branch: zeros in place of embedding and latents."""
        text = jax.tree.map(lambda x: x if x.dtype == bool else jnp.zeros_like(x), conditions.text)
        return conditions._replace(text=text, known=jnp.zeros_like(conditions.known))
