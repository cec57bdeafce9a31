"""Reads a folder of videos as clips of one size, length and frame rate, with captions."""

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image

from vdm_jax.data.captions import read_captions
from vdm_jax.errors import InputError, some
from vdm_jax.pictures import to_rgb
from vdm_jax.video import READABLE, iter_frames, probe

log = logging.getLogger(__name__)

Crop = Literal["random", "center"]
Item = dict[str, Any]

_TRASH = ("$recycle.bin", "#recycle", "@eadir", "__macosx")
_NOT_READ = (".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mxf")


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Says how a clip is cut out of a video: `frames` frames, `stride` apart, of `size` (rows, columns) pixels.

    `crop` "random" draws the first frame and the part of the picture; "center" takes the middle of both.
    """

    frames: int
    size: tuple[int, int]
    stride: int = 1
    crop: Crop = "random"

    def __post_init__(self):
        if self.frames < 1 or self.stride < 1 or min(self.size) < 1:
            raise InputError(f"frames={self.frames}, stride={self.stride}, size={self.size}: at least 1 each")
        if self.crop not in ("random", "center"):
            raise InputError(f"crop={self.crop!r} must be 'random' or 'center'")

    def draw(self, last: int, rng: np.random.Generator) -> tuple[int, tuple[float, float]]:
        """Returns the first frame of the clip, from 0 to `last`, and its place in the picture, (0, 0) to (1, 1)."""
        if self.crop == "center":
            return last // 2, (0.5, 0.5)
        return int(rng.integers(last + 1)), (float(rng.random()), float(rng.random()))


def fit(
    frame: UInt[np.ndarray, "H W C"], size: tuple[int, int], place: tuple[float, float]
) -> UInt[np.ndarray, "Y X C"]:
    """Returns the largest part of a picture with the proportions of `size`, at `place`, resized to `size`.

    Pillow's bicubic filter widens with the reduction, so fine detail is averaged and not aliased.
    """
    (height, width), (rows, columns) = frame.shape[:2], size
    reduction = min(height / rows, width / columns)
    part = max(round(rows * reduction), 1), max(round(columns * reduction), 1)
    top, left = int(place[0] * (height - part[0] + 1)), int(place[1] * (width - part[1] + 1))
    box = (left, top, left + part[1], top + part[0])
    if part == size:
        return frame[top : box[3], left : box[2]]
    image = Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame))
    resized = image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).reshape(rows, columns, frame.shape[-1])


class Clips(Sequence[Item]):
    """Random access to clips; `clips[i]` draws its clip from (seed, i), the same each time."""

    seed: int

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.sample(index % len(self), np.random.default_rng([self.seed, index % len(self)]))


class VideoFile(NamedTuple):
    """Describes a readable video."""

    path: Path
    captions: tuple[str, ...]
    rate: float  # frames per second
    count: int  # frames
    hdr: bool


class VideoFolder(Clips):
    """Gives random access to clips of the videos below `root` (`video.READABLE`), sorted by name.

    Items are {"video": uint8 [frames, *size, 3], "caption": str}. `read_captions` says where captions come from; a
    video without one has "". `captions` "one" refuses a second caption of a video, "first" leaves it out, "all" draws
    one of them for each sample.

    A clip is sampled by time: frame k is the frame nearest to `start + k·stride/fps` seconds. `fps=None` means the rate
    of the file. `sample` draws start and crop from its generator; `folder[i]` draws them from (seed, i), the same each
    time. A file is open only while an item is read.

    Files that cannot be opened or are too short are skipped and named in the log. If a file fails later, in decoding,
    the next file replaces it, and each process names it once. Raises InputError if the folder does not exist or has no
    usable video, its captions name missing files, or they cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int,
        size: int | tuple[int, int],
        stride: int = 1,
        fps: float | int | None = None,
        crop: Crop = "random",
        seed: int = 0,
        captions: str = "one",
    ):
        self.root = Path(root)
        self.shape = ClipShape(frames, (size, size) if isinstance(size, int) else tuple(size), stride, crop)
        if fps is not None and not fps > 0:
            raise InputError(f"fps={fps} must be positive, or None for each file's own")
        self.fps, self.seed = fps, seed
        self._failed: set[Path] = set()
        files = _list_files(self.root)
        videos = _videos_of(self.root, files)
        self.files = self._usable(videos, read_captions(files, videos, captions))

    @property
    def longest_caption(self) -> tuple[Path, str]:
        """Returns the path of the file with the longest caption, and the caption."""
        captions = ((file.path, caption) for file in self.files for caption in file.captions)
        return max(captions, key=lambda caption: len(caption[1].encode()))

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int, rng: np.random.Generator, single_frame: bool = False) -> Item:
        """Returns item `index` with start, crop and caption drawn from `rng`; `single_frame`: a clip of one frame."""
        for attempt in range(len(self)):
            file = self.files[(index + attempt) % len(self)]
            try:
                video, several = self._clip(file, rng, single_frame), len(file.captions)
                return {"video": video, "caption": file.captions[rng.integers(several) if several > 1 else 0]}
            except InputError as error:
                if file.path not in self._failed:
                    self._failed.add(file.path)
                    log.warning("%s; the next file replaces it", error)
        raise InputError(f"{self.root}: none of its {len(self)} videos can be decoded")

    def _clip(self, file: VideoFile, rng: np.random.Generator, single_frame: bool) -> UInt8[np.ndarray, "T H W 3"]:
        frames = 1 if single_frame else self.shape.frames
        first, place = self.shape.draw(self._last_start(file, frames), rng)
        times = first / file.rate + np.arange(frames) * self.shape.stride / (self.fps or file.rate)
        return np.stack(list(_frames_at(file, times, lambda image: fit(image, self.shape.size, place))))

    def _last_start(self, file: VideoFile, frames: int) -> int:
        """Returns the last frame from which a clip can start; negative if the file is too short."""
        seconds = (frames - 1) * self.shape.stride / (self.fps or file.rate)
        return file.count - 1 - round(seconds * file.rate)

    def _usable(self, paths: list[Path], captions: dict[Path, tuple[str, ...]]) -> list[VideoFile]:
        """Probes every file (headers only) and leaves out, with one warning, the files that give no clip."""
        files, skipped, last_report = [], [], time.monotonic()

        def usable(path: Path) -> VideoFile | str:
            try:
                rate, seconds, hdr = probe(path)
            except InputError as error:
                return str(error)
            file = VideoFile(path, captions.get(path, ("",)), rate, round(rate * seconds), hdr)
            fits = self._last_start(file, self.shape.frames) >= 0
            return file if fits else f"{path} is too short ({seconds:.2f} s, {file.count} frames)"

        with ThreadPoolExecutor(8) as pool:
            for file in pool.map(usable, paths):
                (skipped if isinstance(file, str) else files).append(file)
                if time.monotonic() - last_report > 10:
                    last_report = time.monotonic()
                    log.info("%s: checked %d of %d videos", self.root, len(files) + len(skipped), len(paths))
        if skipped:
            log.warning("skipped %d of %d videos:\n  %s", len(skipped), len(paths), "\n  ".join(skipped))
        if not files:
            clip = f"{self.shape.frames} frames, stride {self.shape.stride}, fps {self.fps or 'of the file'}"
            raise InputError(f"{self.root}: none of its {len(paths)} videos gives a clip ({clip}): {skipped[0]}")
        if hdr := sum(file.hdr for file in files):
            log.info("%d of %d videos are HDR and are mapped to SDR (203 cd/m² is white)", hdr, len(files))
        fps = (self.fps or 0) / self.shape.stride
        if slow := sum(file.rate < 0.99 * fps for file in files):  # 23.976 is meant as 24
            log.warning("%d of %d videos have fewer than %g frames a second: frames repeat", slow, len(files), fps)
        return files


