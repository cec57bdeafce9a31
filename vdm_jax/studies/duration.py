"""How long a study takes: from runs and results that there are, from steps that were timed, and from their like."""

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
BACKWARD = 8  # calls of the network that a gradient through one takes on CPUs


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl up to one that is cut off."""
    lines = []
    with contextlib.suppress(OSError, ValueError):
        for line in (run.folder / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
    return lines


def step_of(run: Run) -> int:
    """The last step that a run has noted; all of them where it is finished."""
    lines = [] if run.finished else read_metrics(run)
    return run.config.steps if run.finished else lines[-1]["step"] if lines else 0


def training_seconds(run: Run | None) -> float:
    """All that a run took, with what it begins with."""
    return 0.0 if run is None else sum(x["seconds"] for x in read_metrics(run)) + training_seconds(run.begins_with)


class Pace(NamedTuple):
    """Seconds until the first line of metrics, which are mostly those of the compilation, and of a step after it."""

    start: float
    step: float


def pace(run: Run) -> Pace | None:
    """As the run's metrics say; None before the second line of them. The median: a machine may do other things, too."""
    first, *lines = read_metrics(run) or [None]
    if not lines:
        return None
    return Pace(first["seconds"], run.config.batch_size / statistics.median(x["videos_per_second"] for x in lines))


def time_step(run: Run, timed: Path) -> None:
    """Takes some steps of a run in a folder that is thrown away, and notes its pace in the file `timed`."""
    config = run.config.copy_and_resolve_references()
    config.steps, config.log_every, config.init_from, config.optimizer.warmup = TIMED, 1, "", 0
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(run, config=config, folder=Path(folder) / "run")
        train(config, short.folder)
        noted = _noted(timed) | {run.recipe: pace(short)}
    write_text(timed, json.dumps(noted, indent=1) + "\n")


def untimed(plan: Plan, timed: Path) -> list[Run]:
    """A run of each recipe whose steps nobody has timed yet."""
    known = _paces(plan, timed)
    return list({run.recipe: run for run in _all(plan) if run.recipe not in known}.values())


def seconds_left(plan: Plan, runs: Sequence[Run], timed: Path) -> dict[str, float] | None:
    """Of each run by name, how long its training and its cells take from now on; None while nothing is known.

    A recipe that nobody has timed is taken to be as fast as the others are.
    """
    paces = _paces(plan, timed)
    if not paces:
        return None
    like = Pace(*map(statistics.mean, zip(*paces.values(), strict=True)))
    call = (
        _seconds_of_call(plan) or like.step / plan.study.base.batch_size / 3
    )  # backward takes twice as long as forward
    left, begun = {}, set()
    for run in runs:
        cells = [cell for cell in plan.cells if cell.run is run and not cell.file.exists()]
        todo = [run] if cells else []
        if cells and run.begins_with is not None and run.begins_with.name not in begun:
            begun.add(run.begins_with.name)
            todo.append(run.begins_with)
        training = sum(_training_left(r, paces.get(r.recipe, like)) for r in todo)
        left[run.name] = float(training) + sum(call * _calls(cell) for cell in cells)
    return left


def _training_left(run: Run, pace: Pace) -> float:
    step = step_of(run)
    return (run.config.steps - step) * pace.step + (0 if step else pace.start)


def _all(plan: Plan) -> list[Run]:
    return [r for run in plan.runs.values() for r in (run, run.begins_with) if r is not None]


def _noted(timed: Path) -> dict[str, Pace]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {recipe: Pace(*numbers) for recipe, numbers in json.loads(timed.read_text()).items()}
    return {}


def _paces(plan: Plan, timed: Path) -> dict[str, Pace]:
    """By recipe: as runs have it, else as it was timed."""
    return _noted(timed) | {run.recipe: found for run in _all(plan) if (found := pace(run)) is not None}


def _seconds_of_call(plan: Plan) -> float | None:
    """Of the network for one video, as far as results say."""
    done = [(cell, read_result(cell)) for cell in plan.cells if cell.file.exists()]
    seconds = [result.cost["drawing_seconds"] / _calls(cell) for cell, result in done if result is not None]
    return statistics.median(seconds) if seconds else None


def _calls(cell: Cell) -> int:
    """Calls of the network for all videos of a cell; guidance doubles one."""
    chosen = cell.settings
    calls = 2 * chosen["steps"] - 1 if chosen["solver"] == "heun" else chosen["steps"]
    through = cell.about["known"] and chosen["respect"] == "reconstruct"
    return cell.about["num"] * calls * (2 if chosen["guidance"] != 1 else 1) * (BACKWARD if through else 1)
