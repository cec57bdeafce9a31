"""How long a study takes: from runs and results that there are, from steps that were timed, and from their like."""

import contextlib
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.evaluation.ablation import Cell, Plan, Run
from vdm_jax.evaluation.ablation_results import read_result
from vdm_jax.evaluation.page import write_file
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


def step_seconds(run: Run) -> float | None:
    """Of a step of the run, once it has metrics: the median, without the first line, which holds the compilation."""
    rates = [line["videos_per_second"] for line in read_metrics(run)[1:]]
    return run.config.batch_size / statistics.median(rates) if rates else None


def time_step(run: Run, timed: Path) -> None:
    """Takes some steps of a run in a folder that is thrown away, and notes the seconds of one in the file `timed`."""
    config = run.config.copy_and_resolve_references()
    config.steps, config.log_every, config.init_from = TIMED, 1, ""
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(run, config=config, folder=Path(folder) / "run")
        train(config, short.folder)
        noted = _noted(timed) | {run.recipe: step_seconds(short)}
    write_file(timed, json.dumps(noted, indent=1) + "\n")


def untimed(plan: Plan, timed: Path) -> list[Run]:
    """A run of each recipe whose steps nobody has timed yet."""
    known = _seconds_of_steps(plan, timed)
    return list({run.recipe: run for run in _all(plan) if run.recipe not in known}.values())


def seconds_left(plan: Plan, runs: Sequence[Run], timed: Path) -> dict[str, float] | None:
    """Of each run by name, how long its training and its cells take from now on; None while nothing is known.

    A recipe that nobody has timed is taken to be as fast as the others are.
    """
    steps = _seconds_of_steps(plan, timed)
    if not steps:
        return None
    like = statistics.mean(steps.values())
    call = _seconds_of_call(plan) or like / plan.study.base.batch_size / 3  # backward takes twice as long as forward
    left, begun = {}, set()
    for run in runs:
        cells = [cell for cell in plan.cells if cell.run is run and not cell.file.exists()]
        todo = [run] if cells else []
        if cells and run.begins_with is not None and run.begins_with.name not in begun:
            begun.add(run.begins_with.name)
            todo.append(run.begins_with)
        training = sum((r.config.steps - step_of(r)) * steps.get(r.recipe, like) for r in todo)
        left[run.name] = training + sum(call * _calls(cell) for cell in cells)
    return left


def _all(plan: Plan) -> list[Run]:
    return [r for run in plan.runs.values() for r in (run, run.begins_with) if r is not None]


def _noted(timed: Path) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(timed.read_text())
    return {}


def _seconds_of_steps(plan: Plan, timed: Path) -> Mapping[str, float]:
    """By recipe: as runs have it, else as it was timed."""
    return _noted(timed) | {run.recipe: s for run in _all(plan) if (s := step_seconds(run)) is not None}


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
