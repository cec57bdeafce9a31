"""Published folders as models that a pipeline draws with: defaults, modes, and what is refused. Weights are random."""

import dataclasses
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.pretrained.pipelines import write_image_to_video, write_lora, write_pipeline
from vdm_jax import Pipeline, load
from vdm_jax.diffusion.known import Known
from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import extend, keyframes
from vdm_jax.generation.windows import generate
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.load import default_dtype, load_network, load_published

ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("model") / "pipeline")


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline(load(folder, frames=4, mesh=ONE), ONE)


def test_defaults_are_the_published_ones(folder, pipeline):
    assert load_published(folder, mesh=ONE).shape == (16, 16, 16, 3)
    assert load_published(folder, at_most=5, mesh=ONE).shape == (5, 16, 16, 3)
    model = pipeline.model
    assert (model.shape, model.latent_shape) == ((4, 16, 16, 3), (4, 8, 8, 4))
    assert model.text_per_frame
    assert model.loaded == {"network", "text", "codec"}
    settings = pipeline.settings
    assert (settings.steps, settings.guidance, settings.solver, settings.clip) == (50, 9.0, "ddim", None)
    assert dict(settings.grid_options) == {"steps_offset": 1, "final": "first"}


def test_models_compute_in_bfloat16_where_there_is_an_accelerator():
    tpu = mock.Mock(spec=Mesh, devices=np.array([mock.Mock(platform="tpu")]))
    assert (default_dtype(tpu), default_dtype(ONE)) == ("bfloat16", "float32")


def test_another_scheduler(folder, pipeline):
    model = load(folder, frames=4, mesh=ONE, scheduler="unipc")
    assert (model.process, model.prediction) == (pipeline.model.process, "eps")
    assert model.identity != pipeline.model.identity
    settings = Pipeline(model, ONE).settings
    assert (settings.solver, settings.grid, settings.eta) == ("unipc", "linspace", 0)
    assert dict(settings.grid_options) == {"spare": True}
    with pytest.raises(InputError, match="scheduler=best is no scheduler_config"):
        load(folder, frames=4, mesh=ONE, scheduler="best")


def test_a_whole_pipeline_keeps_its_scheduler(tmp_path):
    folder = write_pipeline(tmp_path / "motion", "animatediff")
    assert load_network(folder, mesh=ONE)[0]["process"] == make_process("stable_diffusion")


def test_an_image_model_that_learns_to_move_predicts_what_it_did(tmp_path):
    folder = write_pipeline(tmp_path / "image", "image")
    scheduler = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    fields, *_ = load_network(folder, new_motion={}, mesh=ONE)
    assert (fields["prediction"], fields["sampling"]["grid"]) == ("v", "linspace")
    with pytest.raises(InputError, match=r"image draws images; a motion adapter makes them move \(motion_adapter\)"):
        load_published(folder)


def test_prompts_change_the_video_and_negative_ones_too(pipeline):
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
    mesh, rows = make_mesh(devices=jax.devices()[:2]), []
    model = load(folder, frames=4, mesh=mesh)

    def decode(params, latents, frames):
        rows.append({shard.data.shape[0] for shard in latents.addressable_shards})
        return model.codec.decode(params, latents, frames)

    model_that_notes = dataclasses.replace(model, codec=dataclasses.replace(model.codec, decode=decode))
    videos = Pipeline(model_that_notes, mesh)(["the cat", "in 12"], seed=1, steps=2)
    assert rows == [{1}]
    np.testing.assert_allclose(videos[:1], pipeline(["the cat"], seed=1, steps=2), atol=1e-4)


