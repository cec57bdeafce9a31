"""Networks with a time for each frame: known frames at t = 0, and frames that follow each other in a pyramid."""

import numpy as np
import pytest

from tests.generation.runs import on_one, write_run
from vdm_jax import Pipeline, load
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import make_mesh

PROMPTS, OPTIONS = ["a", "b", "clip 4"], {"seed": 3, "batch_size": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained with known frames at t = 0."""
    folder = tmp_path_factory.mktemp("times")
    return write_run(folder, network={"patch_time": 1}, mixture={"first_k": 1.0}, tell="times")


@pytest.fixture(scope="module")
def pipeline(run):
    return on_one(run)


def frames_known(seed, *frames):
    """Returns a video of which some frames are known, another for each prompt."""
    video = np.random.default_rng(seed).uniform(-1, 1, (3, 4, 8, 8, 3)).astype(np.float32)
    return Known(video, np.isin(np.arange(4), frames)[None, :, None, None, None] & np.ones((1, 4, 8, 8, 1), bool))


def draw(pipeline, known=None, **options):
    return np.concatenate(list(pipeline.batches(PROMPTS, known=known, **OPTIONS | options)))


@pytest.fixture(scope="module")
def drawn(pipeline):
    return draw(pipeline, frames_known(0, 0, 2))


def test_known_frames_are_kept_bit_for_bit_and_show_in_the_rest(pipeline, drawn):
    assert (pipeline.model.tell, pipeline.model.time_per_frame, pipeline.settings.respect) == ("times", True, "times")
    known = frames_known(0, 0, 2)
    np.testing.assert_array_equal(drawn[:, [0, 2]], known.video[:, [0, 2]])
    other = draw(pipeline, frames_known(1, 0, 2))
    assert np.abs(other - drawn)[:, [1, 3]].max((1, 2, 3, 4)).min() > 1e-3
    hidden = Known(np.where(known.mask, known.video, 7), known.mask)
    np.testing.assert_array_equal(draw(pipeline, hidden), drawn)
    replaced = draw(pipeline, known, respect="replace")
    assert np.abs(replaced - drawn)[:, [1, 3]].max((1, 2, 3, 4)).min() > 1e-3


def test_known_frames_may_be_drawn_too_or_be_noisy(pipeline, drawn):
    blended = draw(pipeline, frames_known(0, 0, 2), exact=False)
    assert (blended != drawn)[:, [0, 2]].mean() > 0.9
    np.testing.assert_allclose(blended[:, [1, 3]], drawn[:, [1, 3]], atol=1e-4)
    noisy = draw(pipeline, frames_known(0, 0, 2), known_noise=0.5)
    np.testing.assert_array_equal(noisy[:, [0, 2]], drawn[:, [0, 2]])
    assert np.abs(noisy - drawn)[:, [1, 3]].max((1, 2, 3, 4)).min() > 1e-3


def test_neither_the_batch_nor_the_devices_matter(pipeline, run, drawn):
    known = frames_known(0, 0, 2)
    np.testing.assert_allclose(draw(pipeline, known, batch_size=2), drawn, atol=1e-4)
    mesh = make_mesh(data=2, context=2, tensor=2)
    spread = Pipeline(load(run, mesh=mesh), mesh)
    np.testing.assert_allclose(draw(spread, known), drawn, atol=1e-3)


def test_where_nothing_is_known_the_video_is_drawn_as_without(pipeline):
    plain = draw(pipeline)
    np.testing.assert_allclose(draw(pipeline, frames_known(0)), plain, atol=1e-4)
    np.testing.assert_array_equal(draw(pipeline, pyramid=0), plain)


def test_a_pyramid_draws_one_frame_after_the_other(pipeline):
    plain, known = draw(pipeline), frames_known(0, 0)
    for pyramid in (1, 2):
        videos = draw(pipeline, pyramid=pyramid)
        assert np.isfinite(videos).all()
        assert np.abs(videos - plain).max((1, 2, 3, 4)).min() > 1e-3
        continued = draw(pipeline, known, pyramid=pyramid)
        np.testing.assert_array_equal(continued[:, 0], known.video[:, 0])
        assert np.abs(continued - videos)[:, 1:].max((1, 2, 3, 4)).min() > 1e-3
    # From a delay of all steps on, the first frame is complete before any other frame moves.
    first = draw(pipeline, pyramid=2)[:, 0]
    np.testing.assert_allclose(draw(pipeline, pyramid=3)[:, 0], first, atol=1e-4)


def test_independent_times_in_training_are_all_that_a_pyramid_needs(tmp_path):
    pipeline = on_one(write_run(tmp_path, network={"patch_time": 1}, objective={"time_per_frame": True}))
    assert (pipeline.model.tell, pipeline.settings.respect) == ("nothing", "times")
    assert np.isfinite(draw(pipeline, pyramid=1, guidance=1.0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyramid": 1, "solver": "heun"}, "pyramid=1 needs solver='ddim', strength=1 and free_init=1"),
        ({"pyramid": 1, "free_init": 2}, "pyramid=1 needs solver='ddim', strength=1 and free_init=1"),
        ({"pyramid": 1, "strength": 0.5}, "pyramid=1 needs solver='ddim', strength=1 and free_init=1"),
        ({"respect": "concat"}, "respect='concat' needs a run whose network takes known pixels as channels"),
        ({"coarse": 2}, "cannot enlarge a video by 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pipeline, options, message):
    with pytest.raises(InputError, match=message) as error:
        pipeline.check(PROMPTS, **options)
    assert "\n" not in str(error.value)


def test_a_time_belongs_to_a_whole_frame(pipeline):
    mask = np.ones((1, 4, 8, 8, 1), bool)
    mask[:, :, :4] = False
    known = frames_known(0)._replace(mask=mask)
    with pytest.raises(InputError, match="respect='times' takes whole known frames; respect='replace' takes parts"):
        draw(pipeline, known)
    assert np.isfinite(draw(pipeline, known, respect="replace")).all()
