"""Modes of generation on held-out clips: a part of each clip is known, the rest is drawn and compared."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import reduce, repeat

from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.evaluation.judge import position_error
from vdm_jax.typing import Bool, Float, Int

Videos = Float[np.ndarray, "B T H W C"]


class Mode(NamedTuple):
    """`known(t, y, x, frames, rows, columns)` says whether the pixel of frame t, row y and column x is known."""

    known: Callable[..., np.ndarray]
    captioned: bool = False  # whether the caption is given, too
    factor: int = 1  # above 1, the clip is given with fewer rows and columns by this factor: super-resolution
    window: int = 0  # above 0, this many new frames are drawn at a time, and known from then on


VIDEO_TO_VIDEO = "video to video"  # sampling begins with the noised clip; no pixel is known for certain
MODES = {
    "extension, half known": Mode(lambda t, y, x, frames, *_: t < frames // 2),
    "extension, half known, two frames at a time": Mode(lambda t, y, x, frames, *_: t < frames // 2, window=2),
    "extension backward, half known": Mode(lambda t, y, x, frames, *_: t >= frames - frames // 2),
    "image to video, with the caption": Mode(lambda t, *_: t == 0, captioned=True),
    "first and last frame": Mode(lambda t, y, x, frames, *_: t % (frames - 1) == 0),
    "every second frame": Mode(lambda t, *_: t % 2 == 0),
    "inpainting, left half": Mode(lambda t, y, x, frames, rows, columns: x >= columns // 2),
    "outpainting, a border of an eighth": Mode(
        lambda t, y, x, frames, rows, columns: (
            (abs(y + 0.5 - rows / 2) < rows * 3 / 8) & (abs(x + 0.5 - columns / 2) < columns * 3 / 8)
        )
    ),
    VIDEO_TO_VIDEO: Mode(lambda t, *_: t < 0),
    "super-resolution by 2": Mode(lambda t, *_: t < 0, factor=2),
}


def check_strength(mode: str, strength: float | int) -> None:
    """Raises InputError unless `strength` is below 1 for video to video, and 1 for all other modes."""
    if (mode == VIDEO_TO_VIDEO) != (strength < 1):
        right = "below 1" if mode == VIDEO_TO_VIDEO else "1"
        raise InputError(f"strength={strength:g} must be {right} where known={mode!r}")


def check_mode(mode: str) -> None:
    """Raises InputError for an unknown mode."""
    if mode not in MODES:
        raise InputError(f"known={mode!r} must be one of: {'; '.join(MODES)}")


def mask_of(mode: str, shape: Sequence[int]) -> Bool[np.ndarray, "1 T H W 1"]:
    """The pixels of a clip of a shape (frames, rows, columns, …) that are known and stay as they are.

    Raises InputError for an unknown mode, and for a size that super-resolution cannot divide.
    """
    check_mode(mode)
    frames, rows, columns = shape[:3]
    if rows % (factor := MODES[mode].factor) or columns % factor:
        raise InputError(f"known={mode!r}: rows and columns, {rows}×{columns}, must be multiples of {factor}")
    t, y, x = np.ogrid[:frames, :rows, :columns]
    return np.broadcast_to(MODES[mode].known(t, y, x, frames, rows, columns), (frames, rows, columns))[None, ..., None]


def new_frames(mask: Bool[np.ndarray, "1 T H W 1"]) -> tuple[int, ...]:
    """The frames that have unknown pixels."""
    return tuple(np.flatnonzero(~mask[0].all((1, 2, 3))).tolist())


def known_of(mode: str, real: Videos) -> dict[str, Any]:
    """The arguments of `Pipeline.batches` for what a mode knows of real clips."""
    mask, factor = mask_of(mode, real.shape[1:]), MODES[mode].factor
    if factor == 1:
        return {"known": Known(real, mask)}
    repeated = repeat(_small(real, factor), "b t h w c -> b t (h i) (w j) c", i=factor, j=factor)
    return {"known": Known(repeated, np.ones((1, 1, 1, 1, 1), bool)), "coarse": factor}


def in_windows(mode: str, real: Videos, draw: Callable[..., Videos]) -> Videos:
    """The clips that `draw(block=…, known=…, coarse=…)` draws from what a mode knows, window by window."""
    mask, window, frames = mask_of(mode, real.shape[1:]), MODES[mode].window, real.shape[1]
    if not window:
        return draw(**known_of(mode, real))
    for block, start in enumerate(range(new_frames(mask)[0], frames, window)):
        before = (np.arange(frames) < start)[None, :, None, None, None]
        real = draw(known=Known(real, mask | before), block=block)
    return real


def _small(videos: Videos, factor: int) -> Float[np.ndarray, "B T h w C"]:
    return reduce(videos, "b t (h i) (w j) c -> b t h w c", "mean", i=factor, j=factor)


def without_a_network(real: Videos, mode: str) -> Videos:
    """A guess of the clips from what is known, for the floors.

    Every frame becomes the nearest frame that is known as a whole. Without such a frame, unknown pixels are black.
    Super-resolution is cubic interpolation.
    """
    mask, factor = mask_of(mode, real.shape[1:]), MODES[mode].factor
    if factor > 1:
        return np.clip(jax.image.resize(_small(real, factor), real.shape, "cubic"), -1, 1)
    whole = np.flatnonzero(mask[0].all((1, 2, 3)))
    if not len(whole):
        return np.where(mask, real, np.float32(-1))
    return real[:, whole[np.abs(np.subtract.outer(np.arange(real.shape[1]), whole)).argmin(-1)]]


def place_kept(videos: Videos, real: Videos, new: Sequence[int]) -> dict[str, np.ndarray]:
    """Compares positions over the new frames of each clip.

    Returns the mean distance of the centroid from the centroid of the real clip in pixels, and whether it is at most 1.
    """
    distance = position_error(videos, real, new)
    return {"position_error": distance, "within_pixel": distance <= 1}


def digit_kept(judge: Any, videos: Videos, digits: Int[np.ndarray, "B"], new: Sequence[int]) -> Bool[np.ndarray, "B"]:
    """Whether the judge of moving digits reads the true digit from the new frames alone.

    The judge needs a whole clip and reads the digit without regard to the order of frames: the new frames are repeated.
    """
    repeated = videos[:, np.resize(new, videos.shape[1])]
    return np.asarray(judge(repeated).digit).argmax(-1) == digits
