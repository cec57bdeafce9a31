"""Every prediction converts to every other and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.prediction import PREDICTIONS, error_factor, from_x_eps, per_sample, to_x_eps
from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.errors import InputError


@pytest.fixture
def case():
    """x, ε and generic (α, σ), neither variance preserving nor a flow, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, eps = (jnp.asarray(rng.normal(size=(5, 2, 3))) for _ in range(2))
        alpha, sigma = jnp.asarray(rng.uniform(0.1, 2, 5)), jnp.asarray(rng.uniform(0.1, 9, 5))
        yield x, eps, alpha, sigma


@pytest.mark.parametrize(("first", "second"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_round_trips(first, second, case):
    x, eps, alpha, sigma = case
    z = alpha[:, None, None] * x + sigma[:, None, None] * eps
    output = from_x_eps(first, x, eps, alpha, sigma)
    x_hat, eps_hat = to_x_eps(first, output, z, alpha, sigma)
    np.testing.assert_allclose(x_hat, x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(eps_hat, eps, rtol=1e-11, atol=1e-12)
    # Through the second kind and back, from a wrong output: conversions hold for any output.
    x_hat, eps_hat = to_x_eps(first, output + 1, z, alpha, sigma)
    other = from_x_eps(second, x_hat, eps_hat, alpha, sigma)
    back = from_x_eps(first, *to_x_eps(second, other, z, alpha, sigma), alpha, sigma)
    np.testing.assert_allclose(back, output + 1, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_error_factor_is_the_ratio_of_squared_errors(kind, case):
    x, eps, alpha, sigma = case
    z = alpha[:, None, None] * x + sigma[:, None, None] * eps
    output = from_x_eps(kind, x, eps, alpha, sigma)
    x_hat, _ = to_x_eps(kind, output + 0.5, z, alpha, sigma)
    ratio = jnp.sum(jnp.full_like(x, 0.25), (1, 2)) / jnp.sum((x_hat - x) ** 2, (1, 2))
    np.testing.assert_allclose(ratio, error_factor(kind, 2 * jnp.log(alpha / sigma)), rtol=1e-9)


def test_v_is_salimans_and_hos_on_a_variance_preserving_process(case):
    x, eps, _, _ = case
    alpha, sigma = make_process("cosine").alpha_sigma(jnp.linspace(0.1, 0.9, 5))
    expected = alpha[:, None, None] * eps - sigma[:, None, None] * x
    np.testing.assert_allclose(from_x_eps("v", x, eps, alpha, sigma), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_finite_and_consistent_at_both_ends_in_float32(kind, name):
    process = make_process(name)
    alpha, sigma = process.alpha_sigma(jnp.array([0.0, 1.0]))
    z, output = jnp.full((2, 3), 0.5), jnp.full((2, 3), 0.25)
    x_hat, eps_hat = to_x_eps(kind, output, z, alpha, sigma)
    assert np.isfinite(x_hat).all()
    assert np.isfinite(eps_hat).all()


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_alpha_and_sigma_may_be_of_frames(kind, case):
    x, eps, alpha, sigma = case
    alpha, sigma = jnp.stack([alpha, 2 * alpha], 1), jnp.stack([sigma, sigma / 2], 1)
    z = per_sample(alpha, x) * x + per_sample(sigma, x) * eps
    output = from_x_eps(kind, x, eps, alpha, sigma)
    for ours, expected in zip(to_x_eps(kind, output, z, alpha, sigma), (x, eps), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)
    for frame in range(2):
        alone = from_x_eps(kind, x[:, frame], eps[:, frame], alpha[:, frame], sigma[:, frame])
        np.testing.assert_array_equal(output[:, frame], alone)


def test_network_output_of_half_precision_is_raised_to_that_of_z():
    one = jnp.ones(1)
    x_hat, _ = to_x_eps("v", jnp.ones((1, 2), jnp.bfloat16), jnp.ones((1, 2)), 0.6 * one, 0.8 * one)
    assert x_hat.dtype == jnp.float32


def test_bad_input():
    one = jnp.ones((1, 1))
    with pytest.raises(InputError, match="'epsilon' is unknown; known are eps, x, v, flow"):
        to_x_eps("epsilon", one, one, one[0], one[0])
