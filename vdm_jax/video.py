"""Reads and writes videos: mp4, webm, gif, PNG sheets and raw arrays, with metadata in the file.

Arrays are `T H W C`: uint8, or float32 in [-1, 1], with one channel (grey) or three (RGB). Files are written completely
or not at all. PyAV decodes and encodes; Pillow writes gif and png.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

from vdm_jax.errors import InputError
from vdm_jax.files import FilePath, whole_file, write_text

READABLE = (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif")
WRITABLE = (".mp4", ".webm", ".gif", ".png", ".npy")
Metadata = Mapping[str, Any]

# A video with tags that are not UTF-8 is still read. PyAV 19 escapes such tags and has no such option.
_TAGS = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

# ------------------------------------------------------------------------------------------------ reading


@contextlib.contextmanager
def _opened(path: FilePath) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a video. Raises InputError if it cannot be read."""
    try:
        with av.open(os.fspath(path), **_TAGS) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as a video ({_reason(error)})") from error


def iter_frames(path: FilePath, start: float | int = 0) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decodes a video and yields (seconds since its beginning, frame); `to_rgb` turns a frame into an array.

    Starts at or before `start` seconds: at a key frame if the format can seek, else at the beginning. Raises InputError
    if the file cannot be read.
    """
    with _opened(path) as (container, stream):
        first = (stream.start_time or 0) * stream.time_base
        # The frames of a gif depend on all frames before.
        seeking = start > 0 and container.format.name != "gif"
        if seeking:
            container.seek(int((first + Fraction(start)) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            stamp = frame.dts if frame.pts is None else frame.pts
            if stamp is None:
                continue
            seconds = float(stamp * stream.time_base - first)
            if seeking and seconds > start:  # the index of the file is wrong
                yield from iter_frames(path)
                return
            seeking = False
            yield seconds, frame


def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture in RGB, turned upright if the camera was held sideways."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_video(path: FilePath) -> tuple[UInt8[np.ndarray, "T H W 3"], float]:
    """Returns all frames of a video file, and its frames per second.

    The frames of a gif have durations of their own: a frame that lasts n times as long as the shortest counts n times.
    Raises InputError if the file cannot be read.
    """
    decoded = [(time, to_rgb(frame)) for time, frame in iter_frames(path)]
    if not decoded:
        raise InputError(f"{path} has no frames")
    times, frames = zip(*decoded, strict=True)
    rate, duration = probe(path)
    if Path(path).suffix.lower() != ".gif":
        return np.stack(frames), rate
    shown = np.diff([*times, duration])
    repeats = np.rint(shown / shown.min()).astype(int)
    return np.repeat(np.stack(frames), repeats, axis=0), float(repeats.sum() / duration)


def probe(path: FilePath) -> tuple[float, float]:
    """Returns the frames per second and the seconds of a video, from its header or its packets; decodes nothing."""
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or 0)
        if container.format.name != "gif" and rate:
            if stream.frames:
                return rate, stream.frames / rate
            if stream.duration:
                return rate, float(stream.duration * stream.time_base)
        packets = [p for p in container.demux(stream) if p.pts is not None]
        if not packets:
            raise InputError(f"{path} has no frames")
        begin, end = min(p.pts for p in packets), max(p.pts + (p.duration or 0) for p in packets)
        seconds = float((end - begin) * stream.time_base) or len(packets) / (rate or 25.0)
        return len(packets) / seconds, seconds


def read_metadata(path: FilePath) -> dict[str, Any]:
    """Returns the `metadata` that `write_video` or `write_image` wrote, else {}."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            text = file.read_text() if (file := path.with_suffix(".json")).exists() else "{}"
        elif path.suffix in (".gif", ".png"):
            with Image.open(path) as image:
                text = image.info.get("comment", b"{}")
        else:
            with av.open(os.fspath(path), **_TAGS) as container:
                text = {key.lower(): value for key, value in container.metadata.items()}.get("comment", "{}")
        metadata = json.loads(text)
        return metadata if isinstance(metadata, dict) else {}
    except (av.FFmpegError, OSError) as error:  # before ValueError, which some of them are
        raise InputError(f"{path} cannot be read ({_reason(error)})") from error
    except ValueError:
        return {}  # a comment of other software


# ------------------------------------------------------------------------------------------------ writing


