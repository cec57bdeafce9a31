"""Published schedulers are read as processes and grids."""

import json

import pytest

from vdm_jax.diffusion.process import make_process
from vdm_jax.errors import InputError
from vdm_jax.pretrained.families.animatediff import SCHEDULER as ANIMATEDIFF
from vdm_jax.pretrained.families.animatediff import scheduler
from vdm_jax.pretrained.schedulers import read_scheduler, schedule_of

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODELSCOPE = BETAS | {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.15.0.dev0",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "skip_prk_steps": True,
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


def test_modelscope_is_ddim_on_a_leading_grid_that_ends_at_the_first_training_step(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(MODELSCOPE))
    schedule = read_scheduler(tmp_path)
    assert schedule[0] == make_process("stable_diffusion")
    assert schedule[1:] == ("eps", "ddim", "leading", (("steps_offset", 1), ("final", "first")))


def test_animatediff_has_linear_betas_and_steps_of_one_length():
    schedule = schedule_of(ANIMATEDIFF)
    assert schedule[0] == make_process("animatediff")
    assert schedule[1:] == ("eps", "ddim_strided", "linspace", ())
    folder = {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
    assert schedule_of(scheduler(folder)) == schedule._replace(prediction="v")


def test_stable_video_diffusion_is_euler_on_karras_sigmas():
    assert schedule_of(SVD) == (make_process("edm", sigma_max=700.0), "v", "ddim", "karras", ())


def test_diffusers_ddim_takes_steps_of_one_length_on_a_trailing_grid():
    assert schedule_of(MODELSCOPE | {"timestep_spacing": "trailing"})[1:] == (
        "eps",
        "ddim_strided",
        "trailing",
        (("final", "first"),),
    )


def test_a_multistep_solver():
    config = BETAS | {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"}
    assert schedule_of(config)[1:] == ("eps", "dpmpp", "trailing", ())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "scheduler PNDMScheduler is not implemented; DDIMScheduler, Euler.* are"),
        (MODELSCOPE | {"clip_sample": True}, "clip_sample=True is not implemented; it must be False"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample=True is not implemented"),
        (MODELSCOPE | {"prediction_type": "flow"}, "prediction_type='flow' must be one of epsilon, v_prediction"),
        (MODELSCOPE | {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule='squaredcos_cap_v2' is not implemented"),
        (
            BETAS | {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1},
            "lambda_min_clipped=-5.1 is not implemented; it must be -inf",
        ),
        (SVD | {"use_karras_sigmas": False}, "use_karras_sigmas=False is not implemented with timestep_type='contin"),
        (SVD | {"sigma_min": None}, "sigma_min=None and sigma_max=700.0 must both be numbers"),
        (BETAS | {"_class_name": "EulerDiscreteScheduler"}, "timestep_spacing='linspace' must be one of leading"),
        (SVD | {"timestep_type": "discrete"}, "use_karras_sigmas=True needs timestep_type='contin"),
    ],
)
def test_what_is_not_implemented_is_named(config, message):
    with pytest.raises(InputError, match=message):
        schedule_of(config)


def test_a_folder_without_a_scheduler(tmp_path):
    with pytest.raises(InputError, match=r"scheduler_config\.json cannot be read"):
        read_scheduler(tmp_path)
