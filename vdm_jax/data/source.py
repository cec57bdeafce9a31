"""Data by name: moving digits, a folder of videos, or any TFDS video data set that is prepared."""

import dataclasses
import functools
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grain.sources import RandomAccessDataSource
from jaxtyping import UInt8
from PIL import Image

from vdm_jax.data.folder import ClipShape, Crop, Item, VideoFolder, fit
from vdm_jax.errors import InputError

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
) -> RandomAccessDataSource:
    """Random access to {"video": uint8 [T, H, W, C], "caption": str}, for `pipeline.make_iterator`.

    Args:
        name: "moving_digits", built below `data_dir` at the first call; "folder", the videos below
            `data_dir/split`, or for the training split below `data_dir` where there is no such folder; any
            other name, with or without "tfds:" before it, is a TFDS data set prepared below `data_dir`.
        split: of the data set; TFDS' slices ("train[:90%]") work too.
        builder_config: the variant of moving_digits or of the TFDS data set.
        frames, size, stride, crop: the clip (`ClipShape`); a folder needs frames and size. None: as stored.
        fps: frame rate that a folder's files are sampled at; the others store no rates.
        seed: of the clips that `source[i]` cuts. The pipeline cuts its own at every epoch.
        video_key, caption_key: the TFDS features, "outer/inner" where nested. None: the first that is there
            of video, image_sequence, image_aux1, frames; of caption, text, label, else captions are "". A
            class label becomes its name.

    Raises:
        InputError: the data is not there or cannot be read like this; says what would help.
    """
    name = name.removeprefix("tfds:")
    size = (size, size) if isinstance(size, int) else size
    if name == "folder":
        if frames is None or size is None:
            raise InputError(f"a folder of videos needs frames and size, not frames={frames}, size={size}")
        root = _split_folder(Path(data_dir), split)
        return VideoFolder(root, frames=frames, size=size, stride=stride, fps=fps, crop=crop, seed=seed)
    if fps is not None:
        raise InputError(f"fps={fps}: {name} stores no frame rates to sample at; use stride, or leave fps None")
    if frames is None and stride != 1:
        raise InputError(f"stride={stride} needs frames, the length of a clip")
    shape = ClipShape(frames or 1, size or (1, 1), stride, crop)
    if name == "moving_digits":
        from vdm_jax.data import moving_digits  # imports TFDS: a second that folders do without

        builder = moving_digits.prepare(data_dir, *([builder_config] if builder_config else []))
        prepared, longest = builder.data_dir, (name, moving_digits.longest_caption(builder.builder_config))
    else:
        longest = None
        prepared = _find_tfds(name if builder_config is None else f"{name}/{builder_config}", Path(data_dir))
    read = _reader(_open(prepared).info, video_key, caption_key)
    records = _Records(prepared, split, read.video_key)
    clips = _Clips(records, read, shape, frames is not None, size is not None, seed, longest)
    if len(clips):
        clips.check()
    return clips


def splits_of(name: str, *, data_dir: str | Path, builder_config: str | None = None) -> list[str]:
    """The splits of a data set, named as for `make_source`; of a folder without train/, "train" alone.

    Raises:
        InputError: the data is not there.
    """
    name, root = name.removeprefix("tfds:"), Path(data_dir)
    if name == "folder":  # without train/ its training split is all of it, whatever the folders are called
        inner = sorted(path.name for path in root.glob("*") if path.is_dir())
        return inner if "train" in inner else ["train"]
    if name == "moving_digits":
        return ["train", "test"]
    return list(_open(_find_tfds(name if builder_config is None else f"{name}/{builder_config}", root)).info.splits)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Which features of a record are its frames and its caption, and the names of the classes."""

    video_key: str
    caption_key: str | None
    class_names: tuple[str, ...] | None

    def frames(self, record: dict[str, Any]) -> Any:
        return _at(record, self.video_key)

    def caption(self, record: dict[str, Any]) -> str:
        value = "" if self.caption_key is None else _at(record, self.caption_key)
        if self.class_names is not None:
            return self.class_names[int(value)] if int(value) >= 0 else ""  # TFDS: -1 where there is no label
        return value.decode() if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(frozen=True)
class _Clips(Sequence[Item]):
    """Cuts clips out of records that hold whole videos; decodes only the frames that a clip needs."""

    records: RandomAccessDataSource
    read: _Reader
    shape: ClipShape
    cut: bool  # frames of shape, rather than all
    resize: bool  # to shape's size
    seed: int
    longest_caption: tuple[str, str] | None = None  # the data's name, and the caption

    def __len__(self) -> int:
        return len(self.records)

    def check(self) -> None:
        """Raises InputError where the first record's video is none."""
        try:
            frame = _decode(self.read.frames(self.records[0])[0])
        except (TypeError, AttributeError, IndexError, OSError):
            frame = None
        if frame is None or frame.dtype != np.uint8 or frame.ndim != 3:
            raise InputError(f"video_key={self.read.video_key} holds no frames of pixels (uint8)")

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.sample(index, np.random.default_rng([self.seed, index]))

    def sample(self, index: int, rng: np.random.Generator, single_frame: bool = False) -> Item:
        """Item `index`, its clip and crop drawn from `rng`; `single_frame` takes one frame of the video."""
        record = self.records[index]
        frames = self.read.frames(record)
        count = 1 if single_frame else self.shape.frames if self.cut else len(frames)
        stride = self.shape.stride
        last = len(frames) - 1 - (count - 1) * stride
        if last < 0:
            raise InputError(f"video {index} has {len(frames)} frames: too short for {count} with {stride=}")
        first, place = self.shape.start(last, rng), self.shape.place(rng)
        chosen = [_decode(frames[first + k * stride]) for k in range(count)]
        if self.resize:
            chosen = [fit(frame, self.shape.size, place) for frame in chosen]
        return {"video": np.stack(chosen), "caption": self.read.caption(record)}