def write_video(
    path: FilePath,
    video: UInt8[np.ndarray, "T H W C"] | Float[np.ndarray, "T H W C"],
    fps: float | int,
    metadata: Metadata | None = None,
    scale: int = 1,
) -> None:
    """Writes a video in the format of the suffix, with `metadata` (prompt, seed, settings …) as JSON in the file.

    - .mp4 (H.264) and .webm (VP9) need even sizes: an odd size grows by repeating the last row or column.
    - .gif loops. Its frame times are whole hundredths of a second that add up to the right length: above a hundred
      frames a second some frames are left out, and equal frames in a row become one longer frame.
    - .png shows all frames in a row.
    - .npy holds exact float32 values in [-1, 1], not scaled; its metadata lie in a .json file next to it.

    Every pixel is repeated `scale` times down and across. Raises InputError, and leaves nothing behind, if the suffix
    is unknown, shape, rate or values do not fit a video, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITABLE:
        raise InputError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}")
    if not fps > 0 or scale < 1:
        raise InputError(f"fps={fps} must be positive and scale={scale} at least 1")
    if path.suffix == ".npy":
        raw = video.astype(np.float32, copy=False) if video.dtype != np.uint8 else video / np.float32(127.5) - 1
        if metadata is not None:
            write_text(path.with_suffix(".json"), json.dumps({"fps": fps, **metadata}, indent=2))
        with whole_file(path) as part:
            np.save(part, raw)
        return
    if path.suffix == ".png":
        write_image(path, contact_sheet([video], scale=scale), metadata)
        return
    write = _write_gif if path.suffix == ".gif" else _write_encoded
    comment = json.dumps(dict(metadata or {}))
    # One frame at a time: a long memory-mapped video is then never completely in memory. (Pillow keeps all frames of a
    # GIF.)
    try:
        with whole_file(path) as part:
            write(part, (enlarge(to_uint8(frame), scale) for frame in video), fps, comment)
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}") from error


def write_image(path: FilePath, image: UInt8[np.ndarray, "H W C"], metadata: Metadata | None = None) -> None:
    """Writes a .png with `metadata` in a text chunk. Raises InputError if it cannot be written."""
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"{path}: the suffix must be .png")
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("comment", json.dumps(dict(metadata or {})))
    with whole_file(path) as part:
        _picture(image).save(part, format="png", pnginfo=chunk)


def contact_sheet(
    videos: np.ndarray | Sequence[UInt8[np.ndarray, "T H W C"] | Float[np.ndarray, "T H W C"]],
    columns: int | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "Y X C"]:
    """Returns one image with a row for each video and thin grey lines between the frames; all videos have one shape.

    A row has `columns` frames, evenly spaced from first to last; None means all frames.
    """
    length = len(videos[0])
    shown = np.linspace(0, length - 1, min(columns or length, length)).round().astype(int)
    frames = enlarge(np.stack([to_uint8(video[shown]) for video in videos]), scale)
    ruled = np.pad(frames, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=128)
    return rearrange(ruled, "n t h w c -> (n h) (t w) c")[:-1, :-1]


def to_uint8(video: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Returns float pixels, clipped to [-1, 1], as 0 … 255; uint8 stays as it is. Raises InputError for NaN."""
    if video.dtype == np.uint8:
        return video
    if not np.isfinite(video).all():
        raise InputError("the video holds values that are not finite")
    return np.rint((np.clip(video, -1, 1) + 1) * 127.5).astype(np.uint8)


def enlarge(video: UInt8[np.ndarray, "*B H W C"], scale: int) -> UInt8[np.ndarray, "*B Y X C"]:
    """Repeats every pixel `scale` times down and across."""
    return video.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _write_encoded(path: Path, frames: Iterator[UInt8[np.ndarray, "H W C"]], fps: float | int, comment: str) -> None:
    """Writes mp4 (H.264) or webm (VP9), in the pixel format that every player supports."""
    first = next(frames)
    h, w, _ = first.shape
    mp4 = path.suffix == ".mp4"
    options = {"crf": "16"} if mp4 else {"crf": "20", "b:v": "0", "deadline": "good", "cpu-used": "4"}
    with av.open(os.fspath(path), "w") as container:
        container.metadata["comment"] = comment
        rate = Fraction(fps).limit_denominator(10_000)
        stream = container.add_stream("libx264" if mp4 else "libvpx-vp9", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = h + h % 2, w + w % 2, "yuv420p"
        for picture in itertools.chain([first], frames):
            even = np.pad(picture, [(0, h % 2), (0, w % 2), (0, 0)], mode="edge")
            rgb = np.ascontiguousarray(np.broadcast_to(even, (*even.shape[:2], 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterator[UInt8[np.ndarray, "H W C"]], fps: float | int, comment: str) -> None:
    pictures = list(map(_picture, frames))
    ends = np.rint(np.arange(len(pictures) + 1) * 100 / fps).astype(int)
    ends[-1] = max(ends[-1], 1)
    shown = np.flatnonzero(np.diff(ends))
    durations = (np.diff(ends)[shown] * 10).tolist()  # milliseconds
    first, *others = (pictures[i] for i in shown)
    options = {"append_images": others, "duration": durations, "loop": 0, "comment": comment.encode()}
    first.save(path, format="gif", save_all=True, **options)


def _picture(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    if image.shape[-1] not in (1, 3):
        raise InputError(f"a picture has 1 or 3 channels, not {image.shape[-1]}")
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
