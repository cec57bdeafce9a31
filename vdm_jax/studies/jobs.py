"""The jobs of a study, one process each: as many at a time as there are devices for, and what is left of them."""

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vdm_jax.configuration import read_config
from vdm_jax.errors import InputError
from vdm_jax.studies.duration import seconds_left, step_of
from vdm_jax.studies.run import FLOORS
from vdm_jax.studies.run_hash import run_hash, training_of
from vdm_jax.studies.study import Plan, Run

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """What a process is given: variables, and the cores that it may use, None for all."""

    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] | None = None


def places(devices: int, parallel: int | None = None) -> list[Place]:
    """A place for each process that may run at a time, with its own GPUs: `devices` for each, 0 for all.

    On CPUs and TPUs one process takes all there is; `parallel` says otherwise. CPUs then have their cores divided:
    processes that share them wait for each other's threads.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return _on_cpus(parallel or 1)
    asked = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"JAX finds no devices: {found.stderr.strip().splitlines()[-1]}")
    kind, count = found.stdout.split()
    if kind == "cpu":
        return _on_cpus(parallel or 1)
    if kind != "gpu" or not devices:
        return [Place()] * (parallel or 1)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = named.split(",") if named else list(map(str, range(int(count))))
    groups = [ids[i : i + devices] for i in range(0, len(ids) - devices + 1, devices)]
    if not groups:
        raise InputError(f"a run of this study needs {devices} devices, and there are {count}")
    return [Place({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups][:parallel]


def _on_cpus(count: int) -> list[Place]:
    """So many places with as many cores each; where there are fewer cores, or the system cannot bind, all have all."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not 1 < count <= len(cores):
        return [Place()] * count
    return [Place(cores=frozenset(cores[i::count])) for i in range(count)]


@dataclasses.dataclass(eq=False)
class _Process:
    """A job that runs, where, and the file of what it says."""

    process: subprocess.Popen
    place: Place
    log: Path


def carry_out(
    jobs: Sequence[str],
    command: Callable[[str], Sequence[str]],
    logs: Path,
    where: Sequence[Place],
    *,
    show: Callable[[list[str]], None] = lambda running: None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Runs all jobs, as many at a time as there are places; returns why some failed.

    Args:
        command: of a job.
        logs: the folder of what the jobs say.
        show: called every second with the jobs that run.
        after: called when one has ended.

    When it is interrupted, the jobs save what they have, and it is raised when they have ended.
    """
    waiting, running, free, failed = list(jobs), {}, list(where), {}
    logs.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop()
                running[job] = _start(command(job), place, logs / f"{job}.log")
            time.sleep(0.2)
            show(list(running))
            for job, it in list(running.items()):
                if it.process.poll() is None:
                    continue
                del running[job]
                free.append(it.place)
                if it.process.returncode:
                    failed[job] = _why(it.log, it.process.returncode)
                after()
    except BaseException:
        for it in running.values():
            it.process.terminate()  # Ctrl-C in a terminal has told them already; once more does no harm
        for it in running.values():
            it.process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def _start(command: Sequence[str], place: Place, path: Path) -> _Process:
    with path.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        environment = os.environ | place.environment
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if place.cores:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(process.pid, place.cores)  # long before it has imported JAX, which counts them
    return _Process(process, place, path)


def _why(path: Path, status: int) -> str:
    """The last line of a job's log, or the signal that ended it, with where to read more."""
    if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        return f"it was ended by {signal.Signals(-status).name}: by hand, or for want of memory ({path})"
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return f"{lines[-1].removeprefix('error: ')} ({path})"


def progress_line(plan: Plan, jobs: Sequence[str], running: Sequence[str], timed: Path, at_a_time: int) -> str:
    """Cells that are done, the time left, and what is being done."""
    runs = [plan.runs[job] for job in jobs if job != FLOORS]
    cells = [cell for cell in plan.cells if cell.run.name in jobs]
    done = sum(cell.file.exists() for cell in cells)
    left = seconds_left(plan, runs, timed)
    parts = [f"{done}/{len(cells)} results", "time left not known yet" if left is None else ""]
    if left is not None:
        parts[1] = f"{hours(sum(left.values()) / at_a_time)} left"
    for job in running:
        if job == FLOORS:
            parts.append("measuring real clips")
            continue
        run = plan.runs[job]
        cell = next((c for c in plan.cells if c.run is run and not c.file.exists()), None)
        if cell is not None:
            parts.append(f"{cell.arm}, seed {cell.seed}: {_doing(run)}")
    return "  ".join(filter(None, parts))


def _doing(run: Run) -> str:
    if run.finished:
        return "drawing"
    if run.begins_with is not None and not run.begins_with.finished:
        return f"step {step_of(run.begins_with)}/{run.begins_with.config.steps} of what it begins with"
    return f"step {step_of(run)}/{run.config.steps}"


def hours(seconds: float) -> str:
    """1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def adopt(folder: Path, plan: Plan) -> Run:
    """Links a finished run folder to where the plan looks for a run of that training; nothing is written into it.

    Raises:
        InputError: no arm has that training, and in what the nearest differs; or the run is not finished.
    """
    config = read_config(folder)
    runs = {r.name: r for run in plan.runs.values() for r in (run, run.begins_with) if r is not None}
    run = runs.get(run_hash(config))
    if run is None:
        theirs = training_of(config)
        least = min((_difference(training_of(r.config), theirs) for r in runs.values()), key=len)
        raise InputError(f"--adopt={folder}: no run of this study is trained so; the nearest has {', '.join(least)}")
    if not (folder / "checkpoints" / str(run.config.steps)).is_dir():
        raise InputError(f"--adopt={folder}: it must be trained to step {run.config.steps} first")
    if run.folder.exists() and not run.finished:
        raise InputError(f"--adopt={folder}: {run.folder} has begun the same training: move it away")
    if not run.folder.exists():
        run.folder.unlink(missing_ok=True)  # a link to what is no more
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        run.folder.symlink_to(folder.resolve(), target_is_directory=True)
    return run


def _difference(ours: dict, theirs: dict) -> list[str]:
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return [f"{key}={ours.get(key, 'its default')!r}, not {theirs.get(key, 'its default')!r}" for key in keys]
