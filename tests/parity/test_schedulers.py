"""The same network outputs lead through our solvers and through diffusers' schedulers to the same videos, step by step.

The network is a smooth function. Of schedulers that add noise both sides get the same.
"""

import functools
import logging
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.process import evaluate
from vdm_jax.diffusion.sampler import advance, noise_to_z
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.generation.settings import Settings, grid_of
from vdm_jax.pretrained.scheduler_defaults import DEFAULTS
from vdm_jax.pretrained.schedulers import schedule_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KARRAS, PRK = {"use_karras_sigmas": True}, {"skip_prk_steps": True}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SVD = V | KARRAS | {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}
SDE = {"algorithm_type": "sde-dpmsolver++"}
UNCLIPPED = {"clip_sample": False}
SPACINGS = [{"timestep_spacing": spacing, "steps_offset": 1} for spacing in ("leading", "trailing", "linspace")]
MULTISTEP = [
    *SPACINGS,
    *({"solver_order": order} for order in (1, 3)),
    {"final_sigmas_type": "sigma_min"},
    {"lower_order_final": False, "final_sigmas_type": "sigma_min"},  # diffusers divides 0 by 0 with "zero"
    {"thresholding": True},
    KARRAS,
    V | {"timestep_spacing": "trailing"},
    ZERO_SNR,
    FLOW | {"flow_shift": 3.0},
    FLOW | {"flow_shift": 5.0, "solver_order": 3},
]
CASES = {
    "DDIM": [
        *(UNCLIPPED | spacing for spacing in SPACINGS),
        *(UNCLIPPED | V | spacing | {"set_alpha_to_one": False} for spacing in SPACINGS),
        UNCLIPPED | ZERO_SNR,
        UNCLIPPED | {"beta_schedule": "squaredcos_cap_v2"},
        {"clip_sample": True},
        UNCLIPPED | {"thresholding": True, "beta_schedule": "linear"},
    ],
    "DDPM": [*(UNCLIPPED | spacing for spacing in SPACINGS), {}, UNCLIPPED | ZERO_SNR],
    "PNDM": [*(PRK | spacing for spacing in SPACINGS), *(PRK | V | spacing for spacing in SPACINGS)],
    "EulerDiscrete": [
        *SPACINGS,
        *(KARRAS | spacing for spacing in SPACINGS),
        {"use_exponential_sigmas": True},
        {"final_sigmas_type": "sigma_min"},
        ZERO_SNR,
        *(SVD | spacing for spacing in SPACINGS),
    ],
    "EulerAncestralDiscrete": [*SPACINGS, ZERO_SNR],
    "HeunDiscrete": [*SPACINGS, KARRAS, V | {"clip_sample": True}],
    "DPMSolverMultistep": [
        *MULTISTEP,
        {"solver_type": "heun"},
        {"euler_at_final": True},
        SDE,
        SDE | KARRAS,
        SDE | {"solver_type": "heun"},
    ],
    "UniPCMultistep": [
        *MULTISTEP,
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 1], "solver_order": 3},
    ],
    "LCM": [{}, V | {"clip_sample": True}],
    "TCD": [{}, V],
    "FlowMatchEulerDiscrete": [{}, {"shift": 3.0}],
}
# diffusers keeps z/α in these.
IN_SIGMA = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete")
FIRST = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)


@functools.cache
def noise_of(step):
    return np.random.default_rng(100 + step).normal(size=FIRST.shape).astype(np.float32)


def network(library, z, time):
    """A stand-in for the network, smooth in the video and the time, in either library."""
    return 0.8 * library.tanh(1.5 * z) + 0.1 * library.sin(0.01 * time)


