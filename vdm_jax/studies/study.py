"""Studies: a base config, arms that change keys of it, seeds, metrics, and the claim to test.

A study is a Python file with `get_study()`, or `get_study(scale)` for `file.py:scale`, that returns a `Study`. Its plan
has a cell for each arm and seed, and a run for each training. The name of a run is the hash of all that decides its
training, so cells with the same training share a run, even between studies.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
import runpy
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from vdm_jax.build import build
from vdm_jax.config import check_keys, check_numbers, flatten
from vdm_jax.errors import InputError
from vdm_jax.evaluation.known import MODES, check_strength, mask_of
from vdm_jax.evaluation.metrics import PROTOCOL, check_metrics, check_weights, hash_of
from vdm_jax.generation.settings import Settings, check_sampling
from vdm_jax.model import Model
from vdm_jax.split import in_common
from vdm_jax.studies.run_hash import INIT_FROM, run_hash
from vdm_jax.training.optimizer import optimizer_of

SAMPLE = "sample."  # keys that begin so are settings of the sampler: they do not change the run
KNOWN = "known"  # the mode, from `evaluation.known.MODES`: it does not change the run either


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A comparison of arms.

    An arm has a name and the changes of keys such as "objective.prediction". A function is called with the value in the
    base. Three kinds of keys are not keys of the config. "sample.guidance" etc. are fields of `Settings`. "known" is a
    mode that replaces the mode of the study. "init_from" is a dict of changes that describes another run, which is
    trained first and initialises this run. Arms that differ only in "sample.*" and "known" share their runs.
    """

    claim: str  # the statement to test
    source: str  # who stated it, and where
    base: ml_collections.ConfigDict  # the config that the arms change
    arms: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[str]  # names from `metrics.METRICS`
    seeds: Sequence[int] = (0, 1, 2)
    num: int = 256  # videos for each arm and seed
    batch_size: int = 64  # videos drawn at a time
    known: str = ""  # a mode of `known.MODES`; "" draws clips from their captions alone
    along: str = ""  # the key on the horizontal axis of the charts; "" draws the arms side by side
    devices: int = 1  # that a run is trained on; 0 for all devices of the machine
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)  # as for `metrics.load_networks`
    name: str = ""  # set by `load_study`


