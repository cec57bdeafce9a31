"""Opens data by name: moving digits, a folder of videos, or any prepared TFDS video data set."""

import dataclasses
import functools
import importlib.util
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grain.sources import RandomAccessDataSource
from jaxtyping import UInt8
from PIL import Image

from vdm_jax.data.folder import Clips, ClipShape, Crop, Item, VideoFolder, fit
from vdm_jax.errors import InputError, some
from vdm_jax.pictures import open_rgb
from vdm_jax.video import READABLE

log = logging.getLogger(__name__)

_VIDEO_KEYS = ("video", "image_sequence", "image_aux1", "frames")  # ucf101 …, moving_mnist, bair
_CAPTION_KEYS = ("caption", "text", "label")


def make_source(
    name: str,
    *,
    data_dir: str | Path,
    split: str = "train",
    builder_config: str | None = None,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    stride: int = 1,
    fps: float | int | None = None,
    crop: Crop = "random",
    seed: int = 0,
    video_key: str | None = None,
    caption_key: str | None = None,
    captions: str = "one",
) -> RandomAccessDataSource:
    """Returns random access to {"video": uint8 [T, H, W, C], "caption": str}, for `pipeline.make_iterator`.

    Args:
        name: "moving_digits" (the first call builds it below `data_dir`), "folder" (the videos below `data_dir/split`,
            in any capitals; the training split may lie in `data_dir` itself), or the name of a TFDS data set prepared
            below `data_dir`, with or without the prefix "tfds:".
        split: name of the split; TFDS' slices ("train[:90%]") work too.
        builder_config: the variant of moving_digits or of the TFDS data set.
        frames, size, stride, crop: the clip (`ClipShape`); a folder needs frames and size. None: as stored.
        fps: frame rate at which the files of a folder are sampled; other data sets store no rates.
        seed: for the clips of `source[i]`. The pipeline draws new clips in every epoch.
        video_key, caption_key: the TFDS features, "outer/inner" if nested. None: the first existing one of video,
            image_sequence, image_aux1, frames, and of caption, text, label; without the latter, captions are "". A
            class label becomes its name.
        captions: what becomes of several captions of a file in a folder (`VideoFolder`).
    """
    name = name.removeprefix("tfds:")
    size = (size, size) if isinstance(size, int) else size
    if name == "folder":
        if frames is None or size is None:
            raise InputError(f"a folder of videos needs frames and size, not frames={frames}, size={size}")
        root = _folder_of_split(Path(data_dir), split)
        clip = dict(frames=frames, size=size, stride=stride, fps=fps, crop=crop, seed=seed)
        return VideoFolder(root, **clip, captions=captions)
    if captions != "one":
        raise InputError(f"data.captions={captions!r} is for a folder of videos; {name} has one caption a video")
    if fps is not None:
        raise InputError(f"fps={fps}: {name} stores no frame rates to sample at; use stride, or leave fps None")
    if frames is None and stride != 1:
        raise InputError(f"stride={stride} needs frames, the length of a clip")
    shape, longest = ClipShape(frames or 1, size or (1, 1), stride, crop), None
    if name == "moving_digits":
        from vdm_jax.data import moving_digits  # imports TFDS, which takes a second that folders save

        builder = moving_digits.prepare(data_dir, *([builder_config] if builder_config else []))
        prepared, longest = builder.data_dir, (name, moving_digits.longest_caption(builder.builder_config))
    else:
        prepared = _find_tfds(name, builder_config, data_dir)
    keys = _keys(_tfds().builder_from_directory(prepared).info, video_key, caption_key)
    records = _Records(prepared, split, keys[0])
    if len(records):
        try:
            frame = _decode(_at(records[0], keys[0])[0])
        except (TypeError, AttributeError, IndexError, OSError):
            frame = None
        if frame is None or frame.dtype != np.uint8 or frame.ndim != 3:
            raise InputError(f"video_key={keys[0]} holds no frames of pixels (uint8)")
    return _Clips(records, *keys, shape, frames is not None, size is not None, seed, longest)


def splits_of(name: str, *, data_dir: str | Path, builder_config: str | None = None) -> list[str]:
    """Returns the splits of a data set, named as for `make_source`; a folder without train/ has "train" only."""
    name, root = name.removeprefix("tfds:"), Path(data_dir)
    if name == "folder":  # without train/, all its videos are the training split
        inner = sorted({path.name.lower() for path in root.glob("*") if path.is_dir()})
        return inner if "train" in inner else ["train"]
    if name == "moving_digits":
        return ["train", "test"]
    return list(_tfds().builder_from_directory(_find_tfds(name, builder_config, root)).info.splits)


def _folder_of_split(root: Path, split: str) -> Path:
    """Returns the folder of a split; of "train" `root` itself, if there is none. Logs what lies beside the folder."""
    inside = sorted(root.glob("*"))
    same = (path for path in (root / split, *inside) if path.is_dir() and path.name.lower() == split.lower())
    if (folder := next(same, None)) is None:
        if split != "train":
            raise InputError(f"split={split!r} of a folder needs the folder {root / split}")
        return root
    if beside := [p.name for p in inside if p.suffix.lower() in READABLE or p.stem == "metadata"]:
        log.warning("%s: only %s/ is read; left out beside it: %s", root, folder.name, some(beside))
    return folder


