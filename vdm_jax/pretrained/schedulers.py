"""Reads published schedulers (`scheduler_config.json`) as a process, a prediction, a grid and a solver."""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.scheduler_defaults import DEFAULTS, IMPLEMENTED

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x", "flow_prediction": "flow"}
HINT = "--scheduler=<name or file> takes another one"


class Schedule(NamedTuple):
    """How a published model is sampled; all but process and prediction are fields of `generation.settings.Settings`."""

    process: Process
    prediction: str
    solver: str
    grid: str
    grid_options: dict[str, Any]
    solver_options: dict[str, Any]
    eta: float = 0.0
    clip: str | None = None
    first_noise: str = "total"

    @property
    def sampling(self) -> dict[str, Any]:
        """Defaults of the settings."""
        return {name: value for name, value in self._asdict().items() if name not in ("process", "prediction")}


def read_scheduler(
    folder: str | Path,
    scheduler: str | Path | None = None,
    change: Callable[[Config], Config] = lambda config: config,
) -> Schedule:
    """Reads the schedule of a pipeline's folder; `change` is applied to its config first.

    `scheduler` replaces it. A class of diffusers or a short name (keys of `SHORT`) replaces the class: the settings in
    the file stay where the class has them, as in diffusers' `from_config`. A scheduler_config.json, or a folder with
    one, replaces everything.

    Raises:
        InputError: the config is missing, or not implemented.
    """
    name = SHORT.get(str(scheduler), str(scheduler))
    if scheduler is None or name in _SCHEDULERS:
        config = change(_read(Path(folder) / "scheduler" / "scheduler_config.json"))
        return schedule_of(config if scheduler is None else _with_class(config, name))
    paths = [Path(scheduler, *more, "scheduler_config.json") for more in ((), ("scheduler",))]
    paths = [path for path in (Path(scheduler), *paths) if path.is_file()]
    if not paths:
        raise InputError(
            f"scheduler={scheduler} is no scheduler_config.json, nor a folder with one, nor one of "
            f"{', '.join(SHORT)} or their names in diffusers"
        )
    return schedule_of(_read(paths[0]))


