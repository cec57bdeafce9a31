"""Real clips to measure generated ones by: held-out ones give captions and floors, others are the reference."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.configuration import source_arguments
from vdm_jax.data.source import make_source, splits_of
from vdm_jax.errors import InputError
from vdm_jax.typing import UInt8

Progress = Callable[[Sequence[int], str], Iterable[int]]  # of batches, and a word for what is done with them
HELD_OUT = ("test", "validation", "valid", "val")  # the first of these that a data set has


def silent(batches: Sequence[int], what: str) -> Iterable[int]:
    """No progress; for a bar: `lambda batches, what: tqdm(batches, desc=what)`."""
    return batches


class Clips(NamedTuple):
    """Clips of one shape, with a caption each; the real ones that a part is known of, and the frames that are new."""

    videos: UInt8[np.ndarray, "B T H W C"]
    captions: tuple[str, ...]
    real: UInt8[np.ndarray, "B T H W C"] | None = None
    new: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class RealData:
    """Where real clips are read from.

    Items of both sources are {"video", "caption"}, as of `make_source`. Where they are one and the same source, its
    clips are divided. `judge` gives the classifier of moving digits (None: other data). `memory` keeps what was read,
    and what was measured of it, for the next call.
    """

    name: str
    held_out: Sequence[dict[str, Any]]
    reference: Sequence[dict[str, Any]]
    judge: Callable[[], Any] | None = None
    memory: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)


def real_data(config: Any) -> RealData:
    """The data of a run's config: its held-out split beside the one that it was trained on.

    Raises:
        InputError: the data is not there.
    """
    data = _real_data(**source_arguments(config))
    if config.data.name != "moving_digits":
        return data
    from vdm_jax.data.moving_digits import prepare  # imports TFDS: a second that folders do without
    from vdm_jax.evaluation.judge import load_or_train_judge

    builder = prepare(config.data.data_dir, *([config.data.builder_config] if config.data.builder_config else []))
    file = Path(config.data.data_dir) / f"judge-{builder.builder_config.name}.npz"
    return dataclasses.replace(data, judge=functools.partial(load_or_train_judge, file, builder))


def other_data(
    real: str, shape: tuple[int, int, int, int], *, data_dir: str | Path, stride: int = 1, fps: float | None = None
) -> RealData:
    """Clips of a `shape` (T, H, W, C) from a folder of videos, or from a TFDS data set prepared in `data_dir`.

    `fps` is for a folder: its files are sampled at this rate (None: each at its own).
    """
    frames, *size, _ = shape
    cut = {"frames": frames, "size": tuple(size), "stride": stride}
    if Path(real).is_dir():
        return _real_data("folder", data_dir=real, fps=fps, **cut)
    return _real_data(real, data_dir=data_dir, **cut)


def _real_data(name: str, *, data_dir: str | Path, split: str = "train", **how) -> RealData:
    reference = make_source(name, data_dir=data_dir, split=split, **how)
    where = str(data_dir) if name == "folder" else name
    if how.get("builder_config"):
        where += f"/{how['builder_config']}"
    splits = splits_of(name, data_dir=data_dir, builder_config=how.get("builder_config"))
    held_out = next((s for s in HELD_OUT if s in splits and s not in re.findall(r"\w+", split)), None)
    if held_out is None:
        return RealData(f"{where}, {split}; reference other clips of it: nothing is held out", reference, reference)
    source = make_source(name, data_dir=data_dir, split=held_out, **how)
    return RealData(f"{where}, {held_out}; reference {split}", source, reference)


def read_clips(
    data: RealData, num: int, seed: int = 0, which: str = "held-out", *, progress: Progress = silent
) -> Clips:
    """`num` clips at random, of the "held-out" ones or of the "reference".

    Raises:
        InputError: there are fewer.
    """
    key = (which, num, seed)
    if key not in data.memory:
        source = data.reference if which == "reference" else data.held_out
        first, needed = 0, num
        if data.reference is data.held_out:
            first, needed = num * (which == "reference"), 2 * num
        if needed > len(source):
            half = "" if needed == num else ", half of them to compare the others with"
            raise InputError(f"num={num} needs {needed} real clips{half}; {data.name}: there are {len(source)}")
        order = np.random.default_rng(seed).permutation(len(source))
        data.memory[key] = _read(source, order[first : first + num], progress)
    return data.memory[key]


def read_all(data: RealData) -> Clips:
    """All clips of the reference's split."""
    if "all" not in data.memory:
        data.memory["all"] = _read(data.reference, np.arange(len(data.reference)))
    return data.memory["all"]


def _read(source: Sequence[dict[str, Any]], rows: np.ndarray, progress: Progress = silent) -> Clips:
    items = []
    with ThreadPoolExecutor(8) as pool:
        for first in progress(range(0, len(rows), 64), "reading real clips"):
            items += pool.map(lambda row: source[int(row)], rows[first : first + 64])
    captions = (item["caption"] for item in items)
    return Clips(np.stack([item["video"] for item in items]), tuple(captions))
