"""Published schedulers are read as processes, grids and solvers."""

import json

import numpy as np
import pytest

from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError
from vdm_jax.generation.settings import Settings, grid_of
from vdm_jax.pretrained.families.animatediff import scheduler
from vdm_jax.pretrained.schedulers import SHORT, read_scheduler, schedule_of

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODELSCOPE = BETAS | {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.15.0.dev0",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
}
STABLE_DIFFUSION = BETAS | {
    "_class_name": "PNDMScheduler",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
SVD = BETAS | {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "solver_order": 2,
}
END = {"steps_offset": 1, "final": "first"}


def of_class(name, **settings):
    return schedule_of(BETAS | {"_class_name": f"{name}Scheduler"} | settings)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(MODELSCOPE))
    return tmp_path


def network_times(schedule, steps):
    times, network_time = grid_of(Settings(steps=steps, **schedule.sampling), schedule.process, 1)
    return np.asarray(network_time(times))[:-1]


def test_modelscope_is_ddim_on_a_leading_grid_that_ends_at_the_first_training_step(folder):
    schedule = read_scheduler(folder)
    assert schedule.process == make_process("stable_diffusion")
    assert schedule[1:5] == ("eps", "ddim", "leading", END)


def test_stable_diffusion_is_pndm():
    assert schedule_of(STABLE_DIFFUSION)[1:6] == ("eps", "pndm", "leading", END, {"of": "eps"})


def test_a_motion_adapter_changes_what_its_documentation_changes():
    schedule = schedule_of(scheduler(STABLE_DIFFUSION))
    assert schedule.process == make_process("animatediff")
    assert schedule[1:6] == ("eps", "ddim", "linspace", {"final": "first"}, {"strided": True})
    assert schedule_of(scheduler(STABLE_DIFFUSION | {"prediction_type": "v_prediction"})).prediction == "v"


def test_stable_video_diffusion_is_euler_on_karras_sigmas():
    assert schedule_of(SVD)[:5] == (make_process("edm", sigma_max=700.0), "v", "ddim", "karras", {})
    assert schedule_of(SVD).first_noise == "total"
    assert schedule_of(SVD | {"timestep_spacing": "linspace"}).first_noise == "sigma"


def test_wan_is_unipc_on_the_sigmas_of_a_flow():
    schedule = schedule_of(WAN)
    assert (schedule.process, schedule.prediction, schedule.solver) == (
        make_process("flow", shift=3.0),
        "flow",
        "unipc",
    )
    times = network_times(schedule, 50)
    assert [*times[:4], *times[-2:]] == [999, 993, 986, 979, 113, 60]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("DDIM", {"clip_sample": True}, {"clip": "static_x"}),
        ("DDPM", {}, {"eta": 1.0, "clip": "static"}),
        ("EulerDiscrete", {}, {"first_noise": "sigma", "grid_options": {"whole": False}}),
        ("EulerAncestralDiscrete", {"timestep_spacing": "leading"}, {"eta": 1.0, "first_noise": "total"}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {"solver": "dpmpp", "eta": 1.0}),
        (
            "DPMSolverMultistep",
            {"use_karras_sigmas": True},
            {"grid": "karras", "grid_options": {"network_time": "whole"}},
        ),
        ("TCD", {}, {"solver": "tcd", "eta": 0.3}),
        ("LCM", {}, {"solver": "lcm", "grid": "distilled", "grid_options": {"teacher_steps": 50}}),
    ],
)
def test_settings_of_a_class(name, settings, expected):
    sampling = of_class(name, **settings).sampling
    assert {key: sampling[key] for key in expected} == expected


def test_few_steps_of_a_teacher():
    np.testing.assert_array_equal(network_times(of_class("LCM"), 4), [999, 759, 499, 259])


def test_solvers_in_sigma_do_without_the_end_of_zero_snr():
    ends = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    alphas = [of_class(name, **ends).process.terminal_alpha for name in ("EulerDiscrete", "UniPCMultistep", "LCM")]
    assert alphas == [2**-12, 2**-12, 0]


