"""The table of metrics.

An extractor computes a row for each clip. A figure summarises the rows, with an interval: their mean, a share, or their
Fréchet distance from the rows of real clips. A new metric is a line in `METRICS`, and a line in `EXTRACTORS` if it
needs new rows. docs/evaluation.md says what each metric means, and what it does not see.
"""

import difflib
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.evaluation import features, temporal
from vdm_jax.evaluation.confidence import Interval, bootstrap, bootstrap_mean, wilson
from vdm_jax.evaluation.frechet import frechet_distance, unbiased_frechet_distance
from vdm_jax.evaluation.judge import identity_consistency, jerk, nearest, rank
from vdm_jax.evaluation.known import MODES, digit_kept, place_kept
from vdm_jax.evaluation.reference import Clips, RealData, read
from vdm_jax.pretrained.parts import clip_pair, i3d, lpips, videomae
from vdm_jax.typing import Float

PROTOCOL = 2  # increased by every change in this file that changes a figure
Rows = dict[str, np.ndarray]  # for each metric, a row for each clip


# ------------------------------------------------------------------------------------------------ extractors


def _labels(clips: Clips) -> tuple[np.ndarray, np.ndarray]:
    """The digit and the direction in each caption."""
    from vdm_jax.data.moving_digits import parse_caption  # imports TFDS, which takes a second

    return tuple(np.array([np.concatenate(parse_caption(caption)) for caption in clips.captions]).T)


def _judged(clips: Clips, judge: Any) -> Rows:
    verdict = jax.tree.map(np.asarray, judge(clips.videos))
    digits, directions = _labels(clips)
    digit, direction = verdict.digit.argmax(1) == digits, verdict.direction.argmax(1) == directions
    rows = {"digit": digit, "direction": direction, "both": digit & direction}
    rows |= {"digits_fvd": verdict.features, "digits_fid": verdict.frames}
    return rows | {"identity": identity_consistency(verdict)}


def _on_new_frames(name: str, rows: Callable[..., np.ndarray]) -> Callable[..., Rows]:
    def of_clips(clips: Clips, *network: Any) -> Rows:
        return {name: rows(*network, *(in_range(x)[:, clips.new] for x in (clips.videos, clips.real)))}

    return of_clips


def _clip(clips: Clips, network: clip_pair.PublishedClip) -> Rows:
    frames = features.clip_image_features(network, clips.videos)
    scores = features.cosines(frames, features.clip_text_features(network, clips.captions))
    scores = np.where([bool(caption) for caption in clips.captions], scores, np.nan)  # no caption, no score
    return {"clip": scores, "clip_fid": frames, "consistency": temporal.subject_consistency(frames)}


def _of_videos(name: str, rows: Callable[[np.ndarray], np.ndarray]) -> Callable[[Clips], Rows]:
    return lambda clips: {name: rows(in_range(clips.videos))}


def in_range(videos: np.ndarray) -> Float[np.ndarray, "B T H W C"]:
    """Converts bytes, as which real clips are stored, to [-1, 1]."""
    return videos.astype(np.float32) / 127.5 - 1 if videos.dtype == np.uint8 else videos


class Extractor(NamedTuple):
    """Computes the rows of some metrics: `rows(clips)`, or `rows(clips, model)` if it needs a network."""

    rows: Callable[..., Rows]
    needs: str = ""  # a name of `load_networks`


