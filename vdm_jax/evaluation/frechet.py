"""Fréchet distance of two sets of features: the mathematics of FID and FVD, without their networks.

d² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), for the Gaussians with the means and covariances of the sets
(Dowson & Landau 1982; Heusel et al. 2017). A set is an array `B F` with a row for each video, an array `B T F` in which
every frame is a sample, or its `Moments`. All computation is in float64 with NumPy. Lower is better.
"""

import functools
import logging
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

log = logging.getLogger(__name__)
_warn_once = functools.cache(log.warning)  # not for every resample of a bootstrap

Features = Float[Array | np.ndarray, "_ ... _"]  # B F or B T F; sizes may differ between sets


class Moments(NamedTuple):
    """Number, mean and unbiased covariance of a set of features: all that a Fréchet distance needs."""

    count: int
    mean: Float[np.ndarray, "F"]
    covariance: Float[np.ndarray, "F F"]


def moments_of(features: Features) -> Moments:
    """The moments of an array. Raises InputError below two samples and for values that are not finite."""
    rows = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    if len(rows) < 2:
        raise InputError(f"features={features.shape}: samples={len(rows)} must be at least 2 to have a covariance")
    if bad := int((~np.isfinite(rows).all(1)).sum()):
        raise InputError(f"features of {bad} of {len(rows)} samples are infinite or NaN; all must be finite")
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(real: Features | Moments, generated: Features | Moments) -> float:
    """The squared distance d², as published for FID and FVD.

    Warns if a set has no more samples than features. With more samples the distance is still biased upwards.
    Raises InputError for sets of different widths and for fewer than two samples.
    """
    a, b = (x if isinstance(x, Moments) else moments_of(x) for x in (real, generated))
    if min(a.count, b.count) <= len(a.mean):
        _warn_once(
            f"{min(a.count, b.count)} samples of {len(a.mean)} features: the covariance is singular and the Fréchet "
            "distance far too large; take more samples (unbiased_frechet_distance says by how much)"
        )
    return _distance(a, b)


def unbiased_frechet_distance(
    real: Features | Moments, generated: Features, seed: int = 0, *, smallest: float = 0.5, points: int = 15
) -> float:
    """FID∞: the distance for infinitely many samples, by a line in 1/N (Chong & Forsyth 2020).

    The line is fitted to the distances of random subsets, at regular steps of N from a share `smallest` of the rows to
    all rows. Moments of the real set are used whole, as in the paper. Rows of the real set are cut to the same share,
    which removes the bias of their number, too. The paper begins at a tenth of 50,000 rows; with few rows only the
    upper half lies on a line. The result may be below 0 for sets that hardly differ. Warns if the smallest subset has
    no more samples than features.
    Raises InputError for too few rows or points and for a share outside (0, 1).
    """
    if not 0 < smallest < 1 or points < 2:
        raise InputError(f"smallest={smallest:g}, points={points} must be a share between 0 and 1, and at least 2")
    rng, whole = np.random.default_rng(seed), isinstance(real, Moments)
    sets = [np.asarray(x) for x in ([generated] if whole else [generated, real])]
    for x in sets:
        if (fewest := round(smallest * len(x))) < 2:
            raise InputError(f"rows={len(x)} must be more: the smallest subset, {smallest:g} of them, has less than 2")
        if (samples := fewest * x[0].size // x.shape[-1]) <= x.shape[-1]:
            _warn_once(f"subsets of {samples} samples of {x.shape[-1]} features: too few for a line in 1/N")

    def at(share: float) -> float:
        subset, *real_subset = [x[rng.permutation(len(x))[: round(share * len(x))]] for x in sets]
        return _distance(real if whole else moments_of(*real_subset), moments_of(subset))

    counts = np.rint(np.linspace(smallest, 1, points) * len(generated)).astype(int)
    distances = np.array([at(count / len(generated)) for count in counts])
    return float(np.polyfit(1 / counts, distances, 1)[1])


def _distance(a: Moments, b: Moments) -> float:
    if len(a.mean) != len(b.mean):
        raise InputError(f"features of {len(a.mean)} and of {len(b.mean)} numbers: they must come from one network")
    # tr (Σ_a^½ Σ_b Σ_a^½)^½ is the sum of the singular values of R_aᵀ R_b, for any R with R Rᵀ = Σ. Singular values are
    # real. The eigenvalues of the product would need square roots of rounding errors.
    overlap = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(distance))  # for equal sets rounding leaves about 1e-15 of the traces


def _factor(covariance: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "F F"]:
    """R with R Rᵀ = Σ; Σ may have any rank. Raises InputError for a matrix with negative eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -1e-6 * abs(values[-1]):  # more than rounding, even for moments that were stored as float32
        raise InputError(f"eigenvalues from {values[0]:g} to {values[-1]:g}: a covariance must have none below 0")
    return vectors * np.sqrt(np.where(values > len(values) * np.finfo(float).eps * values[-1], values, 0))
