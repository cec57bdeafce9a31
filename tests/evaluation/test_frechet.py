"""Fréchet distance: closed forms, parity with SciPy, and the bias of few samples."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vdm_jax.errors import InputError
from vdm_jax.evaluation.frechet import Moments, frechet_distance, moments_of, unbiased_frechet_distance

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


def gaussian(mean, covariance, count=10_000):
    """Moments of `count` samples with exactly the mean and covariance of the Gaussian."""
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float))


def random_covariance(size, rank=None):
    factor = rng.standard_normal((size, rank or size))
    return factor @ factor.T


def test_gaussians_along_common_axes():
    a, b = gaussian([1, 2, 3], np.diag([1, 4, 9])), gaussian([1, 0, 0], np.diag([16, 4, 0]))
    assert frechet_distance(a, b) == pytest.approx((0 + 4 + 9) + (1 - 4) ** 2 + 0 + 3**2, rel=1e-12)


def test_gaussians_that_do_not_commute():
    """In two dimensions tr (AB)^½ = (tr AB + 2 √det AB)^½."""
    a, b = np.array([[5.0, 2.0], [2.0, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    assert not np.allclose(a @ b, b @ a)
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = 25 + np.trace(a + b) - 2 * overlap
    assert frechet_distance(gaussian([3, 0], a), gaussian([0, 4], b)) == pytest.approx(expected, rel=1e-12)


def test_parity_with_the_matrix_square_root_of_scipy():
    a, b = random_covariance(30), random_covariance(30)
    mean = rng.standard_normal(30)
    expected = mean @ mean + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(gaussian(mean, a), gaussian(0 * mean, b)) == pytest.approx(expected, rel=1e-9)


def test_covariances_of_any_rank():
    u, v = rng.standard_normal((2, 40))
    expected = u @ u + v @ v - 2 * abs(u @ v)  # covariances of rank one
    found = frechet_distance(gaussian(0 * u, np.outer(u, u)), gaussian(0 * v, np.outer(v, v)))
    assert found == pytest.approx(expected, rel=1e-9)
    a, q = random_covariance(40, rank=7), np.linalg.qr(rng.standard_normal((40, 40)))[0]
    assert frechet_distance(gaussian(u, a), gaussian(u, 4 * a)) == pytest.approx(np.trace(a), rel=1e-9)
    b = random_covariance(40, rank=11)
    turned = frechet_distance(gaussian(q @ u, q @ a @ q.T), gaussian(q @ v, q @ b @ q.T))
    assert turned == pytest.approx(frechet_distance(gaussian(v, b), gaussian(u, a)), rel=1e-9)  # and symmetric


@pytest.mark.parametrize("count", [5, 200])  # a singular and a regular covariance
def test_equal_sets_have_no_distance(count):
    features = 100 * rng.standard_normal((count, 20)) + 7
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-8)


def test_moments_far_from_zero_are_exact():
    features = rng.standard_normal((1000, 12)) @ rng.standard_normal((12, 12)) + 1e7  # squares would lose 14 digits
    moments = moments_of(features)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-6)


def test_every_frame_is_a_sample():
    clips = rng.standard_normal((50, 4, 6)).astype(np.float32)
    assert moments_of(clips).count == 200
    np.testing.assert_allclose(moments_of(clips).covariance, np.cov(clips.reshape(200, 6), rowvar=False), rtol=1e-5)


def test_a_warning_where_samples_are_few(caplog):
    features = rng.standard_normal((200, 23))
    frechet_distance(features, features[:23])
    frechet_distance(features, features[:23])
    assert caplog.text.count("23 samples of 23 features") == 1
    caplog.clear()
    frechet_distance(features, features[:24])
    assert not caplog.text


@pytest.mark.parametrize("exact", [True, False], ids=["real moments", "real rows"])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_extrapolation_is_nearer_to_the_truth(exact, scale, caplog):
    width, count = 24, 96
    factor = rng.standard_normal((width, width)) / np.sqrt(width)
    truth = (scale - 1) ** 2 * np.trace(factor @ factor.T)

    def draw(s):
        return s * rng.standard_normal((count, width)) @ factor.T

    biased, unbiased = [], []
    for seed in range(10):
        real, generated = gaussian(np.zeros(width), factor @ factor.T) if exact else draw(1), draw(scale)
        biased.append(frechet_distance(real, generated))
        unbiased.append(unbiased_frechet_distance(real, generated, seed))
    assert abs(np.mean(unbiased) - truth) < 0.15 * (np.mean(biased) - truth)
    assert not caplog.text


def test_the_extrapolation_is_a_function_of_its_seed_and_warns_where_rows_are_few(caplog):
    real, generated = rng.standard_normal((2, 40, 30))
    distance = unbiased_frechet_distance(real, generated, seed=3, points=5)
    assert "subsets of 20 samples of 30 features" in caplog.text
    assert unbiased_frechet_distance(real, generated, seed=3, points=5) == distance
    assert unbiased_frechet_distance(real, generated, seed=4, points=5) != distance
    assert unbiased_frechet_distance(moments_of(real), generated, seed=3, points=5) != distance  # the real set is whole


def test_what_cannot_be_compared_is_refused():
    x = rng.standard_normal((9, 4))
    with pytest.raises(InputError, match="features of 4 and of 3 numbers"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(InputError, match="samples=1"):
        frechet_distance(x, x[:1])
    with pytest.raises(InputError, match="samples=0"):
        moments_of(x[:0])
    with pytest.raises(InputError, match="1 of 9 samples"):
        moments_of(np.where(np.arange(36).reshape(9, 4) == 5, np.nan, x))
    with pytest.raises(InputError, match="eigenvalues from -1 to 2"):
        frechet_distance(gaussian([0, 0], np.diag([2, -1])), gaussian([0, 0], np.eye(2)))
    with pytest.raises(InputError, match="smallest=2"):
        unbiased_frechet_distance(x, x, smallest=2.0)
    with pytest.raises(InputError, match="rows=2"):
        unbiased_frechet_distance(x, x[:2])
