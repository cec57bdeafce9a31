"""Scores of a run by name: what metrics say of generated clips, each with its interval, beside its floors.

`METRICS` is the table. A metric is a row for each clip, which an extractor gives, and what is said of all rows: their
mean, a share, or a Fréchet distance from the rows of real clips. `score` measures generated clips, `floors` real ones,
these with their frames shuffled, and frozen.
"""

import difflib
import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError
from vdm_jax.evaluation import temporal
from vdm_jax.evaluation.confidence import Interval, bootstrap, bootstrap_mean, wilson
from vdm_jax.evaluation.frechet import frechet_distance, unbiased_frechet_distance
from vdm_jax.evaluation.keeping import MODES, digit_kept, mask_of, new_frames, place_kept, without_a_network
from vdm_jax.evaluation.real import Clips, RealData, read_all, read_clips
from vdm_jax.generation.partial import fingerprint
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.typing import Float

log = logging.getLogger(__name__)

PROTOCOL = 1  # of everything below that a figure depends on: goes up with any change
Rows = dict[str, np.ndarray]  # by metric, a row for each clip


class Network(NamedTuple):
    """What an extractor looks with, and a hash of it, to publish beside every figure."""

    model: Any
    digest: str


# ------------------------------------------------------------------------------------------------ extractors


def _judged(clips: Clips, judge: Any) -> Rows:
    from vdm_jax.data.moving_digits import parse_caption
    from vdm_jax.evaluation.digit_metrics import identity_consistency

    asked = np.array([np.concatenate(parse_caption(caption)) for caption in clips.captions])
    verdict = judge(clips.videos)
    digit, direction = (
        np.argmax(seen, axis=1) == x for seen, x in zip((verdict.digit, verdict.direction), asked.T, strict=True)
    )
    rows = {"digit": digit, "direction": direction, "both": digit & direction}
    rows |= {"digits_fvd": np.asarray(verdict.features), "digits_fid": np.asarray(verdict.frames)}
    return rows | {"identity": identity_consistency(verdict)}


def _jerk(clips: Clips) -> Rows:
    from vdm_jax.evaluation.moving_digits import jerk

    return {"jerk": np.asarray(jerk(clips.videos))}


def _nearest(clips: Clips, training: np.ndarray) -> Rows:
    from vdm_jax.evaluation.digit_metrics import nearest

    return {"novelty": nearest(_in_range(clips.videos), _in_range(training))[0]}


def _place_kept(clips: Clips) -> Rows:
    videos, real = _in_range(clips.videos), _in_range(clips.real)
    return place_kept(videos, real, clips.new) | {"psnr": temporal.psnr(videos[:, clips.new], real[:, clips.new])}


def _digit_kept(clips: Clips, judge: Any) -> Rows:
    from vdm_jax.data.moving_digits import parse_caption

    digits = np.array([parse_caption(caption)[0][0] for caption in clips.captions])
    return {"digit_kept": digit_kept(judge, clips.videos, digits, clips.new)}


def _warping(clips: Clips) -> Rows:
    videos = _in_range(clips.videos)
    return {"warping": temporal.warping_error(videos), "occluded": temporal.occluded_share(videos)}


def _temporal(name: str, metric: Callable) -> Callable[[Clips], Rows]:
    return lambda clips: {name: metric(_in_range(clips.videos))}


def _in_range(videos: np.ndarray) -> Float[np.ndarray, "B T H W C"]:
    """In [-1, 1]: real clips are stored as bytes."""
    return videos.astype(np.float32) / 127.5 - 1 if videos.dtype == np.uint8 else videos


class Extractor(NamedTuple):
    """`rows(clips)`, or `rows(clips, model)` of the network that it `needs`, gives the rows of some metrics."""

    rows: Callable[..., Rows]
    needs: str = ""


EXTRACTORS = {
    "judge": Extractor(_judged, "judge"),
    "jerk": Extractor(_jerk),
    "nearest": Extractor(_nearest, "training"),
    "flicker": Extractor(_temporal("flicker", temporal.flicker)),
    "smoothness": Extractor(_temporal("smoothness", temporal.motion_smoothness)),
    "warping": Extractor(_warping),
    "dynamic": Extractor(_temporal("dynamic", temporal.dynamic_degree)),
    "place_kept": Extractor(_place_kept),
    "digit_kept": Extractor(_digit_kept, "judge"),
}
OF_KNOWN = ("place_kept", "digit_kept")  # compare with what is known
NEEDS = {
    "judge": "captions of moving digits, one a clip",
    "training": "moving digits",
}

# --------------------------------------------------------------------------------------------------- figures


def _mean(rows: np.ndarray, *_) -> Interval:
    """Of the clips that have a number: flow may leave nothing to compare in some."""
    rows = rows[np.isfinite(rows)]
    return bootstrap_mean(rows) if len(rows) > 1 else Interval(np.nan, np.nan, np.nan)


def _rank(rows: np.ndarray, held_out: np.ndarray, _) -> Interval:
    from vdm_jax.evaluation.digit_metrics import rank

    return bootstrap_mean(rank(rows, held_out))


