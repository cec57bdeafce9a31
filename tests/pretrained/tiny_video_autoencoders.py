"""Tiny published causal autoencoders of videos: their configs, and weights and inputs that are functions of a name."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.pretrained.networks import numbers, tensor
from tests.pretrained.tiny_autoencoders import compiled
from vdm_jax.models.rngs import Keys
from vdm_jax.models.video_autoencoder import VideoAutoencoder
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.video_autoencoders import HUNYUAN, WAN, translate


def _wan(multipliers, halves, blocks=1, channels=4, **more):
    return {
        "_class_name": WAN,
        "base_dim": 4,
        "z_dim": channels,
        "dim_mult": multipliers,
        "num_res_blocks": blocks,
        "temperal_downsample": halves,
        "latents_mean": numbers("mean", (channels,)).tolist(),
        "latents_std": (1 + numbers("std", (channels,)) ** 2).tolist(),
    } | more


_RESIDUAL = dict(is_residual=True, decoder_base_dim=8, in_channels=12, out_channels=12, patch_size=2)


def _hunyuan(widths, side, **more):
    return {
        "_class_name": HUNYUAN,
        "block_out_channels": widths,
        "down_block_types": ["HunyuanVideoDownBlock3D"] * len(widths),
        "up_block_types": ["HunyuanVideoUpBlock3D"] * len(widths),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "spatial_compression_ratio": side,
    } | more


# Name → (config, batch, frames, rows, columns) of the video.
VIDEO_AUTOENCODERS = {
    "wan": (_wan([1, 2, 4, 4], [False, True, True]), 2, 9, 16, 24),
    "wan, one frame": (_wan([1, 2, 2], [True, True], channels=6), 2, 1, 8, 8),
    "wan, two blocks, odd sizes": (_wan([1, 2, 2], [True, True], blocks=2), 1, 5, 15, 10),
    "wan, half in time": (_wan([1, 2], [True]), 1, 9, 6, 8),
    "wan 2.2": (_wan([1, 2, 4, 4], [False, True, True], channels=6, **_RESIDUAL), 1, 9, 32, 16),
    "wan 2.2, two blocks": (_wan([1, 2, 2], [True, True], blocks=2, **_RESIDUAL), 2, 5, 16, 8),
    "wan 2.2, one frame": (_wan([1, 2, 2], [True, True], **_RESIDUAL), 2, 1, 8, 8),
    "hunyuan": (_hunyuan([8, 8, 16, 16], 8), 1, 9, 16, 24),
    "hunyuan, odd sizes": (_hunyuan([8, 8, 16], 4, layers_per_block=2), 2, 5, 13, 10),
    "hunyuan, one frame": (_hunyuan([8, 8, 16], 2, scaling_factor=0.5), 2, 1, 8, 6),
}
GOLDEN = ("wan, half in time", "wan 2.2, two blocks", "hunyuan, odd sizes")  # of which answers are kept


def inputs(name):
    """(a video, latents of its shape) for an autoencoder of the table."""
    config, batch, *size = VIDEO_AUTOENCODERS[name]
    arguments, _ = translate(config)
    graphdef, params = nnx.split(abstract_of(config))
    video = jnp.asarray(numbers(f"{name} video", (batch, *size, arguments["channels_in"])))
    mean, _ = jax.eval_shape(compiled(graphdef)[0], params, video)
    return video, jnp.asarray(numbers(f"{name} latents", mean.shape))


def abstract_of(config, **options):
    """The autoencoder of a config, without its numbers."""
    arguments, _ = translate(config)
    return nnx.eval_shape(lambda: VideoAutoencoder(**arguments, **options, rngs=Keys(0)))


def shapes_of(config):
    """Name → shape of all tensors, in the other format."""
    return torch_shapes(nnx.to_pure_dict(nnx.split(abstract_of(config))[1]), translate(config)[1])


def tensors_of(config):
    """All tensors of an autoencoder, each with the weight of its name."""
    return {name: tensor(name, shape) for name, shape in shapes_of(config).items()}
