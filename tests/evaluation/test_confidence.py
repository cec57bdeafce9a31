"""Intervals: parity with formulas and SciPy, and their coverage."""

import functools

import numpy as np
import pytest
import scipy.stats

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval, bootstrap, bootstrap_mean, wilson
from vdm_jax.evaluation.frechet import frechet_distance, moments_of


def ends(interval):
    return interval.low, interval.high


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_mean(values, resamples=5000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=0.1 * half)
    assert bootstrap_mean(values, resamples=5000) == found
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_skewed_values_as_scipy_has_them():
    values = np.random.default_rng(1).exponential(size=60)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=0)
    ours = bootstrap_mean(values, resamples=20_000)
    general = bootstrap(np.mean, values, resamples=5000)
    np.testing.assert_allclose(ends(ours), theirs.confidence_interval, atol=0.01)
    np.testing.assert_allclose(ends(general), theirs.confidence_interval, atol=0.02)
    assert general.bias == pytest.approx(0, abs=0.01)


def test_equal_values_leave_no_doubt():
    assert bootstrap_mean(np.full(10, 0.25)) == Interval(0.25, 0.25, 0.25)


def test_the_interval_of_a_frechet_distance_holds_what_it_says():
    """It holds the expectation with the same number of rows; without the bias, the value with infinitely many rows."""
    rng, width, count = np.random.default_rng(2), 8, 100
    scale = np.linspace(0.8, 1.2, width)

    def draw():
        return rng.standard_normal((count, width)), scale * rng.standard_normal((count, width))

    truth = np.square(scale - 1).sum()
    expectation = np.mean([frechet_distance(*draw()) for _ in range(200)])
    intervals = [bootstrap(frechet_distance, *draw(), resamples=60, seed=i) for i in range(20)]
    assert sum(i.low < expectation < i.high for i in intervals) >= 17
    assert sum(i.low - i.bias < truth < i.high - i.bias for i in intervals) >= 17
    assert sum(i.low < truth < i.high for i in intervals) <= 5  # the expectation is not the truth
    assert sum(i.low + i.bias < expectation < i.high + i.bias for i in intervals) <= 5  # plain percentiles fail


def test_rows_are_drawn_for_each_array_on_its_own_and_one_can_be_held():
    a, b = np.arange(10.0), np.arange(10.0)
    assert bootstrap(lambda x, y: np.mean(x - y), a, b).high > 0.5  # pairs would give 0
    real, generated = np.random.default_rng(3).standard_normal((2, 200, 4))
    held = bootstrap(functools.partial(frechet_distance, moments_of(real)), generated, resamples=50)
    both = bootstrap(frechet_distance, real, generated, resamples=50)
    assert held.value == pytest.approx(both.value)
    assert 0 < held.bias < both.bias


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (8, 10), (10, 10), (250, 300)])
def test_wilson_as_scipy_has_it(hits, count):
    found = wilson(np.arange(count) < hits)
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert found.value == hits / count
    np.testing.assert_allclose(ends(found), expected, atol=1e-12)


def test_ties_count_half_and_the_interval_of_a_share_is_as_worked_by_hand():
    z2 = 1.959964**2
    never, always = wilson(np.zeros(10, bool)), wilson(np.ones(10, bool))
    assert ends(never) == pytest.approx((0, z2 / (10 + z2)), abs=1e-6)
    assert ends(always) == pytest.approx((10 / (10 + z2), 1), abs=1e-6)
    assert wilson(np.array([1, 1, 0.5, 0.5])) == wilson(np.arange(4) < 3)


def test_groups_are_drawn_whole_and_nothing_is_gained_from_values_that_agree():
    values = np.arange(40) % 2 * 1.0
    alone = bootstrap_mean(values, np.arange(40), resamples=10_000)
    assert alone == bootstrap_mean(values, resamples=10_000)
    assert ends(alone) == pytest.approx((0.5 - 1.96 * 0.5 / 40**0.5, 0.5 + 1.96 * 0.5 / 40**0.5), abs=0.026)
    thrice = bootstrap_mean(np.tile(values, 3), np.tile(np.arange(40), 3), resamples=10_000)
    assert ends(thrice) == pytest.approx(ends(alone))
    within = bootstrap_mean(np.array([1.0, 3, 1, 3]), np.array([0, 0, 1, 1]))
    assert within == Interval(2.0, 2.0, 2.0)  # each group's mean is 2


def test_what_has_no_interval_is_refused():
    with pytest.raises(InputError, match="1 of 3 values are infinite or NaN"):
        bootstrap_mean(np.array([1, np.nan, 2]))
    with pytest.raises(InputError, match=r"values=\(1,\)"):
        bootstrap_mean(np.array([1.0]))
    with pytest.raises(InputError, match="10 of 10 values"):
        bootstrap(lambda x: np.inf, np.array([1.0, 2.0]), resamples=10)
    with pytest.raises(InputError, match="at least one trial"):
        wilson(np.zeros(0, bool))
