"""Samples respect what is known: on correlated Gaussian frames, whose conditional distribution is a formula."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.first_noise import initial_noise
from tests.diffusion.gaussians import exact_denoiser
from vdm_jax.diffusion.grids import make_grid, pyramid
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.known import Known, known_in_time, level_time, reconstructed, replaced, under
from vdm_jax.diffusion.prediction import to_x_eps
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import sample

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


def aware(z, t):
    """The exact conditional denoiser: what a network computes that sees the known frames as channels."""
    rest, noise = exact_denoiser(PROCESS, TRUE_MEAN, TRUE_COVARIANCE)(z[:, B], t)
    known, known_noise = with_noise(jnp.broadcast_to(jnp.float32(GIVEN), z[:, A].shape), z[:, A], t, PROCESS)
    return jnp.concatenate([known, rest], 1), jnp.concatenate([known_noise, noise], 1)


unaware = exact_denoiser(PROCESS, jnp.zeros(FRAMES), COVARIANCE)


SOLVERS = ("ddim", "heun", "dpmpp", "unipc", "lcm")


@functools.cache
def sampler(way):
    """Returns the function from weight to samples, compiled once."""
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    mask = jnp.arange(FRAMES)[None] < 3
    known = Known(jnp.pad(jnp.float32(GIVEN), (0, 3))[None], mask)

    times = make_grid("uniform", 256, PROCESS)  # not traced

    @jax.jit
    def run(weight):
        denoise = aware if way == "channels" else unaware
        if way == "reconstruct":
            denoise = reconstructed(denoise, under(mask)(known.video), under(mask), PROCESS, weight)
        if way in ("replace", "reconstruct"):
            denoise = replaced(denoise, known, PROCESS, keys)
        if way == "times":
            denoise = known_in_time(denoise, known, PROCESS, keys)
        z = initial_noise(keys, (FRAMES,), PROCESS)
        return sample(denoise, z, times, PROCESS)

    return run


def drawn(way, weight=0.0):
    """Samples of the unknown frames."""
    x = np.asarray(sampler(way)(jnp.float32(weight)))
    np.testing.assert_allclose(x[:, A], np.broadcast_to(GIVEN, (SAMPLES, 3)), atol=1e-3)
    return x[:, B]


@pytest.mark.parametrize(
    ("way", "weight", "mean", "covariance"),
    [
        # A network that sees the known frames has no bias.
        ("channels", 0, 0, 0),
        ("times", 0, 0, 0),
        # The approximations' biases, as measured. The true mean is about 1, the true variances are 0.2 to 0.5.
        # Replacement hardly moves the frames that follow. Reconstruction guidance moves them more with a larger weight,
        # until the samples are too similar. No weight is right in both mean and covariance.
        ("replace", 0, 0.76, 0.29),
        ("reconstruct", 1, 0.65, 0.18),
        ("reconstruct", 3, 0.48, 0.04),
        ("reconstruct", 10, 0.14, 0.19),
    ],
)
def test_bias_of_mean_and_covariance(way, weight, mean, covariance):
    """The largest error against the true conditional distribution is as measured, within the Monte-Carlo error."""
    x = drawn(way, weight)
    assert np.abs(x.mean(0) - TRUE_MEAN).max() == pytest.approx(mean, abs=0.04)
    assert np.abs(np.cov(x.T) - TRUE_COVARIANCE).max() == pytest.approx(covariance, abs=0.04)


def test_weight_0_is_replacement():
    np.testing.assert_allclose(drawn("reconstruct", 0), drawn("replace"), atol=1e-4)


@pytest.mark.parametrize(
    ("process_name", "solver"),
    [pair for pair in itertools.product(("cosine", "flow", "edm"), SOLVERS) if pair != ("edm", "lcm")],
)
def test_the_result_holds_the_known_part(solver, process_name):
    process, keys = make_process(process_name), jax.random.split(jax.random.key(1), 3)
    known = Known(jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.array([[True, False, False, True]]))

    def denoise(z, t):
        return with_noise(jnp.tanh(z), z, t, process)

    z = initial_noise(keys, (4,), process)
    x = sample(
        replaced(denoise, known, process, keys), z, make_grid("uniform", 8, process), process, solver=solver, keys=keys
    )
    np.testing.assert_allclose(np.where(known.mask, x, 0), np.where(known.mask, known.video, 0), atol=3e-4)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(known.put(x)[:, 1:3], x[:, 1:3])
    np.testing.assert_array_equal(known.put(x)[:, ::3], known.video[:, ::3])


def replaced_inputs(*times):
    """Returns z as the network sees it at the given times, where everything is known to be 0."""
    calls, keys = [], jax.random.split(jax.random.key(1), 2)

    def spy(z, t):
        calls.append(np.asarray(z))
        return with_noise(z, z, t, PROCESS)

    denoise = replaced(spy, Known(jnp.zeros((1, 3)), jnp.ones((1, 1), bool)), PROCESS, keys)
    for time in times:
        denoise(jnp.full((2, 3), 7.0), jnp.stack([jnp.float32(time)] * 2))
    return calls


def test_the_network_sees_fresh_noise_on_the_known_part_at_each_time_and_for_each_sample():
    first, second, again, per_frame = replaced_inputs(0.5, 0.25, 0.5, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, per_frame)
    assert len(np.unique([*first.ravel(), *second.ravel()])) == 12
    assert np.abs(first).max() < 5


def test_the_noise_is_fresh_where_frames_move_one_by_one():
    rows = pyramid(make_grid("uniform", 4, PROCESS), 3, 2)
    inputs = np.stack(replaced_inputs(*rows[:-1]))
    noise = inputs / np.asarray(PROCESS.alpha_sigma(rows[:-1])[1])[:, None]
    assert len(np.unique(noise.round(4))) == noise.size


KNOWN = Known(jnp.linspace(-1, 1, 36).reshape(3, 4, 3), jnp.array([True, False, False, True])[None, :, None])


def network(z, network_time, condition):
    return jnp.tanh(z + jnp.roll(z, 1, 1)) * jnp.cos(network_time.reshape(*network_time.shape, 1) / 500)


@pytest.mark.parametrize(
    ("solver", "eta", "clip", "level"),
    [("ddim", 0.0, None, 0.3), ("ddim", 1.0, "dynamic", 0.0), ("heun", 0.0, "static", 0.0), ("dpmpp", 0.0, None, 0.0)],
)
@pytest.mark.parametrize("process_name", ["stable_diffusion", "flow", "edm", "cosine"])
def test_frames_at_time_0_stay_as_they_are_bit_for_bit(process_name, solver, eta, clip, level):
    process, keys = make_process(process_name), jax.random.split(jax.random.key(1), 3)
    denoise = clipped(guided(network, process, "v", [None]), process, clip)
    denoise = known_in_time(denoise, KNOWN, process, keys, level)
    times = make_grid("uniform", 4, process)

    @jax.jit
    def draw():
        z = initial_noise(keys, (4, 3), process)
        return sample(denoise, z, times, process, solver=solver, eta=eta, keys=keys)

    x = draw()
    assert np.isfinite(x).all()
    if process_name == "cosine" and eta:  # its t = 0 keeps σ = 5e-5 of fresh noise
        np.testing.assert_allclose(x[:, ::3], KNOWN.video[:, ::3], atol=3e-4)
    else:
        np.testing.assert_array_equal(x[:, ::3], KNOWN.video[:, ::3])


def test_the_network_sees_known_frames_at_their_own_time():
    calls, keys, process = [], jax.random.split(jax.random.key(1), 3), make_process("flow")
    z = jnp.full((3, 4, 3), 7.0)

    def spy(z, t):
        calls.append((np.asarray(z), np.asarray(t)))
        return z, z

    for level, t in (
        (0.0, jnp.full(3, 0.5)),
        (0.6, jnp.full(3, 0.5)),
        (0.6, jnp.tile(jnp.float32([1, 1, 0.2, 0]), (3, 1))),
    ):
        x_hat, eps_hat = known_in_time(spy, KNOWN, process, keys, level)(z, t)
        np.testing.assert_array_equal(x_hat, KNOWN.put(z))
        np.testing.assert_array_equal(eps_hat, jnp.where(KNOWN.mask, 0, z))
    time = float(level_time(process, jnp.float32(0.6)))
    np.testing.assert_array_equal(calls[0][1], [[0, 0.5, 0.5, 0]] * 3)
    np.testing.assert_allclose(calls[1][1], [[time, 0.5, 0.5, time]] * 3)
    np.testing.assert_allclose(calls[2][1], [[time, 1, 0.2, time]] * 3)
    np.testing.assert_array_equal(calls[0][0], KNOWN.put(z))
    np.testing.assert_array_equal(calls[1][0], calls[2][0])  # the same noise at every call
    alpha, sigma = process.alpha_sigma(jnp.float32(time))
    noise = (calls[1][0] - alpha * KNOWN.video)[:, ::3] / sigma
    assert len(np.unique(noise.round(4))) == noise.size
    assert np.abs(noise).max() < 5
    x_hat, _ = known_in_time(spy, KNOWN, process, keys, exact=False)(z + 1, jnp.full(3, 0.5))
    np.testing.assert_array_equal(x_hat, KNOWN.put(z + 1))  # the output of the network, which here is its input


def test_a_frame_that_is_known_in_part_counts_as_unknown():
    known = KNOWN._replace(mask=jnp.broadcast_to(KNOWN.mask, (1, 4, 3)).at[0, 0, 1].set(False))

    def spy(z, t):
        np.testing.assert_array_equal(t, [[0.5, 0.5, 0.5, 0]] * 3)
        np.testing.assert_array_equal(z[:, :3], 7)
        return z, z

    known_in_time(spy, known, PROCESS, jax.random.split(jax.random.key(1), 3))(
        jnp.full((3, 4, 3), 7.0), jnp.full(3, 0.5)
    )


def test_reconstruction_at_equal_times_of_frames_is_that_of_one_time():
    mask = jnp.arange(FRAMES)[None] < 3
    z, t = jax.random.normal(jax.random.key(0), (5, FRAMES)), jnp.full(5, 0.4)
    denoise = reconstructed(unaware, jnp.zeros((5, FRAMES)), under(mask), PROCESS, 3.0)
    for ours, expected in zip(denoise(z, jnp.repeat(t[:, None], FRAMES, 1)), denoise(z, t), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_guidance_towards_a_low_resolution_video():
    """Only the means of pairs of frames are known."""
    target, keys = jnp.float32([[1.0, -0.5, 0.8]]), jax.random.split(jax.random.key(2), 500)

    def measure(x):
        return x.reshape(-1, 3, 2).mean(-1)

    times = make_grid("uniform", 64, PROCESS)

    @jax.jit
    def draw(weight):
        denoise = reconstructed(unaware, target, measure, PROCESS, weight)
        z = initial_noise(keys, (FRAMES,), PROCESS)
        return sample(denoise, z, times, PROCESS)

    def error(weight):
        x = draw(weight)
        return float(jnp.sqrt(jnp.mean((measure(x) - target) ** 2)))

    assert error(0.0) > 1
    assert error(10.0) < 0.5
    assert error(30.0) < 0.2
