"""Scores by name: what the metrics of metrics.py say of generated clips, and the floors to read them beside.

Clips are drawn and looked at batch by batch, so that one batch is in memory at a time. With a folder each batch is kept
there under a hash of all that it depends on: nothing is drawn or extracted twice, whatever stopped the first call.
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
from vdm_jax.evaluation.known import MODES, check_strength, known_of, mask_of, new_frames, without_a_network
from vdm_jax.evaluation.metrics import (
    BESIDE,
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
from vdm_jax.generation.partial import fingerprint
from vdm_jax.generation.pipeline import Pipeline

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
    """What the metrics say of `num` clips that are drawn on captions of held-out ones.

    Args:
        seed: of the choice of real clips and captions, and of the samples.
        batch_size: clips that are drawn, and looked at, at a time.
        folder: keeps what is drawn and extracted, batch by batch: an interrupted call goes on after the last one, and
            a call with other metrics draws nothing again. It may be deleted at any time.
        networks: of `load_networks`, so as not to load them at every call.
        progress: is given the batches and a word for what is done with them.
        known: a mode of `known.MODES`: so much of each held-out clip is given, and its caption where the mode has it.
        settings: fields of `Settings`, such as guidance and steps.

    Raises:
        InputError: an unknown metric or setting, one that does not fit the data, or too few real clips.
    """
    job = _job(data, metrics, num, seed, batch_size, folder, networks, progress, known)
    real = read_clips(data, num, seed)
    if real.videos.shape[1:] != pipeline.shape:
        shapes = ("×".join(map(str, shape)) for shape in (real.videos.shape[1:], pipeline.shape))
        raise InputError(f"{data.name}: real clips are {next(shapes)} (T×H×W×C), generated ones {next(shapes)}")
    pipeline = dataclasses.replace(pipeline, text_per_frame=False)  # what looks like a travelling prompt is a caption
    told = pipeline.takes_text and (not known or MODES[known].captioned)
    texts = real.captions if told else [""] * num
    factor = MODES[known].factor if known else 1
    chosen, _ = pipeline.check(texts, seed=seed, batch_size=batch_size, coarse=factor, **settings)
    if known:
        check_strength(known, chosen.strength)
    arrays = jax.tree.leaves((pipeline.params, pipeline.codec.params if pipeline.codec else ()))
    weights = [hashlib.sha256(np.asarray(x.addressable_data(0)).tobytes()) for x in arrays]
    about = (*(x.hexdigest() for x in weights), pipeline.about, chosen, seed)
    about += (known, real.videos) if known else ()

    def draw(first: int, count: int) -> Rows:
        rows = first + np.resize(np.arange(count), job.size)  # the last batch is a full one, too: one compilation
        given = known_of(known, in_range(real.videos[rows])) if known else {}
        prompts = [texts[row] for row in rows]
        videos = pipeline(prompts, seed=seed, batch_size=job.size, first=first, **given, **settings)
        return {"videos": videos[:count]}

    def batches() -> Iterator[Clips]:
        for first in progress(range(0, num, job.size), f"guidance {chosen.guidance:g}"):
            captions = real.captions[first : first + job.size]
            drawn = _kept(
                folder, f"videos-{first:06}", (*about, first, captions), functools.partial(draw, first, len(captions))
            )
            yield _beside(job, Clips(drawn["videos"], captions), real, first)

    return _figures(job, _extract(job, batches(), job.metrics))


def floors(
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
) -> dict[str, dict[str, Interval]]:
    """What the metrics say of real held-out clips ("real"), of these "shuffled" in time, and "frozen".

    Where a part of the clips is `known`, there is "no network" instead of the last two: `known.without_a_network`.
    Arguments as of `score`, whose figures are to be read beside these.
    """
    from vdm_jax.evaluation.judge import frozen, shuffle_frames  # imports TFDS

    job = _job(data, metrics, num, seed, batch_size, folder, networks, progress, known)
    real = read_clips(data, num, seed)
    changed = {"real": lambda x: x, "shuffled": lambda x: shuffle_frames(x, jax.random.key(0)), "frozen": frozen}
    if known:
        changed = {"real": changed["real"], "no network": lambda x: without_a_network(in_range(x), known)}
    found = {}
    for name, change in changed.items():
        clips = Clips(np.asarray(change(real.videos)), real.captions)
        batches = (_beside(job, batch, real, i * job.size) for i, batch in enumerate(_batches(job, clips, name)))
        found[name] = _figures(job, _extract(job, batches, job.metrics))
    return found


class _Job(NamedTuple):
    """The arguments that `score` and `floors` have in common, checked."""

    data: RealData
    metrics: tuple[str, ...]
    num: int
    seed: int
    size: int  # of a batch
    folder: str | Path | None
    networks: Mapping[str, Network]
    progress: Progress
    known: str


def _job(data, metrics, num, seed, batch_size, folder, networks, progress, known) -> _Job:
    metrics = check_metrics(metrics, known)
    if num < 2 or batch_size < 1:
        raise InputError(f"num={num} must be at least 2 to have an interval, batch_size={batch_size} at least 1")
    networks = load_networks(metrics, data) if networks is None else networks
    for which in ("held-out", *(BESIDE[METRICS[name].figure] for name in metrics if METRICS[name].figure in BESIDE)):
        read_clips(data, num, seed, which, progress=progress)  # before anything is drawn: there may be too few
    return _Job(data, metrics, num, seed, min(batch_size, num), folder, networks, progress, known)


def _beside(job: _Job, clips: Clips, real: Clips, first: int) -> Clips:
    """The clips with the real ones that a part of them is known of."""
    if not job.known:
        return clips
    new = new_frames(mask_of(job.known, real.videos.shape[1:]))
    return clips._replace(real=real.videos[first : first + len(clips.videos)], new=new)


def _figures(job: _Job, rows: Rows) -> dict[str, Interval]:
    """Of each metric, with the rows of real clips beside."""
    found = {}
    for name in job.metrics:
        metric = METRICS[name]
        key = metric.rows or name
        beside = _real_rows(job, BESIDE[metric.figure]) if metric.figure in BESIDE else {}
        found[name] = metric.figure(rows[key], beside.get(key))
    return found


def _real_rows(job: _Job, which: str) -> Rows:
    """The rows of real clips for all metrics that want these."""
    metrics = [name for name in job.metrics if BESIDE.get(METRICS[name].figure) == which]
    digests = sorted(network.digest for network in job.networks.values())
    key = (which, job.num, job.seed, *metrics, *digests)
    if key not in job.data.memory:
        clips = read_clips(job.data, job.num, job.seed, which)
        job.data.memory[key] = _extract(job, _batches(job, clips, which), metrics)
    return job.data.memory[key]


def _batches(job: _Job, clips: Clips, name: str) -> Iterator[Clips]:
    for first in job.progress(range(0, job.num, job.size), f"{name} clips"):
        rows = slice(first, first + job.size)
        yield Clips(clips.videos[rows], clips.captions[rows])


def _extract(job: _Job, batches: Iterable[Clips], metrics: Sequence[str]) -> Rows:
    """The rows of metrics of all clips."""
    found = []
    for clips in batches:
        rows = {}
        for name in dict.fromkeys(METRICS[metric].extractor for metric in metrics):
            extractor = EXTRACTORS[name]
            network = [job.networks[extractor.needs]] if extractor.needs else []
            about = (*(x.digest for x in network), clips.videos.shape, *clips)
            extract = functools.partial(extractor.rows, clips, *(x.model for x in network))
            rows |= _kept(job.folder, name, about, extract)
        found.append(rows)
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def _kept(folder: str | Path | None, kind: str, about: Sequence[Any], make: Callable[[], Rows]) -> Rows:
    """What `make` gives, from the file of all that it depends on, `about`; a damaged file is made again."""
    if folder is None:
        return make()
    path = Path(folder) / f"{kind}-{fingerprint(PROTOCOL, *about)[:24]}.npz"
    if path.exists():
        try:
            with path.open("rb") as raw, np.load(raw) as file:
                return dict(file)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
    made = make()
    with whole_file(path) as part:
        np.savez(part, **made)
    return made
