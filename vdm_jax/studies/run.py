"""A job of a study, in its own process: trains a run or resumes it, then draws and measures its cells.

The process holds a lock on the run, so that two studies never train the same run at the same time.
"""

import contextlib
import fcntl
import itertools
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vdm_jax.build import load
from vdm_jax.config import read_config
from vdm_jax.errors import InputError
from vdm_jax.evaluation.metrics import Network, load_networks
from vdm_jax.evaluation.reference import RealData, read_clips, real_data
from vdm_jax.evaluation.score import floors, score
from vdm_jax.files import write_text
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.parallel.machine import about_machine
from vdm_jax.studies.duration import training_seconds
from vdm_jax.studies.results import Result, read_result, write_result
from vdm_jax.studies.run_hash import run_hash
from vdm_jax.studies.study import Cell, Plan, Run
from vdm_jax.training.loop import train

log = logging.getLogger(__name__)

FLOORS = "floors"  # the job that measures real clips; all other jobs have the names of their runs
SHOWN = 6  # videos of each cell on the page


def work(plan: Plan, job: str) -> None:
    """Does the unfinished part of a job of a plan. Raises InputError if the run cannot be trained or loaded."""
    if job == FLOORS:
        return _measure_floors(plan)
    run = plan.runs[job]
    with locked(run):
        cells = [cell for cell in plan.cells if cell.run is run and read_result(cell) is None]
        if cells:
            pipeline, data = trained(run), real_data(plan.study.base)
            networks = load_networks(cells[0].inputs["metrics"], data, plan.study.weights)
            for cell in cells:
                _measure(plan, cell, pipeline, data, networks)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Locks the run against other processes; waits while another process holds the lock."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with run.folder.with_name(f"{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting: another process works on %s", run.folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def trained(run: Run) -> Pipeline:
    """The pipeline of a run. Trains the run first if needed, and before it the run that initialises it."""
    if not run.finished:
        if run.begins_with is not None:
            with locked(run.begins_with):
                trained(run.begins_with)
        train(run.config, run.folder)
    if (name := run_hash(read_config(run.folder))) != run.name:
        raise InputError(f"{run.folder} holds a run of another config ({name}): move it away")
    model = load(run.folder)
    if model.step != run.config.steps:  # the last checkpoint was damaged
        train(run.config, run.folder)
        model = load(run.folder)
    return Pipeline(model)


def _measure(plan: Plan, cell: Cell, pipeline: Pipeline, data: RealData, networks: Mapping[str, Network]) -> None:
    study, metrics, known = plan.study, cell.inputs["metrics"], cell.inputs["known"]
    log.info("measuring %s, seed %d", cell.arm, cell.seed)
    cache = cell.file.with_suffix("")  # keeps drawn batches, so that an interrupted drawing continues
    cache.mkdir(parents=True, exist_ok=True)
    seconds_file, start = cache / "seconds.txt", time.perf_counter()
    before = float(seconds_file.read_text()) if seconds_file.exists() else 0.0

    def timed(batches: Iterable, description: str) -> Iterator:
        for batch in batches:
            yield batch
            write_text(seconds_file, f"{before + time.perf_counter() - start}\n")

    kwargs = {"num": study.num, "seed": cell.seed, "batch_size": study.batch_size, "folder": cache, "known": known}
    scores = score(pipeline, data, metrics, networks=networks, progress=timed, **kwargs, **cell.settings)
    cost = {
        "parameters": sum(x.size for x in jax.tree.leaves(pipeline.model.params)),
        "training_seconds": training_seconds(cell.run),
        "drawing_seconds": before + time.perf_counter() - start,
    }
    # The name of a file has the number of its first video.
    videos = (video for path in sorted(cache.glob("videos-*.npz")) for video in np.load(path)["videos"])
    captions = read_clips(data, study.num, cell.seed).captions
    write_result(cell, _result({"": scores}, cost, networks, captions), np.stack([*itertools.islice(videos, SHOWN)]))
    shutil.rmtree(cache, ignore_errors=True)


def _measure_floors(plan: Plan) -> None:
    if read_result(plan.floors) is not None:
        return
    study, seed, metrics = plan.study, plan.floors.seed, plan.floors.inputs["metrics"]
    data = real_data(study.base)
    networks, clips = load_networks(metrics, data, study.weights), read_clips(data, study.num, seed)
    kwargs, scores = {"num": study.num, "seed": seed, "batch_size": study.batch_size, "networks": networks}, {}
    for mode in plan.modes:
        for name, figures in floors(data, metrics, known=mode, **kwargs).items():
            scores[name if len(plan.modes) == 1 else f"{name}, {mode}".removesuffix(", ")] = figures
    write_result(plan.floors, _result(scores, {}, networks, clips.captions), clips.videos[:SHOWN])


def _result(
    scores: dict[str, Any], cost: dict[str, Any], networks: Mapping[str, Network], captions: Sequence[str]
) -> Result:
    digests = {name: network.digest for name, network in networks.items()}
    return Result(scores, cost, digests, about_machine(), list(captions[:SHOWN]))
