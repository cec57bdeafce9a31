"""Diffusers' settings of each scheduler, with their defaults, and the values that are implemented here."""

import math
from typing import Any

from vdm_jax.pretrained.folder import Config

_CHAIN = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_LATENT_CHAIN = _CHAIN | {"beta_start": 0.00085, "beta_end": 0.012}
_CLIP = {"clip_sample": False, "clip_sample_range": 1.0, "thresholding": False, "sample_max_value": 1.0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LINSPACE = {"timestep_spacing": "linspace"}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ENDS = {"final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None}
_MULTISTEP = {
    **(_CHAIN | _CLIP | _ZERO_SNR | _SIGMAS | _LINSPACE),
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "solver_order": 2,
    "lower_order_final": True,
}
_DPM_SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
}
_UNIPC = _ENDS | {
    "solver_type": "bh2",
    "disable_corrector": [],
    "predict_x0": True,
    "solver_p": None,
    "shift_terminal": None,
}
_DISTILLED = {
    **(_LATENT_CHAIN | _CLIP | _ZERO_SNR),
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
_FLOW_EULER = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "prediction_type": "flow_prediction",
    "invert_sigmas": False,
    "stochastic_sampling": False,
}

DEFAULTS: dict[str, Config] = {
    "DDIMScheduler": _CHAIN | _CLIP | _ZERO_SNR | {"clip_sample": True, "set_alpha_to_one": True},
    "DDPMScheduler": _CHAIN | _CLIP | _ZERO_SNR | {"clip_sample": True, "variance_type": "fixed_small"},
    "PNDMScheduler": _CHAIN | {"set_alpha_to_one": False, "skip_prk_steps": False},
    "EulerDiscreteScheduler": {
        **(_CHAIN | _ZERO_SNR | _SIGMAS | _LINSPACE | _ENDS),
        "timestep_type": "discrete",
        "interpolation_type": "linear",
    },
    "EulerAncestralDiscreteScheduler": _CHAIN | _ZERO_SNR | _LINSPACE,
    "HeunDiscreteScheduler": _LATENT_CHAIN | _CLIP | _SIGMAS | _LINSPACE,
    "DPMSolverMultistepScheduler": _MULTISTEP | _DPM_SOLVER,
    "UniPCMultistepScheduler": _MULTISTEP | _UNIPC,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "FlowMatchEulerDiscreteScheduler": _SIGMAS | _FLOW_EULER,
}
# Implemented values of settings that change the samples.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "trained_betas": (None,),
    "interpolation_type": ("linear",),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
    "predict_x0": (True,),
    "solver_p": (None,),
    "variance_type": (None, "fixed_small", "fixed_small_log"),
    "lambda_min_clipped": (-math.inf, None),
    "skip_prk_steps": (True,),
}