def _frechet(rows: np.ndarray, _, reference: np.ndarray) -> Interval:
    return bootstrap(frechet_distance, reference, rows, resamples=200)


def _infinite(rows: np.ndarray, _, reference: np.ndarray) -> Interval:
    def distance(real, generated):
        return unbiased_frechet_distance(real, generated).distance

    return bootstrap(distance, reference, rows, resamples=40)


class Metric(NamedTuple):
    """Which extractor gives its rows (under its name, or that of `rows`), and what is said of them."""

    extractor: str
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], Interval]  # of clips, held-out ones, the reference
    better: str  # ↑ higher, ↓ lower, ↔ as real clips have it
    rows: str = ""


METRICS = {
    "digit": Metric("judge", lambda rows, *_: wilson(rows), "↑"),
    "direction": Metric("judge", lambda rows, *_: wilson(rows), "↑"),
    "both": Metric("judge", lambda rows, *_: wilson(rows), "↑"),
    "jerk": Metric("jerk", _mean, "↓"),
    "identity": Metric("judge", _mean, "↑"),
    "digits_fvd": Metric("judge", _frechet, "↓"),
    "digits_fvd_infinite": Metric("judge", _infinite, "↓", "digits_fvd"),
    "digits_fid": Metric("judge", _frechet, "↓"),
    "novelty": Metric("nearest", _rank, "½"),
    "flicker": Metric("flicker", _mean, "↓"),
    "smoothness": Metric("smoothness", _mean, "↑"),
    "warping": Metric("warping", _mean, "↓"),
    "occluded": Metric("warping", _mean, "↓"),
    "dynamic": Metric("dynamic", _mean, "↔"),
    "digit_kept": Metric("digit_kept", lambda rows, *_: wilson(rows), "↑"),
    "position_error": Metric("place_kept", _mean, "↓"),
    "within_pixel": Metric("place_kept", lambda rows, *_: wilson(rows), "↑"),
    "psnr": Metric("place_kept", _mean, "↑"),
}


