"""Pictures, videos and masks of any size and rate, fitted to what a pipeline draws."""

import logging
from pathlib import Path

import numpy as np

from vdm_jax.data.folder import fit
from vdm_jax.errors import InputError
from vdm_jax.pictures import BLACK, WHITE, read_picture
from vdm_jax.typing import Bool, Float
from vdm_jax.video import READABLE, FilePath, read_video

log = logging.getLogger(__name__)

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


def read_image(path: FilePath, size: tuple[int, int], channels: int) -> Float[np.ndarray, "H W C"]:
    """Reads a picture; its middle is cut to the proportions of `size` and resized. Transparent parts are white.

    Raises:
        InputError: another file.
    """
    if Path(path).suffix.lower() in READABLE:
        raise InputError(f"{path} is a video, where a picture is needed")
    return _read(path, size, channels)[0][0]


def read_clip(
    path: FilePath, size: tuple[int, int], channels: int
) -> tuple[Float[np.ndarray, "L H W C"], float, tuple[int, int]]:
    """Reads a video: frames, cut and resized like a picture; frames a second; original rows and columns.

    Raises:
        InputError: another file.
    """
    if Path(path).suffix.lower() not in READABLE:
        raise InputError(f"{path} is not a video ({', '.join(READABLE)})")
    return _read(path, size, channels)


def read_mask(path: FilePath, size: tuple[int, int], pixels: tuple[int, int]) -> Bool[np.ndarray, "L H W 1"]:
    """Reads a mask, true where a picture (one mask for all frames) or a video (one for each) is white.

    It is cut and resized like its video, which has `pixels` rows and columns. Transparent parts are black.

    Raises:
        InputError: another file, or of other rows and columns than the video.
    """
    return _read(path, size, 1, BLACK, tuple(pixels))[0] > 0


def _read(
    path: FilePath,
    size: tuple[int, int],
    channels: int,
    background: int = WHITE,
    of_video: tuple[int, int] | None = None,
) -> tuple[Float[np.ndarray, "L H W C"], float, tuple[int, int]]:
    """Reads a picture or a video like `read_clip`. Frames are fitted as they are decoded, which saves memory."""
    pixels = None

    def fitted(image: np.ndarray) -> np.ndarray:
        nonlocal pixels
        pixels = pixels or image.shape[:2]
        return fit(image, size, (0.5, 0.5))

    if Path(path).suffix.lower() in READABLE:
        frames, fps = read_video(path, fitted, background)
    else:
        frames, fps = fitted(read_picture(path, background))[None], 0.0
    if of_video not in (None, pixels):
        raise InputError(f"mask {path} has {pixels[0]}×{pixels[1]} pixels, its video {of_video[0]}×{of_video[1]}")
    if pixels != size:
        text = "%s: %d×%d pixels; the middle part is cut to the proportions of %d×%d and resized"
        log.info(text, path, *pixels, *size)
    video = frames.astype(np.float32) / 127.5 - 1
    return video @ LUMA[:, None] if channels == 1 else video, fps, pixels
