"""The name of a training: a hash of all that decides it, by which a finished run is found again."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import ml_collections

from vdm_jax.build import NETWORKS, TEXT_ENCODERS
from vdm_jax.config import default_config, flatten, is_free, read_config
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import PROCESSES

INIT_FROM = "init_from"

# Keys that may change when a run is resumed, but that decide the result of a new run.
_DECIDING = {f"model.{key}" for key in ("network.folder", "network.motion_adapter", "text.folder", "codec.folder")}
_DECIDING |= {"steps"}


def run_hash(config: ml_collections.ConfigDict) -> str:
    """The name of a training: equal for configs that train the same network on the same batches.

    Keys at their defaults do not change the name, whether they are written or not. Free keys do not either
    (`config.FREE_KEYS`). `init_from` counts as the hash of that run, not as a path.
    """
    # 1 and 1.0 must have the same hash.
    training = json.loads(json.dumps(training_of(config)), parse_int=float)
    return hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:16]


def training_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys that decide a training: all keys that differ from their defaults, except free keys."""
    values = flatten(json.loads(config.to_json()))
    default = _defaults(config)
    free = [key for key in values if is_free(key) and key not in _DECIDING]
    if config.data.name == "folder":  # the path identifies the data
        free.remove("data.data_dir")
    deciding = {key: value for key, value in values.items() if key not in free and value != default.get(key, ...)}
    if config.init_from:
        run = Path(config.init_from)
        # A run that is not trained yet has no config, but the name of its folder is its hash.
        deciding[INIT_FROM] = run_hash(read_config(run)) if (run / "config.json").exists() else run.name
    return deciding


def _defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The default of every key, including arguments that appear only in the target function's signature."""
    defaults = flatten(json.loads(default_config().to_json()))
    kind, preset = PROCESSES.get(config.process.name, PROCESSES["cosine"])
    groups = {
        "model.network": NETWORKS.get(config.model.network.get("kind")),
        "model.text": TEXT_ENCODERS.get(config.model.text.get("kind")),
        "objective": Objective,
        "process": kind,
        "known": MaskMixture,
    }
    for group, function in groups.items():
        parameters = inspect.signature(function.__init__).parameters if function else {}  # none for a loaded part
        for name, parameter in parameters.items():
            if parameter.default is not parameter.empty:
                defaults.setdefault(f"{group}.{name}", parameter.default)
    defaults |= {f"process.{name}": value for name, value in preset.items()}
    return json.loads(json.dumps(defaults, default=lambda value: None))
