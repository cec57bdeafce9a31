"""On Gaussian data, solved in closed form, the solvers converge at their order and give the right moments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.diffusion.first_noise import initial_noise
from tests.diffusion.gaussians import exact_denoiser
from vdm_jax.diffusion.grids import make_grid, pyramid
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.diffusion.sampler import INITIAL, noise_to_z, process_noise, sample
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.errors import InputError

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
    """Carries z from t to s along the probability flow, which keeps the standard score along each axis of Σ."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.alpha_sigma(jnp.asarray(time)) for time in (t, s))
    deviation_t, deviation_s = (
        np.sqrt(alpha**2 * DEVIATIONS**2 + sigma**2) for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s))
    )
    return alpha_s * MEAN + (((z - alpha_t * MEAN) @ ROTATION) * deviation_s / deviation_t) @ ROTATION.T


def noisy(process, batch, dtype=jnp.float32):
    """Draws z at t = 1, which is distributed as N(α μ, α² Σ + σ² I)."""
    rng = np.random.default_rng(2)
    alpha, sigma = (float(value) for value in process.alpha_sigma(jnp.asarray(1.0)))
    x = rng.multivariate_normal(MEAN, COVARIANCE, batch)
    return jnp.asarray(alpha * x + sigma * rng.normal(size=(batch, 3)), dtype)


@pytest.mark.parametrize(
    ("process_name", "grid", "end"),
    # `end` -2 stops at the least noisy level: the last step from there does not shrink with the number of steps.
    # (A grid uniform in t is equally coarse in log-SNR near the noise at any number of steps. There the error of the
    # second-order methods falls as h² log 1/h.)
    [
        ("cosine", "log_snr", -1),
        ("flow", "log_snr", -2),
        ("stable_diffusion", "log_snr", -2),
        ("edm", "karras", -2),
    ],
)
@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [("ddim", 1, {}), ("heun", 2, {}), ("dpmpp", 2, {}), ("unipc", 3, {})],
)
def test_solver_converges_at_its_order(solver, order, options, process_name, grid, end):
    process, errors = make_process(process_name), []
    denoise = optimal_denoiser(process)
    with jax.enable_x64(True):
        z = noisy(process, 16, jnp.float64)
        for num_steps in (100, 200):
            times = make_grid(grid, num_steps, process).astype(jnp.float64)[: num_steps + 2 + end]
            x = jax.jit(lambda times=times: sample(denoise, z, times, process, solver=solver, **options))()
            errors.append(np.max(np.abs(x - flow_map(process, z, 1.0, times[-1]))))
    assert errors[-1] < 0.05
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("process_name", "eta", "solver"),
    [
        ("cosine", 0.0, "ddim"),
        ("cosine", 0.5, "ddim"),
        ("cosine", 1.0, "ddim"),
        ("ddpm", 1.0, "ddim"),
        ("flow", 1.0, "ddim"),
        ("cosine", 1.0, "dpmpp"),
    ],
)
def test_moments_of_the_samples(process_name, eta, solver):
    process, batch = make_process(process_name), 8000
    times, z = make_grid("uniform", 500, process), noisy(process, batch)

    @jax.jit
    def run(keys):
        return sample(optimal_denoiser(process), z, times, process, solver=solver, eta=eta, keys=keys)

    x = run(jax.random.split(jax.random.key(0), batch))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.04)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp", "unipc"])
