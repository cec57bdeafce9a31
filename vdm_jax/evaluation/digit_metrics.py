"""What the judge of moving digits sees in generated clips beside real ones.

`digits_fvd` and `digits_fid` are Fréchet distances of the judge's features: they are not FVD and FID, and compare
only by one and the same judge. They are `metric(real, generated) -> float` of its verdicts (`verdict = judge(clips)`,
once for all metrics); what is said of single clips has one number for each, `B`. `floors` of moving_digits.py
gives what to print beside any of them.
"""

from collections.abc import Sequence

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.frechet import frechet_distance
from vdm_jax.evaluation.judge import Verdict, Videos, centroids
from vdm_jax.typing import Array, Float, Int

Rows = Float[Array | np.ndarray, "_ ..."]


def digits_fvd(real: Verdict, generated: Verdict) -> float:
    """Fréchet distance of the features of clips, which know of the order of frames; lower is better."""
    return frechet_distance(real.features, generated.features)


def digits_fid(real: Verdict, generated: Verdict) -> float:
    """Fréchet distance of the features of all single frames, blind to their order; lower is better."""
    return frechet_distance(real.frames, generated.frames)


def identity_consistency(verdict: Verdict) -> Float[np.ndarray, "B"]:
    """Share of each clip's pairs of frames in which the judge sees the same digit; higher is better.

    Raises InputError below two frames.
    """
    frames = verdict.frame_digit.shape[1]
    if frames < 2:
        raise InputError(f"frames={frames} must be at least 2 to have a pair")
    seen = np.eye(10)[np.argmax(verdict.frame_digit, axis=-1)].sum(1)  # how many frames show each digit
    return (np.square(seen).sum(1) - frames) / (frames * (frames - 1))


def position_error(videos: Videos, real: Videos, new: Sequence[int] | None = None) -> Float[np.ndarray, "B"]:
    """Mean distance of the centroid from that of the real clip in pixels, over the frames `new` or all."""
    if videos.shape != real.shape:
        raise InputError(f"videos={videos.shape} and real={real.shape} must have one shape")
    distance = np.linalg.norm(np.asarray(centroids(videos)) - np.asarray(centroids(real)), axis=-1)
    return distance[:, slice(None) if new is None else list(new)].mean(1)


def nearest(rows: Rows, training: Rows) -> tuple[Float[np.ndarray, "_"], Int[np.ndarray, "_"]]:
    """Root mean square difference of each row from the nearest training row, and which one that is.

    Rows are clips in [-1, 1], or features. Raises InputError for rows of different shapes.
    """
    from sklearn.metrics import pairwise_distances_argmin

    if rows.shape[1:] != training.shape[1:]:
        raise InputError(f"rows={rows.shape} and training={training.shape} must agree but for their number")
    flat, known = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (rows, training))
    index = pairwise_distances_argmin(flat, known)
    return np.sqrt(np.square(flat - known[index]).mean(1)), index  # exactly 0 for a copy


def novelty(generated: Rows, training: Rows, real: Rows) -> Float[np.ndarray, "B"]:
    """Of each generated clip, the share of real held-out clips that are nearer to a training clip than it is.

    The mean is the statistic of Meehan et al. 2020: 0.5 where generated clips are as near to training clips as
    held-out ones, towards 0 where they are copies, towards 1 where they are far from any data. Ties count half.
    """
    return rank(nearest(generated, training)[0], nearest(real, training)[0])


def rank(values: Float[np.ndarray, "B"], among: Float[np.ndarray, "_"]) -> Float[np.ndarray, "B"]:
    """The share of `among` that is below each value; ties count half."""
    counts = [np.searchsorted(np.sort(among), values, side) for side in ("left", "right")]
    return np.mean(counts, axis=0) / len(among)
