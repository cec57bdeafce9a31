"""Runs the jobs of a study, each in its own process, as many at a time as the devices allow; adopts finished runs."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vdm_jax.config import read_config
from vdm_jax.errors import InputError
from vdm_jax.studies.run_hash import run_hash, training_of
from vdm_jax.studies.study import Plan, Run

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """The resources of a process."""

    environment: Mapping[str, str] = {}  # variables that select devices
    cores: frozenset[int] | None = None  # None: all cores


def places(devices: int, parallel: int | None = None) -> list[Place]:
    """A place for each of the processes that run at the same time.

    Each process has `devices` GPUs; 0 gives all GPUs to one process. `parallel` is the number of processes. Its default
    is the number of groups of GPUs; on CPUs and TPUs it is 1. Several processes on CPUs get disjoint sets of cores:
    with shared cores their threads wait for each other. With too few cores, or without affinity, all share them.
    """
    kind, count = os.environ.get("JAX_PLATFORMS"), "0"
    if kind != "cpu":
        code = "import jax; print(jax.default_backend(), jax.local_device_count())"
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if process.returncode:
            raise InputError(f"JAX finds no devices: {process.stderr.strip().splitlines()[-1]}")
        kind, count = process.stdout.split()
    if kind != "gpu" or not devices:
        number = parallel or 1
        cores = sorted(os.sched_getaffinity(0)) if kind == "cpu" and hasattr(os, "sched_getaffinity") else []
        if not 1 < number <= len(cores):
            return [Place()] * number
        return [Place(cores=frozenset(cores[i::number])) for i in range(number)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else list(map(str, range(int(count))))
    groups = [ids[i : i + devices] for i in range(0, len(ids) - devices + 1, devices)]
    if not groups:
        raise InputError(f"a run of this study needs {devices} devices, and there are {count}")
    return [Place({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups][:parallel]


def carry_out(
    jobs: Sequence[str],
    command: Callable[[str], Sequence[str]],
    logs: Path,
    free_places: Sequence[Place],
    *,
    show: Callable[[list[str]], None] = lambda running: None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Runs all jobs, one at a time in each place. Returns the failed jobs with their errors.

    `command` returns the command line of a job, and `logs` is the folder of the log files. `show` is called several
    times a second with the names of the running jobs, and `after` after each job. An interrupt is passed to the jobs,
    which save their state; it is raised again after all jobs have ended.
    """
    waiting, running, free, failed = list(jobs), {}, list(free_places), {}
    logs.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop()
                running[job] = _start(command(job), place, logs / f"{job}.log"), place
            time.sleep(0.2)
            show(list(running))
            for job, (process, place) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                free.append(place)
                if process.returncode:
                    failed[job] = _error_of(logs / f"{job}.log", process.returncode)
                after()
    except BaseException:
        for process, _ in running.values():
            process.terminate()  # Ctrl-C in a terminal reaches the jobs, too; a second signal does no harm
        for process, _ in running.values():
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def _start(command: Sequence[str], place: Place, path: Path) -> subprocess.Popen:
    with path.open("a") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        kwargs = {"env": os.environ | place.environment, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **kwargs)
    if place.cores:
        with contextlib.suppress(ProcessLookupError):  # the process has ended already
            os.sched_setaffinity(process.pid, place.cores)  # before the process imports JAX, which counts the cores
    return process


def _error_of(path: Path, status: int) -> str:
    """The last line of a job's log, or the signal that ended the job, with the path of the log."""
    if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        return f"ended by {signal.Signals(-status).name}: by hand, or for lack of memory ({path})"
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return f"{lines[-1].removeprefix('error: ')} ({path})"


def adopt(folder: Path, plan: Plan) -> Run:
    """Uses a finished run folder for the plan's run of the same training: makes a link, and writes nothing into it.

    Raises InputError if no arm has this training (the line shows the nearest), or the run is not finished.
    """
    config = read_config(folder)
    run = plan.all_runs.get(run_hash(config))
    if run is None:
        training = training_of(config)
        least = min((_difference(training_of(r.config), training) for r in plan.all_runs.values()), key=len)
        raise InputError(f"--adopt={folder}: no run of this study has its training; the nearest has {', '.join(least)}")
    if not (folder / "checkpoints" / str(run.config.steps)).is_dir():
        raise InputError(f"--adopt={folder}: it must be trained to step {run.config.steps} first")
    if run.folder.exists() and not run.finished:
        raise InputError(f"--adopt={folder}: {run.folder} has begun the same training: move it away")
    if not run.folder.exists():
        run.folder.unlink(missing_ok=True)  # a link to a folder that was deleted
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        run.folder.symlink_to(folder.resolve(), target_is_directory=True)
    return run


def _difference(a: dict, b: dict) -> list[str]:
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return [f"{key}={a.get(key, 'its default')!r}, not {b.get(key, 'its default')!r}" for key in keys]