def test_a_name_replaces_the_class_and_a_file_everything(folder, tmp_path):
    for name in ("dpmpp", "DPMSolverMultistepScheduler"):
        schedule = read_scheduler(folder, name)
        assert (schedule.process, schedule.solver, schedule.grid) == (
            make_process("stable_diffusion"),
            "dpmpp",
            "linspace",
        )
    assert read_scheduler(folder, "euler_a", scheduler).process == make_process("animatediff")
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(WAN))
    for path in (file, tmp_path):
        assert read_scheduler(folder, path, scheduler) == schedule_of(WAN)
    with pytest.raises(
        InputError, match=r"scheduler=best is no scheduler_config\.json, nor .* one of ddim, ddpm, pndm"
    ):
        read_scheduler(folder, "best")


def test_a_flow_stays_a_flow(folder):
    with pytest.raises(InputError, match=r"EulerDiscreteScheduler does not fit .* no flow: take another"):
        read_scheduler(folder, "flow_euler")
    file = folder / "scheduler" / "scheduler_config.json"
    for config in (WAN, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}):
        file.write_text(json.dumps(config))
        for name in ("unipc", "dpmpp", "flow_euler"):
            schedule = read_scheduler(folder, name)
            assert (schedule.process, schedule.prediction) == (make_process("flow", shift=3.0), "flow")
        with pytest.raises(InputError, match="DDIMScheduler does not fit this model, which is a flow: take flow_euler"):
            read_scheduler(folder, "ddim")


def test_every_short_name_is_a_class():
    assert {name for name in SHORT.values() if not schedule_of({"_class_name": name, "skip_prk_steps": True})} == set()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "LMSDiscreteScheduler"}, "LMSDiscreteScheduler is not implemented; DDIM.* are; --scheduler="),
        (STABLE_DIFFUSION | {"skip_prk_steps": False}, "skip_prk_steps=False is not implemented; it must be True"),
        (STABLE_DIFFUSION | {"prediction_type": "sample"}, "must be epsilon or v_prediction"),
        (
            MODELSCOPE | {"prediction_type": "noise"},
            "prediction_type='noise' is not implemented; it must be epsilon or",
        ),
        (
            MODELSCOPE | {"timestep_spacing": "even"},
            "timestep_spacing='even' is not implemented; it must be leading or",
        ),
        (
            MODELSCOPE | {"beta_schedule": "sigmoid"},
            "beta_schedule='sigmoid' is not implemented; .*; --scheduler=<name",
        ),
        (
            MODELSCOPE | {"trained_betas": [0.1] * 1000},
            r"trained_betas=\[0\.1, 0\.1, .*, \.\.\.\] is not .* be None; --s",
        ),
        (
            MODELSCOPE | {"thresholding": True, "sample_max_value": 2},
            "sample_max_value=2 is not implemented; it must be 1",
        ),
        (MODELSCOPE | {"clip_sample": True, "clip_sample_range": 2}, "clip_sample_range=2 is not implemented"),
        (
            SVD | {"use_karras_sigmas": False},
            "use_karras_sigmas=False is not implemented; it must be True with timestep",
        ),
        (SVD | {"sigma_min": None}, "sigma_min=None and sigma_max=700.0 must both be numbers"),
        (
            WAN | {"final_sigmas_type": "sigma_min"},
            "final_sigmas_type='sigma_min' .* must be 'zero' with use_flow_sigmas",
        ),
        (WAN | {"use_dynamic_shifting": True}, "use_dynamic_shifting=True is not implemented; it must be False"),
        (WAN | {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}, "must be False"),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_exponential_sigmas": True},
            "use_exponential_sigmas=True is not implemented; it must be False",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1},
            "lambda_min_clipped=-5.1 is not implemented; it must be -inf",
        ),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "use_karras_sigmas": True,
                "beta_schedule": "squaredcos_cap_v2",
            },
            "use_karras_sigmas=True is not implemented; it must be False with beta_schedule",
        ),
    ],
)
def test_what_is_not_implemented_is_named(config, message):
    with pytest.raises(InputError, match=message):
        schedule_of(config)


def test_a_folder_without_a_scheduler(tmp_path):
    with pytest.raises(InputError, match=r"scheduler_config\.json cannot be read"):
        read_scheduler(tmp_path)
