"""Studies: a base config, arms that each change something of it, seeds, metrics, and the claim that is tested.

A study is a Python file with `get_study()`, or `get_study(scale)` for `file.py:scale`, that returns a `Study`. Its plan
has a cell for each arm and seed. A cell is drawn from a run; cells whose training is the same share one, whatever study
they are of, for a run is named by the hash of all that decides its training.
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
from flax import nnx

from vdm_jax import configuration
from vdm_jax.errors import InputError
from vdm_jax.evaluation.known import MODES, check_strength, mask_of
from vdm_jax.evaluation.metrics import PROTOCOL, check_metrics, check_weights, hash_of
from vdm_jax.generation.settings import Settings, check_sampling, settings_of
from vdm_jax.studies.run_hash import INIT_FROM, run_hash
from vdm_jax.training.trainee import in_common

SAMPLE = "sample."  # changes of these keys are settings of the sampler: they leave the run as it is
KNOWN = "known"  # a change of this key is a mode of `evaluation.known.MODES`: it leaves the run as it is, too


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What is compared.

    Args:
        claim: what is said to be so, and `source`, who said it where.
        base: the config that every arm begins with.
        arms: by name, the changes of keys such as "objective.prediction". A function is given the base's value.
            "sample.guidance" and the like are fields of `Settings`, and "known" is a mode in the place of the study's:
            arms that differ in these alone share their runs.
            "init_from" is a dict of changes, too: of a run that is trained first, and that this one begins with.
        metrics: of `score.METRICS`.
        known: a mode of `known.MODES`, "" for clips that are drawn on their captions alone.
        along: the key that curves are drawn along; "": arms are drawn side by side.
        weights: files of the networks that metrics look with, as of `metrics.load_networks`.
        devices: that a run is trained on, out of those of a machine; 0 for all of them.
    """

    claim: str
    source: str
    base: ml_collections.ConfigDict
    arms: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[str]
    seeds: Sequence[int] = (0, 1, 2)
    num: int = 256  # videos for each arm and seed
    batch_size: int = 64  # of drawing
    known: str = ""
    along: str = ""
    devices: int = 1
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""  # given by `load_study`