@pytest.mark.parametrize("process_name", ["cosine", "flow", "edm", "stable_diffusion"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_few_steps_stay_finite_and_lead_to_the_video_of_the_denoiser(solver, process_name, num_steps):
    process = make_process(process_name)
    video = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def denoise(z, t):
        alpha, sigma = (values[:, None] for values in process.alpha_sigma(t))
        return video, (z - alpha * video) / sigma

    z = initial_noise(jax.random.split(jax.random.key(0), 2), (3,), process)
    times = make_grid("uniform", num_steps, process)
    x = jax.jit(lambda: sample(denoise, z, times, process, solver=solver))()
    np.testing.assert_allclose(x, video, atol=3e-4)  # cosine ends at σ = 4.5e-5


def test_steps_of_one_length_on_a_grid_of_one_length_are_ddim():
    process = make_process("stable_diffusion")
    for final in ("clean", "first"):
        times = make_grid("leading", 10, process, final=final)
        tables = make_table("ddim", times, process, 0.5), make_table("ddim", times, process, 0.5, strided=True)
        for ours, strided in zip(*tables, strict=True):
            np.testing.assert_allclose(strided, ours, atol=1e-6)
    times = make_grid("linspace", 7, process)  # 999, 832, …, 0: longer than N // n = 142
    table = make_table("ddim", times, process, strided=True)
    np.testing.assert_allclose(table.x[0], process.alpha_sigma(jnp.float32(1 - 0.142))[0], rtol=1e-6)
    with pytest.raises(InputError, match="strided=True needs a discrete process"):
        make_table("ddim", times, make_process("cosine"), strided=True)


def test_trajectory_consistency_without_noise_is_ddim():
    process = make_process("stable_diffusion")
    times = make_grid("distilled", 4, process, final="first")
    for ours, ddim in zip(make_table("tcd", times, process), make_table("ddim", times, process), strict=True):
        np.testing.assert_allclose(ours, ddim, atol=1e-6)
    table = make_table("tcd", times, process, 0.3)  # 999 goes to 0.7 * 759, and from there back to 759
    alpha, sigma = process.alpha_sigma(jnp.float32([760, 532]) / 1000)
    ratio = alpha[0] / alpha[1]
    expected = ratio * alpha[1], ratio * sigma[1], jnp.sqrt(1 - ratio**2)
    np.testing.assert_allclose([table.x[0], table.eps[0], table.noise[0]], expected, rtol=1e-5)


def test_adams_bashforth_is_exact_for_noise_that_does_not_change():
    process, video = make_process("stable_diffusion"), jnp.linspace(-1, 1, 6).reshape(2, 3)
    alpha, sigma = process.alpha_sigma(jnp.float32(1))
    noise = jnp.cos(video)

    def denoise(z, t):
        alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
        return (z - sigma * noise) / alpha, noise

    for num_steps in (1, 2, 6):
        times = make_grid("trailing", num_steps, process)
        x = sample(denoise, alpha * video + sigma * noise, times, process, solver="pndm")
        np.testing.assert_allclose(x, video, atol=1e-4)
    with pytest.raises(InputError, match="'pndm' needs a process that leaves something of the video at t = 1"):
        make_table("pndm", make_grid("uniform", 4, make_process("flow")), make_process("flow"))


def test_number_of_calls_of_the_denoiser():
    process, calls = make_process("cosine"), []

    def denoise(z, t):
        jax.debug.callback(lambda time: calls.append(float(time)), t[0])
        return z, z

    times = make_grid("uniform", 4, process)
    expected = {
        "ddim": [1, 0.75, 0.5, 0.25],
        "dpmpp": [1, 0.75, 0.5, 0.25],
        "unipc": [1, 0.75, 0.5, 0.25],
        "pndm": [1, 0.75, 0.75, 0.5, 0.25],
        "heun": [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25],
    }
    for solver in expected:
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
        """Returns the noise of the last step alone: the denoiser forgets everything before."""
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


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
def test_noise_becomes_z_at_the_first_time(name):
    process, keys = make_process(name), jax.random.split(jax.random.key(0), 2)
    noise, video = process_noise(process, keys, INITIAL, (3, 4), jnp.float32), jnp.linspace(-1, 1, 12).reshape(1, 3, 4)
    alpha, sigma = process.alpha_sigma(jnp.float32(0.6))
    z = noise_to_z(noise, process, 0.6)
    np.testing.assert_array_equal(z, initial_noise(keys, (3, 4), process, 0.6))
    np.testing.assert_allclose(z, jnp.hypot(alpha, sigma) * noise, rtol=1e-6)
    np.testing.assert_allclose(noise_to_z(noise, process, 0.6, first="sigma"), sigma * noise, rtol=1e-6)
    np.testing.assert_array_equal(noise_to_z(noise, process, 0.6, first="one"), noise)
    np.testing.assert_allclose(noise_to_z(noise, process, 0.6, video), alpha * video + sigma * noise, rtol=1e-6)
    for start in (None, video):
        per_frame = noise_to_z(noise, process, jnp.float32([0.6, 0.1, 1.0]), start)
        for frame, time in enumerate((0.6, 0.1, 1.0)):
            np.testing.assert_allclose(
                per_frame[:, frame], noise_to_z(noise, process, time, start)[:, frame], rtol=1e-6
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler"}, "'euler' is unknown; known are ddim, heun, dpmpp"),
        ({"eta": 2.0, "keys": True}, "eta=2.0 must be between"),
        ({"eta": 0.5}, "solver='ddim' with eta=0.5 adds noise and so needs keys"),
        (
            {"eta": 0.5, "keys": True, "solver": "heun"},
            "eta=0.5 must be 0 with solver 'heun': only ddim, dpmpp and tcd take it",
        ),
        ({"times": jnp.ones(1)}, "times of length 1"),
        ({"times": jnp.eye(2), "solver": "heun"}, r"solver='heun' must be ddim where each frame .* \(shape \(2, 2\)\)"),
        ({"times": jnp.eye(2), "solver": "dpmpp"}, "solver='dpmpp' must be ddim where each frame has its own times"),
        ({"times": jnp.eye(2), "strided": True}, "solver='ddim' must be ddim where each frame has its own times"),
        (
            {"solver": "dpmpp", "of": "v"},
            "solver 'dpmpp' has no option 'of'; it has eta, order, kind, lower_order_final",
        ),
        ({"solver": "dpmpp", "order": 4}, "order=4 must be 1, 2, or"),
        ({"solver": "dpmpp", "kind": "bh2"}, "kind='bh2' must be midpoint or heun"),
        ({"solver": "unipc", "order": 4}, "order=4, kind='bh2' must be 1, 2 or 3, and bh1 or bh2"),
        ({"solver": "pndm", "of": "x"}, "of='x' must be eps or v"),
        ({"solver": "tcd"}, "solver 'tcd' needs a discrete process"),
        (
            {"solver": "lcm", "process": make_process("edm"), "times": jnp.array([1.0, 0.1, 0.0])},
            "needs a process whose network time counts training steps",
        ),
        ({"solver": "lcm"}, "solver='lcm' with eta=0.0 adds noise and so needs keys"),
    ],
)
def test_bad_input(options, message):
    options = {"times": jnp.array([1.0, 0.0]), "process": make_process("cosine")} | options
    if "keys" in options:
        options["keys"] = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(InputError, match=message):
        sample(lambda z, t: (z, z), jnp.ones((1, 2)), **options)


def test_ancestral_noise_is_correlated_as_the_first_is():
    """Samples of frames of variance 1 with correlation 0.9, noised with correlation 0.5, have correlation 0.9."""
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
    # Noise that frames do not share misses it.
    assert np.abs(correlation(dataclasses.replace(process, frame_correlation=0.0)) - data).max() > 0.1


def network(z, network_time, condition):
    time = network_time.reshape(network_time.shape + (1,) * (3 - network_time.ndim))
    return jnp.tanh(z + jnp.roll(z, 1, 1)) * jnp.cos(time / 500) + condition[:, None, None]


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("process_name", ["stable_diffusion", "flow", "edm"])
def test_equal_times_of_frames_and_a_pyramid_without_delay_are_plain_sampling(process_name, eta):
    process, keys = make_process(process_name), jax.random.split(jax.random.key(0), 3)
    denoise = guided(network, process, "v", [jnp.zeros(3), jnp.ones(3)], [2.0])
    denoise = clipped(denoise, process, "static")
    times = make_grid("uniform", 5, process)

    def draw(times):
        z = initial_noise(keys, (4, 2), process, times[0])
        return jax.jit(lambda: sample(denoise, z, times, process, eta=eta, keys=keys))()

    np.testing.assert_allclose(draw(pyramid(times, 4, 0)), draw(times), rtol=1e-5, atol=1e-5)


FRAMES = 4
FRAME_MEAN = np.array([0.5, -1.0, 0.2, 0.0])
FRAME_COVARIANCE = 0.8 ** np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))


