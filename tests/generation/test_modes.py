"""Every mode is a mask, and a long video the windows that fill it."""

import collections
import copy
import dataclasses
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.conditioning import Conditioning
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import (
    Task,
    enlarge,
    extend,
    finer,
    generate,
    inpaint,
    interpolate,
    keyframes,
    outpaint,
    text_to_video,
    vary,
    windows,
    windows_of,
)
from vdm_jax.generation.partial import remove_partial
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.video import write_video

FRAMES, SIZE = 4, (2, 3)


def clip(length, size=SIZE):
    """Frame i is all i + 1."""
    return np.float32(np.broadcast_to(np.arange(1, length + 1)[:, None, None, None], (length, *size, 1)))


class Counting(Pipeline):
    """A pipeline whose n-th window is all 100·n, where nothing is known; it notes what it was given."""

    def __init__(self, shape=(FRAMES, *SIZE, 1), conditioning=None, breaks_at=None, text_per_frame=False):
        about = {"shape": shape, "seen": [], "asked": [], "conditioning": conditioning, "breaks_at": breaks_at}
        about |= {"text_per_frame": text_per_frame, "begins": []}
        for name, value in (
            about
            | {"params": {"w": jnp.ones(3)}, "step": 5, "settings": None, "origin": "here", "codec": None}
            | {"process": None, "prediction": "v"}
        ).items():
            object.__setattr__(self, name, value)

    def batches(self, prompts, *, known, block, strength, coarse, seed=0, frame=None):
        if block == self.breaks_at:
            raise KeyboardInterrupt
        self.seen.append((copy.deepcopy(known), block, strength, seed))
        self.asked.append(list(prompts))
        self.begins.append(frame)
        assert coarse == (self.conditioning.downsample if self.conditioning else 1)
        drawn = np.full((len(prompts), *self.shape), 100.0 * (block + 1), np.float32)
        yield drawn if known is None or coarse > 1 else np.where(known.mask, known.video, drawn)


def run(task, **options):
    """The finished video of a task, by its frames' first pixels, and what the pipeline was given."""
    pipeline = Counting()
    *_, videos = generate(pipeline, ["a", "b"], task, **options)
    np.testing.assert_array_equal(videos[0], videos[1])
    known = np.broadcast_to(task.mask, task.video.shape)
    np.testing.assert_array_equal(videos[0][known], task.video[known])
    return videos[0][:, 0, 0, 0].tolist(), pipeline.seen


def test_nothing_known_is_left_to_the_sampler():
    frames, seen = run(text_to_video((FRAMES, *SIZE, 1), 8.0), seed=5)
    assert frames == [100] * 4
    assert seen == [(None, 0, 1.0, 5)]


def test_long_videos_are_drawn_in_windows_that_see_the_one_before():
    frames, seen = run(text_to_video((9, *SIZE, 1), 8.0), context=1)
    assert frames == [100] * 4 + [200] * 3 + [300] * 2  # the last window ends with the video
    assert [known.mask[0, :, 0, 0, 0].tolist() for known, *_ in seen[1:]] == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert seen[1][0].video[0, 0, 0, 0, 0] == 100


def test_stages_of_a_cascade_have_noise_of_their_own():
    task = text_to_video((9, *SIZE, 1), 8.0)
    blocks = [{block for _, block, *_ in run(task, stage=stage)[1]} for stage in (0, 1, 2)]
    assert [len(found) for found in blocks] == [4, 4, 4]
    assert len(set.union(*blocks)) == 12


def test_forward_and_backward_extension():
    forward, seen = run(extend(clip(6), 3, 8.0))
    assert forward == [1, 2, 3, 4, 5, 6, 100, 100, 200]
    assert seen[0][0].video[0, :2, 0, 0, 0].tolist() == [5, 6]
    assert run(extend(clip(6), 3, 8.0), context=1)[0] == [1, 2, 3, 4, 5, 6, 100, 100, 100]
    backward, seen = run(extend(clip(6), -3, 8.0))
    assert backward == [200, 100, 100, 1, 2, 3, 4, 5, 6]
    assert seen[0][0].video[0, 2:, 0, 0, 0].tolist() == [1, 2]


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
    frames, seen = run(vary(clip(4), 0.6, 8.0))
    assert frames == [100] * 4
    known, _, strength, _ = seen[0]
    assert strength == 0.6
    assert not known.mask.any()
    np.testing.assert_array_equal(known.video[1], clip(4))


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


def test_super_resolution_hears_every_frame_of_the_small_video_and_keeps_none():
    larger = Counting((FRAMES, 4, 6, 1), Conditioning({"everything": 1.0}, downsample=2))
    task = finer(larger, clip(6), 8.0)
    assert (task.coarse, task.fps, task.video.shape) == (2, 8.0, (6, 4, 6, 1))
    *_, (video,) = generate(larger, ["a"], task)
    assert video[:, 0, 0, 0].tolist() == [100] * 2 + [200] * 4
    for (known, *_), start in zip(larger.seen, (0, 2), strict=True):
        assert known.mask.all()
        np.testing.assert_array_equal(known.video[0], task.video[start : start + FRAMES])
    assert task.video[3, 2:, 3:].tolist() == [[[4.0]] * 3] * 2


def test_a_later_stage_of_the_same_size_doubles_the_frame_rate():
    task = finer(Counting(conditioning=Conditioning({"every_nth": 1.0})), clip(4), 8.0)
    assert (task.coarse, task.fps, len(task.video)) == (1, 16.0, 7)
    assert task.mask[:, 0, 0, 0].tolist() == [1, 0, 1, 0, 1, 0, 1]