def _frames_at(
    file: VideoFile, times: np.ndarray, fit: Callable[[np.ndarray], np.ndarray]
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Yields the frames nearest to `times` (seconds, ascending), the earlier of two, fitted; decodes in one pass."""
    wanted, before = list(times), None
    for now, frame in iter_frames(file.path, times[0] - 1 / file.rate):
        while wanted and wanted[0] <= now:
            earlier = before is not None and wanted[0] - before[0] <= now - wanted[0] + 1e-6
            yield to_rgb(before[1] if earlier else frame, fit)
            wanted.pop(0)
        if not wanted:
            return
        before = now, frame
    for moment in wanted:  # the last frame lasts 1/rate, or longer
        if before is None or moment > before[0] + max(1 / file.rate, before[1].duration):
            raise InputError(f"{file.path} ends before {moment:.2f} s, though its header says otherwise")
        yield to_rgb(before[1], fit)


def _list_files(root: Path) -> list[Path]:
    """Returns the files below a folder in order, without hidden ones. Links to folders are followed.

    A folder with several names is read once, under its own name if it lies below `root`. Hidden folders, trash and run
    folders are left out, and the videos in them are counted in the log.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of videos: it does not exist or is a file")
    files, left_out, seen, tops = [], [], set(), [root]
    for top in tops:  # the links that are found come last
        for folder, inner, names in os.walk(top):
            here, real = Path(folder), os.path.realpath(folder)
            out = here != root and _is_left_out(here, inner, names)
            if out and (count := _count_videos(here)):
                left_out.append(f"{count} in {here.relative_to(root)}")
            if out or real in seen:
                inner.clear()
                continue
            seen.add(real)
            inner.sort()
            tops += [here / name for name in inner if (here / name).is_symlink()]
            files += [here / name for name in names if not name.startswith(".")]
    if left_out:
        log.warning("%s: videos in hidden folders, trash and run folders are left out: %s", root, some(left_out))
    return sorted(files)


def _is_left_out(folder: Path, inner: list[str], names: list[str]) -> bool:
    """Returns whether a folder is hidden, has deleted files or thumbnails, or is the folder of a run."""
    is_run = "config.json" in names and ("checkpoints" in inner or "metrics.jsonl" in names)
    return is_run or folder.name.startswith(".") or folder.name.lower() in _TRASH


def _count_videos(folder: Path) -> int:
    return sum(Path(name).suffix.lower() in READABLE for _, _, names in os.walk(folder) for name in names)


def _videos_of(root: Path, files: list[Path]) -> list[Path]:
    """Returns the videos among files, and logs how many files are of formats that are not read."""
    if others := Counter(suffix for path in files if (suffix := path.suffix.lower()) in _NOT_READ):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
        log.warning("%s: files of these formats are not read (convert them to mp4): %s", root, counts)
    videos = [path for path in files if path.suffix.lower() in READABLE and path.is_file()]
    if not videos:
        raise InputError(f"{root} holds no videos ({', '.join(READABLE)})")
    return videos