def _with_class(config: Config, name: str) -> Config:
    """Returns a config with another class. A flow stays a flow with its shift, whatever the classes call them."""
    is_flow = config.get("use_flow_sigmas", config.get("_class_name") == SHORT["flow_euler"])
    if "use_flow_sigmas" not in DEFAULTS[name] and is_flow != (name == SHORT["flow_euler"]):
        kind, right = ("a flow", "flow_euler, unipc or dpmpp") if is_flow else ("no flow", "another scheduler")
        raise InputError(f"scheduler={name} does not fit this model, which is {kind}: take {right}")
    shift = config.get("flow_shift", config.get("shift", 1.0))
    flow = {"shift": shift, "flow_shift": shift, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return config | {"_class_name": name} | (flow if is_flow else {})


def _read(path: Path) -> Config:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Returns the schedule of a scheduler's config, in which missing settings have diffusers' defaults.

    Settings that the class does not have are ignored, as by diffusers.

    Raises:
        InputError: a scheduler, or a setting of it, that is not implemented.
    """
    name = config.get("_class_name")
    if name not in _SCHEDULERS:
        raise InputError(f"scheduler {name} is not implemented; {', '.join(_SCHEDULERS)} are; {HINT}")
    config = {"_class_name": name} | {key: config.get(key, default) for key, default in DEFAULTS[name].items()}
    for key, valid in IMPLEMENTED.items():
        if key in config and config[key] not in valid:
            raise _refusal(config, key, " or ".join(map(repr, valid)))
    if config["prediction_type"] not in PREDICTIONS:
        raise _refusal(config, "prediction_type", " or ".join(PREDICTIONS))
    return _SCHEDULERS[name](config)


def _refusal(config: Config, key: str, valid: Any) -> InputError:
    value = reprlib.repr(config[key])
    return InputError(f"{config['_class_name']}: {key}={value} is not implemented; it must be {valid}; {HINT}")


# ----------------------------------------------------------------------------------------- the schedulers


def _ddim(config: Config) -> Schedule:
    options = {"strided": True} if config["timestep_spacing"] != "leading" else {}
    return _on_chain(config, "ddim", _steps(config), options, clip=_clip(config, "static_x"))


def _ddpm(config: Config) -> Schedule:
    return _on_chain(config, "ddim", _steps(config), eta=1.0, clip=_clip(config))


def _pndm(config: Config) -> Schedule:
    options = {"of": PREDICTIONS[config["prediction_type"]]}
    if options["of"] not in ("eps", "v"):
        raise _refusal(config, "prediction_type", "epsilon or v_prediction")
    if config["timestep_spacing"] != "leading":
        options["strided"] = True
    return _on_chain(config, "pndm", _steps(config), options)


def _euler(config: Config) -> Schedule:
    if config["timestep_type"] == "continuous":
        return _euler_on_karras_sigmas(config)
    grid = _levels(config, limits=config["timestep_spacing"], steps_offset=config["steps_offset"], network_time="log")
    options = {"rescaled": True} if config["final_sigmas_type"] == "sigma_min" else {}
    return _on_chain(config, "ddim", grid or _steps(config, whole=False), options)


def _euler_ancestral(config: Config) -> Schedule:
    return _on_chain(config, "ddim", _steps(config, whole=False), eta=1.0)


def _heun(config: Config) -> Schedule:
    grid = _levels(config, limits=config["timestep_spacing"], steps_offset=config["steps_offset"], network_time="log")
    return _on_chain(config, "heun", grid or _steps(config, whole=False), clip=_clip(config))


def _dpm_solver(config: Config) -> Schedule:
    kind = config["solver_type"]
    options = {
        "order": config["solver_order"],
        "kind": "midpoint" if kind in ("logrho", "bh1", "bh2") else kind,
        "lower_order_final": config["lower_order_final"],
        "euler_at_final": config["euler_at_final"],
    }
    eta = float(config["algorithm_type"] == "sde-dpmsolver++")
    return _multistep(config, "dpmpp", options, {"first": 0.999}, eta)


def _unipc(config: Config) -> Schedule:
    kind, shift = config["solver_type"], config["flow_shift"]
    options = {
        "order": config["solver_order"],
        "kind": "bh2" if kind in ("midpoint", "heun", "logrho") else kind,
        "lower_order_final": config["lower_order_final"],
        "uncorrected": tuple(config["disable_corrector"]),
    }
    noisiest = 1 - 1e-6  # diffusers' first σ on a flow, here before the shift
    first = noisiest / (shift - (shift - 1) * noisiest)
    return _multistep(config, "unipc", options, {"first": first, "beyond": 0.001}, 0.0)


def _multistep(config: Config, solver: str, options: Config, flow_grid: Config, eta: float) -> Schedule:
    """Returns the schedule of DPM-Solver++ or UniPC."""
    clip = _clip(config)
    if config["use_flow_sigmas"]:
        for key, valid in (("final_sigmas_type", "zero"), ("use_karras_sigmas", False), ("num_train_timesteps", 1000)):
            if config[key] != valid:
                raise _refusal(config, key, f"{valid!r} with use_flow_sigmas=True")
        grid = flow_grid | {"network_time": "whole"}
        process, prediction = make_process("flow", shift=config["flow_shift"]), PREDICTIONS[config["prediction_type"]]
        return Schedule(process, prediction, solver, "uniform", grid, options, eta, clip, "one")
    if config["use_exponential_sigmas"]:
        raise _refusal(config, "use_exponential_sigmas", False)
    if config["use_karras_sigmas"] and config["beta_schedule"] == "squaredcos_cap_v2":
        raise _refusal(config, "use_karras_sigmas", "False with beta_schedule='squaredcos_cap_v2'")
    grid = _levels(config, network_time="whole") or _steps(config, spare=True)
    return _on_chain(config, solver, grid, options, eta=eta, clip=clip)


def _lcm(config: Config) -> Schedule:
    grid = "distilled", {"teacher_steps": config["original_inference_steps"]}
    return _on_chain(config, "lcm", grid, {"scaling": config["timestep_scaling"]}, clip=_clip(config))


def _tcd(config: Config) -> Schedule:
    grid = "distilled", {"teacher_steps": config["original_inference_steps"], "final": "first"}
    return _on_chain(config, "tcd", grid, eta=0.3)


def _flow_euler(config: Config) -> Schedule:
    for key in ("use_karras_sigmas", "use_exponential_sigmas"):
        if config[key]:
            raise _refusal(config, key, False)
    shift = config["shift"]
    last = shift / (1000 + shift - 1)  # diffusers shifts the last training step twice
    return Schedule(make_process("flow", shift=shift), "flow", "ddim", "uniform", {"last": last}, {})


def _euler_on_karras_sigmas(config: Config) -> Schedule:
    """Returns Stable Video Diffusion's schedule: its network takes ¼ ln σ as time, as in EDM (Karras et al. 2022)."""
    for key, value in (("use_karras_sigmas", True), ("prediction_type", "v_prediction"), ("final_sigmas_type", "zero")):
        if config[key] != value:
            raise _refusal(config, key, f"{value!r} with timestep_type='continuous'")
    low, high = config["sigma_min"], config["sigma_max"]
    if low is None or high is None:
        raise InputError(f"EulerDiscreteScheduler: sigma_min={low} and sigma_max={high} must both be numbers; {HINT}")
    process = make_process("edm", sigma_min=low, sigma_max=high)
    return Schedule(process, "v", "ddim", "karras", {}, {}, first_noise=_first_noise(config))


def _first_noise(config: Config) -> str:
    in_sigma = config["_class_name"].startswith(("Euler", "Heun"))
    return "sigma" if in_sigma and config["timestep_spacing"] != "leading" else "total"


def _on_chain(
    config: Config, solver: str, grid: tuple[str, Config], options: Config | None = None, **fields: Any
) -> Schedule:
    """Returns a schedule on the chain of the config's β; solvers in σ/α do without α = 0 at the end of the chain."""
    zero_snr = config.get("rescale_betas_zero_snr", False)
    process = make_process(
        "ddpm",
        num_steps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        zero_terminal_snr=zero_snr,
        terminal_alpha=2**-12 if zero_snr and config["_class_name"].startswith(("Euler", "DPM", "UniPC")) else 0.0,
    )
    prediction, fields = PREDICTIONS[config["prediction_type"]], {"first_noise": _first_noise(config)} | fields
    return Schedule(process, prediction, solver, *grid, options or {}, **fields)


def _steps(config: Config, **linspace: bool) -> tuple[str, Config]:
    """Returns the grid of training steps. Raises InputError for an unknown spacing."""
    spacing = config["timestep_spacing"]
    options = {"leading": {"steps_offset": config["steps_offset"]}, "linspace": linspace, "trailing": {}}
    if spacing not in options:
        raise _refusal(config, "timestep_spacing", " or ".join(options))
    options["leading"] |= {"spare": True} if "spare" in linspace else {}
    return spacing, options[spacing] | _final(config)


def _levels(config: Config, **options: Any) -> tuple[str, Config] | None:
    """Returns the grid that is even in a function of σ/α, or None."""
    if not (config["use_karras_sigmas"] or config["use_exponential_sigmas"]):
        return None
    options |= {name: config[name] for name in ("sigma_min", "sigma_max") if config.get(name) is not None}
    return ("karras" if config["use_karras_sigmas"] else "log_snr"), options | _final(config)


def _final(config: Config) -> Config:
    first = not config.get("set_alpha_to_one", True) or config.get("final_sigmas_type") == "sigma_min"
    return {"final": "first"} if first else {}


def _clip(config: Config, kind: str = "static") -> str | None:
    """Returns the clipping of x̂; diffusers' dynamic thresholds are at most `sample_max_value`, 1 by default."""
    if config["thresholding"] and config["sample_max_value"] != 1:
        raise _refusal(config, "sample_max_value", 1)
    if config.get("clip_sample") and config["clip_sample_range"] != 1:
        raise _refusal(config, "clip_sample_range", 1)
    return kind if config["thresholding"] or config.get("clip_sample") else None


_SCHEDULERS = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
}
SHORT = dict(
    zip(
        ("ddim", "ddpm", "pndm", "euler", "euler_a", "heun", "dpmpp", "unipc", "lcm", "tcd", "flow_euler"),
        _SCHEDULERS,
        strict=True,
    )
)
