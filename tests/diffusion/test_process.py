"""The processes satisfy the identities of their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.errors import InputError


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def betas_of(name: str) -> np.ndarray:
    """Returns the published variances, written out once more."""
    return {
        "ddpm": np.linspace(1e-4, 0.02, 1000),
        "animatediff": np.linspace(0.00085, 0.012, 1000),
        "stable_diffusion": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
    }[name]


@pytest.mark.parametrize("name", ["cosine", "ddpm", "stable_diffusion", "animatediff"])
def test_variance_is_preserved(name, x64):
    alpha, sigma = make_process(name).alpha_sigma(jnp.linspace(0, 1, 777))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PROCESSES), ("cosine", {"shift": 3.0}), ("flow", {"shift": 3.0})],
)
def test_time_inverts_log_snr(name, options, x64):
    process = make_process(name, **options)
    t = jnp.linspace(0.0001, 0.9999, 1234)
    log_snr = process.log_snr(t)
    assert np.all(np.diff(log_snr) < 0)
    # A discrete process rounds times this near to a training step.
    np.testing.assert_allclose(process.time(log_snr), t, atol=1e-9 if process.num_steps is None else 1.1e-6)
    alpha, sigma = process.alpha_sigma(t)
    np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_precision_and_shape_follow_the_times(name, x64):
    process = make_process(name)
    for dtype in (jnp.float32, jnp.float64):
        t = jnp.full((2, 3), 0.3, dtype)
        for method in (process.log_snr, process.time, process.network_time, process.input_scale):
            assert jax.eval_shape(method, t) == jax.ShapeDtypeStruct((2, 3), dtype)
        assert jax.eval_shape(process.training_time, t) == jax.ShapeDtypeStruct((2, 3), dtype)
        assert jax.eval_shape(process.alpha_sigma, t) == (jax.ShapeDtypeStruct((2, 3), dtype),) * 2


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_agrees_with_float64(name, x64):
    process, t = make_process(name), np.linspace(0, 1, 1001)
    for single, double in zip(
        process.alpha_sigma(jnp.asarray(t, jnp.float32)), process.alpha_sigma(jnp.asarray(t)), strict=True
    ):
        np.testing.assert_allclose(single, double, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ddpm", "stable_diffusion", "animatediff"])
def test_discrete_table_is_the_cumulative_product(name, x64):
    process, index = make_process(name), np.arange(1000)
    alpha, sigma = process.alpha_sigma(jnp.asarray((index + 1) / 1000))
    expected = np.cumprod(1 - betas_of(name))
    np.testing.assert_allclose(alpha**2, expected, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - expected, rtol=1e-12)
    # The network sees the whole index, in float32 too, although (i + 1)/1000 is not a float.
    t = jnp.asarray((index + 1) / 1000, jnp.float32)
    np.testing.assert_array_equal(process.network_time(t), index.astype(np.float32))


def test_discrete_is_clean_at_zero_and_between_its_neighbours():
    process = make_process("ddpm")
    alpha, sigma = process.alpha_sigma(jnp.array([0.0, 0.5, 0.5005, 0.501]))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[1] > alpha[2] > alpha[3]
    np.testing.assert_allclose(
        process.training_time(jnp.array([0.0, 0.0001, 0.4995, 0.99999])), [0.001, 0.001, 0.5, 1.0]
    )


def test_zero_terminal_snr(x64):
    plain, rescaled = (
        make_process("stable_diffusion"),
        make_process("stable_diffusion", zero_terminal_snr=True),
    )
    t = jnp.asarray(np.arange(1, 1001) / 1000)
    before, (alpha, sigma) = plain.alpha_sigma(t)[0], rescaled.alpha_sigma(t)
    assert (alpha[-1], sigma[-1]) == (0, 1)
    assert alpha[0] == pytest.approx(before[0])
    np.testing.assert_allclose(alpha, (before - before[-1]) * before[0] / (before[0] - before[-1]), atol=1e-12)
    assert np.isfinite(rescaled.alpha_sigma(jnp.array([0.9995]))).all()


def test_cosine_limits_and_shift(x64):
    process, t = make_process("cosine"), jnp.linspace(0, 1, 101)
    log_snr = process.log_snr(t)
    np.testing.assert_allclose(log_snr[jnp.array([0, 50, 100])], [20, 0, -20], atol=1e-9)
    np.testing.assert_allclose(log_snr[10:90], -2 * np.log(np.tan(np.pi * t[10:90] / 2)), atol=5e-3)
    # simple diffusion: 256 pixels on a base of 64 add 2 log(64/256).
    np.testing.assert_allclose(make_process("cosine", shift=4.0).log_snr(t), log_snr + 2 * np.log(64 / 256))


def test_flow_shift(x64):
    t = jnp.linspace(0, 1, 11)
    shifted = 3 * t / (1 + 2 * t)
    alpha, sigma = make_process("flow", shift=3.0).alpha_sigma(t)
    np.testing.assert_allclose(sigma, shifted)
    np.testing.assert_allclose(alpha, 1 - shifted, atol=1e-15)
    np.testing.assert_allclose(make_process("flow", shift=3.0).network_time(t), 1000 * shifted)


def test_edm(x64):
    process = make_process("edm", sigma_max=700.0)
    t = jnp.array([0.0, 0.001, 0.5005, 1.0])
    alpha, sigma = process.alpha_sigma(t)
    np.testing.assert_array_equal(alpha, 1)
    np.testing.assert_allclose(sigma, [0, 0.002, np.sqrt(0.002 * 700), 700])
    np.testing.assert_allclose(process.network_time(t)[1:], np.log(sigma[1:]) / 4)
    np.testing.assert_allclose(process.input_scale(t), 1 / np.sqrt(1 + sigma**2))


def test_a_process_is_a_static_argument_of_jit():
    alpha = jax.jit(lambda process, t: process.alpha_sigma(t)[0], static_argnums=0)
    t = jnp.array([0.25])
    for name in PROCESSES:
        assert make_process(name) == make_process(name)
        np.testing.assert_allclose(alpha(make_process(name), t), make_process(name).alpha_sigma(t)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosin", {}, "cosin.*cosine, ddpm, stable_diffusion, animatediff, flow, edm"),
        ("flow", {"sift": 2.0}, "no option 'sift'.*shift"),
        ("flow", {"shift": 0.0}, "shift=0.0 must be positive"),
        ("cosine", {"shift": -1.0}, "shift=-1.0 must be positive"),
        ("cosine", {"log_snr_min": 21.0}, "log_snr_min=21.0 must be below"),
        ("ddpm", {"num_steps": 1}, "num_steps=1"),
        ("ddpm", {"beta_start": 0.5}, "0.5, 0.02"),
        ("ddpm", {"beta_schedule": "cubic"}, "'cubic'.*scaled_linear"),
        ("edm", {"sigma_min": 100.0}, "100.0, 80.0"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(InputError, match=message):
        make_process(name, **options)
