"""Reads published schedulers (`scheduler_config.json`) as a process, a prediction, a grid and a solver."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import Config

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}


class Schedule(NamedTuple):
    """How a published model is sampled; `grid_options` are options of `make_grid`."""

    process: Process
    prediction: str
    solver: str
    grid: str
    grid_options: tuple[tuple[str, Any], ...]


def read_scheduler(folder: str | Path, change: Callable[[Config], Config] = lambda config: config) -> Schedule:
    """Reads the schedule of a pipeline's folder; `change` is applied to its config first.

    Raises:
        InputError: the config is missing, or not implemented.
    """
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return schedule_of(change(config))


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Returns the schedule of a scheduler's config; missing settings have diffusers' defaults.

    Raises:
        InputError: a scheduler, or a setting of it, that is not implemented.
    """
    name = config.get("_class_name")
    if name not in _DEFAULTS:
        raise InputError(f"scheduler {name} is not implemented; {', '.join(_DEFAULTS)} are")
    config = _COMMON | _DEFAULTS[name] | {k: v for k, v in config.items() if not k.startswith("_")}
    for key, valid in _IMPLEMENTED.items():
        if key in config and config[key] not in valid:
            raise InputError(f"{name}: {key}={config[key]!r} is not implemented; it must be {valid[0]!r}")
    if config["prediction_type"] not in PREDICTIONS:
        raise InputError(
            f"{name}: prediction_type={config['prediction_type']!r} must be one of {', '.join(PREDICTIONS)}"
        )
    prediction = PREDICTIONS[config["prediction_type"]]
    if name == "EulerDiscreteScheduler" and config["timestep_type"] == "continuous":
        return _euler_on_karras_sigmas(config, prediction)
    process = make_process(
        "ddpm",
        num_steps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )
    spacing, options = config["timestep_spacing"], {}
    if config.get("use_karras_sigmas"):
        raise InputError(f"{name}: use_karras_sigmas=True needs timestep_type='continuous'")
    if spacing not in _SPACINGS[name]:
        raise InputError(f"{name}: timestep_spacing={spacing!r} must be one of {', '.join(_SPACINGS[name])}")
    if spacing == "leading":
        options["steps_offset"] = config["steps_offset"]
    final = not config["set_alpha_to_one"] if name == "DDIMScheduler" else config["final_sigmas_type"] == "sigma_min"
    if final:
        options["final"] = "first"
    solver = "dpmpp" if name == "DPMSolverMultistepScheduler" else "ddim"
    if name == "DDIMScheduler" and spacing in ("linspace", "trailing"):
        solver = "ddim_strided"
    return Schedule(process, prediction, solver, spacing, tuple(options.items()))


def _euler_on_karras_sigmas(config: Mapping[str, Any], prediction: str) -> Schedule:
    """Returns Stable Video Diffusion's schedule: its network takes ¼ ln σ as time, as in EDM (Karras et al. 2022)."""
    for key, value in (("use_karras_sigmas", True), ("prediction_type", "v_prediction"), ("final_sigmas_type", "zero")):
        if config[key] != value:
            raise InputError(
                f"EulerDiscreteScheduler: {key}={config[key]!r} is not implemented with timestep_type='continuous'; "
                f"it must be {value!r}"
            )
    low, high = config["sigma_min"], config["sigma_max"]
    if low is None or high is None:
        raise InputError(f"EulerDiscreteScheduler: sigma_min={low} and sigma_max={high} must both be numbers")
    return Schedule(make_process("edm", sigma_min=low, sigma_max=high), prediction, "ddim", "karras", ())


_COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "trained_betas": None,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True},
    "EulerDiscreteScheduler": {
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "use_karras_sigmas": False,
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
    },
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace", "final_sigmas_type": "zero"},
}
# Spacings that equal `make_grid`'s; in diffusers' other schedulers the same names give other times.
_SPACINGS = {
    "DDIMScheduler": ("leading", "trailing", "linspace"),
    "EulerDiscreteScheduler": ("leading", "trailing"),
    "DPMSolverMultistepScheduler": ("trailing",),
}
# Implemented values of settings that change the samples.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("scaled_linear", "linear"),
    "trained_betas": (None,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (2,),
    "euler_at_final": (False,),
    "lower_order_final": (True,),
    "variance_type": (None,),
    "lambda_min_clipped": (-math.inf, None),
}