def check_metrics(names: Iterable[str], known: str = "") -> tuple[str, ...]:
    """The names, `occluded` after `warping`, which says little without it.

    Raises InputError for an unknown one, and for one that needs a mode in which something is known.
    """
    wanted = []
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"metric {name!r} is unknown; {hint}known are {', '.join(METRICS)}")
        if METRICS[name].extractor in OF_KNOWN and not known:
            raise InputError(f"{name} compares with what is known of a clip: known must be one of {'; '.join(MODES)}")
        wanted += [name, "occluded"] if name == "warping" else [name]
    if not wanted:
        raise InputError(f"metrics=[] must name some of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(wanted))


def load_networks(metrics: Sequence[str], data: RealData) -> dict[str, Network]:
    """What the metrics look with, by name. Raises InputError for what is not there, or what the data cannot have."""
    networks = {}
    for name in metrics:
        need = EXTRACTORS[METRICS[name].extractor].needs
        if need in networks or not need:
            continue
        if need in ("judge", "training"):
            if data.judge is None:
                raise InputError(f"{name} needs {NEEDS[need]}; the data is {data.name}")
            networks[need] = _of_digits(need, data)
    return networks


def _of_digits(need: str, data: RealData) -> Network:
    if need == "training":
        clips = read_all(data).videos
        return Network(clips, fingerprint(clips)[:12])
    if "judge" not in data.memory:
        data.memory["judge"] = data.judge()
    return Network(data.memory["judge"], data.memory["judge"].digest)


# ---------------------------------------------------------------------------------------------------- scores


def _all(batches: Sequence[int], what: str) -> Iterable[int]:
    return batches


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
    progress: Callable[[Sequence[int], str], Iterable[int]] = _all,
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
        progress: is given the batches and what is done with them, such as `lambda batches, what: tqdm(batches, what)`.
        known: a mode of `keeping.MODES`: so much of the held-out clips is given, without captions where it says so.
        settings: fields of `Settings`, such as guidance and steps.

    Raises:
        InputError: an unknown metric or setting, one that does not fit the data, or too few real clips.
    """
    metrics = check_metrics(metrics, known)
    networks = load_networks(metrics, data) if networks is None else networks
    held_out = read_clips(data, num, seed)
    if held_out.videos.shape[1:] != pipeline.shape:
        real = "×".join(map(str, held_out.videos.shape[1:]))
        raise InputError(f"real clips are {real}, generated ones {'×'.join(map(str, pipeline.shape))}: {data.name}")
    chosen, _ = pipeline.check(held_out.captions, seed=seed, batch_size=batch_size, **settings)
    weights = [hashlib.sha256(np.asarray(x.addressable_data(0)).tobytes()) for x in jax.tree.leaves(pipeline.params)]
    about = (*(x.hexdigest() for x in weights), pipeline.origin, pipeline.step, chosen, seed)
    size, mask = min(batch_size, num), None
    if known:
        about, mask = (*about, known, held_out.videos), mask_of(known, pipeline.shape)

    def draw(first: int, captions: Sequence[str]) -> Rows:
        prompts = np.resize(captions, size).tolist()  # the last batch is a full one, too: one compilation
        given = {}
        if mask is not None:
            rows = np.resize(np.arange(first, first + len(captions)), size)
            given["known"] = Known(_in_range(held_out.videos[rows]), mask)
            prompts = prompts if MODES[known].captioned else [""] * size
        drawn = pipeline(prompts, seed=seed, batch_size=size, first=first, **given, **settings)
        return {"videos": drawn[: len(captions)]}

    def batches() -> Iterator[Clips]:
        for first in progress(range(0, num, size), f"guidance {chosen.guidance:g}"):
            captions = held_out.captions[first : first + size]
            drawn = _kept(folder, "videos", (*about, first, captions), functools.partial(draw, first, captions))
            yield _beside(Clips(drawn["videos"], captions), held_out, first, mask)

    rows = _extract(batches(), metrics, networks, folder)
    return _figures(rows, metrics, data, num, seed, size, folder, networks, progress)


def floors(
    data: RealData,
    metrics: Iterable[str],
    *,
    num: int,
    seed: int = 0,
    batch_size: int = 64,
    folder: str | Path | None = None,
    networks: Mapping[str, Network] | None = None,
    progress: Callable[[Sequence[int], str], Iterable[int]] = _all,
    known: str = "",
) -> dict[str, dict[str, Interval]]:
    """What the metrics say of real held-out clips ("real"), of these "shuffled" in time, and "frozen".

    Where a part of them is `known`, there is in the place of these what needs no network.
    Arguments as of `score`, whose figures are to be read beside these.
    """
    from vdm_jax.evaluation.moving_digits import frozen, shuffle_frames

    metrics = check_metrics(metrics, known)
    networks = load_networks(metrics, data) if networks is None else networks
    real, size = read_clips(data, num, seed), min(batch_size, num)
    changed = {"real": lambda x: x, "shuffled": lambda x: shuffle_frames(x, jax.random.key(0)), "frozen": frozen}
    mask = None
    if known:
        mask = mask_of(known, real.videos.shape[1:])
        changed = {"real": lambda x: x, "no network": lambda x: without_a_network(_in_range(x), mask)}
    found = {}
    for name, change in changed.items():
        clips = Clips(np.asarray(change(real.videos)), real.captions)
        batches = (
            _beside(batch, real, i * size, mask) for i, batch in enumerate(_batches(clips, size, name, progress))
        )
        rows = _extract(batches, metrics, networks, folder)
        found[name] = _figures(rows, metrics, data, num, seed, size, folder, networks, progress)
    return found


def _figures(rows, metrics, data, num, seed, size, folder, networks, progress) -> dict[str, Interval]:
    """Of each metric, beside the rows of real clips that it takes."""
    real = {}
    for which, wanted in (("held-out", [_rank]), ("reference", [_frechet, _infinite])):
        names = [name for name in metrics if METRICS[name].figure in wanted]
        key = (which, num, seed, *sorted(names), *sorted(network.digest for network in networks.values()))
        if names and key not in data.memory:
            clips = read_clips(data, num, seed, reference=which == "reference")
            data.memory[key] = _extract(_batches(clips, size, which, progress), names, networks, folder)
        real[which] = data.memory[key] if names else {}
    found = {}
    for name in metrics:
        metric = METRICS[name]
        given = [x.get(metric.rows or name) for x in (rows, real["held-out"], real["reference"])]
        found[name] = metric.figure(*given)
    return found


def _beside(clips: Clips, real: Clips, first: int, mask: np.ndarray | None) -> Clips:
    """The clips with the real ones that a part of them is known of."""
    if mask is None:
        return clips
    return clips._replace(real=real.videos[first : first + len(clips.videos)], new=new_frames(mask))


def _batches(clips: Clips, size: int, name: str, progress: Callable) -> Iterator[Clips]:
    for first in progress(range(0, len(clips.videos), size), f"{name} clips"):
        rows = slice(first, first + size)
        yield Clips(clips.videos[rows], clips.captions[rows])


def _extract(
    batches: Iterable[Clips], metrics: Sequence[str], networks: Mapping[str, Network], folder: str | Path | None
) -> Rows:
    """The rows of all metrics, batch by batch; no more than one batch of clips is in memory."""
    found = []
    for clips in batches:
        rows = {}
        for name in dict.fromkeys(METRICS[metric].extractor for metric in metrics):
            extractor = EXTRACTORS[name]
            network = [networks[extractor.needs]] if extractor.needs else []
            about = (*(x.digest for x in network), clips.videos.shape, *clips)
            extract = functools.partial(extractor.rows, clips, *(x.model for x in network))
            rows |= _kept(folder, name, about, extract)
        found.append(rows)
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def _kept(folder: str | Path | None, kind: str, about: Sequence[Any], make: Callable[[], Rows]) -> Rows:
    """What `make` gives, from the file of all that it depends on, `about`; a damaged file is made again."""
    if folder is None:
        return make()
    path = Path(folder) / f"{kind}-{fingerprint(PROTOCOL, *about)[:24]}.npz"
    if path.exists():
        try:
            with np.load(path) as file:
                return dict(file)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
    made = make()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            np.savez(file, **made)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return made