def test_loras_change_both_networks_and_the_origin(folder, pipeline, tmp_path):
    both, unet = write_lora(tmp_path / "both.safetensors"), write_lora(tmp_path / "unet.safetensors", text=False)
    plain, origins = dict(jax.tree_util.tree_leaves_with_path(pipeline.model.params)), {pipeline.model.origin}
    for loras, changes in (([(both, 1)], 2), ([(unet, 0.5), (str(unet), -2.0)], 1)):
        loaded = load(folder, frames=4, mesh=ONE, loras=loras)
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
    model = load_published(motion, free_noise=(8, 4), frames=21, mesh=ONE)
    assert (model.shape[0], model.noise_window) == (21, (8, 4))
    for options, message in (
        ({"frames": 7, "free_noise": (8, 4)}, "frames=7 must be at least 8"),
        ({"frames": 9, "free_noise": (9, 4)}, "free_noise=9,4 must be a context length of at most 8 frames"),
        ({"frames": 9}, "frames=9 must be at most 8"),
    ):
        with pytest.raises(InputError, match=message):
            load_published(motion, mesh=ONE, **options)


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
    model = pipeline.model
    latents = model.known_latents(model.params, Known(jnp.asarray(known[None, :4]), jnp.asarray(mask)))
    assert np.asarray(latents.mask)[0, 0, :, 0, 0].tolist() == [True] * 2 + [False] * 6
    assert latents.video.shape == (1, 4, 8, 8, 4)


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    return write_image_to_video(tmp_path_factory.mktemp("svd") / "pipeline")


@pytest.fixture(scope="module")
def animator(svd):
    return Pipeline(load_published(svd, frames=3, size=(8, 16), chunk=2, mesh=ONE), ONE)


def test_a_picture_begins_the_video_and_decides_the_rest(animator):
    model = animator.model
    assert (model.shape, model.fps, model.tell, animator.settings.guidance) == ((3, 8, 16, 3), 7.0, "first_frame", 3.0)
    assert animator.takes_guidance
    picture, other = np.random.default_rng(0).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)

    def draw(picture, **changes):
        *_, (video,) = generate(animator, [""], keyframes({0: picture}, 3, model.fps), steps=2, **changes)
        return video

    video = draw(picture)
    np.testing.assert_array_equal(video[0], picture)
    assert np.isfinite(video).all()
    assert np.abs(video).max() <= 1
    others = (
        draw(other),
        draw(picture, known_noise=0.5),
        draw(picture, guidance=6.0),
        draw(picture, seed=1),
        draw(picture, clip="static"),
    )
    for changed in others:
        assert np.abs(video - changed)[1:].max() > 1e-3
    assert np.abs(draw(picture, exact=False)[0] - picture).max() > 1e-3


def test_a_video_goes_on_from_its_last_frame(animator):
    known = np.random.default_rng(1).uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)
    *_, (video,) = generate(animator, [""], extend(known, 4, 7.0), context=1, steps=2)
    np.testing.assert_array_equal(video[:2], known)
    assert video.shape == (6, 8, 16, 3)
    with pytest.raises(InputError, match="--extend by a multiple of 2 with --context 1"):
        list(generate(animator, [""], extend(known, 3, 7.0), context=1, steps=2))


def test_what_an_animator_of_pictures_cannot_do(animator, tmp_path):
    picture = np.zeros((8, 16, 3), np.float32)
    with pytest.raises(InputError, match="its first frame must be known, and no other"):
        list(generate(animator, [""], keyframes({1: picture}, 3, 7.0), steps=2, partial=tmp_path / "x.npy"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="its first frame must be known, and no other"):
        animator([""], steps=2)
    with pytest.raises(InputError, match="prompt='a cat': this model takes no text"):
        animator(["a cat"], steps=2)
    with pytest.raises(InputError, match="negative prompt 'a cat': this model takes no text"):
        list(animator.batches([""], negative="a cat", steps=2))
    for change in ({"strength": 0.5}, {"free_init": 3}, {"respect": "reconstruct"}):
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
        ({"size": (16, 15)}, r"width=15 must be a multiple of 2 \(the autoencoder's\)"),
        ({"chunk": 2}, "chunk=2 is for Stable Video Diffusion, not for UNet3DConditionModel"),
        ({"motion": 0}, "motion=0 is for Stable Video Diffusion, not for UNet3DConditionModel"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_published(folder, **options)


@pytest.mark.parametrize(("option", "value"), [("dtyp", "bfloat16"), ("dtype", "bf16")])
def test_an_unknown_option_is_one_line(folder, option, value):
    with pytest.raises(InputError, match=f"pipeline: .*{value if option == 'dtype' else option}"):
        load(folder, mesh=ONE, **{option: value})


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
