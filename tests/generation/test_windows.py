"""A long video is drawn in windows: each sees what is known and what was drawn before it."""

import collections
import dataclasses
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.generation.stand_in import FRAMES, SIZE, Counting, run
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import text_to_video
from vdm_jax.generation.windows import changes_at, first_frames, generate, windows, windows_of
from vdm_jax.video import write_video

NINE = text_to_video((9, *SIZE, 1), 8.0)


def test_nothing_known_is_left_to_the_sampler():
    frames, seen = run(text_to_video((FRAMES, *SIZE, 1), 8.0), seed=5)
    assert frames == [100] * 4
    assert seen == [(None, 0, 1.0, 5)]


def test_long_videos_are_drawn_in_windows_that_see_the_one_before():
    frames, seen = run(NINE, context=1)
    assert frames == [100] * 4 + [200] * 3 + [300] * 2  # the last window ends with the video
    assert [known.mask[0, :, 0, 0, 0].tolist() for known, *_ in seen[1:]] == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert seen[1][0].video[0, 0, 0, 0, 0] == 100


def test_stages_of_a_cascade_have_noise_of_their_own():
    blocks = [{block for _, block, *_ in run(NINE, stage=stage)[1]} for stage in (0, 1, 2)]
    assert [len(numbers) for numbers in blocks] == [4, 4, 4]
    assert len(set.union(*blocks)) == 12


@pytest.mark.parametrize("length", [4, 5, 9, 30])
@pytest.mark.parametrize("context", [0, 1, 3])
def test_windows_cover_what_is_unknown_once_and_see_their_context(length, context):
    known = np.random.default_rng(length).random(length) < 0.5
    done = known.copy()
    for start in windows(known, 4, context):
        first = int(np.argmin(done))
        assert start <= max(first - context, 0) <= start + 4
        assert not done[start : start + 4].all()
        assert start + 4 <= length
        done[start : start + 4] = True
    assert done.all()


def test_windows_of_a_coarse_video_do_not_see_each_other():
    task = dataclasses.replace(text_to_video((8, *SIZE, 1), 8.0), coarse=2)
    assert windows_of(Counting(), task, None) == windows_of(Counting(), task, 2) == [slice(0, 4), slice(4, 8)]


def test_a_prompt_may_change_from_window_to_window():
    pipeline = Counting()
    places = windows_of(pipeline, NINE, 1)
    assert first_frames(NINE, places) == changes_at(pipeline, NINE, places) == [0, 4, 7]
    list(generate(pipeline, ["0: a | 4: b", "c"], NINE, context=1))
    assert pipeline.prompts == [["a", "c"], ["b", "c"], ["b", "c"]]
    with pytest.raises(InputError, match="changes at frame 5, but the windows draw from frames 0, 4, 7 on"):
        list(generate(Counting(), ["0: a | 5: b"], NINE, context=1))


def test_a_network_with_a_text_for_each_frame_gets_the_first_frame_of_a_window():
    pipeline, prompts = Counting(text_per_frame=True), ["0: a | 5: b", "c"]
    list(generate(pipeline, prompts, NINE, context=1))
    assert (pipeline.prompts, pipeline.first_frames) == ([prompts] * 3, [0, 3, 5])
    with pytest.raises(InputError, match="changes at frame 9, but the video has frames 0 to 8"):
        list(generate(pipeline, ["0: a | 9: b"], NINE, context=1))


def test_a_part_that_is_not_yet_drawn_is_black():
    first = next(generate(Counting(), ["a"], text_to_video((6, *SIZE, 1), 8.0)))
    assert first[0, :, 0, 0, 0].tolist() == [100] * 4 + [-1] * 2


def test_a_context_is_shorter_than_a_window():
    with pytest.raises(InputError, match=r"context=4 must be at least 0 and below the clip.s 4 frames"):
        run(text_to_video((6, *SIZE, 1), 8.0), context=4)


def test_a_long_video_is_drawn_on_the_memory_of_a_window(tmp_path):
    """In a process of its own, as threads of other tests may allocate meanwhile here."""
    measure = f"from tests.generation.test_windows import memory; print(*memory({str(tmp_path)!r}))"
    output = subprocess.check_output([sys.executable, "-c", measure], cwd=Path(__file__).parents[2], text=True)
    most, video = map(int, output.split())
    assert most < video / 5  # the mask is a twelfth


def memory(folder):
    """Returns the bytes that drawing and writing a video takes at most, and the bytes of the video itself."""
    pipeline = Counting(shape=(FRAMES, 64, 64, 3))
    object.__setattr__(pipeline, "windows", collections.deque(maxlen=1))
    task = text_to_video((1000, 64, 64, 3), 8.0)
    tracemalloc.start()
    drawing = generate(pipeline, ["a"], task, context=0, partial=Path(folder) / "partial.npy")
    (videos,) = collections.deque(drawing, maxlen=1)
    write_video(Path(folder) / "video.mp4", videos[0], task.fps)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(videos[0]) == 1000
    return most, task.video.nbytes
