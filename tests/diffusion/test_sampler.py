"""On Gaussian data, solved in closed form, the solvers converge at their order and give the right moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vdm_jax.diffusion.grids import make_grid
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import initial_noise, sample
from vdm_jax.diffusion.solvers import SOLVERS, make_table
from vdm_jax.errors import InputError
from vdm_jax.generation.settings import Settings

MEAN = np.array([0.5, -1.0, 0.2])
ROTATION, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
DEVIATIONS = np.array([0.3, 1.0, 0.6])
COVARIANCE = ROTATION @ np.diag(DEVIATIONS**2) @ ROTATION.T


def optimal_denoiser(process):
    """E[x | z] for x ~ N(MEAN, COVARIANCE): μ + α Σ (α² Σ + σ² I)⁻¹ (z − α μ), and ε̂ = (z − α x̂)/σ."""

    def denoise(z, t):
        alpha, sigma = (values[:, None] for values in process.alpha_sigma(t))
        mean, rotation = jnp.asarray(MEAN, z.dtype), jnp.asarray(ROTATION, z.dtype)
        centred = (z - alpha * mean) @ rotation
        variances = jnp.asarray(DEVIATIONS**2, z.dtype)
        total = alpha**2 * variances + sigma**2
        x_hat = mean + (alpha * variances / total * centred) @ rotation.T
        # ε̂ = σ (α² Σ + σ² I)⁻¹ (z − α μ), finite also where σ = 0.
        return x_hat, (sigma / total * centred) @ rotation.T

    return denoise


def flow_map(process, z, t, s):
    """Where the probability flow carries z from t to s: along each axis of Σ the standard score is kept."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.alpha_sigma(jnp.asarray(time)) for time in (t, s))
    deviation_t, deviation_s = (
        np.sqrt(alpha**2 * DEVIATIONS**2 + sigma**2) for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s))
    )
    return alpha_s * MEAN + (((z - alpha_t * MEAN) @ ROTATION) * deviation_s / deviation_t) @ ROTATION.T


def noisy(process, batch, dtype=jnp.float32):
    """Samples of z at t = 1, where data is N(α μ, α² Σ + σ² I)."""
    rng = np.random.default_rng(2)
    alpha, sigma = (float(value) for value in process.alpha_sigma(jnp.asarray(1.0)))
    x = rng.multivariate_normal(MEAN, COVARIANCE, batch)
    return jnp.asarray(alpha * x + sigma * rng.normal(size=(batch, 3)), dtype)


