"""Reads and writes videos: mp4, webm, gif, PNG sheets and raw arrays, with metadata in the file.

Arrays are `T H W C`: uint8, or float32 in [-1, 1], with one channel (grey) or three (RGB). Files are written completely
or not at all. PyAV decodes and encodes; Pillow writes gif and png.
"""

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

from vdm_jax.errors import InputError
from vdm_jax.files import FilePath, whole_file, write_text
from vdm_jax.pictures import HLG, PQ, WHITE, Frame, to_rgb

log = logging.getLogger(__name__)

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


def iter_frames(path: FilePath, start: float | int = 0, back: int = 0) -> Iterator[tuple[float, Frame]]:
    """Decodes a video and yields (seconds since its beginning, frame); `to_rgb` turns a frame into an array.

    Starts at or before `start` seconds: at a key frame if the format can seek, else at the beginning. `back` is by
    how many seconds it looks for the key frame further back. Raises InputError if the file cannot be read.
    """
    with _opened(path) as (container, stream):
        first = (stream.start_time or 0) * stream.time_base
        of_file = stream.sample_aspect_ratio or 1, stream.codec_context.color_trc
        gif = container.format.name == "gif"
        seeking = start > back and not gif  # the frames of a gif depend on all frames before
        if seeking:
            container.seek(int((first + Fraction(start) - back) / stream.time_base), stream=stream)
        clock = Fraction(0)
        for decoded in _stamped(container, stream):
            if decoded.pts is None:
                continue
            seconds = float(clock if gif else decoded.pts * stream.time_base - first)
            if seeking and seconds > start:
                break
            seeking, duration = False, _duration(decoded, gif)
            clock += duration
            yield seconds, Frame(decoded, float(duration), *of_file)
        if not seeking:
            return
    # The index of the file is wrong, or seeking led behind the last key frame.
    yield from iter_frames(path, start, 2 * back or 1)


def _duration(timed: av.Packet | av.VideoFrame, gif: bool) -> Fraction:
    """Returns seconds, 0 if the file does not say. Browsers show the frames of a gif of up to 10 ms for 100 ms."""
    seconds = (timed.duration or 0) * timed.time_base
    return Fraction(1, 10) if gif and seconds <= Fraction(1, 100) else seconds


