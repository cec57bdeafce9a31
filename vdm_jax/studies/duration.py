"""Estimates a study's duration from finished runs, timed steps and similar runs."""

import contextlib
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax.files import write_text
from vdm_jax.studies.results import read_result
from vdm_jax.studies.study import Cell, Plan, Run
from vdm_jax.training.loop import train

TIMED = 6  # steps of a measurement
BACKWARD = 8  # time of a gradient through the network on CPUs, in calls of the network


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to the first incomplete line."""
    lines = []
    with contextlib.suppress(OSError, ValueError):
        for line in (run.folder / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
    return lines


def step_of(run: Run) -> int:
    """The last logged step of a run; the number of all steps if it is finished."""
    lines = [] if run.finished else read_metrics(run)
    return run.config.steps if run.finished else lines[-1]["step"] if lines else 0


def training_seconds(run: Run | None) -> float:
    """The training time of a run, including the run that initialises it."""
    return 0.0 if run is None else sum(x["seconds"] for x in read_metrics(run)) + training_seconds(run.begins_with)


class Pace(NamedTuple):
    """The speed of a training."""

    start: float  # seconds until the first line of metrics, mostly compilation
    step: float  # seconds of a later step


def pace(run: Run) -> Pace | None:
    """The pace of a run from its metrics; None before their second line. Uses the median: the machine may be busy."""
    first, *lines = read_metrics(run) or [None]
    if not lines:
        return None
    return Pace(first["seconds"], run.config.batch_size / statistics.median(x["videos_per_second"] for x in lines))


def time_step(run: Run, timed: Path) -> None:
    """Trains a few steps of a run in a temporary folder, and saves its pace to the file `timed`."""
    config = run.config.copy_and_resolve_references()
    config.steps, config.log_every, config.init_from, config.optimizer.warmup = TIMED, 1, "", 0
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(run, config=config, folder=Path(folder) / "run")
        train(config, short.folder)
        paces = _read_paces(timed) | {run.recipe: pace(short)}
    write_text(timed, json.dumps(paces, indent=1) + "\n")


def untimed(plan: Plan, timed: Path) -> list[Run]:
    """A run of each recipe whose steps were not timed yet."""
    paces = _paces(plan, timed)
    return list({run.recipe: run for run in _all_runs(plan) if run.recipe not in paces}.values())


def seconds_left(plan: Plan, runs: Sequence[Run], timed: Path) -> dict[str, float] | None:
    """The remaining seconds of each run, by name, for its training and its cells; None without any measurement.

    A recipe that was not timed is assumed to have the mean pace of the timed recipes.
    """
    paces = _paces(plan, timed)
    if not paces:
        return None
    mean = Pace(*map(statistics.mean, zip(*paces.values(), strict=True)))
    # A third of a training step: backward takes twice as long as forward.
    call = _seconds_of_call(plan) or mean.step / plan.study.base.batch_size / 3
    left, counted = {}, set()
    for run in runs:
        cells = [cell for cell in plan.cells if cell.run is run and not cell.file.exists()]
        trainings = [run] if cells else []
        if cells and run.begins_with is not None and run.begins_with.name not in counted:
            counted.add(run.begins_with.name)
            trainings.append(run.begins_with)
        training = sum(_training_left(r, paces.get(r.recipe, mean)) for r in trainings)
        left[run.name] = float(training) + sum(call * _calls(cell) for cell in cells)
    return left


def _training_left(run: Run, pace: Pace) -> float:
    step = step_of(run)
    return (run.config.steps - step) * pace.step + (0 if step else pace.start)


def _all_runs(plan: Plan) -> list[Run]:
    return [r for run in plan.runs.values() for r in (run, run.begins_with) if r is not None]


def _read_paces(timed: Path) -> dict[str, Pace]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {recipe: Pace(*numbers) for recipe, numbers in json.loads(timed.read_text()).items()}
    return {}


def _paces(plan: Plan, timed: Path) -> dict[str, Pace]:
    """The pace of each recipe: from its runs, otherwise from timed steps."""
    return _read_paces(timed) | {run.recipe: x for run in _all_runs(plan) if (x := pace(run)) is not None}


def _seconds_of_call(plan: Plan) -> float | None:
    """Seconds of a call of the network for one video, from the results; None without results."""
    done = [(cell, read_result(cell)) for cell in plan.cells if cell.file.exists()]
    seconds = [result.cost["drawing_seconds"] / _calls(cell) for cell, result in done if result is not None]
    return statistics.median(seconds) if seconds else None


def _calls(cell: Cell) -> int:
    """Calls of the network for all videos of a cell. Guidance doubles their number."""
    settings = cell.settings
    calls = 2 * settings["steps"] - 1 if settings["solver"] == "heun" else settings["steps"]
    with_gradient = cell.inputs["known"] and settings["respect"] == "reconstruct"
    return cell.inputs["num"] * calls * (2 if settings["guidance"] != 1 else 1) * (BACKWARD if with_gradient else 1)
