"""Every way to make a video as one mask: what is known of it. `Task` is that video and that mask."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.typing import Bool, Float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A video to be made, of which `video` is known where `mask` is true.

    Args:
        strength: the time t that the unknown part starts from: 1 starts from noise, less from the noised `video`
            (SDEdit, Meng et al. 2022).
        backward: draw the last window first.
        coarse: if n > 1, `video` is a low-resolution video with every pixel repeated n times: all of it conditions the
            sampler, none of it is copied to the result.
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
    """Returns the task of a video of the given shape (frames, rows, columns, channels), of which nothing is known."""
    return Task(np.zeros(shape, np.float32), np.zeros((*shape[:3], 1), bool), fps)


def keyframes(images: Mapping[int, Float[np.ndarray, "H W C"]], frames: int, fps: float) -> Task:
    """Returns the task of known frames: {0: picture} animates it, {0: first, 7: last} joins two."""
    for at in images:
        if not 0 <= at < frames:
            raise InputError(f"an image at frame {at} is out of range: the video has frames 0 to {frames - 1}")
    task = text_to_video((frames, *next(iter(images.values())).shape), fps)
    for at, image in images.items():
        task.video[at], task.mask[at] = image, True
    return task


def extend(video: Float[np.ndarray, "L H W C"], by: int, fps: float) -> Task:
    """Returns the task of `by` frames after the video, or -`by` frames before it."""
    if by == 0:
        raise InputError("extend=0 must be a number of frames: positive after the video, negative before it")
    length, known = len(video) + abs(by), slice(0, len(video)) if by > 0 else slice(-by, None)
    task = dataclasses.replace(text_to_video((length, *video.shape[1:]), fps), backward=by < 0)
    task.video[known], task.mask[known] = video, True
    return task


def interpolate(video: Float[np.ndarray, "L H W C"], factor: int, fps: float) -> Task:
    """Returns the task of `factor` - 1 frames between any two, at `factor` times the frame rate."""
    if factor < 2 or len(video) < 2:
        raise InputError(f"interpolate={factor} must be at least 2, and the video have 2 frames (it has {len(video)})")
    task = text_to_video(((len(video) - 1) * factor + 1, *video.shape[1:]), fps * factor)
    task.video[::factor], task.mask[::factor] = video, True
    return task


def inpaint(video: Float[np.ndarray, "L H W C"], redraw: Bool[np.ndarray, "K Y X 1"], fps: float) -> Task:
    """Returns the task of redrawing where `redraw` is true: one mask for all frames, or one for each."""
    if len(redraw) not in (1, len(video)):
        raise InputError(f"a mask of {len(redraw)} frames must have 1 frame or {len(video)}, the number of the video")
    if redraw.shape[1:3] != video.shape[1:3]:
        raise InputError(f"a mask of {redraw.shape[1:3]} pixels must have the video's {video.shape[1:3]}")
    return Task(video, np.broadcast_to(~redraw, (*video.shape[:3], 1)), fps)


def outpaint(video: Float[np.ndarray, "L H W C"], borders: Sequence[int], fps: float) -> Task:
    """Returns the task of a border around the video: `borders` in pixels, left, right, top, bottom."""
    if len(borders) != 4 or min(borders) < 0 or max(borders) == 0:
        raise InputError(
            f"outpaint={','.join(map(str, borders))} must be four borders left,right,top,bottom, not all 0"
        )
    left, right, top, bottom = borders
    pad = [(0, 0), (top, bottom), (left, right), (0, 0)]
    return Task(np.pad(video, pad), np.pad(np.ones((*video.shape[:3], 1), bool), pad), fps)


def variation(video: Float[np.ndarray, "L H W C"], strength: float, fps: float) -> Task:
    """Returns the task of another video like this one: it is noised to t = `strength`, and drawn from there."""
    return Task(video, np.zeros((*video.shape[:3], 1), bool), fps, strength=strength)


def enlarge(video: Float[np.ndarray, "L H W C"], factor: int, fps: float) -> Task:
    """Returns the task of the video at `factor` times its rows and columns (super-resolution)."""
    if factor < 2:
        raise InputError(f"enlarge={factor} must be at least 2")
    large = np.repeat(np.repeat(video, factor, axis=1), factor, axis=2)
    return Task(large, np.zeros((*large.shape[:3], 1), bool), fps, coarse=factor)


def next_stage(model: Model, video: Float[np.ndarray, "L H W C"], fps: float) -> Task:
    """Returns the task of the next stage of a cascade (Ho et al. 2021): super-resolution, or twice the frame rate.

    Raises:
        InputError: the run was not trained to be conditioned on known pixels, or draws another size.
    """
    if model.tell != "channels":
        raise InputError("a later stage of a cascade needs a run trained with known pixels as channels (config.known)")
    factor = model.downsample
    size = (*(factor * n for n in video.shape[1:3]), video.shape[3])
    if size != model.shape[1:]:
        raise InputError(f"a stage of a cascade must draw (rows, columns, channels) {size}, not {model.shape[1:]}")
    return enlarge(video, factor, fps) if factor > 1 else interpolate(video, 2, fps)
