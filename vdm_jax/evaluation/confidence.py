"""How sure a figure is: bootstrap intervals over videos (Efron & Tibshirani 1993), and Wilson's for shares.

An interval is of the videos that were drawn from one trained network: another training seed is not in it.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float


class Interval(NamedTuple):
    """A figure, and the interval that holds it at the level asked for."""

    value: float
    low: float
    high: float
    bias: float = 0.0  # how much too large the value is for its number of rows, as the bootstrap estimates it


def bootstrap_mean(
    values: Float[Array | np.ndarray, "B"], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of one number per video; of a difference, give paired differences.

    Raises InputError for fewer than two values and for values that are not finite.
    """
    values = _finite(np.asarray(values, np.float64))
    count = len(values)
    # How often each video is drawn is all that matters for a mean.
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    low, high = np.quantile(times @ values / count, _tails(level))
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
    value = float(statistic(*rows))
    drawn = [statistic(*(x[rng.integers(len(x), size=len(x))] for x in rows)) for _ in range(resamples)]
    drawn = _finite(np.array(drawn, np.float64))
    bias = float(drawn.mean()) - value
    low, high = np.quantile(drawn, _tails(level)) - bias
    return Interval(value, float(low), float(high), bias)


def wilson(successes: Bool[Array | np.ndarray, "B"], *, level: float = 0.95) -> Interval:
    """Interval of a share (Wilson 1927): it stays within 0 and 1, and has a width at 0 and 1, too.

    Raises InputError for no trials.
    """
    count = len(successes)
    if not count:
        raise InputError("successes=[] must hold at least one trial")
    share, z = float(np.mean(successes)), statistics.NormalDist().inv_cdf(_tails(level)[1])
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _finite(values: np.ndarray) -> np.ndarray:
    if len(values) < 2:
        raise InputError(f"values={values.shape} must be at least 2 to have an interval")
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{bad} of {values.size} values are infinite or NaN; all must be finite")
    return values


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError(f"level={level:g} must be between 0 and 1, such as 0.95")
    return (1 - level) / 2, (1 + level) / 2
