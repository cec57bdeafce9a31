"""The name of a training: a hash of all that decides it, so that what is trained once is found again."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import ml_collections

from vdm_jax import configuration
from vdm_jax.diffusion.conditioning import Conditioning
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import PROCESSES
from vdm_jax.models.text import ByteEncoder
from vdm_jax.models.unet import UNet

INIT_FROM = "init_from"

# Keys that may change within a run, but decide what becomes of a new one.
_DECIDING = ("steps", "pretrained.folder", "pretrained.motion_adapter")


def run_hash(config: ml_collections.ConfigDict) -> str:
    """Names a training: equal for configs that train the same network on the same batches.

    Keys at their defaults count for nothing, whether they are written or not, and so do those that are free
    (`configuration.FREE_KEYS`). What a run begins with counts by its own hash.
    """
    text = json.dumps(_plain(training_of(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What decides a training: the keys that are not at their defaults, less the free ones."""
    values = configuration.flatten(json.loads(config.to_json()))
    default = _defaults(config)
    free = [key for key in values if configuration.is_free(key) and key not in _DECIDING]
    if config.data.name == "folder":  # where it lies says which data it is
        free.remove("data.data_dir")
    kept = {key: value for key, value in values.items() if key not in free and value != default.get(key, ...)}
    if config.init_from:
        begun = Path(config.init_from)
        # Before it is trained it has no config, but its name is its hash.
        kept[INIT_FROM] = run_hash(configuration.read_config(begun)) if (begun / "config.json").exists() else begun.name
    return kept


def _defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Of every key, also of those that only the function has which they are for."""
    found = configuration.flatten(json.loads(configuration.default_config().to_json()))
    kind, preset = PROCESSES.get(config.process.name, PROCESSES["cosine"])
    groups = {
        "model.unet": UNet,
        "model.text": ByteEncoder,
        "objective": Objective,
        "process": kind,
        "known": Conditioning,
    }
    for group, function in groups.items():
        for name, parameter in inspect.signature(function.__init__).parameters.items():
            if parameter.default is not parameter.empty:
                found.setdefault(f"{group}.{name}", parameter.default)
    found |= {f"process.{name}": value for name, value in preset.items()}
    return json.loads(json.dumps(found, default=lambda value: None))


def _plain(value: Any) -> Any:
    """1 and 1.0 are one number."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
