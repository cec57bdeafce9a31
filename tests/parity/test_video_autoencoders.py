"""The causal autoencoders compute what diffusers' modules compute, and have the same parameters at full size."""

import json
import math
import warnings

import numpy as np
import pytest

from tests.pretrained.networks import tensor
from tests.pretrained.tiny_autoencoders import compiled
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS, inputs, shapes_of
from vdm_jax.pretrained.folder import write_folder
from vdm_jax.pretrained.load import load_codec
from vdm_jax.pretrained.names import torch_tensors
from vdm_jax.pretrained.parts.video_autoencoders import HUNYUAN, WAN, load_module, translate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def theirs(config):
    """The module of a config with the weights of its parameters' names."""
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    module.load_state_dict(
        {name: torch.from_numpy(tensor(name, tuple(p.shape))) for name, p in module.named_parameters()}
    )
    return module.eval()


def to_torch(video):
    return torch.from_numpy(np.array(video)).permute(0, 4, 1, 2, 3)


def from_torch(video):
    return video.permute(0, 2, 3, 4, 1).numpy()


@torch.no_grad()
def encode(module, video):
    """Their mean and log variance."""
    found = module.encode(to_torch(video)).latent_dist
    return from_torch(found.mode()), from_torch(found.logvar)


@torch.no_grad()
def decode(module, latents):
    return from_torch(module.decode(to_torch(latents)).sample)


def settings(module):
    return {key: value for key, value in module.config.items() if not key.startswith("_")}


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("name", VIDEO_AUTOENCODERS)
def test_the_same_weights_give_the_same_answer_and_come_back(name, tmp_path):
    config = VIDEO_AUTOENCODERS[name][0]
    module = theirs(config)
    module.save_pretrained(tmp_path / "theirs")
    graphdef, params = load_module(tmp_path / "theirs")
    our_encode, our_decode = compiled(graphdef)
    video, latents = inputs(name)
    for ours, expected in zip(our_encode(params, video), encode(module, video), strict=True):
        assert relative(ours, expected) < 1e-5
    ours, expected = np.asarray(our_decode(params, latents)), decode(module, latents)
    if config["_class_name"] == WAN:
        assert (np.abs(expected) == 1).mean() < 0.5  # it clips, which hides errors
        ours = ours.clip(-1, 1)
    assert relative(ours, expected) < 1e-5

    write_folder(tmp_path / "ours", torch_tensors(params, translate(config)[1]), json.loads(module.to_json_string()))
    back, info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert settings(back) == settings(module)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["wan", "wan 2.2, two blocks", "hunyuan, odd sizes"])
def test_a_codec_normalises_as_their_pipelines(name, tmp_path):
    module = theirs(VIDEO_AUTOENCODERS[name][0])
    module.save_pretrained(tmp_path)
    codec, params = load_codec(tmp_path)
    video, _ = inputs(name)
    if name.startswith("hunyuan"):
        video = video[:, :, :12, :8]
        mean, std = 0.0, 1 / module.config.scaling_factor
    else:
        mean, std = (np.float32(module.config[key]) for key in ("latents_mean", "latents_std"))
    expected = (encode(module, video)[0] - mean) / std
    latents = codec.encode(params, video)
    assert relative(latents, expected) < 1e-5
    assert latents.shape[1:] == codec.shape(video.shape[1:])
    assert relative(codec.decode(params, latents), decode(module, expected * std + mean)) < 1e-5


FULL = {
    126_892_531: dict(_class_name=WAN),
    704_688_668: dict(
        _class_name=WAN,
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ),
    246_478_803: dict(_class_name=HUNYUAN),
}


@pytest.mark.parametrize("count", FULL)
def test_full_size_names_and_shapes_are_theirs(count):
    kind = FULL[count]["_class_name"]
    with torch.device("meta"):
        module = getattr(diffusers, kind)(**{key: value for key, value in FULL[count].items() if key != "_class_name"})
    found = shapes_of(json.loads(module.to_json_string()))
    assert found == {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert sum(map(math.prod, found.values())) == count
