"""Computes the metrics of metrics.py for generated clips, and for the floors that scores are compared with.

Clips are drawn and measured in batches: one batch is in memory at a time. With a folder, each batch is saved under a
hash of its inputs. A call that was interrupted then draws and extracts nothing twice.
"""

import dataclasses
import functools
import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.evaluation.judge import frozen, shuffle_frames
from vdm_jax.evaluation.known import MODES, check_strength, in_windows, mask_of, new_frames, without_a_network
from vdm_jax.evaluation.metrics import (
    COMPARED_WITH,
    EXTRACTORS,
    METRICS,
    PROTOCOL,
    Network,
    Rows,
    check_metrics,
    in_range,
    load_networks,
)
from vdm_jax.evaluation.reference import Clips, Progress, RealData, read_clips, silent
from vdm_jax.files import whole_file
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.resume import fingerprint

log = logging.getLogger(__name__)


def score(
    pipeline: Pipeline,
    data: RealData,
    metrics: Iterable[str],
    *,
    num: int,
    seed: int = 0,
    batch_size: int = 64,
    folder: str | Path | None = None,
    networks: Mapping[str, Network] | None = None,
    progress: Progress = silent,
    known: str = "",
    **settings,
) -> dict[str, Interval]:
    """Draws `num` clips on captions of held-out clips, and returns their metrics.

    Args:
        seed: for the choice of real clips and captions, and for the samples.
        batch_size: clips that are drawn and measured at a time.
        folder: for batches of drawn clips and of extracted rows. An interrupted call continues after its last batch,
            and a call with other metrics draws nothing again. The folder may be deleted at any time.
        networks: from `load_networks`; None loads them.
        progress: called with the batches and a description of the work.
        known: a mode of `known.MODES`: a part of each held-out clip is given, and its caption in captioned modes.
        settings: fields of `Settings`, such as guidance and steps.

    Raises InputError for an unknown metric or setting, a metric that does not fit the data, and too few real clips.
    """
    job = _job(data, metrics, num, seed, batch_size, folder, networks, progress, known)
    real = job.real
    model = dataclasses.replace(pipeline.model, text_per_frame=False)  # a caption that looks like a changing prompt
    if real.videos.shape[1:] != model.shape:
        shapes = ("×".join(map(str, shape)) for shape in (real.videos.shape[1:], model.shape))
        raise InputError(f"{data.name}: real clips are {next(shapes)} (T×H×W×C), generated ones {next(shapes)}")
    pipeline = dataclasses.replace(pipeline, model=model)
    captioned = model.text is not None and (not known or MODES[known].captioned)
    texts = real.captions if captioned else [""] * num
    factor = MODES[known].factor if known else 1
    resolved, _ = pipeline.check(texts, seed=seed, batch_size=batch_size, coarse=factor, **settings)
    if known:
        check_strength(known, resolved.strength)
    arrays = jax.tree.leaves(model.params)
    weights = [hashlib.sha256(np.asarray(x.addressable_data(0)).tobytes()) for x in arrays]
    inputs = (*(x.hexdigest() for x in weights), model.identity, resolved, seed)
    inputs += (known, real.videos) if known else ()

    def draw(first: int, count: int) -> Rows:
        rows = first + np.resize(np.arange(count), job.size)  # the last batch is filled up: a single compilation
        kwargs = dict(seed=seed, batch_size=job.size, first=first, **settings)
        sample = functools.partial(pipeline, [texts[row] for row in rows], **kwargs)
        videos = in_windows(known, in_range(real.videos[rows]), sample) if known else sample()
        return {"videos": videos[:count]}

    def batches() -> Iterator[Clips]:
        for i, batch in enumerate(_batches(job, real, f"guidance {resolved.guidance:g}")):
            first = i * job.size
            make = functools.partial(draw, first, len(batch.captions))
            drawn = _cached(folder, f"videos-{first:06}", (*inputs, first, batch.captions), make)
            yield batch._replace(videos=drawn["videos"])

    return _figures(job, _extract(job, batches(), job.metrics))


