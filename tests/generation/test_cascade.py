"""Cascades: each stage enlarges the videos of the stage before it, or doubles their frame rate."""

import numpy as np
import pytest
from tqdm import tqdm

from tests.generation.stand_in import FRAMES, SIZE, Counting
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.errors import InputError
from vdm_jax.generation.cascade import draw, plan
from vdm_jax.generation.modes import text_to_video

TASK = text_to_video((FRAMES, *SIZE, 1), 8.0)


def cascade(**first):
    """Returns three stages: a video, twice its frame rate, and twice its rows and columns."""
    faster = Counting(masks=MaskMixture({"every_nth": 1.0}))
    larger = Counting((FRAMES, 4, 6, 1), masks=MaskMixture({"everything": 1.0}, downsample=2))
    return [Counting(**first), faster, larger]


def quiet(**kwargs):
    return tqdm(disable=True, **kwargs)


def test_the_stages_are_planned_before_anything_is_drawn():
    pipelines = cascade()
    changes = [{"steps": 3}, {}, {"guidance": 2.0}]
    stages = plan(pipelines, TASK, ["a", "b"], changes)
    assert [stage.task.video.shape for stage in stages] == [(4, 2, 3, 1), (7, 2, 3, 1), (7, 4, 6, 1)]
    assert [stage.task.fps for stage in stages] == [8.0, 16.0, 16.0]
    assert [stage.task.coarse for stage in stages] == [1, 1, 2]
    assert [len(stage.windows) for stage in stages] == [1, 2, 2]
    assert [stage.settings.steps for stage in stages] == [3, 32, 32]
    assert [stage.changes for stage in stages] == changes
    assert not any(pipeline.windows for pipeline in pipelines)


def test_every_video_passes_through_all_stages(tmp_path):
    pipelines, prompts = cascade(), ["a", "b", "c"]
    stages = plan(pipelines, TASK, prompts, [{}] * 3)
    videos, fps = draw(stages, prompts, tmp_path, quiet, batch_size=2)
    assert fps == 16.0
    assert [video.shape for video in videos] == [(7, 4, 6, 1)] * 3
    assert [prompt for pipeline in pipelines for prompt in pipeline.prompts] == [
        *(["a", "b"], ["c"]),
        *2 * [[prompt] for prompt in prompts for _ in range(2)],
    ]
    drawn = [block for pipeline in pipelines for block in {block for _, block, *_ in pipeline.windows}]
    assert len(drawn) == len(set(drawn)) == 5  # every stage and window has its own noise
    faster = [known.video[0, :, 0, 0, 0].tolist() for known, *_ in pipelines[1].windows[:1]]
    assert faster == [[100, 0, 100, 0]]  # what the first stage drew is known
    assert all(known.mask.all() for known, *_ in pipelines[2].windows)


def test_an_interrupted_cascade_continues(tmp_path):
    broken, whole = cascade(), cascade()
    broken[1] = Counting(masks=MaskMixture({"every_nth": 1.0}), breaks_at=(1 << 16) + 1)
    with pytest.raises(KeyboardInterrupt):
        draw(plan(broken, TASK, ["a"], [{}] * 3), ["a"], tmp_path, quiet)
    again = cascade()
    videos, _ = draw(plan(again, TASK, ["a"], [{}] * 3), ["a"], tmp_path, quiet)
    assert [len(pipeline.windows) for pipeline in again] == [0, 1, 2]
    (tmp_path / "whole").mkdir()
    expected, _ = draw(plan(whole, TASK, ["a"], [{}] * 3), ["a"], tmp_path / "whole", quiet)
    np.testing.assert_array_equal(videos[0], expected[0])


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="a cascade takes prompts that hold for the whole video"):
        plan(cascade(), TASK, ["0: a | 2: b"], [{}] * 3)
    with pytest.raises(InputError, match="a later stage of a cascade needs a run trained with known pixels"):
        plan([Counting(), Counting()], TASK, ["a"], [{}] * 2)
    assert len(plan([Counting()], TASK, ["a"], [{}])) == 1