def _decode(frame: bytes | np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    if isinstance(frame, bytes):
        with Image.open(io.BytesIO(frame)) as image:
            frame = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return frame[..., None] if frame.ndim == 2 else frame


def _at(nested: Any, key: str) -> Any:
    for part in key.split("/"):
        nested = nested[part]
    return nested


def _split_folder(root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    if split != "train":
        raise InputError(f"split={split!r} of a folder needs the folder {root / split}")
    return root


# --------------------------------------------------------------------------------------------------- TFDS


def _find_tfds(name: str, data_dir: Path) -> str:
    """The folder of a prepared data set. Its code is left alone: that may need TensorFlow to import."""
    import tensorflow_datasets as tfds

    _read_video_features_without_tensorflow(tfds)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir)).data_dir
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"{name} is not prepared in {data_dir}; where TensorFlow is installed, prepare it with: "
            f"tfds build {name} --data_dir={data_dir} --file_format=array_record"
        ) from error


def _open(folder: str) -> Any:
    import tensorflow_datasets as tfds

    _read_video_features_without_tensorflow(tfds)
    return tfds.builder_from_directory(folder)


class _Records(Sequence[dict[str, Any]]):
    """The records of a prepared split; the worker processes open it anew, as TFDS' sources cannot be sent."""

    def __init__(self, folder: str, split: str, video_key: str):
        self._arguments = folder, split, video_key
        builder = _open(folder)
        name, decoders = builder.info.full_name, _left_encoded(video_key, builder.info.features)
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders or None)
        except NotImplementedError as error:
            raise InputError(
                f"{name} in {folder} is stored as {builder.info.file_format.value}, without random access; "
                "prepare it with --file_format=array_record"
            ) from error
        except ValueError as error:
            known = ", ".join(builder.info.splits)
            raise InputError(f"split={split!r} of {name} must be made of its splits: {known}") from error

    def __reduce__(self):
        return _Records, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]


def _reader(info: Any, video_key: str | None, caption_key: str | None) -> _Reader:
    features = info.features

    def has(key: str) -> bool:
        try:
            _at(features, key)
        except (KeyError, TypeError):
            return False
        return True

    def choose(asked: str | None, usual: tuple[str, ...]) -> str | None:
        return asked if asked else next((key for key in usual if has(key)), None)

    video, caption = choose(video_key, _VIDEO_KEYS), choose(caption_key, _CAPTION_KEYS)
    for option, key in (("video_key", video), ("caption_key", caption)):
        if (key is None and option == "video_key") or (key is not None and not has(key)):
            listed = ", ".join(sorted(features))
            raise InputError(f"{info.full_name}: {option}={key} must be one of its features: {listed}")
    names = getattr(_at(features, caption), "names", None) if caption else None
    return _Reader(video, caption, tuple(names) if names else None)


def _left_encoded(video_key: str, features: Any) -> dict[str, Any]:
    """Decoders that leave frames at `video_key` that are stored as png or jpeg as those bytes."""
    import tensorflow_datasets as tfds

    feature = _at(features, video_key)
    element = getattr(feature, "feature", feature)  # of a sequence
    if not isinstance(element, tfds.features.Image):
        return {}

    class AsStored(tfds.decode.SkipDecoding):
        def decode_batch_example_np(self, frames):  # what SkipDecoding lacks, for sequences
            return frames

    decoders: Any = AsStored()
    for part in reversed(video_key.split("/")):
        decoders = {part: decoders}
    return decoders


@functools.cache
def _read_video_features_without_tensorflow(tfds: Any) -> None:
    """Makes TFDS read `Video` features as what they are in the files, sequences of images.

    Its own class calls TensorFlow in the constructor, so that no description of such a data set would load.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        return
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
