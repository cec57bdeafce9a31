"""Published models as pipelines: modes, defaults, and what is refused. Weights are random."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import vdm_jax
from tests.pretrained.pipelines import write_image_to_video, write_lora, write_pipeline
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import extend, generate, keyframes
from vdm_jax.generation.published import load_published
from vdm_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("model") / "pipeline")


@pytest.fixture(scope="module")
def pipeline(folder):
    return vdm_jax.load(folder, frames=4, mesh=make_mesh(devices=jax.devices()[:1]))


def test_defaults_are_the_published_ones(folder, pipeline):
    assert load_published(folder, mesh=pipeline.mesh).shape == (16, 16, 16, 3)
    assert (pipeline.shape, pipeline.codec.shape) == ((4, 16, 16, 3), (4, 8, 8, 4))
    settings = pipeline.settings
    assert (settings.steps, settings.guidance, settings.solver, settings.clip) == (50, 9.0, "ddim", None)
    assert dict(settings.grid_options) == {"steps_offset": 1, "final": "first"}


def test_an_image_model_that_learns_to_move_predicts_what_it_did(tmp_path):
    folder = write_pipeline(tmp_path / "image", "image")
    scheduler = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    loaded = load_published(folder, new_motion={}, mesh=make_mesh(devices=jax.devices()[:1]))
    assert (loaded.prediction, loaded.settings.grid) == ("v", "linspace")


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


def test_every_device_decodes_its_own_videos(folder, pipeline):
    spread, held = vdm_jax.load(folder, frames=4, mesh=make_mesh(devices=jax.devices()[:2])), []

    def decode(params, latents):
        held.append({shard.data.shape[0] for shard in latents.addressable_shards})
        return spread.codec.decode(params, latents)

    codec = dataclasses.replace(spread.codec, decode=decode)
    videos = dataclasses.replace(spread, codec=codec)(["the cat", "in 12"], seed=1, steps=2)
    assert held == [{1}]
    np.testing.assert_allclose(videos[:1], pipeline(["the cat"], seed=1, steps=2), atol=1e-4)


def test_loras_change_both_networks_and_the_origin(folder, pipeline, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    both, unet = write_lora(tmp_path / "both.safetensors"), write_lora(tmp_path / "unet.safetensors", text=False)
    plain, origins = dict(jax.tree_util.tree_leaves_with_path(pipeline.params)), {pipeline.origin}
    for loras, changes in (([(both, 1)], 2), ([(unet, 0.5), (str(unet), -2.0)], 1)):
        loaded = vdm_jax.load(folder, frames=4, mesh=mesh, loras=loras)
        leaves = jax.tree_util.tree_leaves_with_path(loaded.params)
        assert sum(bool(np.abs(leaf - plain[path]).max() > 1e-6) for path, leaf in leaves) == changes
        origins.add(loaded.origin)
    assert len(origins) == 3


def test_prompts_travel_from_frame_to_frame(pipeline):
    def draw(prompt, **options):
        return next(pipeline.batches([prompt], seed=1, steps=2, **options))

    plain = draw("the cat")
    np.testing.assert_array_equal(draw("0: the cat"), plain)  # bit for bit
    assert np.abs(draw("0: the cat | 3: in 12") - plain).max() > 1e-3
    np.testing.assert_allclose(draw("0: the cat | 3: in 12", frame=3), draw("in 12"), atol=1e-3)


def test_free_noise_is_animatediffs(folder, tmp_path):
    with pytest.raises(InputError, match="free_noise=4,2 needs a network with motion modules"):
        load_published(folder, free_noise=(4, 2))
    motion = write_pipeline(tmp_path / "motion", "animatediff")
    mesh = make_mesh(devices=jax.devices()[:1])
    assert load_published(motion, free_noise=(8, 4), frames=21, mesh=mesh).shape[0] == 21
    for options, message in (
        ({"frames": 7, "free_noise": (8, 4)}, "frames=7 must be at least 8"),
        ({"frames": 9, "free_noise": (9, 4)}, "free_noise=9,4 must be a context length of at most 8 frames"),
        ({"frames": 9}, "frames=9 must be at most 8"),
    ):
        with pytest.raises(InputError, match=message):
            load_published(motion, mesh=mesh, **options)


def test_what_is_known_of_the_pixels_is_kept(pipeline):
    rng = np.random.default_rng(0)
    known = rng.uniform(-1, 1, (6, 16, 16, 3)).astype(np.float32)
    *_, videos = generate(pipeline, ["the cat"], extend(known, 2, 8.0), steps=2)
    assert videos.shape == (1, 8, 16, 16, 3)
    np.testing.assert_array_equal(videos[0, :6], known)
    *_, others = generate(pipeline, ["the cat"], extend(-known, 2, 8.0), steps=2)
    assert np.abs(others[0, 6:] - videos[0, 6:]).max() > 1e-3  # the rest follows from it
    mask = np.zeros((1, 4, 16, 16, 1), bool)
    mask[:, :, :5] = True  # two rows of latents and a half
    latents = pipeline._latent(Known(jax.numpy.asarray(known[None, :4]), jax.numpy.asarray(mask)))
    assert np.asarray(latents.mask)[0, 0, :, 0, 0].tolist() == [True] * 2 + [False] * 6
    assert latents.video.shape == (1, 4, 8, 8, 4)


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return write_image_to_video(tmp_path_factory.mktemp("svd") / "pipeline")


@pytest.fixture(scope="module")
def animator(svd):
    return load_published(svd, frames=3, size=(8, 16), chunk=2, mesh=make_mesh(devices=jax.devices()[:1]))


def test_a_picture_begins_the_video_and_decides_the_rest(animator):
    assert (animator.shape, animator.fps, animator.settings.guidance) == ((3, 8, 16, 3), 7.0, 3.0)
    one, other = np.random.default_rng(0).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)

    def draw(picture, **changes):
        *_, (video,) = generate(animator, [""], keyframes({0: picture}, 3, animator.fps), steps=2, **changes)
        return video

    video = draw(one)
    np.testing.assert_array_equal(video[0], one)
    assert np.isfinite(video).all()
    assert np.abs(video).max() <= 1
    others = (
        draw(other),
        draw(one, known_noise=0.5),
        draw(one, guidance=6.0),
        draw(one, seed=1),
        draw(one, clip="static"),
    )
    for changed in others:
        assert np.abs(video - changed)[1:].max() > 1e-3
    assert np.abs(draw(one, exact=False)[0] - one).max() > 1e-3


def test_a_video_goes_on_from_its_last_frame(animator):
    known = np.random.default_rng(1).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)
    *_, (video,) = generate(animator, [""], extend(known, 4, 7.0), context=1, steps=2)
    np.testing.assert_array_equal(video[:2], known)
    assert video.shape == (6, 8, 16, 3)
    with pytest.raises(InputError, match="--extend by a multiple of 2 with --context 1"):
        list(generate(animator, [""], extend(known, 3, 7.0), context=1, steps=2))


def test_what_an_animator_of_pictures_cannot_do(animator, tmp_path):
    picture = np.zeros((8, 16, 3), np.float32)
    with pytest.raises(InputError, match="its first frame is to be known, and no other"):
        list(generate(animator, [""], keyframes({1: picture}, 3, 7.0), steps=2, partial=tmp_path / "x.npy"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="its first frame is to be known, and no other"):
        animator([""], steps=2)
    with pytest.raises(InputError, match="prompt='a cat': this model takes no text"):
        animator(["a cat"], steps=2)
    with pytest.raises(InputError, match="negative prompt 'a cat': this model takes no text"):
        list(animator.batches([""], negative="a cat", steps=2))
    for change in ({"strength": 0.5}, {"free_init": 3}):
        with pytest.raises(InputError, match="strength, respect and free_init are not for this model"):
            animator.check([""], **change)


def test_a_lora_for_texts_is_not_for_an_animator(svd, tmp_path):
    file = write_lora(tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=r"x\.safetensors changes a text encoder \(1 modules\), and UNetSpatio.* has none"
    ):
        load_published(svd, loras=[(file, 1.0)])


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
