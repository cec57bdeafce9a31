"""A video depends on its prompt, the seed and its number, and on nothing else."""

import dataclasses
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.runs import on_one, write_run
from tests.tiny_config import get_config
from vdm_jax import Pipeline, load
from vdm_jax.build import build
from vdm_jax.diffusion.known import Known
from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError
from vdm_jax.generation.settings import Settings
from vdm_jax.parallel.mesh import make_mesh

PROMPTS = ["a", "b", "b", "clip 4", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pipeline(run):
    return on_one(run)


@pytest.fixture(scope="module")
def channels_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("channels"), mixture={"first": 1.0})


@pytest.fixture(scope="module")
def channels(channels_run):
    """A network that takes known pixels as channels."""
    return on_one(channels_run)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A network that enlarges videos by two."""
    return on_one(write_run(tmp_path_factory.mktemp("larger"), mixture={"everything": 1.0}, downsample=2))


def spread_over(run, mesh):
    return Pipeline(load(run, mesh=mesh), mesh)


@pytest.fixture(scope="module")
def videos(pipeline):
    return pipeline(PROMPTS, seed=3, batch_size=5)


def test_a_run_folder_is_all_that_sampling_needs(pipeline, videos):
    model = pipeline.model
    assert (model.step, model.fps, model.shape) == (12, 8.0, (4, 8, 8, 3))
    assert pipeline.settings == Settings(steps=2)
    assert videos.shape == (5, 4, 8, 8, 3)
    assert videos.dtype == np.float32
    assert np.abs(videos).max() <= 1


def test_the_batch_does_not_matter(pipeline, videos):
    np.testing.assert_allclose(pipeline(PROMPTS, seed=3, batch_size=2), videos, atol=1e-4)


def test_a_part_of_a_list_is_drawn_as_in_the_whole(pipeline, videos):
    (part,) = pipeline.batches(PROMPTS[2:4], seed=3, batch_size=5, first=2)
    np.testing.assert_allclose(part, videos[2:4], atol=1e-4)


def test_eight_devices_draw_the_videos_of_one(run, videos):
    mesh = make_mesh(data=4, tensor=2)
    np.testing.assert_allclose(spread_over(run, mesh)(PROMPTS, seed=3), videos, atol=1e-4)


def test_seed_number_and_prompt_each_make_another_video(pipeline, videos):
    assert np.abs(pipeline(PROMPTS, seed=4, batch_size=5) - videos).max((1, 2, 3, 4)).min() > 0.1
    assert np.abs(videos[1] - videos[2]).max() > 0.1  # one prompt, two numbers
    changed = pipeline(["b", *PROMPTS[1:]], seed=3, batch_size=5)
    assert np.abs(changed[0] - videos[0]).max() > 0.01
    np.testing.assert_array_equal(changed[1:], videos[1:])


def test_rounds_of_free_init_end_with_another_video_on_any_number_of_devices(pipeline, run, videos):
    again = pipeline(PROMPTS, seed=3, batch_size=5, free_init=3)
    assert np.abs(again - videos).max((1, 2, 3, 4)).min() > 0.1
    spread = spread_over(run, make_mesh(data=4, context=2))
    np.testing.assert_allclose(spread(PROMPTS, seed=3, free_init=3), again, atol=1e-3)
    (kept,) = pipeline.batches(PROMPTS, seed=3, batch_size=5, free_init=2, known=half_known(0))
    np.testing.assert_array_equal(kept[..., :4, :], half_known(0).video[..., :4, :])
    flow = Pipeline(dataclasses.replace(pipeline.model, process=make_process("flow")), pipeline.mesh)
    with pytest.raises(InputError, match="free_init=2 needs a process that leaves something of the video at t = 1"):
        flow.check(["a"], free_init=2)


def test_weight_1_is_the_network_without_guidance_and_others_differ(pipeline, videos):
    unguided = pipeline(PROMPTS, seed=3, batch_size=5, guidance=1)
    nearly = pipeline(PROMPTS, seed=3, batch_size=5, guidance=1 + 1e-6)
    np.testing.assert_allclose(unguided, nearly, atol=1e-4)
    assert np.abs(unguided - videos)[:4].max() > 1e-3
    np.testing.assert_allclose(unguided[4], videos[4], atol=1e-4)  # guided from "" to "": nowhere


def test_one_compilation_serves_all_prompts_seeds_and_weights(pipeline, run, videos, caplog):
    same = spread_over(run, pipeline.mesh)
    with jax.log_compiles(), warnings.catch_warnings(action="ignore"):
        same(["x"] * 5, seed=9, batch_size=5, guidance=5)
        same(["y"] * 8, seed=2**32 - 1, batch_size=5, guidance=0.5)
    assert not [m for m in caplog.messages if "Compiling jit(draw)" in m]
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING), warnings.catch_warnings(action="ignore"):
        same(["x"] * 5, batch_size=5, steps=3)
    assert sum("Compiling jit(draw)" in m for m in caplog.messages) == 1


def half_known(seed):
    """The left half of every frame, another for each prompt."""
    video = np.random.default_rng(seed).uniform(-1, 1, (5, 4, 8, 8, 3)).astype(np.float32)
    return Known(video, np.broadcast_to(np.arange(8)[:, None] < 4, (1, 4, 8, 8, 1)))


@pytest.mark.parametrize("respect", ["replace", "reconstruct"])
def test_what_is_known_is_kept_and_shows_in_the_rest(pipeline, run, videos, respect):
    known = half_known(0)
    options = {"seed": 3, "batch_size": 5, "respect": respect, "reconstruction": 1.0}
    (drawn,) = pipeline.batches(PROMPTS, known=known, **options)
    np.testing.assert_array_equal(drawn[..., :4, :], known.video[..., :4, :])
    (other,) = pipeline.batches(PROMPTS, known=half_known(1), **options)
    assert np.abs(other - drawn)[..., 4:, :].max((1, 2, 3, 4)).min() > 1e-3
    if respect == "replace":
        pairs = pipeline.batches(PROMPTS, known=known, **options | {"batch_size": 2})
        np.testing.assert_allclose(np.concatenate(list(pairs)), drawn, atol=1e-3)
        return
    spread = spread_over(run, make_mesh(data=4, tensor=2))
    (drawn8,) = spread.batches(PROMPTS, known=known, **options)
    np.testing.assert_allclose(drawn8, drawn, atol=1e-3)


def test_a_weak_strength_stays_near_the_video_and_each_block_has_its_noise(pipeline):
    known = Known(half_known(0).video, np.zeros((1, 4, 8, 8, 1), bool))

    def draw(**options):
        return next(pipeline.batches(PROMPTS, known=known, batch_size=5, steps=8, **options))

    weak, whole = draw(strength=1e-3), draw(block=0)
    np.testing.assert_allclose(weak, known.video, atol=0.05)
    assert np.abs(whole - known.video).mean() > 3 * np.abs(weak - known.video).mean()
    assert np.abs(draw(block=1) - whole).max((1, 2, 3, 4)).min() > 0.1


def test_a_network_with_known_channels_keeps_what_is_known_and_sees_it(channels, channels_run):
    assert channels.settings.respect == "concat"
    known, options = half_known(0), {"seed": 3, "batch_size": 5}
    (drawn,) = channels.batches(PROMPTS, known=known, **options)
    np.testing.assert_array_equal(drawn[..., :4, :], known.video[..., :4, :])
    (unseen,) = channels.batches(PROMPTS, known=known, respect="replace", **options)
    assert np.abs(unseen - drawn)[..., 4:, :].max((1, 2, 3, 4)).min() > 1e-3
    (noisy,) = channels.batches(PROMPTS, known=known, known_noise=0.5, **options)
    np.testing.assert_array_equal(noisy[..., :4, :], known.video[..., :4, :])
    assert np.abs(noisy - drawn)[..., 4:, :].max((1, 2, 3, 4)).min() > 1e-3
    (blended,) = channels.batches(PROMPTS, known=known, exact=False, **options)
    assert (blended != known.video)[..., :4, :].mean() > 0.9
    np.testing.assert_allclose(blended[..., 4:, :], drawn[..., 4:, :], atol=1e-5)  # the rest is drawn as before
    spread = spread_over(channels_run, make_mesh(data=2, context=2, tensor=2))
    (drawn8,) = spread.batches(PROMPTS, known=known, **options)
    np.testing.assert_allclose(drawn8, drawn, atol=1e-3)
    # Nothing known is the same in both forms.
    nothing = Known(known.video, np.zeros((1, 4, 8, 8, 1), bool))
    np.testing.assert_allclose(
        next(channels.batches(PROMPTS, known=nothing, **options)), channels(PROMPTS, **options), atol=1e-4
    )


def test_super_resolution_follows_the_small_video_with_or_without_training_for_it(larger, pipeline):
    video = np.kron(half_known(0).video[:, :, ::2, ::2], np.ones((1, 1, 2, 2, 1), np.float32))
    known = Known(video, np.ones((1, 1, 1, 1, 1), bool))
    other = Known(-video, known.mask)
    (drawn,) = larger.batches(PROMPTS, known=known, coarse=2, batch_size=5)
    (opposite,) = larger.batches(PROMPTS, known=other, coarse=2, batch_size=5)
    assert np.abs(drawn - opposite).max((1, 2, 3, 4)).min() > 1e-3
    assert (drawn != video).any((1, 2, 3, 4)).all()

    def distance(weight):
        options = {"coarse": 2, "respect": "reconstruct", "reconstruction": weight, "clip": None, "steps": 4}
        (drawn,) = pipeline.batches(PROMPTS, known=known, batch_size=5, guidance=1.0, **options)
        small = drawn.reshape(5, 4, 4, 2, 4, 2, 3).mean((3, 5))
        return np.square(small - video[:, :, ::2, ::2]).mean()

    assert distance(0.5) < distance(0.0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "pipeline",
            {"respect": "concat"},
            r"needs a run whose network takes known pixels as channels",
        ),
        ("pipeline", {"respect": "times"}, "respect='times' needs a run whose network takes a time for each frame"),
        ("pipeline", {"pyramid": 1}, "pyramid=1 needs a run whose network takes a time for each frame"),
        ("channels", {"coarse": 2}, r"'concat' cannot enlarge a video by 2: this run was trained for 1 .* reconstruct"),
        ("larger", {}, "this run enlarges videos by 2"),
        ("larger", {"coarse": 2, "respect": "replace"}, "cannot enlarge a video by 2: take concat or reconstruct"),
    ],
)
def test_what_a_network_was_not_trained_for_is_refused(request, name, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        request.getfixturevalue(name).check(["a"], **arguments)
    assert "\n" not in str(error.value)


def test_what_is_known_is_no_reason_to_compile_again(pipeline, channels, caplog):
    for respect in ("replace", "reconstruct", "concat"):
        options = {"batch_size": 5, "respect": respect}
        chosen = channels if respect == "concat" else pipeline
        with jax.log_compiles(), caplog.at_level(logging.WARNING), warnings.catch_warnings(action="ignore"):
            for seed, weight in ((0, 1.0), (1, 5.0)):
                caplog.clear()
                next(chosen.batches(PROMPTS, known=half_known(seed), block=seed, reconstruction=weight, **options))
        assert not [m for m in caplog.messages if "Compiling jit(draw)" in m]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["x" * 16]}, "text of 16 bytes must have at most 15"),
        ({"negative": "x" * 16}, "text of 16 bytes must have at most 15"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"strength": 0.0}, "strength=0.0 must be above 0 and at most 1"),
        ({"respect": "obey"}, "respect='obey' must be one of replace, reconstruct, concat, times"),
        ({"pyramid": -1}, "pyramid=-1 must be at least 0"),
        ({"known_noise": 1.0}, "known_noise=1.0 must be at least 0 and below 1"),
        ({"reconstruction": -1.0}, "reconstruction=-1.0 must not be negative"),
        ({"free_init": 0}, "free_init=0 must be at least 1"),
        ({"free_init": 3, "strength": 0.5}, "free_init=3 begins with noise alone, and needs strength=1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"guidance": -1.0}, "guidance=-1.0 must not be negative"),
        ({"guidence": 3.0}, "guidence: no such setting; there are steps, solver"),
        ({"solver": "rk4"}, "'rk4' is unknown"),
        ({"eta": 0.5, "solver": "heun"}, "only ddim, dpmpp and tcd take it"),
        ({"grid": "leading"}, "need a discrete process"),
        ({"rescale": 2.0}, "rescale=2.0 must be between"),
        ({"interval": (0.5, 0.2)}, "interval="),
        ({"clip": "hard"}, "clip='hard' must be one of"),
        ({"guidance": "3"}, "{'guidance': '3'}: "),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_drawn(pipeline, arguments, words):
    with pytest.raises(InputError, match=words):
        pipeline.check(**{"prompts": ["a"]} | arguments)


def test_a_strength_without_a_video_to_begin_with_is_refused(pipeline):
    with pytest.raises(InputError, match=r"strength=0\.5 begins with a video, and none is known"):
        pipeline(["a"], strength=0.5)


def test_settings_may_be_lists_and_dictionaries():
    settings = Settings(interval=[0.2, 0.7], grid="karras", grid_options={"rho": 5.0})
    assert hash(settings) == hash(Settings(interval=(0.2, 0.7), grid="karras", grid_options=(("rho", 5.0),)))


def test_a_strided_solver_is_kept_on_a_complete_grid_alone():
    strided = {"solver_options": {"strided": True}, "grid": "linspace"}
    assert Settings(**strided).changed({"grid": "trailing"}).solver_options == (("strided", True),)
    for changes in ({"strength": 0.5}, {"grid": "karras"}):
        assert Settings(**strided).changed(changes).solver_options == ()
        assert Settings(**strided | changes).solver_options == ()


def test_settings_of_published_solvers():
    with pytest.raises(InputError, match="first_noise='two' must be one of total, sigma, one"):
        Settings(first_noise="two")
    with pytest.raises(InputError, match="exact=False needs another solver: pndm extrapolates"):
        Settings(solver="pndm", exact=False)


def test_options_belong_to_their_grid_and_solver():
    settings = Settings(grid="karras", grid_options={"rho": 5.0}, solver="dpmpp", solver_options={"order": 3})
    settings = settings.changed({"steps": 3, "first_noise": "sigma"})
    assert (settings.grid_options, settings.solver_options) == ((("rho", 5.0),), (("order", 3),))
    other = settings.changed({"grid": "log_snr"})
    assert (other.grid_options, other.first_noise, other.solver_options) == ((), "total", (("order", 3),))
    assert Settings(eta=1.0).changed({"solver": "ddim"}).eta == 1
    assert Settings(eta=1.0).changed({"solver": "heun"}).eta == 0
    assert settings.changed({"solver": "heun"}).solver_options == ()


def zeros(config):
    """Returns a pipeline of a config's network with parameters of 0."""
    model = build(config)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.params)
    return Pipeline(dataclasses.replace(model, params=params), make_mesh(devices=jax.devices()[:1]))