def sweep(arms: Mapping[str, Mapping[str, Any]], key: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every arm at every value of a key; `values` are named, and the name is added: "ddim" becomes "ddim, 4 steps"."""
    return {
        ", ".join(filter(None, (name, label))): dict(arm) | {key: value}
        for name, arm in arms.items()
        for label, value in values.items()
    }


def load_study(where: str) -> Study:
    """The study of a file, `configs/ablations/x.py` or `configs/ablations/x.py:scale`.

    Raises:
        InputError: there is none, or it cannot be made; the line says why.
    """
    file, _, scale = where.partition(":")
    path = Path(file)
    if not path.is_file():
        known = sorted(map(str, path.parent.glob("*.py"))) if path.suffix else []
        raise InputError(
            f"--study={where} is not there; " + (f"there are {', '.join(known)}" if known else "a .py file")
        )
    try:
        get_study = runpy.run_path(str(path))["get_study"]
        scales = typing.get_args(get_study.__annotations__.get("scale"))
        if scale and scales and scale not in scales:
            raise InputError(f"--study={where}: {scale!r} must be one of {', '.join(scales)}")
        study = get_study(*([scale] if scale else []))
    except InputError:
        raise
    except Exception as error:  # a study is a program: what it may raise has no limit
        what = "no get_study()" if isinstance(error, KeyError) and error.args == ("get_study",) else error
        raise InputError(f"--study={where}: {type(error).__name__}: {what}") from error
    if not isinstance(study, Study):
        raise InputError(f"--study={where}: get_study() must return a Study, not {type(study).__name__}")
    return dataclasses.replace(study, name="-".join(filter(None, (path.stem, scale))))


def changed(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a config with dotted keys changed; keys that are not the config's are passed over (`sample.*`, `known`
    and `init_from`).

    Raises:
        InputError: no such key, or a value of another type.
    """
    ours = {k: v for k, v in changes.items() if not k.startswith(SAMPLE) and k not in (INIT_FROM, KNOWN)}
    return _set(config, ours)


def change_base(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a study's base with dotted keys changed, those of the sampler as well.

    Raises:
        InputError: no such key, a value of another type, or a key that is not the base's to say.
    """
    for key, instead in {"seed": "--seeds", INIT_FROM: "an arm of the study"}.items():
        if key in changes:
            raise InputError(f"{key}={changes[key]!r} is not said by the base config but by {instead}")
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
    """What a dotted key stands for; "" for the whole."""
    return functools.reduce(lambda group, name: group[name], key.split(".") if key else [], config)


def load_config(path: Path, *arguments: str) -> ml_collections.ConfigDict:
    """The config of a file in configs/, for a study to begin with."""
    return runpy.run_path(str(path))["get_config"](*arguments)


# ------------------------------------------------------------------------------------------------- the plan


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A training: `name` is its hash and its folder; `begins_with` must be trained before it."""

    config: ml_collections.ConfigDict
    name: str
    folder: Path
    begins_with: "Run | None" = None

    @functools.cached_property
    def recipe(self) -> str:
        """The same for all seeds and lengths: what decides the time that a step takes."""
        config = copy.deepcopy(self.config)
        config.seed, config.steps, config.init_from = 0, 1, ""
        return run_hash(config)

    @property
    def finished(self) -> bool:
        """Whether there is a checkpoint of the last step."""
        return (self.folder / "checkpoints" / str(self.config.steps)).is_dir()


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """An arm with a seed: how it is drawn, from which run, and the file of its result. Floors have no run."""

    arm: str
    seed: int
    run: Run | None
    settings: dict[str, Any]
    about: dict[str, Any]  # all that the result depends on
    file: Path


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Every cell of a study, in the order of the seeds; `floors` says what metrics say of real clips."""

    study: Study
    cells: tuple[Cell, ...]
    floors: Cell

    @functools.cached_property
    def runs(self) -> dict[str, Run]:
        """Every training, once."""
        return {cell.run.name: cell.run for cell in self.cells}

    @property
    def modes(self) -> tuple[str, ...]:
        """Every mode that an arm is drawn in, once; "" is drawing on captions alone."""
        return tuple(dict.fromkeys(cell.about["known"] for cell in self.cells))


def make_plan(study: Study, runs: Path, out: Path) -> Plan:
    """All that is to be trained below `runs` and measured into `out`; trains and draws nothing.

    Raises:
        InputError: an arm that cannot be trained or drawn; the line names it.
    """
    if not study.arms or not study.seeds:
        raise InputError(f"a study must have arms and seeds, not {list(study.arms)} and {list(study.seeds)}")
    if study.num < 2 or study.batch_size < 1:
        raise InputError(f"num={study.num} must be at least 2, and batch_size={study.batch_size} at least 1")
    for arm, changes in study.arms.items() if study.along else ():
        if not isinstance(value := changes.get(study.along), int | float):
            raise InputError(f"arm {arm!r}: {study.along}={value!r} must be a number, as the arms lie along it")
    if len(set(study.seeds)) < len(study.seeds):
        raise InputError(f"seeds={','.join(map(str, study.seeds))} must differ")
    for seed in study.seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"seed {seed} must be at least 0 and below 2**32")
    cells, trained = [], {}
    known = {arm: changes.get(KNOWN, study.known) for arm, changes in study.arms.items()}
    for arm in study.arms:
        try:
            metrics = check_metrics(study.metrics, known[arm])
            _check_arm(study, arm, known[arm])
        except InputError as error:
            raise InputError(f"arm {arm!r}: {error}") from error
    check_weights(metrics, study.weights)
    common = {"metrics": metrics, "num": study.num, "protocol": PROTOCOL}
    if study.weights:
        common["weights"] = {name: hash_of(Path(path)) for name, path in sorted(study.weights.items())}
    data = configuration.flatten(json.loads(study.base.to_json())["data"])
    # What is measured with: of a folder the place says which videos, of a data set with a name it is a matter of the
    # machine.
    data = {k: v for k, v in data.items() if k != "data_dir" or data["name"] == "folder"}
    for seed in study.seeds:
        for arm, changes in study.arms.items():
            run = _run_of(study.base, changes, seed, runs)
            run = trained.setdefault(run.name, run)
            settings = dataclasses.asdict(_settings_of(run.config, _sampling(changes)))
            about = {"arm": arm, "seed": seed, "run": run.name, "settings": settings, "known": known[arm]} | common
            if any(key.startswith("data.") for key in changes):  # else the run's name says it
                about["data"] = data
            cells.append(Cell(arm, seed, run, settings, about, _result_file(out, about)))
    modes = "; ".join(dict.fromkeys(known.values()))
    about = {"arm": "floors", "seed": study.seeds[0], "data": data, "known": modes} | common
    return Plan(study, tuple(cells), Cell("floors", study.seeds[0], None, {}, about, _result_file(out, about)))


def shard(plan: Plan, part: int, parts: int) -> list[Run]:
    """The runs of one of so many machines, 1 to `parts`: each run is of exactly one, with all cells drawn from it."""
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


def _check_arm(study: Study, arm: str, known: str) -> None:
    """Makes the shapes of an arm's networks and the table of its sampler, for their checks alone."""
    changes = study.arms[arm]
    config, model = _check_training(study.base, changes)
    if INIT_FROM in changes:
        _, before = _check_training(study.base, changes[INIT_FROM])
        in_common(*(nnx.to_pure_dict(nnx.split(network)[1]) for network in (model, before)), INIT_FROM)
    settings = _settings_of(config, _sampling(changes))
    check_sampling(settings, configuration.process_of(config), [""], model.tokenize)
    shape, asked = (
        tuple(c.data[name] for name in ("frames", "height", "width", "channels")) for c in (config, study.base)
    )
    if shape != asked:
        raise InputError(
            f"frames, height, width, channels={shape} must be those of the base {asked}: one measure for all"
        )
    if not known:
        return
    mask_of(known, shape)
    check_strength(known, settings.strength)
    if settings.respect != "reconstruct" and (factor := MODES[known].factor) != config.known.downsample:
        raise InputError(f"known={known!r} needs known.downsample={factor}, not {config.known.downsample}")


def _check_training(base, changes) -> tuple[ml_collections.ConfigDict, nnx.Module]:
    config = changed(base, changes)
    configuration.check_keys(config)
    configuration.check_numbers(config)
    configuration.optimizer_of(config)
    configuration.objective_of(config)
    model, data = configuration.abstract_model(config), config.data
    model.unet.check_size(data.frames, data.height, data.width, data.joint_images)
    return config, model


def _sampling(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the sampler among an arm's changes."""
    return {key.removeprefix(SAMPLE): value for key, value in changes.items() if key.startswith(SAMPLE)}


def _settings_of(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> Settings:
    settings = settings_of(config)
    if "grid" in changes:
        changes = {"grid_options": ()} | dict(changes)
    try:
        settings = dataclasses.replace(settings, **changes)
    except TypeError as error:
        raise InputError(f"{SAMPLE}*: {error}") from error
    if settings.respect == "concat" and configuration.conditioning_of(config) is None:
        raise InputError("sample.respect='concat' needs known.mixture: a network that is trained to be told")
    return settings


def _result_file(out: Path, about: Mapping[str, Any]) -> Path:
    """Named by what it is of: another number of videos is another file, and none is overwritten."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^a-z0-9]+", "-", about["arm"].lower()).strip("-")[:40]
    return out / "results" / f"{words}-seed{about['seed']}-{digest}.json"
