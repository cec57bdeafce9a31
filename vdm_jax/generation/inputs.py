"""Pictures, videos and masks of any size and rate, fitted to what a pipeline draws."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vdm_jax.data.folder import fit
from vdm_jax.errors import InputError
from vdm_jax.typing import Bool, Float, UInt8
from vdm_jax.video import READABLE, FilePath, read_video

log = logging.getLogger(__name__)

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


def read_image(path: FilePath, size: tuple[int, int], channels: int) -> Float[np.ndarray, "H W C"]:
    """Reads a picture; its middle is cut to the proportions of `size` and resized.

    Raises:
        InputError: another file.
    """
    return _fitted(_read_picture(path)[None], path, size, channels)[0]


def read_clip(
    path: FilePath, size: tuple[int, int], channels: int
) -> tuple[Float[np.ndarray, "L H W C"], float, tuple[int, int]]:
    """Reads a video: frames, cut and resized like a picture; frames a second; original rows and columns.

    Raises:
        InputError: another file.
    """
    if Path(path).suffix.lower() not in READABLE:
        raise InputError(f"{path} is not a video ({', '.join(READABLE)})")
    frames, fps = read_video(path)
    return _fitted(frames, path, size, channels), fps, frames.shape[1:3]


def read_mask(path: FilePath, size: tuple[int, int], pixels: tuple[int, int]) -> Bool[np.ndarray, "L H W 1"]:
    """Reads a mask, true where a picture (one mask for all frames) or a video (one for each) is white.

    It is cut and resized like its video, which has `pixels` rows and columns.

    Raises:
        InputError: another file, or of other rows and columns than the video.
    """
    if Path(path).suffix.lower() in READABLE:
        frames, _ = read_video(path)
    else:
        frames = _read_picture(path)[None]
    if frames.shape[1:3] != tuple(pixels):
        raise InputError(
            f"mask {path} has {frames.shape[1]}×{frames.shape[2]} pixels, its video {pixels[0]}×{pixels[1]}"
        )
    return _fitted(frames, path, size, 1) > 0


def _read_picture(path: FilePath) -> UInt8[np.ndarray, "H W 3"]:
    if Path(path).suffix.lower() in READABLE:
        raise InputError(f"{path} is a video, where a picture is needed")
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # upright, as the camera recorded
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as a picture ({getattr(error, 'strerror', None) or error})") from error


def _fitted(
    frames: UInt8[np.ndarray, "L Y X 3"], path: FilePath, size: tuple[int, int], channels: int
) -> Float[np.ndarray, "L H W C"]:
    if frames.shape[1:3] != size:
        log.info(
            "%s: %d×%d pixels; the middle part is cut to the proportions of %d×%d and resized",
            path, *frames.shape[1:3], *size,
        )  # fmt: skip
    video = np.stack([fit(frame, size, (0.5, 0.5)) for frame in frames]).astype(np.float32) / 127.5 - 1
    return video @ LUMA[:, None] if channels == 1 else video
