"""Classifier-free guidance, its rescaling and interval, and clipping."""

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


def predict(z, network_time, drop):
    """Depends on everything that it is told."""
    flag = jnp.where(drop, 0.3, -0.7)[:, None, None]
    return jnp.tanh(z) * flag + network_time[:, None, None] / 1000 + flag**2


def outputs():
    """The unconditional and the conditional output at (Z, T)."""
    told = PROCESS.network_time(T)
    return (predict(Z, told, jnp.full(3, drop)) for drop in (True, False))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", [1.0, 1, jnp.float32(1.0)])
def test_weight_one_is_no_guidance(prediction, weight):
    _, conditional = outputs()
    expected = to_x_eps(prediction, conditional, Z, *PROCESS.alpha_sigma(T))
    got = guided(predict, PROCESS, prediction, weight=weight)(Z, T)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_weight_one_does_not_double_the_batch():
    seen = []

    def spy(z, network_time, drop):
        seen.append((z.shape[0], np.asarray(drop).tolist()))
        return predict(z, network_time, drop)

    guided(spy, PROCESS, "v")(Z, T)
    guided(spy, PROCESS, "v", weight=2.0)(Z, T)
    assert seen == [(3, [False] * 3), (6, [True] * 3 + [False] * 3)]


def test_formula_and_interval():
    unconditional, conditional = outputs()
    strong = unconditional + 4 * (conditional - unconditional)
    for interval, guided_samples in (
        ((0.0, 1.0), [1, 1, 1]),
        ((0.4, 0.6), [0, 1, 0]),
        ((0.5, 0.8), [0, 1, 1]),
    ):
        choice = jnp.array(guided_samples, bool)[:, None, None]
        expected = to_x_eps("v", jnp.where(choice, strong, conditional), Z, *PROCESS.alpha_sigma(T))
        got = guided(predict, PROCESS, "v", weight=4.0, interval=interval)(Z, T)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_frame_may_have_its_weight():
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])
    together = guided(predict, PROCESS, "v", weight=weights)(Z, T)
    for frame, weight in enumerate(weights):
        alone = guided(predict, PROCESS, "v", weight=weight)(Z, T)
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[:, frame], expected[:, frame], rtol=1e-5, atol=1e-6)


def test_rescale_restores_the_standard_deviation():
    unconditional, conditional = outputs()
    weight = jnp.full(3, 5.0)
    plain = combine(unconditional, conditional, weight)
    full = combine(unconditional, conditional, weight, 1.0)
    half = combine(unconditional, conditional, weight, 0.5)
    np.testing.assert_allclose(full.std((1, 2)), conditional.std((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(combine(unconditional, conditional, jnp.ones(3), 0.7), conditional, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ["static", "dynamic"])
@pytest.mark.parametrize("process_name", ["cosine", "flow", "edm"])
def test_clipping_bounds_x_and_keeps_z(clip, process_name):
    process = make_process(process_name)
    z = 3 * Z
    x_hat, eps_hat = clipped(guided(predict, process, "v", weight=6.0), process, clip)(z, T)
    assert float(jnp.abs(x_hat).max()) <= 1 + 1e-6
    alpha, sigma = (value[:, None, None] for value in process.alpha_sigma(T))
    np.testing.assert_allclose(alpha * x_hat + sigma * eps_hat, z, rtol=1e-4, atol=1e-5)


def test_dynamic_clip_is_imagens():
    x = jnp.stack([jnp.linspace(-0.5, 0.5, 101), jnp.linspace(-4, 4, 101)])
    limit = np.percentile(np.abs(x[1]), 90)
    np.testing.assert_allclose(clip_dynamic(x, 0.9)[0], x[0])  # within the range: as it was
    np.testing.assert_allclose(clip_dynamic(x, 0.9)[1], np.clip(x[1], -limit, limit) / limit, rtol=1e-5)


def test_the_network_sees_edm_scaled_to_unit_variance():
    process, seen = make_process("edm"), []

    def spy(z, network_time, drop):
        seen.append((z, network_time))
        return z

    t = jnp.array([1.0])
    guided(spy, process, "v")(jnp.full((1, 2), 80.0), t)
    np.testing.assert_allclose(seen[0][0], 80 / np.sqrt(1 + 80**2), rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], np.log(80) / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": 1.5}, "rescale=1.5"),
        ({"interval": (0.8, 0.2)}, r"interval=\(0.8, 0.2\)"),
        ({"prediction": "noise"}, "'noise' is unknown"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        guided(predict, PROCESS, **({"prediction": "v"} | options))


def test_bad_clipping():
    with pytest.raises(InputError, match="clip='soft' must be one of"):
        clipped(predict, PROCESS, "soft")
    with pytest.raises(InputError, match=r"percentile=0.0 must be in \(0, 1\]"):
        clipped(predict, PROCESS, "dynamic", percentile=0.0)
