"""Whole pipelines of published transformers, folder to video, draw what diffusers draws from the same noise."""

import warnings

import jax
import numpy as np
import pytest

from tests.parity.test_pipelines import noise
from tests.parity.test_transformers import theirs
from tests.parity.test_unets import theirs as theirs_of
from tests.pretrained.make_golden_text import train_sentencepiece
from tests.pretrained.networks import relative
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from tests.pretrained.transformers import LATTE, WAN
from vdm_jax import Pipeline
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
ONE = make_mesh(devices=jax.devices()[:1])
PROMPT, NEGATIVE = "a red circle", "blue"
T5 = dict(d_model=12, d_ff=24, num_layers=2, num_heads=2, d_kv=6, feed_forward_proj="gated-gelu")


def text_parts(folder, kind, tokenizer, width):
    """A tiny text encoder with random parameters, and its tokenizer."""
    (folder / "words").mkdir()
    (folder / "words" / "spiece.model").write_bytes(train_sentencepiece(folder))
    words = getattr(transformers, tokenizer).from_pretrained(folder / "words", extra_ids=0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, tie_word_embeddings=False, **T5 | {"d_model": width})
    return {"text_encoder": randomised(getattr(transformers, f"{kind}EncoderModel")(config)), "tokenizer": words}


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def compare(pipe, folder, frames, size, picture=None, **arguments):
    """Draws five steps with both; `picture` is the first frame, in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    ours = Pipeline(load_published(folder, frames=frames, size=size, mesh=ONE), ONE)
    options = dict(seed=3, steps=5, negative=NEGATIVE)
    if picture is None:
        drawn = ours([PROMPT], **options)
    else:
        task = keyframes({0: 2 * picture - 1}, frames, ours.model.fps)
        *_, drawn = generate(ours, [PROMPT], task, respect="times", exact=False, **options)
        arguments["image"] = torch.from_numpy(picture).permute(2, 0, 1)[None]
    arguments |= dict(negative_prompt=NEGATIVE, num_inference_steps=5, guidance_scale=ours.settings.guidance)
    arguments |= dict(height=size[0], width=size[1], output_type="np", latents=noise(3, ours.model.latent_shape))
    frames = pipe(prompt=PROMPT, **arguments).frames
    expected = np.asarray(frames, np.float32).reshape(drawn.shape)
    expected = expected / 255 if expected.max() > 1.5 else expected
    assert expected.std() > 0.05
    return relative((drawn + 1) / 2, expected)


def test_latte(tmp_path):
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    parts = text_parts(tmp_path, "T5", "T5Tokenizer", 12) | {"vae": theirs_of(AUTOENCODERS["image"][0])}
    pipe = diffusers.LattePipeline(transformer=theirs(LATTE), scheduler=scheduler, **parts)
    options = dict(video_length=4, clean_caption=False)
    assert compare(pipe, tmp_path / "latte", 4, (16, 16), **options) < 1e-4


@pytest.mark.parametrize("animate", [False, True])
def test_wan(animate, tmp_path):
    sizes = dict(base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1)
    statistics = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.0, 2.0])
    vae = randomised(diffusers.AutoencoderKLWan(**sizes, **statistics))
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    parts = text_parts(tmp_path, "UMT5", "T5Tokenizer", 10) | {"vae": vae}
    parts |= dict(transformer=theirs(WAN), scheduler=scheduler)
    if animate:  # Wan 2.2 5B: the first frame is known, at time 0
        pipe = diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=True)
        picture = np.random.default_rng(0).uniform(size=(32, 48, 3)).astype(np.float32)
    else:
        pipe, picture = diffusers.WanPipeline(**parts), None
    assert compare(pipe, tmp_path / "wan", 5, (32, 48), picture, num_frames=5) < 1e-4
