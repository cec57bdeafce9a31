"""Whole pipelines of published models, folder to video, draw what diffusers draws from the same noise."""

import json
import warnings

import jax
import numpy as np
import PIL.Image
import pytest

from tests.parity.test_unets import theirs, with_weights
from tests.pretrained.make_golden_clip import write_vocabulary
from tests.pretrained.networks import UNETS, relative
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from vdm_jax import Pipeline
from vdm_jax.diffusion.sampler import INITIAL, gaussian
from vdm_jax.generation.modes import keyframes
from vdm_jax.generation.windows import generate
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.load import load_published

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch
    import transformers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
PROMPT, NEGATIVE = "a panda 12", "cat"
ONE = make_mesh(devices=jax.devices()[:1])


def parts(folder):
    """Tiny text encoder, tokenizer and autoencoder, all parameters random."""
    write_vocabulary(folder / "words")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "words")
    config = transformers.CLIPTextConfig(
        vocab_size=1000,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    return {
        "vae": with_weights(autoencoder),
        "text_encoder": with_weights(transformers.CLIPTextModel(config)),
        "tokenizer": tokenizer,
    }


def noise(seed, shape):
    """The noise that our pipeline begins with, as diffusers wants it."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return torch.from_numpy(np.array(gaussian(key[None], INITIAL, shape, np.float32))).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("name", ["modelscope", "animatediff"])
def test_five_steps_from_the_same_noise(name, tmp_path):
    unet = theirs(UNETS[name][0] | {"sample_size": 8})
    if name == "modelscope":
        scheduler = diffusers.DDIMScheduler(
            **BETAS, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        pipe = diffusers.TextToVideoSDPipeline(unet=unet, scheduler=scheduler, **parts(tmp_path))
    else:
        scheduler = diffusers.DDIMScheduler(
            **BETAS, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1
        )
        adapter = diffusers.MotionAdapter(block_out_channels=(16, 32), motion_norm_num_groups=4)
        pipe = diffusers.AnimateDiffPipeline(unet=unet, motion_adapter=adapter, scheduler=scheduler, **parts(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipeline")
    ours = Pipeline(load_published(tmp_path / "pipeline", frames=4, mesh=ONE), ONE)
    guidance = ours.settings.guidance
    drawn = ours([PROMPT], seed=3, steps=5, negative=NEGATIVE)
    arguments = {"negative_prompt": NEGATIVE, "num_frames": 4, "num_inference_steps": 5, "guidance_scale": guidance}
    arguments |= {"height": 16, "width": 16, "output_type": "np", "latents": noise(3, ours.model.latent_shape)}
    expected = np.asarray(pipe(PROMPT, **arguments).frames).reshape(drawn.shape)
    assert expected.std() > 0.1
    assert relative((drawn + 1) / 2, expected) < 1e-4


def test_a_picture_comes_to_life_as_in_stable_video_diffusion(tmp_path):
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=32,
        hidden_act="gelu",
        projection_dim=16,
    )
    parts = {
        "unet": theirs(UNETS["svd"][0]),
        "vae": theirs(AUTOENCODERS["in time"][0]),
        "image_encoder": with_weights(transformers.CLIPVisionModelWithProjection(vision)),
        "feature_extractor": transformers.CLIPImageProcessor(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **BETAS,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            steps_offset=1,
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    }
    pipe = diffusers.StableVideoDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "svd")
    size, frames = (16, 32), 4
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    ours = Pipeline(load_published(tmp_path / "svd", frames=frames, size=size, chunk=3, motion=40, mesh=ONE), ONE)
    task = keyframes({0: np.asarray(picture, np.float32) / 127.5 - 1}, frames, ours.model.fps)
    *_, drawn = generate(ours, [""], task, seed=2, steps=5, known_noise=0.0, exact=False)
    latents = noise(2, ours.model.latent_shape).permute(0, 2, 1, 3, 4)
    arguments = {
        "height": size[0],
        "width": size[1],
        "num_frames": frames,
        "num_inference_steps": 5,
        "decode_chunk_size": 3,
    }
    arguments |= {"motion_bucket_id": 40, "noise_aug_strength": 0.0, "output_type": "np", "latents": latents}
    expected = np.asarray(pipe(picture, **arguments).frames)
    assert expected.std() > 0.05
    assert relative((drawn + 1) / 2, expected) < 1e-4


def test_an_image_model_with_a_motion_adapter(tmp_path):
    """The folder's own scheduler gives way to AnimateDiff's as diffusers documents it."""
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=8,
    )
    image, adapter = theirs(UNETS["image"][0] | {"sample_size": 8}), with_weights(adapter)
    everything = parts(tmp_path)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.PNDMScheduler(**BETAS, beta_schedule="scaled_linear", set_alpha_to_one=False)
    pipe = diffusers.StableDiffusionPipeline(unet=image, scheduler=scheduler, **everything, **nothing)
    pipe.save_pretrained(tmp_path / "image")
    adapter.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "image" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    model = load_published(tmp_path / "image", motion_adapter=tmp_path / "adapter", frames=4, mesh=ONE)
    ours = Pipeline(model, ONE)
    drawn = ours([PROMPT], seed=1, steps=4)
    documented = {"beta_schedule": "linear", "clip_sample": False, "timestep_spacing": "linspace", "steps_offset": 1}
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "image", subfolder="scheduler", **documented)
    assert not scheduler.config.set_alpha_to_one
    pipe = diffusers.AnimateDiffPipeline(unet=image, motion_adapter=adapter, scheduler=scheduler, **everything)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_frames": 4, "num_inference_steps": 4, "guidance_scale": 7.5, "height": 16, "width": 16}
    expected = pipe(PROMPT, **arguments, output_type="np", latents=noise(1, ours.model.latent_shape)).frames
    assert relative((drawn + 1) / 2, np.asarray(expected).reshape(drawn.shape)) < 1e-4
