"""Moving digits: real handwriting that moves in small frames, with captions that can be checked.

The 1,797 handwritten UCI digits in scikit-learn (8×8 pixels) slide through a black frame. Train and test are split by
image, so the handwriting of the test split is never trained on. A digit always lies fully in the frame and moves along
one axis at constant speed (`bouncing`: back and forth), so every clip shows its digit and its direction. The data is
stored as ArrayRecord; it needs no TensorFlow, no JAX and no network.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8  # not vdm_jax.typing: data workers do not import JAX

from vdm_jax.errors import InputError

log = logging.getLogger(__name__)

Integers = Sequence[int] | Int[np.ndarray, "n"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("left", "right", "up", "down")
AXES = ("sideways", "up and down")  # of a bouncing digit, which has no direction
MOTIONS = DIRECTIONS + AXES  # the label "direction" is an index into this tuple
_WAYS_TO_SAY = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "sideways": ("sideways", "from side to side"),
    "up and down": ("up and down", "vertically"),
}
_SPACE_AXIS = np.array([1, 1, 0, 0, 1, 0])  # for each motion: 0 rows, 1 columns
_BACKWARD = np.array([True, False, True, False, False, False])  # for each motion: towards smaller rows or columns


@functools.cache
def phrasings(digit: int, direction: int) -> tuple[str, ...]:
    """Returns all phrasings of a motion in this data set; `direction` is an index into `MOTIONS`."""
    motion, prefixes = MOTIONS[direction], ("", "an " if digit == 8 else "a ", "the digit ", "the number ")
    subjects = [prefix + name for prefix in prefixes for name in (str(digit), DIGIT_WORDS[digit])]
    bounces, moves = ("bounces", "is bouncing", "bouncing"), ("moves", "is moving", "moving", "goes", "going")
    verbs = bounces if motion in AXES else moves
    return tuple(" ".join(parts) for parts in itertools.product(subjects, verbs, _WAYS_TO_SAY[motion]))


def caption(digits: Integers, directions: Integers, rng: np.random.Generator) -> str:
    """Draws a phrasing that names every digit and its motion (an index into `MOTIONS`)."""
    choices = [phrasings(int(a), int(b)) for a, b in zip(digits, directions, strict=True)]
    return " and ".join(options[rng.integers(len(options))] for options in choices)


def longest_caption(config: "MovingDigitsConfig") -> str:
    """Returns the longest caption of a variant."""
    motions = [i for i, motion in enumerate(MOTIONS) if (motion in AXES) == config.bounce]
    longest = max((text for digit in range(10) for i in motions for text in phrasings(digit, i)), key=len)
    return " and ".join([longest] * config.digits)


def parse_caption(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the digits in a caption and their motions (indices into `MOTIONS`), in the order of the caption.

    Raises InputError unless the caption names a digit, its direction, the next digit, its direction, ….
    """
    names = {name: ("digit", d) for d, word in enumerate(DIGIT_WORDS) for name in (word, str(d))}
    names |= {way: ("direction", i) for i, motion in enumerate(MOTIONS) for way in _WAYS_TO_SAY[motion]}
    longest_first = sorted(names, key=len, reverse=True)  # "up and down" before "up"
    found = re.findall(rf"\b(?:{'|'.join(longest_first)})\b", " ".join(text.lower().split()))
    words = [names[name] for name in found]
    if not words or [kind for kind, _ in words] != ["digit", "direction"] * (len(words) // 2):
        raise InputError(f"caption={text!r} must name a digit and its direction, as in 'the digit 3 moves left'")
    return tuple(v for _, v in words[::2]), tuple(v for _, v in words[1::2])


@functools.cache
def _glyphs(size: int) -> tuple[Float[np.ndarray, "I S S"], Int[np.ndarray, "I"]]:
    """Returns all digit images at `size`×`size` pixels with values in [0, 1], and their classes."""
    from scipy import ndimage
    from sklearn.datasets import load_digits  # takes a second to import, and only a build needs it

    digits = load_digits()
    images = digits.images / 16.0
    if size != 8:  # cubic; pixels count as areas, so the glyph stays centred
        images = ndimage.zoom(images, (1, size / 8, size / 8), order=3, mode="grid-constant", grid_mode=True)
    return images.clip(0, 1).astype(np.float32), digits.target.astype(np.int32)


def split_images(classes: Int[np.ndarray, "I"]) -> dict[str, Int[np.ndarray, "_"]]:
    """Returns the image indices of train (1,500) and test (297): a fixed random sixth of every class is the test."""
    rng = np.random.default_rng(1797)
    by_class = [rng.permutation(np.flatnonzero(classes == c)).astype(np.int32) for c in range(10)]
    test = np.sort(np.concatenate([members[: round(len(members) * 297 / 1797)] for members in by_class]))
    return {"train": np.setdiff1d(np.arange(len(classes), dtype=np.int32), test), "test": test}


@dataclasses.dataclass(eq=False, kw_only=True)
class MovingDigitsConfig(tfds.core.BuilderConfig):
    """Describes a variant: `size`×`size` pixels, range of `speed` in pixels per frame, clips made of every image."""

    size: int = 16
    frames: int = 8
    glyph: int = 8  # side of a digit in pixels
    digits: int = 1
    speed: tuple[float, float] = (1.0, 1.0)
    bounce: bool = False
    train_clips: int = 8
    test_clips: int = 4

    def __post_init__(self):
        room, travel = self.size - self.glyph, [v * (self.frames - 1) for v in self.speed]
        if self.bounce and travel[0] <= room:
            raise InputError(f"speed={self.speed} must cross the {room} px of room in {self.frames} frames")
        if not self.bounce and not 3 < travel[0] <= travel[1] <= room:
            raise InputError(f"speed={self.speed} must move a digit 3 to {room} px in {self.frames} frames")


def _paths(
    config: MovingDigitsConfig, motion: Int[np.ndarray, "B n"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "B n"], Float[np.ndarray, "B n T 2"]]:
    """Draws speeds, and the row and column of each glyph's corner in every frame. It starts on a whole pixel."""
    room, steps = config.size - config.glyph, np.arange(config.frames)
    speed = rng.uniform(*config.speed, motion.shape)
    travelled = speed[..., None] * steps
    if config.bounce:  # a triangle wave, whose phase gives the start and the first direction
        phase = rng.integers(2 * room, size=motion.shape)[..., None]
        along = room - np.abs(room - (phase + travelled) % (2 * room))
    else:
        longest = np.floor(room - travelled[..., -1] + 1e-9)
        along = np.floor(rng.uniform(size=motion.shape) * (longest + 1))[..., None] + travelled
        along = np.where(_BACKWARD[motion][..., None], room - along, along)
    across = np.broadcast_to(rng.integers(room + 1, size=motion.shape)[..., None], along.shape)
    vertical = (_SPACE_AXIS[motion] == 0)[..., None]
    corner = np.stack([np.where(vertical, along, across), np.where(vertical, across, along)], axis=-1)
    return speed.astype(np.float32), corner


def _hidden(corner: Float[np.ndarray, "B n T 2"], glyph: int) -> Bool[np.ndarray, "B"]:
    """Returns whether the boxes of a clip's two digits overlap in more than half of the frames."""
    overlap = (np.abs(corner[:, 0] - corner[:, -1]) < glyph).all(-1)
    return (overlap.mean(-1) > 0.5) & (corner.shape[1] > 1)


def _render(
    glyphs: Float[np.ndarray, "B n S S"], corner: Float[np.ndarray, "B n T 2"], size: int
) -> UInt8[np.ndarray, "B T H W 1"]:
    """Draws glyphs at sub-pixel positions by bilinear interpolation; the brighter glyph is on top."""
    pixel, source = np.arange(size)[:, None], np.arange(glyphs.shape[-1])
    offset = pixel - source - corner[..., None, None]
    weight = np.maximum(0, 1 - np.abs(offset)).astype(np.float32)  # B n T 2 H S
    rows, columns = weight[..., 0, :, :], weight[..., 1, :, :]
    video = (rows @ glyphs[:, :, None] @ columns.swapaxes(-1, -2)).max(axis=1)
    return np.rint(255 * video).astype(np.uint8)[..., None]


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Builds videos of handwritten digits in motion.

    A record holds `video` (T H W 1, uint8), `caption` (UTF-8 bytes) and, with one entry for each digit,
    `digit` (0..9), `direction` (index into `MOTIONS`), `speed` (px/frame) and `image_id` (index into
    scikit-learn's digits).
    """

    code_path = None  # TFDS would look there for checksums of downloads
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "16x8 and two_digits move by whole pixels."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS' own attribute)
        MovingDigitsConfig(name="16x8"),
        MovingDigitsConfig(name="32x8", size=32, glyph=16, speed=(2.0, 2.0)),  # 16x8 at twice the size
        MovingDigitsConfig(name="32x16", size=32, frames=16, glyph=16, speed=(0.7, 1.05)),
        MovingDigitsConfig(name="two_digits", size=24, digits=2),
        MovingDigitsConfig(name="bouncing", speed=(1.4, 2.0), bounce=True),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        c = self.builder_config
        each = functools.partial(tfds.features.Tensor, shape=(c.digits,))
        # Raw bytes: a list of integers takes five times as long to write.
        video = tfds.features.Tensor(shape=(c.frames, c.size, c.size, 1), dtype=np.uint8, encoding="bytes")
        features = {"video": video, "caption": tfds.features.Text(), "speed": each(dtype=np.float32)}
        features |= {name: each(dtype=np.int32) for name in ("digit", "direction", "image_id")}
        home, features = "https://archive.ics.uci.edu/dataset/80", tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description=__doc__, homepage=home, features=features)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:  # there is nothing to download
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        c = self.builder_config
        glyphs, classes = _glyphs(c.glyph)
        images = split_images(classes)[split]
        rng = np.random.default_rng([2022, ("train", "test").index(split)])

        clips = c.train_clips if split == "train" else c.test_clips
        image = np.repeat(images, clips)[:, None]
        first, count = (len(DIRECTIONS), len(AXES)) if c.bounce else (0, len(DIRECTIONS))
        motion = np.arange(len(image), dtype=np.int32)[:, None] % count  # every image moves every way
        if c.digits == 2:
            other = rng.choice(images, image.shape)
            while (same := classes[other] == classes[image]).any():
                other[same] = rng.choice(images, same.sum())
            image = np.concatenate([image, other], axis=1)
            free = rng.integers(count, size=motion.shape, dtype=np.int32)
            motion = np.concatenate([motion, free], axis=1)
        motion += first
        speed, corner = _paths(c, motion, rng)
        while (hidden := _hidden(corner, c.glyph)).any():
            speed[hidden], corner[hidden] = _paths(c, motion[hidden], rng)

        for start in range(0, len(image), 256):  # a few MB at a time
            part = slice(start, start + 256)
            videos = _render(glyphs[image[part]], corner[part], c.size)
            for i, video in enumerate(videos, start):
                digit = classes[image[i]]
                record = {"video": video, "caption": caption(digit, motion[i], rng), "digit": digit}
                yield i, record | {"direction": motion[i], "speed": speed[i], "image_id": image[i]}


def prepare(data_dir: str | Path, config: str | MovingDigitsConfig = "16x8") -> MovingDigits:
    """Returns the builder of a variant below `data_dir`, and builds the data if necessary (some seconds).

    TFDS writes to a temporary folder and renames it, so a build that was cut short is ignored. A folder that has lost
    files is built again. Raises InputError for an unknown config and for a folder that cannot be written.
    """
    if isinstance(config, str) and config not in (known := [c.name for c in MovingDigits.BUILDER_CONFIGS]):
        raise InputError(f"config={config!r} must be one of {', '.join(known)}")
    make = functools.partial(MovingDigits, config=config, data_dir=str(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # lines about a download; the log line below says what happens
        builder = make()
        if _complete(builder):
            return builder
        if builder.data_path.exists():
            log.warning("%s is damaged or incomplete: building it again", builder.data_dir)
            builder.data_path.rmtree()
            builder = make()
        log.info("building %s in %s", builder.info.full_name, builder.data_dir)
        try:
            builder.download_and_prepare()
        except OSError as error:
            if not _complete(make()):  # if complete, another process built the same data first
                raise InputError(f"data_dir={str(data_dir)!r} cannot be written: {error}") from error
        return make()


def _complete(builder: MovingDigits) -> bool:
    """Returns whether the files of every split hold as many records as the builder's information says."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not builder.data_path.exists() or not builder.is_prepared():
        return False
    try:
        return set(builder.info.splits) == {"train", "test"} and all(
            ArrayRecordReader(str(path)).num_records() == expected
            for split in builder.info.splits.values()
            for path, expected in zip(split.filepaths, split.shard_lengths, strict=True)
        )
    except Exception:  # the reader has its own types for missing, truncated and foreign files
        return False
