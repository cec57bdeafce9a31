"""FreeInit, FreeNoise and prompts that travel from frame to frame, against diffusers."""

import types
import warnings
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if find_spec("torch") is None:  # before what imports it
    pytest.skip("needs the parity extra", allow_module_level=True)


from tests.parity.test_pipelines import BETAS, NEGATIVE, ONE, PROMPT, noise, parts
from tests.parity.test_unets import call, theirs
from tests.pretrained.networks import UNETS, inputs, module_of, numbers, relative
from vdm_jax import Pipeline
from vdm_jax.diffusion.free_init import low_pass, refreshed
from vdm_jax.diffusion.free_noise import rescheduled
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import INITIAL, ROUND, SHUFFLE, gaussian
from vdm_jax.pretrained.load import load_published

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch
    from diffusers.pipelines import free_init_utils, free_noise_utils

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

SEED, FRAMES, WINDOW = 3, 12, (8, 4)
KEY = jax.random.fold_in(jax.random.key(SEED), 0)  # of the first video


@pytest.fixture
def pipe(tmp_path):
    """AnimateDiff of tiny parts, saved in `tmp_path / "pipeline"`."""
    scheduler = diffusers.DDIMScheduler(
        **BETAS, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1
    )
    adapter = diffusers.MotionAdapter(block_out_channels=(16, 32), motion_norm_num_groups=4, motion_max_seq_length=8)
    unet = theirs(UNETS["animatediff"][0] | {"sample_size": 8})
    pipe = diffusers.AnimateDiffPipeline(unet=unet, motion_adapter=adapter, scheduler=scheduler, **parts(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipeline")
    return pipe


def ours(folder, **options):
    return Pipeline(load_published(folder / "pipeline", mesh=ONE, **options), ONE)


def expected(pipe, prompt, frames, **options):
    arguments = {"negative_prompt": NEGATIVE, "num_frames": frames, "num_inference_steps": 4, "guidance_scale": 7.5}
    arguments |= {"height": 16, "width": 16, "output_type": "np"}
    video = np.asarray(pipe(prompt, **arguments, **options).frames)
    assert video.std() > 0.1
    return video


def permutations(begins):
    """In the place of torch.randperm, ours for the frames that begin there, one after the other."""
    begins = iter(begins)

    def permutation(count, generator=None):
        key = jax.random.fold_in(jax.random.fold_in(KEY, SHUFFLE), next(begins))
        return torch.from_numpy(np.array(jax.random.permutation(key, count)))

    return permutation


def test_three_rounds_of_free_init(pipe, tmp_path, monkeypatch):
    pipeline = ours(tmp_path, frames=6)
    rounds = iter([1, 2])

    def fresh(shape, **_):
        key = jax.random.fold_in(jax.random.fold_in(KEY, ROUND), next(rounds))
        z = np.array(gaussian(key[None], INITIAL, pipeline.model.latent_shape, np.float32))
        return torch.from_numpy(z).permute(0, 4, 1, 2, 3)

    monkeypatch.setattr(free_init_utils, "randn_tensor", fresh)
    drawn = pipeline([PROMPT], seed=SEED, steps=4, negative=NEGATIVE, free_init=3)
    once = expected(pipe, PROMPT, 6, latents=noise(SEED, pipeline.model.latent_shape))
    pipe.enable_free_init(num_iters=3)
    found = expected(pipe, PROMPT, 6, latents=noise(SEED, pipeline.model.latent_shape))
    assert next(rounds, None) is None
    assert relative((drawn + 1) / 2, found) < 1e-4
    assert relative(once, found) > 0.01


@pytest.mark.parametrize("shape", [(16, 8, 12), (5, 7, 9)])
def test_the_filter_of_free_init(shape):
    """An odd length has it half a frequency off, as published: there what it passes is not real, and its part is."""
    x, fresh = (numbers(name, (2, *shape, 3)) for name in ("x", "fresh"))
    arguments = {"device": "cpu", "filter_type": "butterworth", "order": 4}
    cut_offs = {"spatial_stop_frequency": 0.25, "temporal_stop_frequency": 0.25}
    pipe, theirs = diffusers.AnimateDiffPipeline, [torch.from_numpy(a).permute(0, 4, 1, 2, 3) for a in (x, fresh)]
    keep = pipe._get_free_init_freq_filter(None, (1, 3, *shape), **arguments, **cut_offs)
    np.testing.assert_allclose(np.fft.fftshift(low_pass(*shape)[..., 0]), keep[0, 0].numpy(), atol=1e-6)
    mixed = pipe._apply_freq_filter(None, *theirs, keep).permute(0, 2, 3, 4, 1).numpy()
    found = refreshed(jnp.zeros(x.shape), jnp.asarray(x), jnp.asarray(fresh), make_process("flow"))  # σ = 1, α = 0
    np.testing.assert_allclose(found, mixed, atol=1e-5)


@pytest.mark.parametrize("frames", [12, 13])
def test_motion_modules_see_windows(frames, pipe):
    """13 frames leave over one."""
    pipe.enable_free_noise(*WINDOW)
    given = inputs("animatediff") | {"z": numbers("free noise", (2, frames, 8, 8, 4))}
    module = module_of(UNETS["animatediff"][0], window=WINDOW)
    found = np.asarray(jax.jit(lambda given: module(**given))(given))
    assert relative(found, call(pipe.unet, given)) < 1e-5


@pytest.mark.parametrize(
    "prompt", [PROMPT, {0: PROMPT, 5: "the cat", 9: "in a room"}], ids=["one prompt", "a travelling prompt"]
)
def test_a_video_of_many_windows_and_one_that_travels(prompt, pipe, tmp_path, monkeypatch):
    pipeline = ours(tmp_path, frames=FRAMES, free_noise=WINDOW)
    monkeypatch.setattr(free_noise_utils, "randn_tensor", lambda *_, **__: noise(SEED, pipeline.model.latent_shape))
    monkeypatch.setattr(torch, "randperm", permutations([0]))
    pipe.enable_free_noise(*WINDOW)
    found = expected(pipe, prompt, FRAMES)
    travel = prompt if isinstance(prompt, str) else " | ".join(f"{at}: {text}" for at, text in prompt.items())
    drawn = pipeline([travel], seed=SEED, steps=4, negative=NEGATIVE)
    assert relative((drawn + 1) / 2, found) < 1e-4


@pytest.mark.parametrize(("frames", "length", "stride"), [(12, 8, 4), (23, 8, 4), (22, 5, 3), (9, 4, 4), (8, 8, 2)])
def test_the_order_of_noise(frames, length, stride, monkeypatch):
    """Also where frames repeat others that repeat frames."""
    monkeypatch.setattr(torch, "randperm", permutations(range(0, frames - length, stride)))
    first = numbers("noise", (1, frames, 2, 2, 3))
    mixin = types.SimpleNamespace(
        _free_noise_context_length=length,
        _free_noise_context_stride=stride,
        _free_noise_noise_type="shuffle_context",
        vae_scale_factor=1,
    )
    monkeypatch.setattr(
        free_noise_utils, "randn_tensor", lambda *_, **__: torch.from_numpy(first.copy()).permute(0, 4, 1, 2, 3)
    )
    prepare = diffusers.AnimateDiffPipeline._prepare_latents_free_noise
    expected = prepare(mixin, 1, 3, frames, 2, 2, torch.float32, "cpu").permute(0, 2, 3, 4, 1).numpy()
    np.testing.assert_array_equal(rescheduled(jnp.asarray(first), KEY[None], length, stride), expected)
    assert frames == length or np.abs(expected - first).max() > 0.1