@pytest.mark.parametrize("delay", [0, 30, 300])  # together, in a pyramid, one frame after the other
@pytest.mark.parametrize(("process_name", "eta"), [("cosine", 0.0), ("flow", 0.0), ("flow", 1.0)])
def test_moments_of_a_pyramid_of_frames(process_name, eta, delay):
    process, keys = make_process(process_name), jax.random.split(jax.random.key(0), 8000)
    times = pyramid(make_grid("uniform", 300, process), FRAMES, delay)

    @jax.jit
    def draw():
        denoise = exact_denoiser(process, FRAME_MEAN, FRAME_COVARIANCE)
        z = initial_noise(keys, (FRAMES,), process)
        return sample(denoise, z, times, process, eta=eta, keys=keys)

    x = draw()
    np.testing.assert_allclose(x.mean(0), FRAME_MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), FRAME_COVARIANCE, atol=0.04)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_frames_that_wait_keep_their_z_bit_for_bit(name, eta):
    process, keys = make_process(name), jax.random.split(jax.random.key(0), 2)
    times = jnp.float32([[0, 1, 0.5, 1], [0, 1, 0.5, 0.5], [0, 1, 0.5, 0]])
    for column in make_table("ddim", times, process, eta):
        assert np.isfinite(column).all()

    def denoise(z, t):
        return jnp.sin(9 * z), jnp.cos(9 * z)

    z = jax.random.normal(jax.random.key(1), (2, 4, 3))
    draw = functools.partial(sample, denoise, process=process, eta=eta)
    x = jax.jit(functools.partial(draw, times=times))(z, keys=keys)
    np.testing.assert_array_equal(x[:, :3], z[:, :3])
    alone = jax.jit(functools.partial(draw, times=times[:, 3]))(z, keys=keys)
    np.testing.assert_allclose(x[:, 3], alone[:, 3], rtol=1e-5, atol=1e-6)