@dataclasses.dataclass(frozen=True)
class _Clips(Clips):
    """Cuts clips out of records that hold whole videos, and decodes only the frames of the clip."""

    records: RandomAccessDataSource
    video_key: str
    caption_key: str | None
    class_names: tuple[str, ...] | None
    shape: ClipShape
    cut: bool  # to the number of frames of `shape`; False: all frames
    resize: bool  # to the size of `shape`
    seed: int
    longest_caption: tuple[str, str] | None = None  # the name of the data and the caption

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, rng: np.random.Generator, single_frame: bool = False) -> Item:
        """Returns item `index` with clip and crop drawn from `rng`; with `single_frame`, a clip of one frame."""
        record = self.records[index]
        frames = _at(record, self.video_key)
        count = 1 if single_frame else self.shape.frames if self.cut else len(frames)
        stride = self.shape.stride
        last = len(frames) - 1 - (count - 1) * stride
        if last < 0:
            raise InputError(f"video {index} has {len(frames)} frames: too short for {count} with {stride=}")
        first, place = self.shape.draw(last, rng)
        chosen = [_decode(frames[first + k * stride]) for k in range(count)]
        if self.resize:
            chosen = [fit(frame, self.shape.size, place) for frame in chosen]
        caption = "" if self.caption_key is None else _at(record, self.caption_key)
        if self.class_names is not None:
            caption = self.class_names[int(caption)] if int(caption) >= 0 else ""  # TFDS: -1 means no label
        return {"video": np.stack(chosen), "caption": caption.decode() if isinstance(caption, bytes) else str(caption)}


def _decode(frame: bytes | np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    if isinstance(frame, bytes):
        with Image.open(io.BytesIO(frame)) as image:
            frame = np.asarray(image if image.mode in ("L", "RGB") else open_rgb(image))
    return frame[..., None] if frame.ndim == 2 else frame


def _at(nested: Any, key: str) -> Any:
    for part in key.split("/"):
        nested = nested[part]
    return nested


# --------------------------------------------------------------------------------------------------- TFDS


def _find_tfds(name: str, builder_config: str | None, data_dir: str | Path) -> str:
    """Returns the folder of a prepared data set, without importing its code, which may need TensorFlow."""
    name = name if builder_config is None else f"{name}/{builder_config}"
    try:
        return _tfds().core.read_only_builder.builder_from_files(name, data_dir=str(data_dir)).data_dir
    except (_tfds().core.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"{name} is not prepared in {data_dir}; prepare it where TensorFlow is installed: "
            f"tfds build {name} --data_dir={data_dir} --file_format=array_record"
        ) from error


class _Records(Sequence[dict[str, Any]]):
    """Reads the records of a prepared split. Worker processes open it again: TFDS' sources cannot be pickled."""

    def __init__(self, folder: str, split: str, video_key: str):
        self._arguments = folder, split, video_key
        builder = _tfds().builder_from_directory(folder)
        name, decoders = builder.info.full_name, _without_decoding(video_key, builder.info.features)
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders or None)
        except NotImplementedError as error:
            raise InputError(
                f"{name} in {folder} is stored as {builder.info.file_format.value}, without random access; "
                "prepare it with --file_format=array_record"
            ) from error
        except ValueError as error:
            splits = ", ".join(builder.info.splits)
            raise InputError(f"split={split!r} of {name} must be made of its splits: {splits}") from error

    def __reduce__(self):
        return _Records, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]


def _keys(info: Any, video_key: str | None, caption_key: str | None) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Returns the features that are a record's frames and caption, and the names of the classes of the caption."""
    features = info.features

    def has(key: str) -> bool:
        try:
            return _at(features, key) is not None
        except (KeyError, TypeError):
            return False

    video = video_key or next(filter(has, _VIDEO_KEYS), None)
    caption = caption_key or next(filter(has, _CAPTION_KEYS), None)
    for option, key in (("video_key", video), ("caption_key", caption)):
        if (key is None and option == "video_key") or (key is not None and not has(key)):
            names = ", ".join(sorted(features))
            raise InputError(f"{info.full_name}: {option}={key} must be one of its features: {names}")
    names = getattr(_at(features, caption), "names", None) if caption else None
    return video, caption, tuple(names) if names else None


def _without_decoding(video_key: str, features: Any) -> dict[str, Any]:
    """Returns TFDS decoders that keep png and jpeg frames at `video_key` as bytes."""
    feature = _at(features, video_key)
    element = getattr(feature, "feature", feature)  # a sequence has elements
    if not isinstance(element, _tfds().features.Image):
        return {}

    class AsStored(_tfds().decode.SkipDecoding):
        def decode_batch_example_np(self, frames):  # SkipDecoding lacks this method for sequences
            return frames

    decoders: Any = AsStored()
    for part in reversed(video_key.split("/")):
        decoders = {part: decoders}
    return decoders


@functools.cache
def _tfds() -> Any:
    """Returns TFDS. Without TensorFlow, it reads `Video` features as the sequences of images that the files hold.

    TFDS' own class calls TensorFlow in its constructor, so without this no such data set opens.
    """
    import tensorflow_datasets as tfds  # takes a second, which folders save

    if importlib.util.find_spec("tensorflow") is not None:
        return tfds
    from tensorflow_datasets.core.features import feature as feature_lib

    class Video(tfds.features.Sequence):
        ALIASES = ["tensorflow_datasets.core.features.video_feature.Video"]  # noqa: RUF012 - TFDS' interface

        @classmethod
        def from_json_content(cls, value):
            shape = feature_lib.from_shape_proto(value.shape)
            image = tfds.features.Image(
                shape=shape[1:] if shape else None,
                dtype=feature_lib.dtype_from_str(value.dtype),
                encoding_format=value.encoding_format or None,
            )
            return cls(image, length=shape[0] if shape else None)

    return tfds
