"""Every way to make a video as one mask on its whole length: what is known of it, and what is to be drawn.

`Task` is that video and that mask. The functions below make tasks of pictures and videos; `generate` draws what is
unknown, one window of the trained length after the other, on the memory of a single window.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.generation.partial import fingerprint, open_partial, save_partial
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.travel import check_travel, prompts_at
from vdm_jax.typing import Bool, Float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A video to be made, of which `video` is known where `mask` is true.

    `strength` is the time t that the rest is noised to and drawn from: 1 begins with noise alone, less begins with
    `video` (SDEdit, Meng et al. 2022). `backward` draws the last window first. With `coarse` n above 1 the video is of
    an n-th of its rows and columns, each pixel repeated: it is all known so far, and nothing of it is kept.
    """

    video: Float[np.ndarray, "L H W C"]
    mask: Bool[np.ndarray, "_ _ _ 1"]  # of the video's shape
    fps: float
    strength: float = 1.0
    backward: bool = False
    coarse: int = 1

    def __post_init__(self):
        if self.mask.shape != (*self.video.shape[:3], 1):
            raise InputError(f"a mask of shape {self.mask.shape} does not fit a video of shape {self.video.shape}")
        if self.mask.all():
            raise InputError("the whole video is known: nothing is left to draw")


def text_to_video(shape: tuple[int, int, int, int], fps: float) -> Task:
    """Nothing is known of a video of the given shape (frames, rows, columns, channels)."""
    return Task(np.zeros(shape, np.float32), np.zeros((*shape[:3], 1), bool), fps)


def keyframes(images: Mapping[int, Float[np.ndarray, "H W C"]], frames: int, fps: float) -> Task:
    """The given frames are known: {0: picture} animates it, {0: first, 7: last} joins two."""
    for at in images:
        if not 0 <= at < frames:
            raise InputError(f"an image at frame {at} is out of range: the video has frames 0 to {frames - 1}")
    task = text_to_video((frames, *next(iter(images.values())).shape), fps)
    for at, image in images.items():
        task.video[at], task.mask[at] = image, True
    return task


def extend(video: Float[np.ndarray, "L H W C"], by: int, fps: float) -> Task:
    """`by` frames after the video, or -`by` frames before it."""
    if by == 0:
        raise InputError("extend=0 must be a number of frames: positive after the video, negative before it")
    length, known = len(video) + abs(by), slice(0, len(video)) if by > 0 else slice(-by, None)
    task = dataclasses.replace(text_to_video((length, *video.shape[1:]), fps), backward=by < 0)
    task.video[known], task.mask[known] = video, True
    return task


def interpolate(video: Float[np.ndarray, "L H W C"], factor: int, fps: float) -> Task:
    """`factor` - 1 frames between any two, at `factor` times the frame rate."""
    if factor < 2 or len(video) < 2:
        raise InputError(f"interpolate={factor} must be at least 2, and the video have 2 frames (it has {len(video)})")
    task = text_to_video(((len(video) - 1) * factor + 1, *video.shape[1:]), fps * factor)
    task.video[::factor], task.mask[::factor] = video, True
    return task


def inpaint(video: Float[np.ndarray, "L H W C"], redraw: Bool[np.ndarray, "K Y X 1"], fps: float) -> Task:
    """Draws anew where `redraw` is true: one mask for all frames, or one for each."""
    if len(redraw) not in (1, len(video)):
        raise InputError(f"a mask of {len(redraw)} frames must have 1 or those of the video, {len(video)}")
    if redraw.shape[1:3] != video.shape[1:3]:
        raise InputError(f"a mask of {redraw.shape[1:3]} pixels must have the video's {video.shape[1:3]}")
    return Task(video, np.broadcast_to(~redraw, (*video.shape[:3], 1)), fps)


def outpaint(video: Float[np.ndarray, "L H W C"], borders: Sequence[int], fps: float) -> Task:
    """Draws a frame around the video: `borders` in pixels, left, right, top, bottom."""
    if len(borders) != 4 or min(borders) < 0 or max(borders) == 0:
        raise InputError(
            f"outpaint={','.join(map(str, borders))} must be four borders left,right,top,bottom, not all 0"
        )
    left, right, top, bottom = borders
    pad = [(0, 0), (top, bottom), (left, right), (0, 0)]
    return Task(np.pad(video, pad), np.pad(np.ones((*video.shape[:3], 1), bool), pad), fps)


def vary(video: Float[np.ndarray, "L H W C"], strength: float, fps: float) -> Task:
    """Another video like this one: noised to t = `strength`, and drawn from there."""
    return Task(video, np.zeros((*video.shape[:3], 1), bool), fps, strength=strength)


def enlarge(video: Float[np.ndarray, "L H W C"], factor: int, fps: float) -> Task:
    """The video at `factor` times its rows and columns (super-resolution)."""
    if factor < 2:
        raise InputError(f"enlarge={factor} must be at least 2")
    large = np.repeat(np.repeat(video, factor, axis=1), factor, axis=2)
    return Task(large, np.zeros((*large.shape[:3], 1), bool), fps, coarse=factor)


def finer(pipeline: Pipeline, video: Float[np.ndarray, "L H W C"], fps: float) -> Task:
    """The next stage of a cascade (Ho et al. 2021): enlarged by a run for that, else at twice the frame rate.

    Raises:
        InputError: the run was not trained to be told what is known, or draws another size.
    """
    if pipeline.conditioning is None:
        raise InputError("a later stage of a cascade must have been trained to be told what is known (config.known)")
    factor = pipeline.conditioning.downsample
    size = (*(factor * n for n in video.shape[1:3]), video.shape[3])
    if size != pipeline.shape[1:]:
        raise InputError(f"a stage of a cascade is to draw (rows, columns, channels) {size}, not {pipeline.shape[1:]}")
    return enlarge(video, factor, fps) if factor > 1 else interpolate(video, 2, fps)