EXTRACTORS = {
    "judge": Extractor(_judged, "judge"),
    "jerk": Extractor(lambda clips: {"jerk": np.asarray(jerk(clips.videos))}),
    "nearest": Extractor(lambda clips, real: {"novelty": nearest(*map(in_range, (clips.videos, real)))[0]}, "training"),
    "flicker": Extractor(_of_videos("flicker", temporal.flicker)),
    "smoothness": Extractor(_of_videos("smoothness", temporal.motion_smoothness)),
    "warping": Extractor(_of_videos("warping", temporal.warping_error)),
    "occluded": Extractor(_of_videos("occluded", temporal.occluded_share)),
    "dynamic": Extractor(_of_videos("dynamic", temporal.dynamic_degree)),
    "i3d": Extractor(lambda clips, network: {"fvd": features.i3d_features(network, clips.videos)}, "i3d"),
    "videomae": Extractor(
        lambda clips, network: {"videomae": features.videomae_features(network, clips.videos)}, "videomae"
    ),
    "clip": Extractor(_clip, "clip"),
    "place_kept": Extractor(lambda clips: place_kept(in_range(clips.videos), in_range(clips.real), clips.new)),
    "digit_kept": Extractor(
        lambda clips, judge: {"digit_kept": digit_kept(judge, in_range(clips.videos), _labels(clips)[0], clips.new)},
        "judge",
    ),
    "psnr": Extractor(_on_new_frames("psnr", temporal.psnr)),
    "ssim": Extractor(_on_new_frames("ssim", temporal.ssim)),
    "lpips": Extractor(_on_new_frames("lpips", features.lpips_distances), "lpips"),
}
OF_KNOWN = ("place_kept", "digit_kept", "psnr", "ssim", "lpips")  # compare with clips of which a part is known

# --------------------------------------------------------------------------------------------------- figures


def _share(rows: np.ndarray, _) -> Interval:
    return wilson(rows)


def _mean(rows: np.ndarray, _) -> Interval:
    """The mean over clips with a number. A clip has none if flow leaves no pixel to compare, or without a caption."""
    rows = rows[~np.isnan(rows)]
    return bootstrap_mean(rows) if len(rows) > 1 else Interval(np.nan, np.nan, np.nan)


def _rank(rows: np.ndarray, held_out: np.ndarray) -> Interval:
    return bootstrap(lambda *sets: float(rank(*sets).mean()), rows, held_out)