def test_a_network_without_text_takes_none_and_is_not_guided(monkeypatch):
    config = get_config()
    config.model.text = {"kind": "none"}
    pipeline, guided = zeros(config), []
    with pytest.raises(InputError, match="prompt='a cat': this model takes no text"):
        pipeline.check(["", "a cat"])
    with pytest.raises(InputError, match="negative prompt 'a cat': this model takes no text"):
        pipeline.check([""], negative="a cat")
    assert not pipeline.takes_guidance

    def compile(model, mesh, settings, guides, coarse):
        guided.append(guides)
        return lambda *_: jnp.zeros((1, *model.shape))

    monkeypatch.setattr("vdm_jax.generation.pipeline._compile", compile)
    pipeline([""], batch_size=1, guidance=3.0)
    assert guided == [False]


def test_frames_share_the_noise_that_the_process_has_them_share():
    config = get_config()
    config.objective.prediction = "eps"
    config.process.frame_correlation = 0.8
    # A network of zeros sees no noise, and so the signs of z as the video.
    pipeline = zeros(config)
    for rounds in (1, 2):
        videos = pipeline([""] * 16, steps=1, guidance=1.0, free_init=rounds)
        # Of two Gaussians that correlate by ρ, signs agree in ½ + asin(ρ)/π.
        assert np.mean(videos[:, 1:] == videos[:, :-1]) == pytest.approx(0.5 + np.arcsin(0.8) / np.pi, abs=0.03)
