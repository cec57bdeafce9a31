"""FreeInit keeps the low frequencies of the sampled video, and draws the high ones anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.free_init import in_rounds, low_pass, refreshed
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import gaussian

SHAPE = (8, 16, 16, 2)
KEYS = jax.random.split(jax.random.key(0), 3)


def normal(number):
    return gaussian(KEYS, number, SHAPE, jnp.float32)


def bands(x):
    """Returns the part of a video below half of the cut-off (its mean), and the part above twice the cut-off."""
    spectrum = np.fft.fftn(x, axes=(1, 2, 3))
    keep = low_pass(*SHAPE[:3])[None]
    return [np.fft.ifftn(spectrum * part, axes=(1, 2, 3)).real for part in (keep > 0.99, keep < 0.01)]


def test_the_filter_is_butterworths():
    keep = low_pass(16, 8, 24)[..., 0]
    assert keep[0, 0, 0] == 1
    half = [keep[2, 0, 0], keep[-2, 0, 0], keep[0, 1, 0], keep[0, 0, 3]]  # a quarter of the highest frequency
    np.testing.assert_allclose(half, 0.5)
    assert keep[3, 0, 0] == pytest.approx(1 / (1 + 1.5**8))
    assert keep[1, 0, 1] == pytest.approx(1 / (1 + (1 / 4 + 1 / 9) ** 4))
    for axis in range(3):  # x stays real
        np.testing.assert_array_equal(np.take(keep, -np.arange(keep.shape[axis]), axis), keep)


@pytest.mark.parametrize("process_name", ["stable_diffusion", "edm"])
def test_low_frequencies_come_from_the_video_at_t_1_and_high_ones_are_fresh(process_name):
    process = make_process(process_name)
    x, noise, fresh = 3 * normal(7) + 1, normal(8), normal(9)
    alpha, sigma = process.alpha_sigma(jnp.float32(1))
    result = bands(refreshed(x, noise, fresh, process))
    np.testing.assert_allclose(result[0], bands((alpha * x + sigma * noise) / np.hypot(alpha, sigma))[0], atol=1e-2)
    np.testing.assert_allclose(result[1], bands(fresh)[1], atol=2e-2)
    assert np.abs(result[0]).max() > 0.1
    assert float(refreshed(normal(7), noise, fresh, process).std()) == pytest.approx(1, abs=0.05)


def in_three(draw):
    """Returns the results of 1, 2 and 3 rounds."""
    process = make_process("stable_diffusion")
    return [np.asarray(jax.jit(lambda n=n: in_rounds(draw, normal(0), KEYS, process, n))()) for n in (1, 2, 3)]


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_every_round_keeps_the_low_frequencies():
    first, second, third = in_three(lambda noise, keys: noise)
    np.testing.assert_allclose(first, normal(0), atol=1e-6)
    for before, after in ((first, second), (second, third), (first, third)):
        low, high = (correlation(a, b) for a, b in zip(bands(before), bands(after), strict=True))
        assert low > 0.99
        assert abs(high) < 0.05


def test_every_round_has_keys_of_its_own():
    first, second, third = in_three(lambda noise, keys: gaussian(keys, 0, SHAPE, jnp.float32))
    np.testing.assert_allclose(first, normal(0), atol=1e-6)
    for before, after in ((first, second), (second, third), (first, third)):
        assert abs(correlation(before, after)) < 0.05


def test_rounds_are_a_loop_over_one_sampler():
    process, traced = make_process("cosine"), []

    def draw(noise, keys):
        traced.append(noise)
        return noise

    jax.eval_shape(lambda: in_rounds(draw, normal(0), KEYS, process, 20))
    assert len(traced) <= 2