def _frechet(rows: np.ndarray, reference: np.ndarray) -> Interval:
    # A distance of wide features takes a second: few resamples, and an imprecise interval.
    return bootstrap(frechet_distance, reference, rows, resamples=int(np.clip(20_000 // rows.shape[-1], 40, 200)))


def _infinite(rows: np.ndarray, reference: np.ndarray) -> Interval:
    return bootstrap(unbiased_frechet_distance, reference, rows, resamples=40)


COMPARED_WITH = {_rank: "held-out", _frechet: "reference", _infinite: "reference"}  # real clips that a figure needs


class Metric(NamedTuple):
    """An extractor, and the figure that summarises its rows."""

    extractor: str
    figure: Callable[[np.ndarray, np.ndarray | None], Interval]  # from the rows, and the rows of real clips
    better: str  # ↑ higher, ↓ lower, ↔ as for real clips, ½ half
    rows: str = ""  # name of the rows (default: the name of the metric)


METRICS = {
    "digit": Metric("judge", _share, "↑"),
    "direction": Metric("judge", _share, "↑"),
    "both": Metric("judge", _share, "↑"),
    "jerk": Metric("jerk", _mean, "↓"),
    "identity": Metric("judge", _mean, "↑"),
    "digits_fvd": Metric("judge", _frechet, "↓"),
    "digits_fvd_infinite": Metric("judge", _infinite, "↓", "digits_fvd"),
    "digits_fid": Metric("judge", _frechet, "↓"),
    "novelty": Metric("nearest", _rank, "½"),
    "flicker": Metric("flicker", _mean, "↓"),
    "smoothness": Metric("smoothness", _mean, "↑"),
    "warping": Metric("warping", _mean, "↓"),
    "occluded": Metric("occluded", _mean, "↓"),
    "dynamic": Metric("dynamic", _mean, "↔"),
    "fvd": Metric("i3d", _frechet, "↓"),
    "fvd_infinite": Metric("i3d", _infinite, "↓", "fvd"),
    "videomae": Metric("videomae", _frechet, "↓"),
    "clip": Metric("clip", _mean, "↑"),
    "clip_fid": Metric("clip", _frechet, "↓"),
    "consistency": Metric("clip", _mean, "↑"),
    "digit_kept": Metric("digit_kept", _share, "↑"),
    "position_error": Metric("place_kept", _mean, "↓"),
    "within_pixel": Metric("place_kept", _share, "↑"),
    "psnr": Metric("psnr", _mean, "↑"),
    "ssim": Metric("ssim", _mean, "↑"),
    "lpips": Metric("lpips", _mean, "↓"),
}
OF_DIGITS = ("digit", "direction", "both", "jerk")


def default_metrics(data: RealData, weights: Iterable[str] = (), known: str = "") -> tuple[str, ...]:
    """The metrics that fit the data and the mode, with the metrics of all networks whose weights are given."""
    if known:
        names = (*(("digit_kept", "position_error", "within_pixel") if data.judge else ()), "psnr", "ssim")
    else:
        names = OF_DIGITS if data.judge else ("flicker", "smoothness", "warping", "dynamic")
    of_weights = [m for w in weights for m, x in METRICS.items() if EXTRACTORS[x.extractor].needs == w]
    return names + tuple(m for m in of_weights if METRICS[m].figure is not _infinite)


def check_metrics(names: Iterable[str], known: str = "") -> tuple[str, ...]:
    """The names, with `occluded` added after `warping`, which means little without it.

    Raises InputError for an unknown metric, and for a metric that needs a mode if there is none.
    """
    checked = []
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"metric {name!r} is unknown; {hint}known are {', '.join(METRICS)}")
        if METRICS[name].extractor in OF_KNOWN and not known:
            raise InputError(f"{name} compares drawn clips with true clips: known must be one of {'; '.join(MODES)}")
        checked += [name, "occluded"] if name == "warping" else [name]
    if not checked:
        raise InputError(f"metrics=[] must name some of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(checked))


# -------------------------------------------------------------------------------------------------- networks


class Network(NamedTuple):
    """A network (or the training clips) that extractors need, and its hash, to publish with every figure."""

    model: Any
    digest: str


WEIGHTS = {
    "i3d": (i3d.load_i3d, i3d.PUBLISHED),
    "videomae": (videomae.load_videomae, videomae.PUBLISHED),
    "clip": (clip_pair.load_clip, clip_pair.PUBLISHED),
    "lpips": (lpips.load_lpips, lpips.PUBLISHED),
}


def check_weights(metrics: Sequence[str], weights: Mapping[str, str | Path]) -> None:
    """Raises InputError for a metric without its weights, and for weights that no metric needs."""
    needs = {name: EXTRACTORS[METRICS[name].extractor].needs for name in metrics}
    for unused in weights.keys() - needs.values():
        raise InputError(f"--{unused}={weights[unused]}: none of the metrics {', '.join(metrics)} needs it")
    for name, need in needs.items():
        if need in WEIGHTS and need not in weights:
            raise InputError(f"{name} needs weights, --{need}=<path>: {WEIGHTS[need][1]}")


def load_networks(
    metrics: Sequence[str], data: RealData, weights: Mapping[str, str | Path] | None = None, *, mesh: Mesh | None = None
) -> dict[str, Network]:
    """Loads the networks of the metrics; `weights` gives the files of "i3d", "videomae", "clip" and "lpips".

    Raises InputError for a metric that does not fit the data, or weights that are missing or of another network.
    """
    networks, weights = {}, weights or {}
    check_weights(metrics, weights)
    for name in metrics:
        need = EXTRACTORS[METRICS[name].extractor].needs
        if not need or need in networks:
            continue
        if need in WEIGHTS:
            networks[need] = Network(WEIGHTS[need][0](weights[need], mesh=mesh), hash_of(Path(weights[need])))
        elif data.judge is None:
            raise InputError(f"{name} needs moving digits, one in a clip; the data is {data.name}")
        elif need in data.memory:
            networks[need] = data.memory[need]
        else:
            model = data.judge() if need == "judge" else read(data.reference, np.arange(len(data.reference))).videos
            digest = model.digest if need == "judge" else hashlib.sha256(model).hexdigest()[:12]
            networks[need] = data.memory[need] = Network(model, digest)
    return networks


@functools.cache
def hash_of(path: Path) -> str:
    """The hash of a file, or of the settings, vocabulary and weights in a folder. Raises InputError without a file."""
    inner = [p for p in path.glob("*") if p.suffix in (".json", ".safetensors", ".txt")]
    digest = hashlib.sha256()
    for file in sorted(inner) or [path]:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:12]
