"""Every mode is a mask of what is known."""

import numpy as np
import pytest

from tests.generation.stand_in import FRAMES, SIZE, Counting, clip, run
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import (
    Task,
    enlarge,
    extend,
    inpaint,
    interpolate,
    keyframes,
    next_stage,
    outpaint,
    text_to_video,
    variation,
)
from vdm_jax.generation.windows import generate


def test_forward_and_backward_extension():
    forward, windows = run(extend(clip(6), 3, 8.0))
    assert forward == [1, 2, 3, 4, 5, 6, 100, 100, 200]
    assert windows[0][0].video[0, :2, 0, 0, 0].tolist() == [5, 6]
    assert run(extend(clip(6), 3, 8.0), context=1)[0] == [1, 2, 3, 4, 5, 6, 100, 100, 100]
    backward, windows = run(extend(clip(6), -3, 8.0))
    assert backward == [200, 100, 100, 1, 2, 3, 4, 5, 6]
    assert windows[0][0].video[0, 2:, 0, 0, 0].tolist() == [1, 2]


def test_a_clip_that_is_shorter_than_a_window_is_filled_up_and_cut():
    assert run(extend(clip(1), 1, 8.0))[0] == [1, 100]
    assert run(interpolate(clip(2), 2, 8.0))[0] == [1, 100, 2]


def test_keyframes_interpolation_and_their_rates():
    pictures = {0: clip(1)[0], 3: clip(2)[1]}
    assert run(keyframes(pictures, 6, 8.0))[0] == [1, 100, 100, 2, 200, 200]
    task = interpolate(clip(4), 3, 8.0)
    assert task.fps == 24
    assert run(task)[0] == [1, 100, 100, 2, 200, 200, 3, 300, 300, 4]


def test_regions():
    redraw = np.zeros((1, *SIZE, 1), bool)
    redraw[:, :, 1:] = True
    task = inpaint(clip(4), redraw, 8.0)
    np.testing.assert_array_equal(task.mask[3, ..., 0], [[1, 0, 0]] * 2)
    *_, (video,) = generate(Counting(), ["a"], task)
    np.testing.assert_array_equal(video[3, ..., 0], [[4, 100, 100]] * 2)

    task = outpaint(clip(4, (1, 1)), [2, 0, 0, 1], 8.0)
    np.testing.assert_array_equal(task.mask[3, ..., 0], [[0, 0, 1], [0, 0, 0]])
    *_, (video,) = generate(Counting(), ["a"], task)
    np.testing.assert_array_equal(video[3, ..., 0], [[100, 100, 4], [100, 100, 100]])


def test_a_variation_begins_with_the_video_and_keeps_nothing_of_it():
    frames, windows = run(variation(clip(4), 0.6, 8.0))
    assert frames == [100] * 4
    known, _, strength, _ = windows[0]
    assert strength == 0.6
    assert not known.mask.any()
    np.testing.assert_array_equal(known.video[1], clip(4))


def test_super_resolution_sees_every_frame_of_the_small_video_and_keeps_none():
    larger = Counting((FRAMES, 4, 6, 1), masks=MaskMixture({"everything": 1.0}, downsample=2))
    task = next_stage(larger.model, clip(6), 8.0)
    assert (task.coarse, task.fps, task.video.shape) == (2, 8.0, (6, 4, 6, 1))
    *_, (video,) = generate(larger, ["a"], task)
    assert video[:, 0, 0, 0].tolist() == [100] * 2 + [200] * 4
    for (known, *_), start in zip(larger.windows, (0, 2), strict=True):
        assert known.mask.all()
        np.testing.assert_array_equal(known.video[0], task.video[start : start + FRAMES])
    assert task.video[3, 2:, 3:].tolist() == [[[4.0]] * 3] * 2


def test_a_later_stage_of_the_same_size_doubles_the_frame_rate():
    task = next_stage(Counting(masks=MaskMixture({"every_nth": 1.0})).model, clip(4), 8.0)
    assert (task.coarse, task.fps, len(task.video)) == (1, 16.0, 7)
    assert task.mask[:, 0, 0, 0].tolist() == [1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: extend(clip(4), 0, 8.0), "extend=0 must be a number of frames"),
        (lambda: interpolate(clip(4), 1, 8.0), "interpolate=1 must be at least 2"),
        (lambda: interpolate(clip(1), 2, 8.0), r"2 frames \(it has 1\)"),
        (
            lambda: keyframes({4: clip(1)[0]}, 4, 8.0),
            "an image at frame 4 is out of range: the video has frames 0 to 3",
        ),
        (lambda: inpaint(clip(4), np.ones((3, *SIZE, 1), bool), 8.0), "a mask of 3 frames must have 1 frame or 4"),
        (lambda: inpaint(clip(4), np.ones((1, 2, 2, 1), bool), 8.0), r"a mask of \(2, 2\) pixels"),
        (lambda: inpaint(clip(4), np.zeros((1, *SIZE, 1), bool), 8.0), "nothing is left to draw"),
        (lambda: outpaint(clip(4), [0, 0, 0], 8.0), "outpaint=0,0,0 must be four borders"),
        (lambda: outpaint(clip(4), [0, 0, -1, 2], 8.0), "outpaint=0,0,-1,2 must be"),
        (lambda: Task(clip(4), np.ones((4, 1, 1, 1), bool), 8.0), r"a mask of shape \(4, 1, 1, 1\) does not fit"),
        (lambda: run(text_to_video((4, 3, 3, 1), 8.0)), r"\(3, 3, 1\) must be \(2, 3, 1\)"),
        (lambda: enlarge(clip(4), 1, 8.0), "enlarge=1 must be at least 2"),
        (lambda: next_stage(Counting().model, clip(4), 8.0), r"needs a run trained with known pixels as channels"),
        (
            lambda: next_stage(Counting(masks=MaskMixture({"first": 1.0}, tell="times")).model, clip(4), 8.0),
            r"needs a run trained with known pixels as channels",
        ),
        (
            lambda: next_stage(Counting(masks=MaskMixture({"everything": 1.0}, downsample=2)).model, clip(4), 8.0),
            r"must draw \(rows, columns, channels\) \(4, 6, 1\), not \(2, 3, 1\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
