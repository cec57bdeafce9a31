"""What is known is respected: on correlated Gaussian frames, where the true conditional distribution is a formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.grids import make_grid
from vdm_jax.diffusion.known import Known, reconstructed, replaced, under
from vdm_jax.diffusion.prediction import to_x_eps
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import initial_noise, sample
from vdm_jax.diffusion.solvers import SOLVERS

PROCESS = make_process("cosine")
FRAMES, SAMPLES = 6, 4000
# Six frames of one pixel: neighbours correlate by 0.9, as a Markov chain of variance 1. The first three are known.
COVARIANCE = 0.9 ** np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))
GIVEN = np.array([-0.5, 0.4, 1.2])
A, B = slice(0, 3), slice(3, 6)
GAIN = COVARIANCE[B, A] @ np.linalg.inv(COVARIANCE[A, A])
TRUE_MEAN, TRUE_COVARIANCE = GAIN @ GIVEN, COVARIANCE[B, B] - GAIN @ COVARIANCE[A, B]


def with_noise(x_hat, z, t, process):
    return to_x_eps("x", x_hat, z, *process.alpha_sigma(t))


def gaussian_denoiser(mean, covariance):
    """E[x | z] for x ~ N(mean, covariance): what a perfectly trained network computes."""

    def denoise(z, t):
        alpha, sigma = (value[0] for value in PROCESS.alpha_sigma(t))
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(len(mean)))
        return with_noise(mean + (z - alpha * mean) @ gain.T, z, t, PROCESS)

    return denoise


def told(z, t):
    """The exact conditional denoiser, as a network computes it that is told what is known."""
    rest, noise = gaussian_denoiser(jnp.float32(TRUE_MEAN), jnp.float32(TRUE_COVARIANCE))(z[:, B], t)
    known, known_noise = with_noise(jnp.broadcast_to(jnp.float32(GIVEN), z[:, A].shape), z[:, A], t, PROCESS)
    return jnp.concatenate([known, rest], 1), jnp.concatenate([known_noise, noise], 1)


unaware = gaussian_denoiser(jnp.zeros(FRAMES), jnp.float32(COVARIANCE))


@functools.cache
def sampler(way):
    """weight -> samples, compiled once."""
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    mask = jnp.arange(FRAMES)[None] < 3
    known = Known(jnp.pad(jnp.float32(GIVEN), (0, 3))[None], mask)

    @jax.jit
    def run(weight):
        denoise = told
        if way != "told":
            denoise = unaware
            if way == "reconstruct":
                denoise = reconstructed(denoise, under(mask)(known.video), under(mask), PROCESS, weight)
            denoise = replaced(denoise, known, PROCESS, keys)
        z = initial_noise(keys, (FRAMES,), PROCESS)
        return sample(denoise, z, make_grid("uniform", 256, PROCESS), PROCESS)

    return run


def drawn(way, weight=0.0):
    """Samples of the unknown frames."""
    x = np.asarray(sampler(way)(jnp.float32(weight)))
    np.testing.assert_allclose(x[:, A], np.broadcast_to(GIVEN, (SAMPLES, 3)), atol=1e-3)
    return x[:, B]


@pytest.mark.parametrize(
    ("way", "weight", "mean", "covariance"),
    [
        ("told", 0, 0, 0),
        # The approximations' biases, as measured. The truth's mean is about 1, its variances 0.2 to 0.5. Replacement
        # hardly moves what comes after; reconstruction guidance does, the more the larger its weight, until the
        # samples are too much alike. No weight is right in both mean and covariance.
        ("replace", 0, 0.76, 0.29),
        ("reconstruct", 1, 0.65, 0.18),
        ("reconstruct", 3, 0.48, 0.04),
        ("reconstruct", 10, 0.14, 0.19),
    ],
)
def test_bias_of_mean_and_covariance(way, weight, mean, covariance):
    """The greatest error against the true conditional distribution, within the Monte-Carlo error."""
    x = drawn(way, weight)
    assert np.abs(x.mean(0) - TRUE_MEAN).max() == pytest.approx(mean, abs=0.04)
    assert np.abs(np.cov(x.T) - TRUE_COVARIANCE).max() == pytest.approx(covariance, abs=0.04)


def test_no_weight_is_replacement():
    np.testing.assert_allclose(drawn("reconstruct", 0), drawn("replace"), atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("process_name", ["cosine", "flow", "edm"])
def test_what_is_known_is_found_in_the_result(solver, process_name):
    process, keys = make_process(process_name), jax.random.split(jax.random.key(1), 3)
    known = Known(jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.array([[True, False, False, True]]))

    def denoise(z, t):
        return with_noise(jnp.tanh(z), z, t, process)

    z = initial_noise(keys, (4,), process)
    x = sample(replaced(denoise, known, process, keys), z, make_grid("uniform", 8, process), process, solver=solver)
    np.testing.assert_allclose(np.where(known.mask, x, 0), np.where(known.mask, known.video, 0), atol=3e-4)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(known.put(x)[:, 1:3], x[:, 1:3])
    np.testing.assert_array_equal(known.put(x)[:, ::3], known.video[:, ::3])


def test_the_network_sees_fresh_noise_on_what_is_known_at_each_time_and_for_each_sample():
    seen, keys = [], jax.random.split(jax.random.key(1), 2)

    def spy(z, t):
        seen.append(np.asarray(z))
        return with_noise(z, z, t, PROCESS)

    denoise = replaced(spy, Known(jnp.zeros((1, 3)), jnp.ones((1, 1), bool)), PROCESS, keys)
    for time in (0.5, 0.25, 0.5):
        denoise(jnp.full((2, 3), 7.0), jnp.full(2, time))
    first, second, again = seen
    np.testing.assert_array_equal(first, again)
    assert len(np.unique([*first.ravel(), *second.ravel()])) == 12
    assert np.abs(first).max() < 5


def test_guidance_towards_a_low_resolution_video():
    """Pairs of frames are known by their mean alone."""
    target, keys = jnp.float32([[1.0, -0.5, 0.8]]), jax.random.split(jax.random.key(2), 500)

    def measure(x):
        return x.reshape(-1, 3, 2).mean(-1)

    @jax.jit
    def draw(weight):
        denoise = reconstructed(unaware, target, measure, PROCESS, weight)
        z = initial_noise(keys, (FRAMES,), PROCESS)
        return sample(denoise, z, make_grid("uniform", 64, PROCESS), PROCESS)

    def error(weight):
        x = draw(weight)
        return float(jnp.sqrt(jnp.mean((measure(x) - target) ** 2)))

    assert error(0.0) > 1
    assert error(10.0) < 0.5
    assert error(30.0) < 0.2