def sweep(arms: Mapping[str, Mapping[str, Any]], key: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every arm with every value of a key. `values` have names, which are appended: "ddim" becomes "ddim, 4 steps"."""
    return {
        ", ".join(filter(None, (name, label))): dict(arm) | {key: value}
        for name, arm in arms.items()
        for label, value in values.items()
    }


def load_study(spec: str) -> Study:
    """The study of a file, `configs/ablations/x.py` or `configs/ablations/x.py:scale`.

    Raises InputError if there is no such file or scale, or the file fails.
    """
    file, _, scale = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        files = sorted(map(str, path.parent.glob("*.py"))) if path.suffix else []
        hint = f"there are {', '.join(files)}" if files else "it must be a .py file"
        raise InputError(f"--study={spec} does not exist; {hint}")
    try:
        get_study = runpy.run_path(str(path))["get_study"]
        scales = typing.get_args(get_study.__annotations__.get("scale"))
        if scale and scales and scale not in scales:
            raise InputError(f"--study={spec}: {scale!r} must be one of {', '.join(scales)}")
        study = get_study(*([scale] if scale else []))
    except InputError:
        raise
    except Exception as error:  # a study is a program: it may raise anything
        reason = "no get_study()" if isinstance(error, KeyError) and error.args == ("get_study",) else error
        raise InputError(f"--study={spec}: {type(error).__name__}: {reason}") from error
    if not isinstance(study, Study):
        raise InputError(f"--study={spec}: get_study() must return a Study, not {type(study).__name__}")
    return dataclasses.replace(study, name="-".join(filter(None, (path.stem, scale))))


def changed(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a config with the changes of an arm, except for `sample.*`, `known` and `init_from`."""
    of_config = {k: v for k, v in changes.items() if not k.startswith(SAMPLE) and k not in (INIT_FROM, KNOWN)}
    return _set(config, of_config)


def change_base(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of the base of a study with dotted keys changed, including `sample.*`.

    Raises InputError for no such key, a value of another type, or a key that the base does not set.
    """
    for key, place in {"seed": "--seeds", INIT_FROM: "an arm of the study"}.items():
        if key in changes:
            raise InputError(f"{key}={changes[key]!r} must be set by {place}, not in the base config")
    return _set(config, changes)


def _set(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    for key, value in changes.items():
        groups, _, last = key.rpartition(".")
        try:
            group = value_at(config, groups)
            group[last] = value(group[last]) if callable(value) else value
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{key}={value!r} cannot be set: {' '.join(str(error).split())}") from error
    return config


def value_at(config: ml_collections.ConfigDict, key: str) -> Any:
    """The value of a dotted key; "" is the whole config."""
    return functools.reduce(lambda group, name: group[name], key.split(".") if key else [], config)


# ------------------------------------------------------------------------------------------------- the plan


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training."""

    config: ml_collections.ConfigDict
    name: str  # the hash of all that decides the training
    folder: Path
    begins_with: "Run | None" = None  # the run of `init_from`, which is trained first

    @functools.cached_property
    def recipe(self) -> str:
        """A hash that is equal for all seeds and numbers of steps: it decides the time of a step."""
        config = copy.deepcopy(self.config)
        config.seed, config.steps, config.init_from = 0, 1, ""
        return run_hash(config)

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the last step exists."""
        return (self.folder / "checkpoints" / str(self.config.steps)).is_dir()


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """An arm with a seed, and the file of its result."""

    arm: str
    seed: int
    run: Run | None  # None for the floors
    settings: dict[str, Any]  # of the sampler
    inputs: dict[str, Any]  # all that the result depends on
    file: Path


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All cells of a study, ordered by seed, and the cell of its floors."""

    study: Study
    cells: tuple[Cell, ...]
    floors: Cell

    @functools.cached_property
    def runs(self) -> dict[str, Run]:
        return {cell.run.name: cell.run for cell in self.cells}

    @functools.cached_property
    def all_runs(self) -> dict[str, Run]:
        """All runs by name, including the runs that initialise others."""
        return {r.name: r for run in self.runs.values() for r in (run, run.begins_with) if r is not None}

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of all arms; "" for captions alone."""
        return tuple(dict.fromkeys(cell.inputs["known"] for cell in self.cells))


def make_plan(study: Study, runs: Path, out: Path) -> Plan:
    """Plans the runs, in folders in `runs`, and the results, as files in `out`. Trains and draws nothing.

    Raises InputError for an arm that cannot be trained or drawn, with its name.
    """
    known = {arm: changes.get(KNOWN, study.known) for arm, changes in study.arms.items()}
    metrics, settings = _check_study(study, known)
    cells, trained = [], {}
    common = {"metrics": metrics, "num": study.num, "protocol": PROTOCOL}
    if study.weights:
        common["weights"] = {name: hash_of(Path(path)) for name, path in sorted(study.weights.items())}
    data = flatten(json.loads(study.base.to_json())["data"])
    # The data of the measurement. The path identifies the data of a folder; for a named data set it depends on the
    # machine.
    data = {k: v for k, v in data.items() if k != "data_dir" or data["name"] == "folder"}
    for seed in study.seeds:
        for arm, changes in study.arms.items():
            run = _run_of(study.base, changes, seed, runs)
            run = trained.setdefault(run.name, run)
            inputs = {"arm": arm, "seed": seed, "run": run.name, "settings": settings[arm], "known": known[arm]}
            if any(key.startswith("data.") for key in changes):  # otherwise the name of the run depends on the data
                inputs["data"] = data
            cells.append(Cell(arm, seed, run, settings[arm], inputs | common, _result_file(out, inputs | common)))
    modes = "; ".join(dict.fromkeys(known.values()))
    inputs = {"arm": "floors", "seed": study.seeds[0], "data": data, "known": modes} | common
    return Plan(study, tuple(cells), Cell("floors", study.seeds[0], None, {}, inputs, _result_file(out, inputs)))


def _check_study(study: Study, known: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Checks a study, with the mode of each arm. Returns the names of its metrics, and the settings of each arm."""
    if not study.arms or not study.seeds:
        raise InputError(f"a study must have arms and seeds, not {list(study.arms)} and {list(study.seeds)}")
    if study.num < 2 or study.batch_size < 1:
        raise InputError(f"num={study.num} must be at least 2, and batch_size={study.batch_size} at least 1")
    for arm, changes in study.arms.items() if study.along else ():
        if not isinstance(value := changes.get(study.along), int | float):
            raise InputError(f"arm {arm!r}: {study.along}={value!r} must be a number: it is the axis of the charts")
    if len(set(study.seeds)) < len(study.seeds):
        raise InputError(f"seeds={','.join(map(str, study.seeds))} must differ")
    if bad := [seed for seed in study.seeds if not 0 <= seed < 2**32]:
        raise InputError(f"seed {bad[0]} must be at least 0 and below 2**32")
    settings = {}
    for arm, changes in study.arms.items():
        try:
            metrics = check_metrics(study.metrics, known[arm])
            settings[arm] = dataclasses.asdict(_check_arm(study, changes, known[arm]))
        except InputError as error:
            raise InputError(f"arm {arm!r}: {error}") from error
    check_weights(metrics, study.weights)
    return metrics, settings


def shard(plan: Plan, part: int, parts: int) -> list[Run]:
    """The runs of machine `part` of `parts`, counted from 1. Each run belongs to one machine, with all of its cells."""
    if not 1 <= part <= parts:
        raise InputError(f"--shard={part}/{parts} must be 1/{parts} to {parts}/{parts}")
    return list(plan.runs.values())[part - 1 :: parts]


def _run_of(base: ml_collections.ConfigDict, changes: Mapping[str, Any], seed: int, runs: Path) -> Run:
    config, before = changed(base, changes), None
    config.seed = seed
    if INIT_FROM in changes:
        before = _run_of(base, changes[INIT_FROM], seed, runs)
        config.init_from = str(before.folder)
    name = run_hash(config)
    return Run(config, name, runs / name, before)


def _check_arm(study: Study, changes: Mapping[str, Any], known: str) -> Settings:
    """Builds the shapes of an arm's networks and the table of its sampler, which check their arguments."""
    config, model = _check_training(study.base, changes)
    if INIT_FROM in changes:
        _, before = _check_training(study.base, changes[INIT_FROM])
        in_common(model.params, before.params, INIT_FROM)
    names = ("frames", "height", "width", "channels")
    shape, base_shape = (tuple(c.data[name] for name in names) for c in (config, study.base))
    if shape != base_shape:
        raise InputError(
            f"{', '.join(names)}={shape} must equal the base's {base_shape}: all arms have the same metrics"
        )
    try:
        sampling = {key.removeprefix(SAMPLE): value for key, value in changes.items() if key.startswith(SAMPLE)}
        settings = Settings(**model.sampling).changed(sampling)
    except InputError as error:
        raise InputError(f"{SAMPLE}{error}") from error
    if known:
        mask_of(known, shape)
        check_strength(known, settings.strength)
    settings.check_model(model, MODES[known].factor if known else 1)
    check_sampling(settings, model, [""])
    return settings


def _check_training(base, changes) -> tuple[ml_collections.ConfigDict, Model]:
    config = changed(base, changes)
    check_keys(config)
    check_numbers(config)
    optimizer_of(config)
    return config, build(config)


def _result_file(out: Path, inputs: Mapping[str, Any]) -> Path:
    """A file named by the hash of its inputs: a result with other inputs overwrites nothing."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^a-z0-9]+", "-", inputs["arm"].lower()).strip("-")[:40]
    return out / "results" / f"{words}-seed{inputs['seed']}-{digest}.json"
