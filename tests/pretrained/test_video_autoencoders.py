"""The published causal autoencoders without PyTorch: against answers that were kept, in Open-Sora's files, to disk."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.pretrained import tiny_autoencoders
from tests.pretrained.networks import numbers
from tests.pretrained.tiny_autoencoders import compiled
from tests.pretrained.tiny_open_sora import OPEN_SORA, TEMPORAL, autoencoder_tensors
from tests.pretrained.tiny_video_autoencoders import (
    GOLDEN,
    VIDEO_AUTOENCODERS,
    abstract_of,
    inputs,
    shapes_of,
    tensors_of,
)
from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.folder import Weights, write_folder
from vdm_jax.pretrained.load import load_codec
from vdm_jax.pretrained.names import load_params, torch_tensors
from vdm_jax.pretrained.parts import video_autoencoders as parts
from vdm_jax.pretrained.parts.autoencoders import translate as translate_images
from vdm_jax.pretrained.parts.video_autoencoders import load_module, translate, video_config

HERE = Path(__file__).parent
KEPT = HERE / "golden_video_autoencoders.npz"  # made by make_golden_video_autoencoders.py
FILE = "diffusion_pytorch_model.safetensors"
WAN, HUNYUAN = (VIDEO_AUTOENCODERS[name][0] for name in ("wan, half in time", "hunyuan, odd sizes"))


def relative(found, kept):
    assert found.shape == kept.shape
    return np.linalg.norm(found - kept) / np.linalg.norm(kept)


def write(folder, config, tensors, file=FILE):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize("name", GOLDEN)
def test_answers_are_what_was_kept_and_tensors_are_saved_as_they_were(name, tmp_path):
    config, kept, (video, latents) = VIDEO_AUTOENCODERS[name][0], np.load(KEPT), inputs(name)
    written = write(tmp_path / "model", config, tensors_of(config))
    graphdef, params = load_module(written, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    encode, decode = compiled(graphdef)
    for found, what in zip(
        (*encode(params, video), decode(params, latents)), ("mean", "log_variance", "video"), strict=True
    ):
        found = found.clip(-1, 1) if what == "video" and name.startswith("wan") else found
        assert relative(found, kept[f"{name}/{what}"]) < 1e-5
    write_folder(tmp_path / "again", torch_tensors(params, translate(config)[1]), config)
    saved, again = (load_file(folder / FILE) for folder in (written, tmp_path / "again"))
    assert saved.keys() == again.keys()
    assert all((saved[name] == again[name]).all() for name in saved)


def test_wans_codec_goes_piece_by_piece_normalises_and_clips(tmp_path):
    config, kept, (video, _) = WAN, np.load(KEPT), inputs("wan, half in time")
    codec, params = load_codec(write(tmp_path / "model", config, tensors_of(config)))
    mean, std = (np.float32(config[key]) for key in ("latents_mean", "latents_std"))
    expected = (kept["wan, half in time/mean"] - mean) / std
    assert codec.shape(video.shape[1:]) == expected.shape[1:] == (5, 3, 4, 4)
    assert relative(codec.encode(params, video), expected) < 1e-5
    _, latents = inputs("wan, half in time")
    assert relative(codec.decode(params, (latents - mean) / std), kept["wan, half in time/video"]) < 1e-5
    with pytest.raises(InputError, match=r"frames=8 must be 1 \+ a multiple of 2 \(the autoencoder's\): 7 or 9"):
        codec.encode(params, video[:, :8])


def test_open_sora_2s_file_is_read_without_a_config(tmp_path, monkeypatch):
    sizes = {key: value for key, value in HUNYUAN.items() if key in parts._HUNYUAN}
    monkeypatch.setattr(parts, "_HUNYUAN", parts._HUNYUAN | sizes)
    save_file(tensors_of(HUNYUAN), tmp_path / "hunyuan_vae.safetensors")
    codec, params = load_codec(tmp_path / "hunyuan_vae.safetensors")
    video = inputs("hunyuan, odd sizes")[0][:, :, :8, :8]
    graphdef, _ = nnx.split(abstract_of(HUNYUAN))
    mean, _ = compiled(graphdef)[0](params, video)
    np.testing.assert_allclose(codec.encode(params, video), 0.476986 * mean, atol=1e-5)
    assert (codec.factors, codec.channels, codec.first_alone) == ((4, 4), 4, True)


# ------------------------------------------------------------------------------------------------ Open-Sora 1.2


def config_of_open_sora():
    return OPEN_SORA | {"_class_name": parts.OPEN_SORA}


@pytest.mark.parametrize("frames", [1, 7])
def test_open_soras_temporal_network_answers_as_the_original(temporal, frames, tmp_path):
    config = config_of_open_sora()
    assert {name: array.shape for name, array in temporal.items()} == shapes_of(config)
    write_folder(tmp_path, temporal)
    module, (_, naming) = abstract_of(config), translate(config)
    graphdef, params = nnx.split(module)[0], load_params(Weights(tmp_path), module, naming, where="the file")
    kept = {key: np.moveaxis(array, 1, -1) for key, array in np.load(TEMPORAL).items() if not key.startswith("w/")}
    encode, decode = compiled(graphdef)
    mean, log_variance = encode(params, kept[f"x{frames}"])
    assert relative(mean, kept[f"mean{frames}"]) < 1e-5
    assert relative(log_variance, kept[f"logvar{frames}"]) < 1e-5
    assert relative(decode(params, kept[f"mean{frames}"])[:, -frames:], kept[f"dec{frames}"]) < 1e-5


def test_open_soras_folder_is_two_networks_in_chunks_of_17_frames(temporal, tmp_path):
    shift, scale = (np.float32(OPEN_SORA[name]) for name in ("shift", "scale"))
    tensors = autoencoder_tensors(temporal)
    codec, params = load_codec(write(tmp_path / "vae", OPEN_SORA, tensors, "model.safetensors"))
    video = jnp.asarray(numbers("open sora", (1, 17 + 7, 4, 6, 3)))
    image_encode, image_decode = compiled(nnx.split(tiny_autoencoders.abstract_of(parts._IMAGES))[0])
    encode, decode = compiled(nnx.split(abstract_of(config_of_open_sora()))[0])
    frames = 0.18215 * image_encode(params["images"], video)[0]
    chunks = [encode(params["time"], part)[0] for part in (frames[:, :17], frames[:, 17:])]
    latents = jnp.asarray((np.concatenate(chunks, 1) - shift) / scale)
    assert codec.shape(video.shape[1:]) == latents.shape[1:] == (5 + 2, 2, 3, 4)
    assert relative(codec.encode(params, video), latents) < 1e-5
    frames = [decode(params["time"], chunk)[:, -count:] for chunk, count in zip(chunks, (17, 7), strict=True)]
    expected = image_decode(params["images"], np.concatenate(frames, 1) / np.float32(0.18215))
    assert relative(codec.decode(params, latents, 24), expected) < 1e-4
    assert codec.decode(params, latents).shape[1] == 25  # 8 frames have 2 latents as well

    for name, message in (("shift", "holds no shift"), ("temporal_vae.quant_conv.conv.bias", r"1 missing \(temporal")):
        fewer = {key: array for key, array in tensors.items() if key != name}
        with pytest.raises(InputError, match=message):
            load_codec(write(tmp_path / name, OPEN_SORA, fewer, "model.safetensors"))


def test_open_soras_networks_at_full_size():
    found = shapes_of(config_of_open_sora())
    assert (sum(map(math.prod, found.values())), len(found)) == (309_687_144, 267)
    arguments, _ = translate_images(parts._IMAGES)
    module = nnx.eval_shape(lambda: Autoencoder(**arguments, rngs=nnx.Rngs(0)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.split(module)[1])) == 83_653_863


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WAN | {"attn_scales": [1.0]}, r"AutoencoderKLWan: attn_scales=\[1.0\] is not implemented"),
        (WAN | {"something": 1}, "AutoencoderKLWan: something=1 is not known"),
        (WAN | {"dim_mult": [2, 2]}, r"dim_mult=\[2, 2\] must begin with 1"),
        (WAN | {"latents_std": [1.0]}, r"latents_std=\[1.0\] must be 4 numbers"),
        (HUNYUAN | {"temporal_compression_ratio": 8}, "temporal_compression_ratio=8 is not implemented"),
        (HUNYUAN | {"spatial_compression_ratio": 8}, "3 levels are too few"),
        (config_of_open_sora() | {"vae_temporal": {"type": "other"}}, "vae_temporal='other' is not implemented"),
        (config_of_open_sora() | {"cal_loss": True}, "cal_loss=True is not implemented"),
        (config_of_open_sora() | {"micro_frame_size": None}, "micro_frame_size=None is not implemented; it must be 17"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        parts._statistics(config, translate(config)[0]["latent_channels"])


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text("no json")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        video_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(WAN))
    with pytest.raises(InputError, match=r"chunk=2 is for Stable Video Diffusion's decoder, not for AutoencoderKLWan"):
        load_codec(tmp_path, chunk=2)