@pytest.mark.parametrize(
    ("process_name", "grid", "end"),
    # `end` -2: up to the least noisy level, as the last step from there does not shrink with the others.
    # (On a grid uniform in t, as coarse in log-SNR near the noise at any number of steps, the error of the
    # second-order methods falls as h² log 1/h.)
    [
        ("cosine", "log_snr", -1),
        ("flow", "log_snr", -2),
        ("stable_diffusion", "log_snr", -2),
        ("edm", "karras", -2),
    ],
)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp", 2)])
def test_solver_converges_at_its_order(solver, order, process_name, grid, end):
    process, errors = make_process(process_name), []
    with jax.enable_x64(True):
        z = noisy(process, 16, jnp.float64)
        run = jax.jit(lambda times: sample(optimal_denoiser(process), z, times, process, solver=solver))
        for num_steps in (100, 200):
            times = make_grid(grid, num_steps, process).astype(jnp.float64)[: num_steps + 2 + end]
            errors.append(np.max(np.abs(run(times) - flow_map(process, z, 1.0, times[-1]))))
    assert errors[-1] < 0.05
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("process_name", "eta"), [("cosine", 0.0), ("cosine", 0.5), ("cosine", 1.0), ("ddpm", 1.0), ("flow", 1.0)]
)
def test_moments_of_the_samples(process_name, eta):
    process, batch = make_process(process_name), 8000
    times, z = make_grid("uniform", 500, process), noisy(process, batch)

    @jax.jit
    def run(keys):
        return sample(optimal_denoiser(process), z, times, process, eta=eta, keys=keys)

    x = run(jax.random.split(jax.random.key(0), batch))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.04)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("process_name", ["cosine", "flow", "edm", "stable_diffusion"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_few_steps_stay_finite_and_a_known_video_is_found(solver, process_name, num_steps):
    process = make_process(process_name)
    video = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def denoise(z, t):
        alpha, sigma = (values[:, None] for values in process.alpha_sigma(t))
        return video, (z - alpha * video) / sigma

    z = initial_noise(jax.random.split(jax.random.key(0), 2), (3,), process)
    times = make_grid("uniform", num_steps, process)
    x = jax.jit(lambda: sample(denoise, z, times, process, solver=solver))()
    np.testing.assert_allclose(x, video, atol=3e-4)  # cosine ends at σ = 4.5e-5


def test_steps_of_one_length_are_those_of_a_grid_that_has_them():
    process = make_process("stable_diffusion")
    for final in ("clean", "first"):
        times = make_grid("leading", 10, process, final=final)
        for ours, strided in zip(*(make_table(s, times, process, 0.5) for s in ("ddim", "ddim_strided")), strict=True):
            np.testing.assert_allclose(strided, ours, atol=1e-6)
    times = make_grid("linspace", 7, process)  # 999, 832, …, 0: longer than N // n = 142
    table = make_table("ddim_strided", times, process)
    np.testing.assert_allclose(table.x[0], process.alpha_sigma(jnp.float32(1 - 0.142))[0], rtol=1e-6)
    published = Settings(solver="ddim_strided", grid="linspace")
    assert published.solver == "ddim_strided"
    for change in ({"strength": 0.5}, {"grid": "karras"}):  # where steps of one length would run past the grid's
        assert dataclasses.replace(published, **change).solver == "ddim"
    with pytest.raises(InputError, match="'ddim_strided' needs a discrete process"):
        make_table("ddim_strided", times, make_process("cosine"))


def test_each_solver_calls_the_denoiser_as_often_as_it_says():
    process, calls = make_process("cosine"), []

    def denoise(z, t):
        jax.debug.callback(lambda time: calls.append(float(time)), t[0])
        return z, z

    times = make_grid("uniform", 4, process)
    expected = {
        "ddim": [1, 0.75, 0.5, 0.25],
        "dpmpp": [1, 0.75, 0.5, 0.25],
        "heun": [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25],
    }
    for solver in SOLVERS:
        calls.clear()
        jax.jit(lambda s=solver: sample(denoise, jnp.ones((1, 2)), times, process, solver=s))().block_until_ready()
        jax.effects_barrier()
        assert sorted(calls, reverse=True) == expected[solver]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_does_not_depend_on_its_batch_or_devices(eta):
    process = make_process("cosine")
    keys, times = jax.random.split(jax.random.key(3), 8), make_grid("uniform", 6, process)

    @jax.jit
    def run(keys):
        z = initial_noise(keys, (3,), process)
        return sample(optimal_denoiser(process), z, times, process, eta=eta, keys=keys)

    together = run(keys)
    np.testing.assert_allclose(run(keys[5:6])[0], together[5], rtol=1e-5, atol=1e-6)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = run(jax.device_put(keys, NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_allclose(spread, together, rtol=1e-5, atol=1e-6)


def test_noise_is_fresh_for_every_step_and_purpose():
    process, keys = make_process("cosine"), jax.random.split(jax.random.key(0), 2)
    first = initial_noise(keys, (4,), process)

    def only_noise(z, t):
        return jnp.zeros_like(z), jnp.zeros_like(z)

    def after(num_steps):
        """The last step's noise alone, as the denoiser forgets everything before."""
        times = make_grid("uniform", 4, process)[: num_steps + 1]
        return jax.jit(lambda: sample(only_noise, first, times, process, eta=1.0, keys=keys))()

    flat = np.concatenate([np.asarray(value / jnp.std(value)).ravel() for value in (first, after(1), after(2))])
    assert len(np.unique(flat.round(4))) == flat.size


def test_initial_noise_has_the_spread_of_unit_variance_data():
    keys = jax.random.split(jax.random.key(0), 4)
    for name, expected in (("cosine", 1.0), ("flow", 1.0), ("edm", np.sqrt(1 + 80**2))):
        noise = initial_noise(keys, (50, 50), make_process(name))
        assert noise.shape == (4, 50, 50)
        assert float(noise.std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, "'euler' is unknown; known are ddim, heun, dpmpp"),
        ({"eta": 2.0, "keys": True}, "eta=2.0 must be between"),
        ({"eta": 0.5}, "eta=0.5 adds noise and so needs keys"),
        ({"eta": 0.5, "keys": True, "solver": "heun"}, "only ddim adds noise"),
        ({"times": jnp.ones(1)}, "times of length 1"),
    ],
)
def test_bad_input(options, message):
    process = make_process("cosine")
    options = {"times": jnp.array([1.0, 0.0])} | options
    if "keys" in options:
        options["keys"] = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(InputError, match=message):
        sample(lambda z, t: (z, z), jnp.ones((1, 2)), process=process, **options)


def test_ancestral_noise_is_correlated_as_the_first_is():
    """Frames of variance 1 with correlation 0.9, noised with correlation 0.5, are drawn with theirs."""
    process, frames, samples = make_process("cosine", frame_correlation=0.5), 4, 2000
    data, noise = (np.full((frames, frames), r) + (1 - r) * np.eye(frames) for r in (0.9, 0.5))
    data, noise = jnp.float32(data), jnp.float32(noise)

    def denoise(z, t):
        alpha, sigma = (value[0] for value in process.alpha_sigma(t))
        whitened = z.reshape(-1, frames) @ jnp.linalg.inv(alpha**2 * data + sigma**2 * noise)
        return tuple((whitened @ part).reshape(z.shape) for part in (alpha * data, sigma * noise))

    keys = jax.random.split(jax.random.key(4), samples)
    z = initial_noise(keys, (frames, 1, 1, 1), process)
    np.testing.assert_allclose(np.cov(z.reshape(-1, frames), rowvar=False), noise, atol=0.1)

    def correlation(process):
        drawn = sample(denoise, z, make_grid("log_snr", 80, process), process, eta=1.0, keys=keys)
        return np.corrcoef(drawn.reshape(-1, frames), rowvar=False)

    np.testing.assert_allclose(correlation(process), data, atol=0.02)
    # With noise that frames do not share it is missed.
    assert np.abs(correlation(dataclasses.replace(process, frame_correlation=0.0)) - data).max() > 0.1
