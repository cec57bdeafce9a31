"""Long videos: the unknown part of a task is drawn in windows of the trained length, on the memory of one window."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import Task
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.prompts import check_travel, prompts_at
from vdm_jax.generation.resume import fingerprint, open_partial, save_partial
from vdm_jax.typing import Bool, Float


def windows(known: Bool[np.ndarray, "L"], length: int, context: int) -> list[int]:
    """Returns the first frames of the windows that draw what is unknown, in order.

    A window begins `context` frames before the first frame that is neither known nor drawn, and never ends after
    the video (then it sees more context). `known`: which frames are known as a whole.
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
    """Returns the windows that draw a task, in order.

    Raises:
        InputError: the task does not fit the pipeline.
    """
    frames = pipeline.model.shape[0]
    if task.video.shape[1:] != pipeline.model.shape[1:]:
        raise InputError(
            f"a video of (rows, columns, channels) {task.video.shape[1:]} must be {pipeline.model.shape[1:]}"
        )
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
        pipeline.model.check_known(mask[at])
        mask[at] = True
    return places


def first_frames(task: Task, windows: Sequence[slice]) -> list[int]:
    """Returns the first frame that each window draws, or draws a part of."""
    done, begins = task.mask.all((1, 2, 3)), []
    for at in windows:
        begins.append(at.start + int(np.argmin(done[at])))
        done[at] = True
    return begins


def changes_at(pipeline: Pipeline, task: Task, windows: Sequence[slice]) -> Sequence[int]:
    """Returns the frames at which a prompt may change: all, or the first frames of the windows."""
    return range(len(task.video)) if pipeline.model.text_per_frame else first_frames(task, windows)


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    task: Task,
    *,
    context: int | None = None,
    stage: int = 0,
    partial: Path | None = None,
    **settings: Any,
) -> Iterator[Float[np.ndarray, "B L H W C"]]:
    """Draws the task once for each prompt: yields the videos after every window, until they are complete.

    It is the same array each time, with more drawn in it; what is not yet drawn is black. Known pixels stay those of
    the task, unless `exact=False`. A prompt may change from window to window, or from frame to frame
    (`generation.prompts`).

    Args:
        context: frames of the window before that a window sees (default: half a window; windows of a coarse video see
            none).
        stage: of a cascade; every stage has its own noise.
        partial: an .npy file, which holds the videos instead of memory; the same call then continues after the last
            complete window.
        settings: the other arguments of `Pipeline.batches`.

    Raises:
        InputError: the task does not fit the pipeline.
    """
    frames = pipeline.model.shape[0]
    video, mask = _padded(task.video, frames, mode="edge"), _padded(task.mask, frames)
    places = windows_of(pipeline, task, context)
    begins = first_frames(task, places)
    check_travel(prompts, changes_at(pipeline, task, places))
    shape, done, digest = (len(prompts), *video.shape), 0, ""
    if partial is None:
        videos = np.empty(shape, np.float32)
    else:
        digest = fingerprint(
            *_weights(pipeline), _choices(pipeline, task, context, stage, settings), prompts, video, mask
        )
        videos, done = open_partial(partial, digest, shape)
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
            kwargs = {"block": (stage << 16) + block, "coarse": task.coarse, "strength": task.strength}
            window_prompts = prompts_at(prompts, begin)
            if pipeline.model.text_per_frame:
                window_prompts, kwargs["frame"] = prompts, at.start
            drawn = pipeline.batches(window_prompts, known=known, **kwargs, **settings)
            videos[:, at] = np.concatenate(list(drawn))
            if partial is not None:
                save_partial(partial, digest, block + 1, videos)
        mask[at] = True
        yield videos[:, : len(task.video)]


def _weights(pipeline: Pipeline) -> list[np.ndarray]:
    """Returns an array of each part, by which other weights are noticed."""
    parts = [jax.tree.leaves(tree) for _, tree in sorted(pipeline.model.params.items())]
    return [np.asarray(leaves[-1].addressable_data(0)) for leaves in parts if leaves]


def _choices(pipeline: Pipeline, task: Task, context: int | None, stage: int, settings: dict[str, Any]) -> tuple:
    """Returns all else that a drawing depends on."""
    of_task = (task.fps, task.strength, task.backward, task.coarse)
    return pipeline.model.identity, pipeline.settings, context, stage, sorted(settings.items()), of_task


def _padded(video: np.ndarray, frames: int, mode: str = "constant") -> np.ndarray:
    """Pads a video or mask to the length of a window: with its last frame, or with nothing known."""
    if len(video) >= frames:
        return video
    return np.pad(video, [(0, frames - len(video)), (0, 0), (0, 0), (0, 0)], mode)