def windows(known: Bool[np.ndarray, "L"], length: int, context: int) -> list[int]:
    """The first frames of the windows that draw what is unknown, in order.

    A window begins `context` frames before the first frame that is neither known nor drawn, and never ends after
    the video (then it sees more context). `known` says which frames are known as a whole.
    """
    if not 0 <= context < length:
        raise InputError(f"context={context} must be at least 0 and below the clip's {length} frames")
    starts, done = [], 0
    while not known[done:].all():
        done += int(np.argmin(known[done:]))
        starts.append(max(0, min(done - context, len(known) - length)))
        done = starts[-1] + length
    return starts


def windows_of(pipeline: Pipeline, task: Task, context: int | None) -> list[slice]:
    """The windows that draw a task, in order.

    Raises:
        InputError: the task does not fit the pipeline.
    """
    frames = pipeline.shape[0]
    if task.video.shape[1:] != pipeline.shape[1:]:
        raise InputError(f"a video of (rows, columns, channels) {task.video.shape[1:]} must be {pipeline.shape[1:]}")
    known = _padded(task.mask, frames).all((1, 2, 3))
    if task.coarse > 1:
        context = 0  # the coarse video holds the windows together
    elif context is None:
        context = frames // 2
    length = len(known)
    starts = windows(known[::-1] if task.backward else known, frames, context)
    places = [slice(length - n - frames, length - n) if task.backward else slice(n, n + frames) for n in starts]
    mask = _padded(task.mask, frames).copy()
    for at in places:
        pipeline.check_window(mask[at])
        mask[at] = True
    return places


def first_frames(task: Task, windows: Sequence[slice]) -> list[int]:
    """The first frame that each window draws, or has a part of to draw."""
    done, begins = task.mask.all((1, 2, 3)), []
    for at in windows:
        begins.append(at.start + int(np.argmin(done[at])))
        done[at] = True
    return begins


def changes_at(pipeline: Pipeline, task: Task, windows: Sequence[slice]) -> Sequence[int]:
    """The frames at which a prompt may change: those where a window begins, or all."""
    return range(len(task.video)) if pipeline.text_per_frame else first_frames(task, windows)


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    task: Task,
    *,
    context: int | None = None,
    stage: int = 0,
    partial: Path | None = None,
    **settings,
) -> Iterator[Float[np.ndarray, "B L H W C"]]:
    """Draws the task once for each prompt: yields the videos after every window, until they are whole.

    It is the same array each time, with more drawn in it; what is not yet drawn is black. Known pixels are those of the
    task, exactly, but for `exact=False`. A prompt may change from window to window, or from frame to frame (`travel`).
    `context` is how many frames a window sees of those before it (default: half of them; windows of a coarse video see
    none); every `stage` of a cascade has noise of its own; `settings` are the other arguments of `Pipeline.batches`.
    With `partial`, an .npy file, the videos lie in that file in place of memory, and the same call goes on after the
    last window that is done.

    Raises:
        InputError: the task does not fit the pipeline.
    """
    frames = pipeline.shape[0]
    video, mask = _padded(task.video, frames, mode="edge"), _padded(task.mask, frames)
    places = windows_of(pipeline, task, context)
    begins = first_frames(task, places)
    check_travel(prompts, changes_at(pipeline, task, places))
    shape, done, drawing = (len(prompts), *video.shape), 0, ""
    if partial is None:
        videos = np.empty(shape, np.float32)
    else:
        trees = [pipeline.params, *([pipeline.codec.params] if pipeline.codec else [])]
        weights = [np.asarray(jax.tree.leaves(tree)[-1].addressable_data(0)) for tree in trees]  # a part, as a sign
        about = (task.fps, task.strength, task.backward, task.coarse)
        choices = (pipeline.about, pipeline.settings, context, *([stage] if stage else ()), sorted(settings.items()))
        drawing = fingerprint(*weights, choices, prompts, about, video, mask)
        videos, done = open_partial(partial, drawing, shape)
    if done == 0:
        for start in range(0, len(video), frames):
            at = slice(start, start + frames)
            videos[:, at] = np.where(mask[at], video[at], -1)
    mask = mask.copy()
    for block, (at, begin) in enumerate(zip(places, begins, strict=True)):
        if block >= done:
            known = None
            if task.coarse > 1:
                known = Known(np.repeat(video[None, at], len(prompts), 0), np.ones_like(mask[None, at]))
            elif mask[at].any() or task.strength < 1:
                known = Known(np.where(mask[at], videos[:, at], video[at]), mask[None, at])
            how = {"block": (stage << 16) + block, "coarse": task.coarse, "strength": task.strength}
            asked = prompts_at(prompts, begin)
            if pipeline.text_per_frame:
                asked, how["frame"] = prompts, at.start
            drawn = pipeline.batches(asked, known=known, **how, **settings)
            videos[:, at] = np.concatenate(list(drawn))
            if partial is not None:
                save_partial(partial, drawing, block + 1, videos)
        mask[at] = True
        yield videos[:, : len(task.video)]


def _padded(video: np.ndarray, frames: int, mode: str = "constant") -> np.ndarray:
    """A video or mask that is shorter than a window, made as long: with its last frame again, or with nothing known."""
    if len(video) >= frames:
        return video
    return np.pad(video, [(0, frames - len(video)), (0, 0), (0, 0), (0, 0)], mode)
