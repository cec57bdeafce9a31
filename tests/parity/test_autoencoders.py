"""The published autoencoders compute what diffusers' modules compute, and have the same parameters at full size."""

import functools
import json
import math
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.networks import numbers, tensor
from tests.pretrained.tiny_autoencoders import AUTOENCODERS, compiled, inputs, shapes_of
from vdm_jax.models.autoencoder import decode_in_chunks
from vdm_jax.pretrained.folder import write_folder
from vdm_jax.pretrained.load import load_codec
from vdm_jax.pretrained.names import torch_tensors
from vdm_jax.pretrained.parts.autoencoders import load_autoencoder, translate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
IN_TIME = "AutoencoderKLTemporalDecoder"


def theirs(config):
    """The module of a config with the weights of its parameters' names."""
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    weights = {name: torch.from_numpy(tensor(name, tuple(p.shape))) for name, p in module.named_parameters()}
    module.load_state_dict(weights)
    return module.eval()


def images(video):
    """B T H W C as theirs, (B T) C H W."""
    return torch.from_numpy(np.array(video)).flatten(0, 1).permute(0, 3, 1, 2)


def video(images, frames):
    return images.permute(0, 2, 3, 1).unflatten(0, (-1, frames)).numpy()


@torch.no_grad()
def encode(module, given):
    """Their mean and log variance."""
    found = module.encode(images(given)).latent_dist
    return video(found.mode(), given.shape[1]), video(found.logvar, given.shape[1])


@torch.no_grad()
def decode(module, latents):
    frames = latents.shape[1]
    kwargs = {"num_frames": frames} if type(module).__name__ == IN_TIME else {}
    return video(module.decode(images(latents), **kwargs).sample, frames)


def settings(module):
    return {key: value for key, value in module.config.items() if not key.startswith("_")}


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.fixture
def pair(tmp_path):
    """(theirs, ours, our encode, our decode) of a name, ours loaded from their folder."""

    def make(name):
        module = theirs(AUTOENCODERS[name][0])
        module.save_pretrained(tmp_path / "theirs")
        loaded = load_autoencoder(tmp_path / "theirs")
        return module, loaded, *(functools.partial(call, loaded.params) for call in compiled(loaded.graphdef))

    return make


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_same_weights_give_the_same_answer_and_come_back(name, pair, tmp_path):
    module, loaded, our_encode, our_decode = pair(name)
    given, latents = inputs(name)
    for ours, expected in zip(our_encode(given), encode(module, given), strict=True):
        assert relative(ours, expected) < 1e-5
    assert relative(our_decode(latents), decode(module, latents)) < 1e-5
    assert load_codec(tmp_path / "theirs")[0].scale == module.config.scaling_factor

    write_folder(tmp_path / "ours", torch_tensors(loaded.params, translate(loaded.config)[1]), loaded.config)
    back, info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert settings(back) == settings(module)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), value.numpy(), err_msg=key)


def test_chunks_in_time_are_decoded_as_their_pipeline_decodes_them(pair):
    module, _, _, our_decode = pair("in time")
    latents = jnp.asarray(numbers("chunks", (1, 5, 4, 4, 4)))
    pipeline = diffusers.StableVideoDiffusionPipeline.__new__(diffusers.StableVideoDiffusionPipeline)
    object.__setattr__(pipeline, "vae", module)
    scaled = images(latents * module.config.scaling_factor).unflatten(0, (1, 5))
    with torch.no_grad():
        expected = pipeline.decode_latents(scaled, 5, decode_chunk_size=2).permute(0, 2, 3, 4, 1).numpy()
    assert relative(decode_in_chunks(our_decode, latents, 2), expected) < 1e-5
    assert relative(decode_in_chunks(our_decode, latents, 5), expected) > 1e-3


FULL = {"AutoencoderKL": 83_653_863, IN_TIME: 97_742_847}


@pytest.mark.parametrize("kind", FULL)
def test_full_size_names_and_shapes_are_theirs(kind):
    levels = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    levels |= {"down_block_types": ["DownEncoderBlock2D"] * 4}
    if kind != IN_TIME:
        levels |= {"up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        module = getattr(diffusers, kind)(**levels)
    found = shapes_of(json.loads(module.to_json_string()))
    assert found == {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert sum(map(math.prod, found.values())) == FULL[kind]
