"""Real clips for the metrics: held-out clips give captions and floors, other clips are the reference of distances."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.config import source_arguments
from vdm_jax.data.source import make_source, splits_of
from vdm_jax.errors import InputError
from vdm_jax.evaluation import judge
from vdm_jax.typing import UInt8

Progress = Callable[[Sequence[int], str], Iterable[int]]  # called with batches and a description of the work
HELD_OUT = ("test", "validation", "valid", "val")  # the first of these splits that a data set has is held out


def silent(batches: Sequence[int], description: str) -> Iterable[int]:
    """Shows no progress. To show a bar, use `lambda batches, description: tqdm(batches, desc=description)`."""
    return batches


class Clips(NamedTuple):
    """Clips of one shape with their captions."""

    videos: UInt8[np.ndarray, "B T H W C"]
    captions: tuple[str, ...]
    real: UInt8[np.ndarray, "B T H W C"] | None = None  # the true clips, if a part of them is known
    new: tuple[int, ...] = ()  # frames with unknown pixels


@dataclasses.dataclass(frozen=True, eq=False)
class RealData:
    """Sources of real clips: items {"video", "caption"}, as from `make_source`."""

    name: str  # shown in errors and in results
    held_out: Sequence[dict[str, Any]]
    reference: Sequence[dict[str, Any]]  # if it is `held_out` itself, the clips are divided between the two
    judge: Callable[[], Any] | None = None  # loads the classifier of moving digits; None for other data
    memory: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)  # clips, and their rows of metrics


def real_data(config: Any) -> RealData:
    """The data of a run's config: the held-out split, and as the reference the split of its training."""
    data = _real_data(**source_arguments(config))
    if config.data.name != "moving_digits":
        return data
    from vdm_jax.data.moving_digits import prepare  # imports TFDS, which takes a second; folders do not need it

    builder = prepare(config.data.data_dir, *([config.data.builder_config] if config.data.builder_config else []))
    file = Path(config.data.data_dir) / f"judge-{builder.builder_config.name}.npz"
    return dataclasses.replace(data, judge=functools.partial(judge.load_or_train_judge, file, builder))


def other_data(
    real: str, shape: tuple[int, int, int, int], *, data_dir: str | Path, stride: int = 1, fps: float | None = None
) -> RealData:
    """Clips of a `shape` (T, H, W, C) from a folder of videos, or from a TFDS data set prepared in `data_dir`.

    `fps`: the rate at which the files of a folder are sampled (None: each at its own rate). Of several captions of a
    file one is drawn.
    """
    frames, *size, _ = shape
    kwargs = {"frames": frames, "size": tuple(size), "stride": stride}
    if Path(real).is_dir():
        return _real_data("folder", data_dir=real, fps=fps, captions="all", **kwargs)
    return _real_data(real, data_dir=data_dir, **kwargs)


def _real_data(name: str, *, data_dir: str | Path, split: str = "train", **kwargs) -> RealData:
    reference = make_source(name, data_dir=data_dir, split=split, **kwargs)
    label = str(data_dir) if name == "folder" else name
    if kwargs.get("builder_config"):
        label += f"/{kwargs['builder_config']}"
    splits = splits_of(name, data_dir=data_dir, builder_config=kwargs.get("builder_config"))
    held_out = next((s for s in HELD_OUT if s in splits and s not in re.findall(r"\w+", split)), None)
    if held_out is None:
        return RealData(f"{label}, {split}; reference other clips of it: nothing is held out", reference, reference)
    source = make_source(name, data_dir=data_dir, split=held_out, **kwargs)
    return RealData(f"{label}, {held_out}; reference {split}", source, reference)


def read_clips(
    data: RealData, num: int, seed: int = 0, which: str = "held-out", *, progress: Progress = silent
) -> Clips:
    """`num` random clips from "held-out" or from "reference". Raises InputError if there are fewer clips."""
    key, divided = (which, num, seed), data.reference is data.held_out
    if key not in data.memory:
        source = data.reference if which == "reference" else data.held_out
        first, needed = num * (divided and which == "reference"), num * (1 + divided)
        if needed > len(source):
            half = "" if needed == num else ", half of them as the reference"
            raise InputError(f"num={num} needs {needed} real clips{half}; {data.name} has {len(source)}")
        order = np.random.default_rng(seed).permutation(len(source))
        data.memory[key] = read(source, order[first : first + num], progress)
    return data.memory[key]


def read(source: Sequence[dict[str, Any]], rows: np.ndarray, progress: Progress = silent) -> Clips:
    """The clips of some rows of a source."""
    items = []
    with ThreadPoolExecutor(8) as pool:
        for first in progress(range(0, len(rows), 64), "reading real clips"):
            items += pool.map(lambda row: source[int(row)], rows[first : first + 64])
    return Clips(np.stack([item["video"] for item in items]), tuple(item["caption"] for item in items))