def test_a_prompt_may_change_from_window_to_window():
    pipeline = Counting()
    list(generate(pipeline, ["0: a | 4: b", "c"], text_to_video((9, *SIZE, 1), 8.0), context=1))
    assert pipeline.asked == [["a", "c"], ["b", "c"], ["b", "c"]]
    with pytest.raises(InputError, match="changes at frame 5, but the windows draw from frames 0, 4, 7 on"):
        list(generate(Counting(), ["0: a | 5: b"], text_to_video((9, *SIZE, 1), 8.0), context=1))


def test_a_network_that_takes_a_text_per_frame_is_told_where_a_window_begins():
    pipeline, prompts, task = Counting(text_per_frame=True), ["0: a | 5: b", "c"], text_to_video((9, *SIZE, 1), 8.0)
    list(generate(pipeline, prompts, task, context=1))
    assert (pipeline.asked, pipeline.begins) == ([prompts] * 3, [0, 3, 5])
    with pytest.raises(InputError, match="changes at frame 9, but the video has frames 0 to 8"):
        list(generate(pipeline, ["0: a | 9: b"], task, context=1))


def test_an_interrupted_drawing_goes_on_after_its_last_window(tmp_path):
    task, file = text_to_video((9, *SIZE, 1), 8.0), tmp_path / "partial.npy"
    whole = list(generate(Counting(), ["a"], task, context=1))
    with pytest.raises(KeyboardInterrupt):
        list(generate(Counting(breaks_at=2), ["a"], task, context=1, partial=file))
    resumed = Counting()
    again = list(generate(resumed, ["a"], task, context=1, partial=file))
    assert [block for _, block, *_ in resumed.seen] == [2]
    assert len(again) == 3
    assert isinstance(again[-1], np.memmap)
    np.testing.assert_array_equal(again[-1], whole[-1])
    for prompt, options in (("b", {}), ("a", {"seed": 1})):  # another drawing begins at its beginning
        other = Counting()
        list(generate(other, [prompt], task, context=1, partial=file, **options))
        assert len(other.seen) == 3
    note = file.with_suffix(".json")
    for damaged, kept in ((file, slice(20)), (file, slice(-4)), (file, slice(0)), (note, slice(20))):
        damaged.write_bytes(damaged.read_bytes()[kept])
        anew = Counting()
        list(generate(anew, ["a"], task, context=1, partial=file))
        assert len(anew.seen) == 3
    remove_partial(file)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/partial\.npy cannot be written: Not a directory"):
        list(generate(Counting(), ["a"], task, partial=tmp_path / "file" / "partial.npy"))


def test_windows_of_a_coarse_video_see_none_of_each_other():
    task = dataclasses.replace(text_to_video((8, *SIZE, 1), 8.0), coarse=2)
    assert windows_of(Counting(), task, None) == windows_of(Counting(), task, 2) == [slice(0, 4), slice(4, 8)]


def test_a_long_video_is_drawn_on_the_memory_of_a_window(tmp_path):
    """In a process of its own: here threads of other tests may allocate meanwhile."""
    file = Path(__file__)
    measure = f"import {file.stem}; print(*{file.stem}.memory_of_a_long_video({str(tmp_path)!r}))"
    said = subprocess.check_output([sys.executable, "-c", measure], cwd=file.parent, text=True)
    most, video = map(int, said.split())
    assert most < video / 5  # the mask is a twelfth


def memory_of_a_long_video(folder):
    """Bytes that drawing and writing one takes at most, and those of the video itself."""
    pipeline = Counting(shape=(FRAMES, 64, 64, 3))
    pipeline.seen = collections.deque(maxlen=1)
    task = text_to_video((1000, 64, 64, 3), 8.0)
    tracemalloc.start()
    drawing = generate(pipeline, ["a"], task, context=0, partial=Path(folder) / "partial.npy")
    (videos,) = collections.deque(drawing, maxlen=1)
    write_video(Path(folder) / "video.mp4", videos[0], task.fps)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(videos[0]) == 1000
    return most, task.video.nbytes


def test_what_is_not_yet_drawn_is_black():
    first = next(generate(Counting(), ["a"], text_to_video((6, *SIZE, 1), 8.0)))
    assert first[0, :, 0, 0, 0].tolist() == [100] * 4 + [-1] * 2


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
        (lambda: inpaint(clip(4), np.ones((3, *SIZE, 1), bool), 8.0), "a mask of 3 frames must have 1 or .* 4"),
        (lambda: inpaint(clip(4), np.ones((1, 2, 2, 1), bool), 8.0), r"a mask of \(2, 2\) pixels"),
        (lambda: inpaint(clip(4), np.zeros((1, *SIZE, 1), bool), 8.0), "nothing is left to draw"),
        (lambda: outpaint(clip(4), [0, 0, 0], 8.0), "outpaint=0,0,0 must be four borders"),
        (lambda: outpaint(clip(4), [0, 0, -1, 2], 8.0), "outpaint=0,0,-1,2 must be"),
        (lambda: Task(clip(4), np.ones((4, 1, 1, 1), bool), 8.0), r"a mask of shape \(4, 1, 1, 1\) does not fit"),
        (
            lambda: run(text_to_video((6, *SIZE, 1), 8.0), context=4),
            "context=4 must be at least 0 and below .* 4 frames",
        ),
        (lambda: run(text_to_video((4, 3, 3, 1), 8.0)), r"\(3, 3, 1\) must be \(2, 3, 1\)"),
        (lambda: enlarge(clip(4), 1, 8.0), "enlarge=1 must be at least 2"),
        (lambda: finer(Counting(), clip(4), 8.0), "must have been trained to be told"),
        (
            lambda: finer(Counting(conditioning=Conditioning({"everything": 1.0}, downsample=2)), clip(4), 8.0),
            r"is to draw \(rows, columns, channels\) \(4, 6, 1\), not \(2, 3, 1\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
