"""Estimates the time that a study still needs, from the logs of its runs and from short trainings."""

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.files import read_json_lines
from vdm_jax.studies.results import read_result
from vdm_jax.studies.study import Cell, Plan, Run
from vdm_jax.training.loop import train

TIMED = 6  # steps of a short training


def step_of(run: Run) -> int:
    """The last logged step of a run; the number of all steps if it is finished."""
    lines = [] if run.finished else read_json_lines(run.folder / "metrics.jsonl")
    return run.config.steps if run.finished else lines[-1]["step"] if lines else 0


def training_seconds(run: Run | None) -> float:
    """The training time of a run, including the run that initialises it."""
    if run is None:
        return 0.0
    return sum(x["seconds"] for x in read_json_lines(run.folder / "metrics.jsonl")) + training_seconds(run.begins_with)


def time_steps(run: Run, timed: Path) -> None:
    """Trains a few steps of a run in a folder of its recipe in `timed`; the log in it is the measurement."""
    config = run.config.copy_and_resolve_references()
    config.steps, config.log_every, config.init_from, config.optimizer.warmup = TIMED, 1, "", 0
    shutil.rmtree(timed / run.recipe, ignore_errors=True)  # of a measurement that was interrupted
    train(config, timed / run.recipe)
    shutil.rmtree(timed / run.recipe / "checkpoints", ignore_errors=True)


def seconds_of_steps(plan: Plan, timed: Path) -> dict[str, float]:
    """The seconds of a step of each recipe, from the log of one of its runs or from the log in `timed`.

    The first line includes the compilation. The median of the other lines is taken: the machine may be busy.
    """
    seconds, runs = {}, plan.all_runs.values()
    for run, folder in [*((run, timed / run.recipe) for run in runs), *((run, run.folder) for run in runs)]:
        if lines := read_json_lines(folder / "metrics.jsonl")[1:]:
            rate = statistics.median(line["videos_per_second"] for line in lines)
            seconds[run.recipe] = run.config.batch_size / rate
    return seconds


def seconds_left(plan: Plan, runs: Sequence[Run], timed: Path) -> dict[str, float] | None:
    """The remaining seconds of each run, by name, for its training and its cells; None without any measurement.

    A recipe that was not timed is assumed to take as long as the mean of the timed recipes.
    """
    steps = seconds_of_steps(plan, timed)
    if not steps:
        return None
    mean = statistics.mean(steps.values())
    results = [(cell, result) for cell in plan.cells if cell.file.exists() and (result := read_result(cell))]
    calls = [result.cost["drawing_seconds"] / _calls(cell) for cell, result in results]
    # A third of a training step: backward takes twice as long as forward.
    call = statistics.median(calls) if calls else mean / plan.study.base.batch_size / 3
    left, counted = {}, set()
    for run in runs:
        cells = [cell for cell in plan.cells if cell.run is run and not cell.file.exists()]
        trainings = [r for r in (run.begins_with, run) if cells and r is not None and r.name not in counted]
        counted |= {r.name for r in trainings}
        training = sum((r.config.steps - step_of(r)) * steps.get(r.recipe, mean) for r in trainings)
        left[run.name] = training + call * sum(map(_calls, cells))
    return left


def _calls(cell: Cell) -> int:
    """Calls of the network for all videos of a cell. Guidance doubles their number."""
    return cell.inputs["num"] * cell.settings["steps"] * (2 if cell.settings["guidance"] != 1 else 1)
