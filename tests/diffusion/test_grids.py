"""Grids run from noise to clean, with the spacing of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.grids import GRIDS, make_grid, make_network_time, pyramid
from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.errors import InputError

DISCRETE = ("leading", "trailing", "linspace", "distilled")


GRIDS_OF = [(p, g) for p in PROCESSES for g in GRIDS if g not in DISCRETE or make_process(p).num_steps]


@pytest.mark.parametrize(("process_name", "name"), GRIDS_OF)
def test_grid_decreases_from_noise_to_clean(name, process_name):
    process = make_process(process_name)
    for num_steps in (1, 2, 7):
        times = make_grid(name, num_steps, process)
        assert times.shape == (num_steps + 1,)
        assert times.dtype == jnp.float32
        assert np.all(np.diff(times) < 0)
        assert times[-1] == 0
        # Leading subsets stop short of the noise (Lin et al. 2023), and so does linspace with a single step.
        assert times[0] == 1 or name == "leading" or (name, num_steps) == ("linspace", 1)


def test_spacing_in_log_snr():
    process = make_process("cosine")
    np.testing.assert_allclose(process.log_snr(make_grid("log_snr", 10, process)), np.linspace(-20, 20, 11), atol=0.02)
    process = make_process("edm")
    levels = process.alpha_sigma(make_grid("log_snr", 5, process))[1]
    np.testing.assert_allclose(levels[:-1], np.geomspace(80, 0.002, 5), rtol=1e-5)


@pytest.mark.parametrize("process_name", ["edm", "stable_diffusion", "cosine", "flow"])
def test_karras_spacing(process_name):
    process = make_process(process_name)
    times = make_grid("karras", 6, process, sigma_min=0.05, sigma_max=14.0)
    alpha, sigma = process.alpha_sigma(times[:-1])
    expected = (14 ** (1 / 7) + np.arange(6) / 5 * (0.05 ** (1 / 7) - 14 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma / alpha, expected, rtol=1e-4)


def test_uniform_with_a_last_time():
    times = make_grid("uniform", 4, make_process("flow"), last=0.001)
    np.testing.assert_allclose(times, [1, 0.667, 0.334, 0.001, 0], rtol=1e-6)


def test_limits_of_another_grid():
    process = make_process("stable_diffusion")
    for name in ("karras", "log_snr"):
        times = make_grid(name, 5, process, limits="leading", steps_offset=1, final="first")
        np.testing.assert_allclose(process.network_time(times)[jnp.array([0, 4, 5])], [801, 1, 0], atol=1e-3)


def test_the_network_sees_rounded_times():
    process, flow = make_process("stable_diffusion"), make_process("flow", shift=3.0)
    assert make_network_time("uniform", 4, flow) == flow.network_time
    times = make_grid("karras", 6, process)
    exact, seen = (make_network_time("karras", 6, process, network_time=kind)(times) for kind in ("log", "whole"))
    np.testing.assert_array_equal(seen, np.round(exact))
    np.testing.assert_allclose(exact, process.network_time(times), atol=0.05)
    seen = make_network_time("uniform", 4, flow, first=0.99, network_time="whole")
    np.testing.assert_array_equal(seen(make_grid("uniform", 4, flow, first=0.99)), [996, 896, 746, 496, 0])
    np.testing.assert_allclose(seen(jnp.float32([0.2475, 0.2475 / 2])), [496, 248])  # linear in between
    with pytest.raises(InputError, match="network_time='even' must be process, whole or log"):
        make_network_time("uniform", 4, flow, network_time="even")


def test_subsets_of_the_training_steps():
    process = make_process("stable_diffusion")
    index = {name: np.asarray(process.network_time(make_grid(name, 4, process))) for name in DISCRETE}
    np.testing.assert_array_equal(index["leading"], [750, 500, 250, 0, -1])
    np.testing.assert_array_equal(index["trailing"], [999, 749, 499, 249, -1])
    np.testing.assert_array_equal(index["linspace"], [999, 666, 333, 0, -1])
    np.testing.assert_array_equal(index["distilled"], [999, 759, 499, 259, -1])
    spare = {name: make_grid(name, 4, process, spare=True) for name in ("leading", "linspace")}
    np.testing.assert_array_equal(process.network_time(spare["leading"]), [800, 600, 400, 200, -1])
    np.testing.assert_array_equal(process.network_time(spare["linspace"]), [999, 749, 500, 250, -1])
    between = process.network_time(make_grid("linspace", 5, process, whole=False))
    np.testing.assert_allclose(between, [999, 749.25, 499.5, 249.75, 0, -1], rtol=1e-6)
    shifted = make_grid("leading", 4, process, steps_offset=1, final="first")
    np.testing.assert_array_equal(process.network_time(shifted), [751, 501, 251, 1, 0])


def test_trailing_has_the_number_of_steps():
    process = make_process("stable_diffusion")
    for steps in (1, 61, 122):  # 1000 / 61 is rounded down: counting down by it would reach -1
        index = process.network_time(make_grid("trailing", steps, process))
        assert (len(index), index[0], index[-1]) == (steps + 1, 999, -1)
        assert (np.diff(index) < 0).all()


def test_pyramid():
    times = jnp.float32([1, 0.5, 0])
    expected = {
        0: [[1, 1, 1], [0.5, 0.5, 0.5], [0, 0, 0]],
        1: [[1, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5], [0, 0, 0]],
        2: [[1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 1], [0, 0, 0.5], [0, 0, 0]],
    }
    for delay, rows in expected.items():
        np.testing.assert_array_equal(pyramid(times, 3, delay), rows)
    np.testing.assert_array_equal(pyramid(times, 1, 5), times[:, None])
    with pytest.raises(InputError, match="delay=-1 must not be negative"):
        pyramid(times, 3, -1)


def test_can_be_made_while_tracing():
    process = make_process("cosine")
    traced = jax.jit(lambda: make_grid("karras", 4, process))()
    np.testing.assert_array_equal(traced, make_grid("karras", 4, process))


@pytest.mark.parametrize(
    ("name", "num_steps", "process_name", "options", "message"),
    [
        ("quadratic", 4, "cosine", {}, "'quadratic' is unknown; known are uniform, log_snr"),
        ("uniform", 0, "cosine", {}, "num_steps=0"),
        ("uniform", 4, "cosine", {"rho": 7}, "no option 'rho'; it has first, last, beyond"),
        ("uniform", 4, "cosine", {"last": 2.0}, "last=2.0"),
        ("karras", 4, "cosine", {"rho": 0.0}, "rho=0.0"),
        ("karras", 4, "cosine", {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min=3, sigma_max=2"),
        ("uniform", 4, "cosine", {"last": 1.0}, "last=1.0 must be a time above 0 and below 1"),
        ("karras", 4, "edm", {"sigma_max": 700.0}, "sigma_max=700 must be at most the process's own 80"),
        ("log_snr", 4, "cosine", {"sigma_min": 1e-6}, "sigma_min=1e-06 must be at least the process's own 4.5"),
        ("leading", 4, "cosine", {}, "discrete process; Cosine is continuous"),
        ("leading", 1001, "ddpm", {}, "num_steps=1001 must be at most the 1000"),
        ("leading", 1000, "ddpm", {"steps_offset": 1}, "training step 1000 of 1000"),
        ("leading", 4, "ddpm", {"final": "last"}, "final='last'"),
        ("karras", 4, "cosine", {"final": "first"}, "final='first' must be clean .* of a chain"),
        ("distilled", 51, "ddpm", {}, "num_steps=51 must be at most the 50 steps of the teacher"),
    ],
)
def test_bad_input(name, num_steps, process_name, options, message):
    with pytest.raises(InputError, match=message):
        make_grid(name, num_steps, make_process(process_name), **options)
