"""Times, weights and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.objective import LOSSES, WEIGHTINGS, Objective, draw, loss_at, sample_times, weights
from vdm_jax.diffusion.prediction import PREDICTIONS, error_factor, from_x_eps
from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.errors import InputError

KEY = jax.random.key(0)


@pytest.fixture
def video():
    return jax.random.normal(jax.random.key(9), (6, 4, 3, 3, 2))


def loss(objective, process, predict, video, frame_weights=None):
    """The loss at draws from KEY."""
    return loss_at(objective, process, predict, video, draw(objective, process, video, KEY), frame_weights)


def nothing(z, network_time, drop):
    """A network whose output is zero."""
    return jnp.zeros_like(z)


def half(z, network_time, drop):
    return 0.5 * z


def test_stratified_times_fill_every_stratum_and_are_uniform():
    objective = Objective(time_sampling="stratified")
    draws = jax.vmap(lambda key: sample_times(objective, key, 8))(jax.random.split(KEY, 2000))
    strata = np.sort(np.floor(np.asarray(draws) * 8), axis=1)
    assert (np.abs(strata - np.arange(8)).max(axis=1) == 0).mean() > 0.99  # rounding at a border apart
    # Each single sample of the batch, whatever its place, is uniform on [0, 1).
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(draws.std(0), 12**-0.5, atol=0.02)


@pytest.mark.parametrize("frames", [None, 3])
def test_uniform_and_logit_normal_times(frames):
    shape = (20_000,) if frames is None else (20_000, frames)
    t = sample_times(Objective(), KEY, 20_000, frames)
    assert t.shape == shape
    np.testing.assert_allclose(t.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(t.std(0), 12**-0.5, atol=0.01)
    t = sample_times(Objective(time_sampling="logit_normal", mean=0.7, std=0.5), KEY, 20_000, frames)
    logit = jnp.log(t / (1 - t))
    assert t.shape == shape
    np.testing.assert_allclose(logit.mean(0), 0.7, atol=0.02)
    np.testing.assert_allclose(logit.std(0), 0.5, atol=0.02)


@pytest.mark.parametrize("time_sampling", ["uniform", "stratified", "logit_normal"])
def test_times_of_frames_are_independent(time_sampling):
    objective = Objective(time_sampling=time_sampling)
    draws = jax.vmap(lambda key: sample_times(objective, key, 8, 3))(jax.random.split(KEY, 2000))
    for frames in (draws[:, 5], draws.reshape(-1, 3)):  # over keys and over the batch
        np.testing.assert_allclose(np.corrcoef(frames, rowvar=False), np.eye(3), atol=0.06)
    if time_sampling == "stratified":
        strata = np.sort(np.floor(np.asarray(draws) * 8), axis=1)
        assert (np.abs(strata - np.arange(8)[:, None]).max(axis=1) == 0).mean() > 0.99  # each frame fills all strata
        np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.03)
        np.testing.assert_allclose(draws.std(0), 12**-0.5, atol=0.02)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("weighting", "in_x"), [("min_snr", lambda s: min(s, 5)), ("truncated_snr", lambda s: max(s, 1))]
)
def test_weights_are_the_same_in_x_space_for_every_prediction(name, weighting, in_x):
    process, t = make_process(name), jnp.linspace(0.05, 0.95, 13)
    log_snr = process.log_snr(t)
    expected = [in_x(snr) for snr in np.exp(np.asarray(log_snr, float))]
    for prediction in PREDICTIONS:
        weight = weights(Objective(prediction=prediction, weighting=weighting), process, t)
        np.testing.assert_allclose(weight * error_factor(prediction, log_snr), expected, rtol=1e-4)


def test_published_forms_of_the_weights():
    process, t = make_process("cosine"), jnp.linspace(0.05, 0.95, 13)
    snr = jnp.exp(process.log_snr(t))
    for prediction, divisor in (("eps", snr), ("v", snr + 1)):  # Hang et al. 2023
        weight = weights(Objective(prediction=prediction, weighting="min_snr"), process, t)
        np.testing.assert_allclose(weight, jnp.minimum(snr, 5) / divisor, rtol=1e-5)
    np.testing.assert_array_equal(weights(Objective(), process, t), 1)


@pytest.mark.parametrize("weighting", ["none", "min_snr", "truncated_snr"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_finite_at_the_ends(weighting, prediction):
    for name in PROCESSES:
        weight = weights(
            Objective(prediction=prediction, weighting=weighting), make_process(name), jnp.array([0.0, 1.0])
        )
        assert np.isfinite(weight).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("name", "per_frame"), [("cosine", False), ("ddpm", False), ("flow", False), ("edm", False), ("flow", True)]
)
def test_loss_is_zero_for_the_perfect_predictor(prediction, name, per_frame, video):
    process = make_process(name)
    objective = Objective(prediction=prediction, weighting="min_snr", loss="huber", time_per_frame=per_frame)
    draws = draw(objective, process, video, KEY)
    assert draws.time.shape == ((6, 4) if per_frame else (6,))
    alpha, sigma = process.alpha_sigma(draws.time)

    def perfect(z, network_time, drop):
        shape = (6, -1, 1, 1, 1)
        noisy = alpha.reshape(shape) * video + sigma.reshape(shape) * draws.noise
        np.testing.assert_allclose(z, noisy * process.input_scale(draws.time).reshape(shape), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(network_time, process.network_time(draws.time))
        np.testing.assert_array_equal(drop, draws.drop)
        return from_x_eps(prediction, video, draws.noise, alpha, sigma)

    value, metrics = loss_at(objective, process, perfect, video, draws)
    assert value == metrics["loss"] == metrics["mse"] == 0


def test_loss_is_the_weighted_mean_of_squared_errors(video):
    process, objective = make_process("cosine"), Objective(prediction="eps", weighting="min_snr")
    draws = draw(objective, process, video, KEY)
    value, metrics = loss_at(objective, process, nothing, video, draws)
    errors = (draws.noise**2).mean((1, 2, 3, 4))
    assert float(metrics["mse"]) == pytest.approx(float(errors.mean()), rel=1e-5)
    assert float(value) == pytest.approx(float((weights(objective, process, draws.time) * errors).mean()), rel=1e-5)


def test_split_draws_accumulate_to_the_loss_of_the_whole_batch(video):
    process, objective = (
        make_process("cosine"),
        Objective(time_sampling="stratified", weighting="truncated_snr"),
    )
    draws = draw(objective, process, video, KEY)
    whole, _ = loss_at(objective, process, half, video, draws)
    halves = [jax.tree.map(lambda value, part=part: value[part], draws) for part in (slice(0, 3), slice(3, 6))]
    parts = [
        loss_at(objective, process, half, x, part)[0] for x, part in zip((video[:3], video[3:]), halves, strict=True)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_huber_is_quadratic_then_linear(video):
    process = make_process("cosine")
    for delta, expected in ((100.0, lambda e: e**2), (1e-3, lambda e: 1e-3 * (2 * abs(e) - 1e-3))):
        objective = Objective(prediction="eps", loss="huber", delta=delta)
        noise = np.asarray(draw(objective, process, video, KEY).noise)
        value, _ = loss(objective, process, nothing, video)
        size = np.abs(noise)
        exact = np.where(size <= delta, noise**2, delta * (2 * size - delta)).mean()
        assert float(value) == pytest.approx(exact, rel=1e-4) == pytest.approx(expected(noise).mean(), rel=1e-2)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", LOSSES)
def test_equal_times_of_frames_are_one_time(kind, weighting, video):
    process, objective = make_process("flow"), Objective(loss=kind, weighting=weighting)
    draws = draw(objective, process, video, KEY)
    per_frame = draws._replace(time=jnp.repeat(draws.time[:, None], 4, 1))
    expected = loss_at(objective, process, half, video, draws)
    for frame_weights in (None, jnp.full((6, 4), 3.0)):
        value = loss_at(objective, process, half, video, per_frame, frame_weights)
        np.testing.assert_allclose(jax.tree.leaves(value), jax.tree.leaves(expected), rtol=5e-7)


def test_every_frame_has_the_weight_of_its_time(video):
    process = make_process("cosine")
    objective = Objective(prediction="eps", weighting="min_snr", time_per_frame=True)
    draws = draw(objective, process, video, KEY)
    value, metrics = loss_at(objective, process, nothing, video, draws)
    errors = (draws.noise**2).mean((2, 3, 4))
    weight = weights(objective, process, draws.time)
    assert float(metrics["mse"]) == pytest.approx(float(errors.mean()), rel=1e-5)
    assert float(value) == pytest.approx(float((weight * errors).mean()), rel=1e-5)
    frame_weights = jnp.tile(jnp.float32([1, 0, 0, 3]), (6, 1))
    value, _ = loss_at(objective, process, nothing, video, draws, frame_weights)
    expected = ((weight * errors)[:, 0] + 3 * (weight * errors)[:, 3]).mean() / 4
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_frame_weights(video):
    process, objective = make_process("cosine"), Objective(prediction="eps")
    noise = draw(objective, process, video, KEY).noise

    def value(frame_weights):
        return loss(objective, process, nothing, video, frame_weights)[0]

    assert float(value(jnp.full((6, 4), 3.0))) == pytest.approx(float(value(None)), rel=1e-5)
    expected = ((noise[:, 0] ** 2).mean() + 3 * (noise[:, 3] ** 2).mean()) / 4
    assert float(value(jnp.tile(jnp.float32([1, 0, 0, 3]), (6, 1)))) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match=r"frame_weights of shape \(6, 5\).*\(6, 4\)"):
        value(jnp.ones((6, 5)))


@pytest.mark.parametrize(
    ("name", "prediction"), [("cosine", "v"), ("ddpm", "eps"), ("flow", "x"), ("flow", "flow"), ("edm", "x")]
)
def test_videos_without_a_frame_to_learn_add_nothing(name, prediction, video):
    """Frames at t = 0 with weight 0: neither the loss nor its gradient is NaN, whatever their own error."""
    process = make_process(name)
    objective = Objective(prediction=prediction, weighting="truncated_snr")
    draws = draw(objective, process, video, KEY)
    unknown = jnp.ones((6, 4)).at[0].set(0).at[1, :2].set(0)
    draws = draws._replace(time=jnp.where(unknown > 0, draws.time[:, None], 0))

    def value(scale, rows):
        rows = jax.tree.map(lambda x: x[rows], (video, draws, unknown))
        return loss_at(objective, process, lambda z, time, drop: scale * z, *rows)[0]

    everything, gradient = jax.value_and_grad(value)(0.5, slice(None))
    assert np.isfinite([everything, gradient]).all()
    assert float(value(0.5, slice(0, 1))) == 0
    assert float(everything) == pytest.approx(float(value(0.5, slice(1, None))) * 5 / 6, rel=1e-5)


def test_conditions_are_dropped_at_the_stated_rate_and_draws_are_independent():
    process, x = make_process("cosine"), jnp.zeros((20_000, 1))
    draws = draw(Objective(null_probability=0.2), process, x, KEY)
    assert float(draws.drop.mean()) == pytest.approx(0.2, abs=0.01)
    assert abs(np.corrcoef(draws.drop, draws.time)[0, 1]) < 0.03
    assert abs(np.corrcoef(draws.noise[:, 0], draws.time)[0, 1]) < 0.03
    assert not draw(Objective(null_probability=0.0), process, x, KEY).drop.any()
    assert draw(Objective(null_probability=1.0), process, x, KEY).drop.all()


def test_times_per_frame_change_no_other_draw(video):
    one = draw(Objective(), make_process("ddpm"), video, KEY)
    many = draw(Objective(time_per_frame=True), make_process("ddpm"), video, KEY)
    np.testing.assert_array_equal(one.noise, many.noise)
    np.testing.assert_array_equal(one.drop, many.drop)
    steps = many.time * 1000
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    assert len(np.unique(steps)) > 20


def test_noise_is_correlated_between_frames_and_only_there():
    x = jnp.zeros((4000, 3, 2, 1, 1))
    draws = draw(Objective(), make_process("cosine", frame_correlation=0.4), x, KEY)
    covariance = np.cov(draws.noise.reshape(4000, 6), rowvar=False)  # frames × pixels
    expected = np.kron(np.full((3, 3), 0.4) + 0.6 * np.eye(3), np.eye(2))
    np.testing.assert_allclose(covariance, expected, atol=0.08)
    alone = draw(Objective(), make_process("cosine"), x, KEY)
    np.testing.assert_array_equal(alone.time, draws.time)
    np.testing.assert_allclose(np.cov(alone.noise.reshape(4000, 6), rowvar=False), np.eye(6), atol=0.08)


def test_a_discrete_process_is_trained_at_its_steps():
    process = make_process("ddpm")
    index = process.network_time(draw(Objective(), process, jnp.zeros((5000, 1)), KEY).time)
    np.testing.assert_array_equal(index, jnp.round(index))
    assert (int(index.min()), int(index.max())) == (0, 999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "'noise' is unknown; known are eps, x, v, flow"),
        (
            {"time_sampling": "normal"},
            "time_sampling='normal' must be one of uniform, stratified, logit_normal",
        ),
        ({"weighting": "snr"}, "weighting='snr' must be one of none, truncated_snr, min_snr"),
        ({"loss": "l1"}, "loss='l1' must be one of squared, huber"),
        ({"gamma": 0.0}, "gamma=0.0 must be positive"),
        ({"std": -1.0}, "std=-1.0 must be positive"),
        ({"delta": 0.0}, "delta=0.0 must be positive"),
        ({"null_probability": 1.5}, "null_probability=1.5"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        Objective(**options)
