"""Published models as pipelines: modes, defaults, and what is refused. Weights are random."""

import json
import shutil

import jax
import numpy as np
import pytest

import vdm_jax
from tests.pretrained.pipelines import write_pipeline
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import extend, generate
from vdm_jax.generation.published import load_published
from vdm_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("model") / "pipeline")


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.load(folder, frames=4, mesh=make_mesh(devices=jax.devices()[:1]))


def test_defaults_are_the_published_ones(folder, pipeline):
    assert load_published(folder).shape == (16, 16, 16, 3)
    assert (pipeline.shape, pipeline.codec.shape) == ((4, 16, 16, 3), (4, 8, 8, 4))
    settings = pipeline.settings
    assert (settings.steps, settings.guidance, settings.solver, settings.clip) == (50, 9.0, "ddim", None)
    assert dict(settings.grid_options) == {"steps_offset": 1, "final": "first"}


def test_prompts_are_followed_and_led_away_from(pipeline):
    def draw(prompt, **options):
        return pipeline([prompt], seed=1, steps=2, **options)

    video = draw("the cat")
    assert video.shape == (1, 4, 16, 16, 3)
    assert np.abs(video).max() <= 1
    np.testing.assert_array_equal(video, draw("the cat"))
    assert np.abs(video - draw("in 12")).max() > 1e-3
    assert np.abs(video - draw("the cat", negative="in 12")).max() > 1e-3
    np.testing.assert_allclose(draw("the cat", negative="the cat"), draw("the cat", guidance=1.0), atol=1e-3)


def test_what_is_known_of_the_pixels_is_kept(pipeline):
    rng = np.random.default_rng(0)
    known = rng.uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)
    *_, videos = generate(pipeline, ["the cat"], extend(known, 2, 8.0), steps=2)
    assert videos.shape == (1, 8, 16, 16, 3)
    np.testing.assert_array_equal(videos[0, :6], known)
    mask = np.zeros((1, 4, 16, 16, 1), bool)
    mask[:, :, :5] = True  # two rows of latents and a half
    latents = pipeline._latent(Known(jax.numpy.asarray(known[None, :4]), jax.numpy.asarray(mask)))
    assert np.asarray(latents.mask)[0, 0, :, 0, 0].tolist() == [True] * 2 + [False] * 6
    assert latents.video.shape == (1, 4, 8, 8, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"size": (16, 15)}, "size=16,15 must be multiples of 2"),
    ],
)
def test_sizes_that_do_not_fit(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_published(folder, **options)


def test_what_is_missing_is_named(folder, pipeline, tmp_path):
    with pytest.raises(InputError, match="enlarging a video by 2 needs a network that draws pixels"):
        pipeline(["the cat"], coarse=2)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "LMSDiscreteScheduler"}))
    with pytest.raises(InputError, match="scheduler LMSDiscreteScheduler is not implemented"):
        load_published(broken)
    shutil.rmtree(broken / "text_encoder")
    shutil.copytree(folder / "scheduler", broken / "scheduler", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"text_encoder.* cannot be read"):
        load_published(broken)