def ours(name, config, num_steps):
    """The video after every call, and the schedule."""
    schedule = schedule_of({"_class_name": f"{name}Scheduler"} | config)
    settings, process = Settings(steps=num_steps, **schedule.sampling), schedule.process
    times, network_time = grid_of(settings, process, FIRST.shape[1])

    def predict(z, time, condition):
        return network(jnp, z, time[:, None, None, None, None])

    denoise = guided(predict, process, schedule.prediction, [None], network_time=network_time)
    denoise = clipped(denoise, process, settings.clip)
    table = make_table(settings.solver, times, process, settings.eta, **dict(settings.solver_options))
    table = jax.tree.map(jnp.float32, table)
    z = noise_to_z(jnp.asarray(FIRST), process, times[0], first=settings.first_noise)
    past, steps = (jnp.zeros_like(z),) * table.past.shape[1], []
    for i, time in enumerate(table.time):
        row = jax.tree.map(lambda column, i=i: column[i], table)
        z, past = advance(row, z, *denoise(z, jnp.full(2, time)), past, jnp.asarray(noise_of(i)))
        steps.append(np.asarray(z))
    return steps, schedule


def theirs(name, config, num_steps, monkeypatch):
    """The video after every step of the scheduler, and the scheduler."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
    scheduler.set_timesteps(num_steps)
    drawn = iter(range(10**6))
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise_of(next(drawn))))
    z, steps = torch.from_numpy(FIRST) * float(getattr(scheduler, "init_noise_sigma", 1)), []
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(z, time) if hasattr(scheduler, "scale_model_input") else z
        z = scheduler.step(network(torch, scaled, time.float()), time, z).prev_sample
        steps.append(z.numpy())
    return steps, scheduler


def test_every_scheduler_is_compared():
    assert {f"{name}Scheduler" for name in CASES} == DEFAULTS.keys()


@pytest.mark.parametrize("num_steps", [4, 50])
@pytest.mark.parametrize(("name", "config"), [(name, config) for name in CASES for config in CASES[name]])
def test_step_by_step(name, config, num_steps, monkeypatch):
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    config = config if name.startswith("Flow") else SD | config
    mine, schedule = ours(name, config, num_steps)
    other, scheduler = theirs(name, config, num_steps, monkeypatch)
    assert len(mine) == len(other)
    scale = np.ones(len(other))
    if name in IN_SIGMA and evaluate(schedule.process.alpha_sigma, np.ones(1))[0] < 1:
        scale = np.hypot(1, scheduler.sigmas.numpy()[1:])
        scale[-1] = 1
    for step, (a, b) in enumerate(zip(mine, other, strict=True)):
        error = np.linalg.norm(a - b / scale[step]) / np.linalg.norm(b / scale[step])
        assert error < 2e-4, f"step {step}"


@pytest.mark.parametrize("name", CASES)
def test_defaults(name):
    """A folder that says nothing of a setting has the value of diffusers."""
    defaults = dict(getattr(diffusers, f"{name}Scheduler")().config)
    for key, value in DEFAULTS[f"{name}Scheduler"].items():
        assert defaults.get(key, value) == value, key
    unknown = {"clip_sample", "clip_sample_range", "thresholding", "sample_max_value", "prediction_type"}
    assert DEFAULTS[f"{name}Scheduler"].keys() - defaults.keys() <= unknown


@pytest.mark.parametrize("num_steps", [7, 30, 999])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_training_steps_chosen(spacing, num_steps):
    scheduler = diffusers.DDIMScheduler(**SD, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    schedule = schedule_of(dict(scheduler.config) | {"_class_name": "DDIMScheduler"})
    times, network_time = grid_of(Settings(steps=num_steps, **schedule.sampling), schedule.process, 1)
    np.testing.assert_array_equal(network_time(times)[:-1], scheduler.timesteps)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_noise(eta):
    scheduler = diffusers.DDIMScheduler(**SD)
    scheduler.set_timesteps(20)
    schedule = schedule_of(dict(scheduler.config) | {"_class_name": "DDIMScheduler"})
    times, _ = grid_of(Settings(steps=20, **schedule.sampling), schedule.process, 1)
    table = make_table("ddim", times, schedule.process, eta)
    variances = np.array([scheduler._get_variance(time, time - 50) for time in scheduler.timesteps])
    np.testing.assert_allclose(table.noise, eta * np.sqrt(variances), rtol=1e-4)
