"""How well what is known of a clip is kept: of held-out clips a part is known, the rest is drawn and compared."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Bool, Float, Int

Videos = Float[np.ndarray, "B T H W C"]


class Mode(NamedTuple):
    """What is known of frame t, row y and column x, of so many each; and whether the caption is told, too."""

    known: Callable[..., np.ndarray]
    captioned: bool = False


MODES = {
    "extension, half known": Mode(lambda t, y, x, frames, rows, columns: t < frames // 2),
    "extension backward, half known": Mode(lambda t, y, x, frames, rows, columns: t >= frames - frames // 2),
    "image to video, with the caption": Mode(lambda t, y, x, frames, rows, columns: t == 0, captioned=True),
    "first and last frame": Mode(lambda t, y, x, frames, rows, columns: t % (frames - 1) == 0),
    "every second frame": Mode(lambda t, y, x, frames, rows, columns: t % 2 == 0),
    "inpainting, left half": Mode(lambda t, y, x, frames, rows, columns: x >= columns // 2),
    "outpainting, a border of an eighth": Mode(
        lambda t, y, x, frames, rows, columns: (
            (abs(y + 0.5 - rows / 2) < rows * 3 / 8) & (abs(x + 0.5 - columns / 2) < columns * 3 / 8)
        )
    ),
}


def check_mode(mode: str) -> None:
    """Raises InputError for an unknown mode."""
    if mode not in MODES:
        raise InputError(f"known={mode!r} must be one of: {'; '.join(MODES)}")


def mask_of(mode: str, shape: Sequence[int]) -> Bool[np.ndarray, "1 T H W 1"]:
    """What a mode knows of clips of a shape (frames, rows, columns, …). Raises InputError for an unknown mode."""
    check_mode(mode)
    frames, rows, columns = shape[:3]
    t, y, x = np.ogrid[:frames, :rows, :columns]
    return np.broadcast_to(MODES[mode].known(t, y, x, frames, rows, columns), (frames, rows, columns))[None, ..., None]


def new_frames(mask: Bool[np.ndarray, "1 T H W 1"]) -> tuple[int, ...]:
    """The frames of which something is to be drawn."""
    return tuple(np.flatnonzero(~mask[0].all((1, 2, 3))).tolist())


def without_a_network(real: Videos, mask: Bool[np.ndarray, "1 T H W 1"]) -> Videos:
    """The nearest frame that is wholly known in the place of every other; where there is none, black for the rest."""
    whole = np.flatnonzero(mask[0].all((1, 2, 3)))
    if not len(whole):
        return np.where(mask, real, np.float32(-1))
    return real[:, whole[np.abs(np.subtract.outer(np.arange(real.shape[1]), whole)).argmin(-1)]]


def place_kept(videos: Videos, real: Videos, new: Sequence[int]) -> dict[str, np.ndarray]:
    """Of each clip, over its new frames: the distance of the centroid from the real one's in pixels; is it ≤ 1?"""
    from vdm_jax.evaluation.digit_metrics import position_error  # imports TFDS

    far = position_error(videos, real, new)
    return {"position_error": far, "within_pixel": far <= 1}


def digit_kept(judge: Any, videos: Videos, digits: Int[np.ndarray, "B"], new: Sequence[int]) -> Bool[np.ndarray, "B"]:
    """Whether the judge of moving digits reads the true digit off the new frames alone.

    Its look at the digit is blind to the order of frames: those that are new, again and again, fill its clip.
    """
    seen = videos[:, np.resize(new, videos.shape[1])]
    return np.asarray(judge(seen).digit).argmax(-1) == digits
