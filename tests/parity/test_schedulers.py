"""The same network outputs lead through our solvers and through diffusers' schedulers to the same videos."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.grids import make_grid
from vdm_jax.diffusion.guidance import guided
from vdm_jax.diffusion.process import make_process
from vdm_jax.diffusion.sampler import sample
from vdm_jax.diffusion.solvers import ddim

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}
NOISE = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)


def network(library, z, time):
    """A stand-in for the network, smooth in the video and the time, in either library."""
    return 0.8 * library.tanh(1.5 * z) + 0.1 * library.sin(0.01 * time)


def ours(process, prediction, z, times, solver="ddim"):
    """The video at every time of the grid: what each step's denoiser was given, and the result."""
    steps = []

    def predict(z, network_time, condition):
        return network(jnp, z, network_time[:, None, None, None, None])

    denoise = guided(predict, process, prediction, [None])

    def recorded(z, t):
        jax.debug.callback(lambda z: steps.append(np.asarray(z)), z, ordered=True)
        return denoise(z, t)

    result = jax.jit(lambda z: sample(recorded, z, times, process, solver=solver))(jnp.asarray(z))
    jax.effects_barrier()
    return [*steps, np.asarray(result)]


def theirs(scheduler, z):
    """The video before each step of the scheduler and after the last."""
    steps = [torch.from_numpy(z)]
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(steps[-1], time) if hasattr(scheduler, "scale_model_input") else steps[-1]
        steps.append(scheduler.step(network(torch, scaled, time.float()), time, steps[-1]).prev_sample)
    return [step.numpy() for step in steps]


def assert_same(mine, other, tolerance=2e-4):
    assert len(mine) == len(other)
    for index, (a, b) in enumerate(zip(mine, other, strict=True)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"step {index}")


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize(("spacing", "options"), [("leading", {"steps_offset": 1}), ("leading", {}), ("trailing", {})])
def test_ddim(prediction, final, spacing, options):
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        **options,
        clip_sample=False,
        set_alpha_to_one=final == "clean",
        prediction_type=PREDICTION_TYPE[prediction],
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(10)
    process = make_process("stable_diffusion")
    times = make_grid(spacing, 10, process, final=final, **options)
    np.testing.assert_array_equal(process.network_time(times[:-1]), scheduler.timesteps)
    assert_same(ours(process, prediction, NOISE, times), theirs(scheduler, NOISE))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize("num_steps", [5, 7, 25, 30])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_of_one_stride(spacing, num_steps, final, schedule):
    """diffusers steps by N // n from each time, not to the next."""
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION | {"beta_schedule": schedule},
        clip_sample=False,
        set_alpha_to_one=final == "clean",
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(num_steps)
    process = make_process("stable_diffusion", beta_schedule=schedule)
    times = make_grid(spacing, num_steps, process, final=final)
    np.testing.assert_array_equal(process.network_time(times[:-1]), scheduler.timesteps)
    assert_same(ours(process, "eps", NOISE, times, "ddim_strided"), theirs(scheduler, NOISE))


@pytest.mark.parametrize("num_steps", [7, 30, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_training_steps_chosen(spacing, num_steps):
    scheduler = diffusers.DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    process = make_process("stable_diffusion")
    chosen = process.network_time(make_grid(spacing, num_steps, process))[:-1]
    np.testing.assert_array_equal(chosen, scheduler.timesteps)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_noise(eta):
    scheduler = diffusers.DDIMScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(20)
    process = make_process("stable_diffusion")
    table = ddim(make_grid("leading", 20, process), process, eta)
    variances = np.array([scheduler._get_variance(time, time - 50) for time in scheduler.timesteps])
    np.testing.assert_allclose(table.noise, eta * np.sqrt(variances), rtol=1e-4)


def test_zero_terminal_snr():
    scheduler = diffusers.DDIMScheduler(
        **STABLE_DIFFUSION,
        rescale_betas_zero_snr=True,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    process = make_process("stable_diffusion", zero_terminal_snr=True)
    assert_same(ours(process, "v", NOISE, make_grid("trailing", 10, process)), theirs(scheduler, NOISE))


def test_euler_in_scaled_space():
    """diffusers' Euler keeps x + (σ/α) ε, which is our z divided by α."""
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(10)
    process = make_process("stable_diffusion")
    times = make_grid("leading", 10, process, steps_offset=1)
    alpha, _ = process.alpha_sigma(times)
    mine = ours(process, "eps", NOISE, times)
    other = theirs(scheduler, NOISE / float(alpha[0]))
    assert_same(mine, [float(a) * z for a, z in zip(alpha, other, strict=True)])


def test_euler_on_karras_sigmas_as_in_stable_video_diffusion():
    scheduler = diffusers.EulerDiscreteScheduler(
        **STABLE_DIFFUSION,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    scheduler.set_timesteps(25)
    process = make_process("edm", sigma_max=700.0)
    times = make_grid("karras", 25, process)
    alpha, sigma = process.alpha_sigma(times)
    np.testing.assert_allclose(sigma / alpha, scheduler.sigmas, rtol=1e-4)
    np.testing.assert_allclose(process.network_time(times)[:-1], scheduler.timesteps, rtol=1e-4, atol=1e-5)
    z = NOISE * np.float32(scheduler.init_noise_sigma)
    # Relative to the size of the video, which falls from 700 to 1.
    scale = np.sqrt(1 + np.asarray(sigma) ** 2)
    mine, other = ours(process, "v", z, times), theirs(scheduler, z)
    assert_same([a / s for a, s in zip(mine, scale, strict=True)], [b / s for b, s in zip(other, scale, strict=True)])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    process = make_process("flow", shift=shift)
    # diffusers spaces times from 1 to its least training σ, which it has shifted once already.
    times = make_grid("uniform", 12, process, last=scheduler.sigma_min)
    np.testing.assert_allclose(process.network_time(times)[:-1], scheduler.timesteps, rtol=1e-5)
    assert_same(ours(process, "flow", NOISE, times), theirs(scheduler, NOISE))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize("num_steps", [10, 20])
def test_dpm_solver_multistep(prediction, final, num_steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PREDICTION_TYPE[prediction],
        timestep_spacing="trailing",
        final_sigmas_type="zero" if final == "clean" else "sigma_min",
    )
    scheduler.set_timesteps(num_steps)
    process = make_process("stable_diffusion")
    times = make_grid("trailing", num_steps, process, final=final)
    np.testing.assert_array_equal(process.network_time(times)[:-1], scheduler.timesteps)
    assert_same(ours(process, prediction, NOISE, times, "dpmpp"), theirs(scheduler, NOISE))


def test_dpm_solver_multistep_on_a_flow():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(16)
    process = make_process("flow")
    times = jnp.asarray(scheduler.sigmas.numpy())
    # The scheduler rounds the times that it tells the network down to whole ones; tell both the same.
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    scheduler.set_begin_index(0)
    assert_same(ours(process, "flow", NOISE, times, "dpmpp"), theirs(scheduler, NOISE))


def test_heun_in_scaled_space():
    """diffusers' Heun makes two steps of each; every second of its samples is at a time of the grid."""
    scheduler = diffusers.HeunDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    process = make_process("stable_diffusion")
    times = make_grid("trailing", 10, process)
    alpha = np.asarray(process.alpha_sigma(times)[0])
    mine = ours(process, "eps", NOISE, times, "heun")
    other = theirs(scheduler, NOISE / alpha[0])
    at_calls = np.append(np.repeat(alpha, 2)[1:-2], alpha[-1])
    assert_same(mine, [a * z for a, z in zip(at_calls, other, strict=True)])
