"""Metrics of moving digits: identity and position of the digit, and distance from the training clips."""

from collections.abc import Sequence

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.judge import Verdict, Videos, centroids
from vdm_jax.typing import Array, Float, Int

Rows = Float[Array | np.ndarray, "_ ..."]


def identity_consistency(verdict: Verdict) -> Float[np.ndarray, "B"]:
    """The share of pairs of frames of a clip in which the judge reads the same digit; higher is better."""
    frames = verdict.frame_digit.shape[1]
    if frames < 2:
        raise InputError(f"frames={frames} must be at least 2 to have a pair")
    counts = np.eye(10)[np.argmax(verdict.frame_digit, axis=-1)].sum(1)  # frames that show each digit
    return (np.square(counts).sum(1) - frames) / (frames * (frames - 1))


def position_error(videos: Videos, real: Videos, new: Sequence[int] | None = None) -> Float[np.ndarray, "B"]:
    """Mean distance of the centroid from the centroid of the real clip, in pixels, over the frames `new` (or all)."""
    if videos.shape != real.shape:
        raise InputError(f"videos={videos.shape} and real={real.shape} must have one shape")
    distance = np.linalg.norm(np.asarray(centroids(videos)) - np.asarray(centroids(real)), axis=-1)
    return distance[:, slice(None) if new is None else list(new)].mean(1)


def nearest(rows: Rows, training: Rows) -> tuple[Float[np.ndarray, "_"], Int[np.ndarray, "_"]]:
    """The root mean square difference of each row (clip or feature) from the nearest training row, and its index."""
    from sklearn.metrics import pairwise_distances_argmin

    if rows.shape[1:] != training.shape[1:]:
        raise InputError(f"rows={rows.shape} and training={training.shape} must differ in their number alone")
    flat, flat_training = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (rows, training))
    index = pairwise_distances_argmin(flat, flat_training)
    return np.sqrt(np.square(flat - flat_training[index]).mean(1)), index  # exactly 0 for a copy


def rank(values: Float[np.ndarray, "B"], among: Float[np.ndarray, "_"]) -> Float[np.ndarray, "B"]:
    """The share of `among` below each value; ties count half.

    For distances from the nearest training clip, of generated clips among held-out clips, the mean is the statistic of
    Meehan et al. 2020. It is 0.5 where generated clips are as near to training clips as held-out clips are. It falls
    towards 0 for copies, and rises towards 1 for clips far from any data.
    """
    counts = [np.searchsorted(np.sort(among), values, side) for side in ("left", "right")]
    return np.mean(counts, axis=0) / len(among)