def _stamped(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decodes frames in the order in which they are shown. `pts` is None if the file has no times."""
    frames, context = container.decode(stream), stream.codec_context
    if stream.metadata.get("alpha_mode") == "1":  # FFmpeg's own decoders of VP8 and VP9 leave transparency out
        decoder = av.CodecContext.create({"vp8": "libvpx"}.get(context.name, "libvpx-vp9"), "r")
        packets = container.demux(stream)
        frames = (frame for packet in packets for frame in decoder.decode(packet if packet.size else None))
    # An avi has no times but the order of its packets, which a decoder holds back to put them in the order of showing.
    held = getattr(context, "reorder_depth", int(context.has_b_frames)) if container.format.name == "avi" else 0
    pts = 0
    for frame in frames:
        if container.format.name == "avi":
            frame.pts = pts = pts + 1 if frame.dts is None else frame.dts - held
        elif frame.pts is None:
            frame.pts = frame.dts
        yield frame


def read_video(
    path: FilePath, fit: Callable[[np.ndarray], np.ndarray] = lambda image: image, background: int = WHITE
) -> tuple[UInt8[np.ndarray, "T Y X 3"], float]:
    """Returns all frames of a video file, each cut and resized by `fit` as it is decoded, and its frames per second.

    Variable frame rates are sampled by time: a frame that lasts n times as long as the shortest counts n times.
    Transparent parts show `background`. Raises InputError if the file cannot be read, or its size changes and `fit`
    does not make one size of it.
    """
    times, frames, duration = [], [], 0.0
    for seconds, frame in iter_frames(path):
        times.append(seconds)
        frames.append(to_rgb(frame, fit, background))
        duration = frame.duration
    if not frames:
        raise InputError(f"{path} has no frames")
    if sizes := {frame.shape[:2] for frame in frames[1:]} - {frames[0].shape[:2]}:
        raise InputError(f"{path} has frames of {frames[0].shape[:2]} and of {sizes.pop()} pixels")
    rate, _, hdr = probe(path)
    if hdr:
        log.info("%s is HDR and is mapped to SDR (203 cd/m² is white)", path)
    shown = np.diff([*times, times[-1] + (duration or 1 / rate)])
    # The shortest tenth may be accidents of a recorder, and hundredths of a second alternate: 20 ms, 30 ms, 20 ms, …
    positive = shown[shown > 0]
    short = positive[positive < 1.6 * np.quantile(positive, 0.1, method="lower")].mean()
    slots = np.rint(shown / short).sum()
    measured = float(slots / shown.sum())
    ends = np.rint(np.cumsum(shown) * measured)
    repeats = np.diff(np.maximum.accumulate(ends), prepend=0).astype(int)
    if (repeats == 1).all() and abs(measured / rate - 1) < 0.05:  # the header is exact, and times may be rounded
        return np.stack(frames), rate
    if slots > 2 * len(frames):
        log.warning("%s: %d frames become %d, as one lasts %.3g s", path, len(frames), slots, shown.max())
    return np.repeat(np.stack(frames), repeats, axis=0), measured


class Header(NamedTuple):
    """Frames per second, seconds, and whether the video is HDR."""

    rate: float
    seconds: float
    hdr: bool


def probe(path: FilePath) -> Header:
    """Reads what a video shows, from its header or its packets; decodes nothing."""
    with _opened(path) as (container, stream):
        gif, hdr = container.format.name == "gif", stream.codec_context.color_trc in (PQ, HLG)
        rate = float(stream.average_rate or 0)
        lengths = [stream.frames / rate] if stream.frames and rate else []
        if stream.duration:
            lengths.append(float(stream.duration * stream.time_base))
        if lengths and rate and not gif:
            return Header(rate, min(lengths), hdr)  # a file that was cut without encoding stores more than it shows
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        if not packets:
            raise InputError(f"{path} has no frames")
        if gif:
            seconds = float(sum(_duration(packet, gif) for packet in packets))
        else:
            begin, end = min(p.pts for p in packets), max(p.pts + (p.duration or 0) for p in packets)
            seconds = float((end - begin) * stream.time_base) or len(packets) / (rate or 25.0)
        return Header(len(packets) / seconds, seconds, hdr)


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
    except (
        av.FFmpegError,
        OSError,
        Image.DecompressionBombError,
    ) as error:  # some are ValueErrors
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
    - .gif loops. Its frame times are whole hundredths of a second that add up to the right length. Browsers slow down
      frames of less than 20 ms: above 50 frames a second some are left out. Equal frames become one longer frame.
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
        # RGB is converted by BT.601 (6). Browsers take an mp4 of 720 rows for BT.709, unless every tag is there.
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 6, 1, 1, 1
        for picture in itertools.chain([first], frames):
            even = np.pad(picture, [(0, h % 2), (0, w % 2), (0, 0)], mode="edge")
            rgb = np.ascontiguousarray(np.broadcast_to(even, (*even.shape[:2], 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterator[UInt8[np.ndarray, "H W C"]], fps: float | int, comment: str) -> None:
    pictures = list(map(_picture, frames))
    seconds = len(pictures) / fps
    count = max(1, min(len(pictures), int(seconds * 50)))
    ends = np.rint(np.linspace(0, seconds * 100, count + 1)).astype(int)
    durations = (np.diff(ends).clip(2) * 10).tolist()  # milliseconds
    first, *others = (pictures[int(k)] for k in np.linspace(0, len(pictures), count, endpoint=False))
    options = {"append_images": others, "duration": durations, "loop": 0, "comment": comment.encode()}
    first.save(path, format="gif", save_all=True, **options)


def _picture(image: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    if image.shape[-1] not in (1, 3):
        raise InputError(f"a picture has 1 or 3 channels, not {image.shape[-1]}")
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
