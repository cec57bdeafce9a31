"""How sure a figure is: bootstrap intervals over videos (Efron & Tibshirani 1993), and Wilson's for shares.

An interval is of the videos that were drawn from one trained network: another training seed is not in it.
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


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure, and the interval that holds it at the level asked for."""

    value: float
    low: float
    high: float
    bias: float = 0.0  # how much too large the value is for its number of rows, as the bootstrap estimates it

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_mean(
    values: Float[Array | np.ndarray, "B"],
    groups: Int[np.ndarray, "B"] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean of one number per video; of a difference, give paired differences.

    Values of one group (numbered from 0; default: each its own) hang together, such as what several people say of one
    video: then groups are drawn (Efron & Tibshirani 1993, chapter 8). With few groups the interval is too narrow; of
    one it is its mean. Raises InputError for fewer than two values without groups and for values that are not finite.
    """
    values = _finite(np.asarray(values, np.float64), fewest=2 if groups is None else 1)
    groups = np.arange(len(values)) if groups is None else groups
    total, size = np.bincount(groups, values), np.bincount(groups)
    # How often each group is drawn is all that matters for a mean.
    times = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), size=resamples)
    low, high = np.quantile(times @ total / (times @ size), _tails(level))
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap(
    statistic: Callable[..., float],
    *rows: Float[Array | np.ndarray, "_ ..."],
    seed: int = 0,
    resamples: int = 500,
    level: float = 0.95,
) -> Interval:
    """Interval of `statistic(*rows)`, such as a Fréchet distance, with the rows of each array drawn independently.

    The percentiles are moved back by the bias of the resampled values: drawing a row twice adds to a Fréchet
    distance as having fewer rows does, so that plain percentiles may miss even the value itself. The interval is
    thus of the statistic's expectation with this number of rows; (low − bias, high − bias) is of its value with
    infinitely many. To hold one set fixed, fix it: `functools.partial(frechet_distance, moments_of(real))`.
    Raises InputError for fewer than two rows and for a statistic that is not finite.
    """
    rng, rows = np.random.default_rng(seed), [_finite(np.asarray(x)) for x in rows]
    chosen = [[rng.integers(len(x), size=len(x)) for x in rows] for _ in range(resamples)]
    # In as many threads as there are cores, each with a core of its own: threads inside small products cost more.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        value = float(statistic(*rows))
        drawn = list(pool.map(lambda at: statistic(*(x[i] for x, i in zip(rows, at, strict=True))), chosen))
    drawn = _finite(np.array(drawn, np.float64))
    bias = float(drawn.mean()) - value
    low, high = np.quantile(drawn, _tails(level)) - bias
    return Interval(value, float(low), float(high), bias)


def wilson(
    successes: Bool[Array | np.ndarray, "B"] | Float[Array | np.ndarray, "B"], *, level: float = 0.95
) -> Interval:
    """Interval of a share (Wilson 1927): it stays within 0 and 1, and has a width at 0 and 1, too.

    With ½ for a tie it is wider than it need be, not narrower. Raises InputError for no trials.
    """
    count = len(successes)
    if not count:
        raise InputError("successes=[] must hold at least one trial")
    share, z = float(np.mean(successes)), statistics.NormalDist().inv_cdf(_tails(level)[1])
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _finite(values: np.ndarray, fewest: int = 2) -> np.ndarray:
    if len(values) < fewest:
        raise InputError(f"values={values.shape} must be at least {fewest} to have an interval")
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{bad} of {values.size} values are infinite or NaN; all must be finite")
    return values


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError(f"level={level:g} must be between 0 and 1, such as 0.95")
    return (1 - level) / 2, (1 + level) / 2
