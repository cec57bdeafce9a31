"""Guidance between branches, its rescaling and interval, and clipping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.guidance import clip_dynamic, clipped, combine, guided
from vdm_jax.diffusion.prediction import PREDICTIONS, to_x_eps
from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError

PROCESS = make_process("cosine")
Z = jax.random.normal(jax.random.key(0), (3, 4, 5))
T = jnp.array([0.2, 0.5, 0.8])


class Condition(NamedTuple):
    """A tree with an array per sample, and a place that no branch fills."""

    level: jax.Array
    text: None = None


NULL, IMAGE, FULL = (Condition(jnp.array([1.0, 1.1, 1.2]) * level) for level in (0.3, 0.5, -0.7))


def predict(z, network_time, condition):
    """Depends on all of its inputs."""
    level, time = (x.reshape(x.shape + (1,) * (3 - x.ndim)) for x in (condition.level, network_time))
    return jnp.tanh(z) * level + time / 1000 + level**2


def outputs(*branches):
    """The raw output of each branch at (Z, T)."""
    return [predict(Z, PROCESS.network_time(T), branch) for branch in branches]


def assert_denoised(denoise, output, t=T, prediction="v"):
    expected = to_x_eps(prediction, output, Z, *PROCESS.alpha_sigma(T))
    np.testing.assert_allclose(denoise(Z, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("branches", "weights"), [([FULL], []), ([NULL, FULL], [1.0]), ([NULL, IMAGE, FULL], [1, jnp.float32(1.0)])]
)
def test_weights_of_one_leave_the_last_branch(prediction, branches, weights):
    denoise = guided(predict, PROCESS, prediction, branches, weights)
    assert_denoised(denoise, outputs(FULL)[0], prediction=prediction)


def test_the_network_is_called_once_for_all_branches():
    calls = []

    def spy(z, network_time, condition):
        calls.append(
            (z.shape[0], network_time.shape, condition and np.asarray(condition.level, float).round(2).tolist())
        )
        return z

    null, full = [0.3, 0.33, 0.36], [-0.7, -0.77, -0.84]
    guided(spy, PROCESS, "v", [FULL])(Z, T)
    guided(spy, PROCESS, "v", [NULL, FULL], [2.0])(Z, T)
    guided(spy, PROCESS, "v", [None])(Z, jnp.repeat(T[:, None], 4, 1))
    guided(spy, PROCESS, "v", [None] * 3, [1.0, 2.0])(Z, jnp.repeat(T[:, None], 4, 1))
    assert calls == [(3, (3,), full), (6, (6,), null + full), (3, (3, 4), None), (9, (9, 4), None)]


def test_formula_and_interval():
    unconditional, conditional = outputs(NULL, FULL)
    strong = unconditional + 4 * (conditional - unconditional)
    for interval, guided_samples in (
        ((0.0, 1.0), [1, 1, 1]),
        ((0.4, 0.6), [0, 1, 0]),
        ((0.5, 0.8), [0, 1, 1]),
    ):
        choice = jnp.array(guided_samples, bool)[:, None, None]
        denoise = guided(predict, PROCESS, "v", [NULL, FULL], [4.0], interval=interval)
        assert_denoised(denoise, jnp.where(choice, strong, conditional))


def test_three_branches_have_two_weights():
    null, image, full = outputs(NULL, IMAGE, FULL)
    expected = null + 2 * (image - null) + 5 * (full - image)
    assert_denoised(guided(predict, PROCESS, "v", [NULL, IMAGE, FULL], [2.0, jnp.float32(5.0)]), expected)
    late = guided(predict, PROCESS, "v", [NULL, IMAGE, FULL], [2.0, 5.0], interval=(0.6, 1.0))
    assert_denoised(late, jnp.where(jnp.array([False, False, True])[:, None, None], expected, full))
    rescaled = expected * full.std((1, 2), keepdims=True) / expected.std((1, 2), keepdims=True)
    assert_denoised(guided(predict, PROCESS, "v", [NULL, IMAGE, FULL], [2.0, 5.0], rescale=1.0), rescaled)


def test_every_frame_may_have_its_weight():
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])
    together = guided(predict, PROCESS, "v", [NULL, FULL], [weights])(Z, T)
    for frame, weight in enumerate(weights):
        alone = guided(predict, PROCESS, "v", [NULL, FULL], [weight])(Z, T)
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[:, frame], expected[:, frame], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, "static", "dynamic"])
def test_equal_times_of_frames_are_one_time(clip):
    options = {"rescale": 0.5, "interval": (0.1, 0.6)}
    denoise = clipped(guided(predict, PROCESS, "v", [NULL, FULL], [4.0], **options), PROCESS, clip)
    for ours, expected in zip(denoise(Z, jnp.repeat(T[:, None], 4, 1)), denoise(Z, T), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_every_frame_may_have_its_time():
    t = jnp.array([[0.0, 0.3, 0.7, 1.0]] * 3)
    denoise = guided(predict, PROCESS, "v", [NULL, FULL], [4.0], interval=(0.2, 0.8))
    together = denoise(Z, t)
    for frame in range(4):
        for ours, expected in zip(together, denoise(Z, t[:, frame]), strict=True):
            np.testing.assert_allclose(ours[:, frame], expected[:, frame], rtol=1e-5, atol=1e-6)


def test_rescale_restores_the_standard_deviation():
    branches, weights = outputs(NULL, FULL), [jnp.full(3, 5.0)]
    plain = combine(branches, weights)
    full = combine(branches, weights, 1.0)
    half = combine(branches, weights, 0.5)
    np.testing.assert_allclose(full.std((1, 2)), branches[1].std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(combine(branches, [jnp.ones(3)], 0.7), branches[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ["static", "dynamic"])
@pytest.mark.parametrize("process_name", ["cosine", "flow", "edm"])
def test_clipping_bounds_x_and_keeps_z(clip, process_name):
    process = make_process(process_name)
    z = 3 * Z
    x_hat, eps_hat = clipped(guided(predict, process, "v", [NULL, FULL], [6.0]), process, clip)(z, T)
    assert float(jnp.abs(x_hat).max()) <= 1 + 1e-6
    alpha, sigma = (value[:, None, None] for value in process.alpha_sigma(T))
    np.testing.assert_allclose(alpha * x_hat + sigma * eps_hat, z, rtol=1e-4, atol=1e-5)


def test_dynamic_clip_is_imagens():
    x = jnp.stack([jnp.linspace(-0.5, 0.5, 101), jnp.linspace(-4, 4, 101)])
    limit = np.percentile(np.abs(x[1]), 90)
    np.testing.assert_allclose(clip_dynamic(x, 0.9)[0], x[0])  # unchanged within the range
    np.testing.assert_allclose(clip_dynamic(x, 0.9)[1], np.clip(x[1], -limit, limit) / limit, rtol=1e-5)


def test_the_network_sees_edm_scaled_to_unit_variance():
    process, calls = make_process("edm"), []

    def spy(z, network_time, condition):
        calls.append((z, network_time))
        return z

    t = jnp.array([1.0])
    guided(spy, process, "v", [None])(jnp.full((1, 2), 80.0), t)
    np.testing.assert_allclose(calls[0][0], 80 / np.sqrt(1 + 80**2), rtol=1e-5)
    np.testing.assert_allclose(calls[0][1], np.log(80) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": 1.5}, "rescale=1.5"),
        ({"interval": (0.8, 0.2)}, r"interval=\(0.8, 0.2\)"),
        ({"prediction": "noise"}, "'noise' is unknown"),
        ({"branches": [NULL, FULL]}, "weights has length 0; guidance between 2 branches needs one less"),
        ({"weights": [2.0]}, "weights has length 1; guidance between 1 branches needs one less"),
        ({"branches": []}, "weights has length 0; guidance between 0 branches"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        guided(predict, PROCESS, **({"prediction": "v", "branches": [FULL]} | options))


def test_bad_clipping():
    with pytest.raises(InputError, match="clip='soft' must be one of"):
        clipped(predict, PROCESS, "soft")
    with pytest.raises(InputError, match=r"percentile=0.0 must be in \(0, 1\]"):
        clipped(predict, PROCESS, "dynamic", percentile=0.0)
