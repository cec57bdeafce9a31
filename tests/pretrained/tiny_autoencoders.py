"""Tiny published autoencoders: their configs, and weights and inputs that are functions of a name."""

import functools
import json

import jax
import jax.numpy as jnp
from flax import nnx

from tests.pretrained.networks import numbers, tensor
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.autoencoders import translate


def _levels(widths, blocks, **more):
    levels = len(widths)
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "layers_per_block": blocks,
    } | more


def _image(widths, blocks, **more):
    up = {"up_block_types": ["UpDecoderBlock2D"] * len(widths)}
    return _levels(widths, blocks, _class_name="AutoencoderKL", norm_num_groups=4, **up, **more)


def _in_time(widths, blocks):  # the reference fixes 32 groups
    return _levels(widths, blocks, _class_name="AutoencoderKLTemporalDecoder")


# Name → (config, batch, frames, rows, columns) of the video.
AUTOENCODERS = {
    "image": (_image([8, 16], 1), 2, 1, 16, 12),
    "image, three levels, odd sizes": (_image([8, 8, 16], 2), 2, 2, 19, 14),
    "image, no linear layers": (
        _image([8, 16], 2, use_quant_conv=False, use_post_quant_conv=False, latent_channels=6, scaling_factor=0.5),
        1,
        3,
        8,
        8,
    ),
    "in time": (_in_time([32, 64], 2), 2, 4, 8, 8),
    "in time, one layer": (_in_time([32, 64], 1), 2, 2, 9, 8),
    "in time, three levels": (_in_time([32, 32, 64], 2), 1, 3, 13, 8),
}


def inputs(name):
    """(a video, latents) for an autoencoder of the table."""
    config, batch, frames, *size = AUTOENCODERS[name]
    halvings = len(config["block_out_channels"]) - 1
    small = [n // 2**halvings for n in size]
    channels = config.get("latent_channels", 4)
    video = numbers(f"{name} video", (batch, frames, *size, 3))
    return jnp.asarray(video), jnp.asarray(numbers(f"{name} latents", (batch, frames, *small, channels)))


def abstract_of(config, **options):
    """The autoencoder of a config, without its numbers."""
    arguments, _ = translate(config)
    return nnx.eval_shape(lambda: Autoencoder(**arguments, **options, rngs=Keys(0)))


def shapes_of(config):
    """Name → shape of all tensors, in the other format."""
    return torch_shapes(nnx.to_pure_dict(nnx.split(abstract_of(config))[1]), translate(config)[1])


def tensors_of(config):
    """All tensors of an autoencoder, each with the weight of its name."""
    return dict(_tensors_of(json.dumps(config)))


@functools.cache
def _tensors_of(config):
    return {name: tensor(name, shape) for name, shape in shapes_of(json.loads(config)).items()}


@functools.cache
def compiled(graphdef):
    """The jitted (encode, decode) of an autoencoder's parameters and a video or latents."""
    return (
        jax.jit(lambda params, video: nnx.merge(graphdef, params).encode(video)),
        jax.jit(lambda params, latents: nnx.merge(graphdef, params).decode(latents)),
    )
