"""Intervals of metrics: the bootstrap over videos (Efron & Tibshirani 1993), and Wilson's interval of shares.

An interval says how much a value depends on the choice of videos of one trained network, not on the training seed.
"""

import dataclasses
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, Int

TAILS = (0.025, 0.975)  # all intervals hold 95 %


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float
    bias: float = 0.0  # of the value with this number of rows, as estimated by the bootstrap

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_mean(
    values: Float[Array | np.ndarray, "B"],
    groups: Int[np.ndarray, "B"] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Percentile interval of the mean of one number per video. For a difference, pass paired differences.

    Values of the same group (numbered from 0; default: a group for each value) depend on each other, such as judgements
    of one video by several people: groups are resampled (Efron & Tibshirani 1993, chapter 8). With few groups the
    interval is too narrow; with a single group it is a point. Raises InputError for fewer than two values without
    groups and for values that are not finite.
    """
    values = _finite(np.asarray(values, np.float64), fewest=2 if groups is None else 1)
    groups = np.arange(len(values)) if groups is None else groups
    total, size = np.bincount(groups, values), np.bincount(groups)
    # A mean depends only on the number of times that each group is drawn.
    times = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), size=resamples)
    return Interval(float(values.mean()), *map(float, np.quantile(times @ total / (times @ size), TAILS)))


def bootstrap(
    statistic: Callable[..., float],
    *rows: Float[Array | np.ndarray, "_ ..."],
    seed: int = 0,
    resamples: int = 500,
) -> Interval:
    """Interval of `statistic(*rows)`, such as a Fréchet distance; the rows of each array are resampled independently.

    The percentiles are moved back by the bias of the resampled values: repeated rows increase a Fréchet distance as
    fewer rows do, so plain percentiles may not even hold the value. The interval is for the expectation of the
    statistic with this number of rows; (low − bias, high − bias) is for its value with infinitely many rows. To keep
    one set fixed, pass `functools.partial(frechet_distance, moments_of(real))`.
    Raises InputError for fewer than two rows and for a statistic that is not finite.
    """
    rng, rows = np.random.default_rng(seed), [_finite(np.asarray(x)) for x in rows]
    resampled = [[rng.integers(len(x), size=len(x)) for x in rows] for _ in range(resamples)]
    # One thread per core, and none inside BLAS: threads inside small products cost more than they save.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        value = float(statistic(*rows))
        values = list(pool.map(lambda picks: statistic(*(x[i] for x, i in zip(rows, picks, strict=True))), resampled))
    values = _finite(np.array(values, np.float64))
    bias = float(values.mean()) - value
    low, high = np.quantile(values, TAILS) - bias
    return Interval(value, float(low), float(high), bias)


def wilson(successes: Bool[Array | np.ndarray, "B"] | Float[Array | np.ndarray, "B"]) -> Interval:
    """Interval of a share (Wilson 1927). It stays within 0 and 1, and has a width even for a share of 0 or 1.

    A tie counts ½; the interval is then too wide, not too narrow. Raises InputError for no trials.
    """
    count = len(successes)
    if not count:
        raise InputError("successes=[] must hold at least one trial")
    share, z = float(np.mean(successes)), statistics.NormalDist().inv_cdf(TAILS[1])
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _finite(values: np.ndarray, fewest: int = 2) -> np.ndarray:
    if len(values) < fewest:
        raise InputError(f"values={values.shape} must be at least {fewest} to have an interval")
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{bad} of {values.size} values are infinite or NaN; all must be finite")
    return values