def floors(data: RealData, metrics: Iterable[str], *, num: int, **kwargs) -> dict[str, dict[str, Interval]]:
    """The metrics of held-out clips ("real"), of the same clips "shuffled" in time, and of the clips "frozen".

    If a part of the clips is `known`, "no network" (`known.without_a_network`) replaces "shuffled" and "frozen".
    The arguments are those of `score`, without a pipeline and its settings.
    """
    job = _job(data, metrics, num, **kwargs)
    changed = {"real": lambda x: x, "shuffled": lambda x: shuffle_frames(x, jax.random.key(0)), "frozen": frozen}
    if job.known:
        changed = {"real": changed["real"], "no network": lambda x: without_a_network(in_range(x), job.known)}
    figures = {}
    for name, change in changed.items():
        clips = job.real._replace(videos=np.asarray(change(job.real.videos)))
        figures[name] = _figures(job, _extract(job, _batches(job, clips, f"{name} clips"), job.metrics))
    return figures


class _Job(NamedTuple):
    """The checked arguments that `score` and `floors` share."""

    data: RealData
    metrics: tuple[str, ...]
    num: int
    seed: int
    size: int  # clips of a batch
    folder: str | Path | None
    networks: Mapping[str, Network]
    progress: Progress
    known: str
    real: Clips  # held-out clips; with their new frames, if a part is known


def _job(data, metrics, num, seed=0, batch_size=64, folder=None, networks=None, progress=silent, known="") -> _Job:
    metrics = check_metrics(metrics, known)
    if num < 2 or batch_size < 1:
        raise InputError(f"num={num} must be at least 2 to have an interval, batch_size={batch_size} at least 1")
    networks = load_networks(metrics, data) if networks is None else networks
    compared = [COMPARED_WITH[METRICS[name].figure] for name in metrics if METRICS[name].figure in COMPARED_WITH]
    for which in ("held-out", *compared):
        read_clips(data, num, seed, which, progress=progress)  # before anything is drawn: raises if there are too few
    real = read_clips(data, num, seed)
    if known:
        real = real._replace(real=real.videos, new=new_frames(mask_of(known, real.videos.shape[1:])))
    return _Job(data, metrics, num, seed, min(batch_size, num), folder, networks, progress, known, real)


def _figures(job: _Job, rows: Rows) -> dict[str, Interval]:
    """The figure of each metric from the rows, some in comparison with the rows of real clips."""
    figures = {}
    for name in job.metrics:
        metric = METRICS[name]
        key = metric.rows or name
        which = COMPARED_WITH.get(metric.figure)
        figures[name] = metric.figure(rows[key], _real_rows(job, which)[key] if which else None)
    return figures


def _real_rows(job: _Job, which: str) -> Rows:
    """The rows of real clips ("held-out" or "reference"), for all metrics that compare with them."""
    metrics = [name for name in job.metrics if COMPARED_WITH.get(METRICS[name].figure) == which]
    digests = sorted(network.digest for network in job.networks.values())
    key = (which, job.num, job.seed, *metrics, *digests)
    if key not in job.data.memory:
        clips = read_clips(job.data, job.num, job.seed, which)
        job.data.memory[key] = _extract(job, _batches(job, clips, f"{which} clips"), metrics)
    return job.data.memory[key]


def _batches(job: _Job, clips: Clips, description: str) -> Iterator[Clips]:
    for first in job.progress(range(0, job.num, job.size), description):
        rows = slice(first, first + job.size)
        true = None if clips.real is None else clips.real[rows]
        yield clips._replace(videos=clips.videos[rows], captions=clips.captions[rows], real=true)


def _extract(job: _Job, batches: Iterable[Clips], metrics: Sequence[str]) -> Rows:
    """The rows of the metrics for all clips."""
    parts = []
    for clips in batches:
        rows = {}
        for name in dict.fromkeys(METRICS[metric].extractor for metric in metrics):
            extractor = EXTRACTORS[name]
            network = [job.networks[extractor.needs]] if extractor.needs else []
            inputs = (*(x.digest for x in network), clips.videos.shape, *clips)
            extract = functools.partial(extractor.rows, clips, *(x.model for x in network))
            rows |= _cached(job.folder, name, inputs, extract)
        parts.append(rows)
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}


def _cached(folder: str | Path | None, kind: str, inputs: Sequence[Any], make: Callable[[], Rows]) -> Rows:
    """The result of `make`, from a file named by the hash of its inputs; a damaged file is made again."""
    if folder is None:
        return make()
    path = Path(folder) / f"{kind}-{fingerprint(PROTOCOL, *inputs)[:24]}.npz"
    if path.exists():
        try:
            with path.open("rb") as raw, np.load(raw) as file:
                return dict(file)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
    rows = make()
    with whole_file(path) as part:
        np.savez(part, **rows)
    return rows
