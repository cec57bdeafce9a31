"""Trains and measures every arm of a study with every seed, and writes a table, a plot and a page.

python experiments/ablate.py --study configs/ablations/guidance.py --out studies/guidance [--dry-run]

Finished work is not repeated, and interrupted work is resumed. Runs are folders named by the hash of their training, so
arms with the same training share a run, even between studies.
"""

import ast
import dataclasses
import datetime
import logging
import re
import shlex
import sys
import time
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

STUDY = flags.DEFINE_string("study", None, "Study file, such as configs/ablations/guidance.py, or file.py:scale.")
OUT = flags.DEFINE_string("out", None, "Folder of results, table.md, table.csv, plot.svg and report.html.")
RUNS = flags.DEFINE_string("runs", "studies/runs", "Folder of runs, shared by all studies.")
SEEDS = flags.DEFINE_list("seeds", None, "Seeds (default: the study's).")
NUM = flags.DEFINE_integer("num", None, "Videos for each arm and seed (default: the study's).", lower_bound=2)
SET = flags.DEFINE_multi_string("set", [], "Changes a key of the base config, as in --set data.data_dir=/data.")
ADOPT = flags.DEFINE_list("adopt", [], "Finished run folders to use for arms with the same training.")
SHARD = flags.DEFINE_string("shard", "1/1", "Part of the runs for this machine: 2/4 is the second quarter.")
PARALLEL = flags.DEFINE_integer("parallel", None, "Runs at a time (default: as GPUs allow, else 1).", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its estimated time, after timing a few steps.")
I3D = flags.DEFINE_string("i3d", None, "Weights for fvd (docs/features.md).")
VIDEOMAE = flags.DEFINE_string("videomae", None, "Weights for videomae.")
CLIP = flags.DEFINE_string("clip", None, "Weights for clip, clip_fid and consistency.")
LPIPS = flags.DEFINE_string("lpips", None, "Weights for lpips.")
JOB = flags.DEFINE_string("job", "", "Internal: the job of this process.")


def main() -> None:
    """Plans the study and carries out the plan, with a process for each job."""
    if not STUDY.value or not OUT.value:
        raise InputError("--study=configs/ablations/<study>.py and --out=studies/<name> are needed")

    import jax

    if not JOB.value:
        jax.config.update("jax_platforms", "cpu")  # devices and their messages are for the jobs
        logging.getLogger().setLevel(logging.WARNING)

    from vdm_jax.studies import jobs
    from vdm_jax.studies.study import make_plan, shard

    out, runs = Path(OUT.value), Path(RUNS.value)
    plan = make_plan(read_study(), runs, out)
    timed = runs / "timed"
    if JOB.value:
        return do_job(plan, JOB.value, timed)
    for folder in ADOPT.value:
        run = jobs.adopt(Path(folder), plan)
        print(f"{folder} is used as {run.folder}")
    selected = shard(plan, *read_shard())
    if DRY_RUN.value:
        return dry_run(plan, selected, timed, out / "logs")
    return carry_out(plan, selected, timed, out)


def read_study():
    """The study, with the changes from the flags."""
    from vdm_jax.studies.study import change_base, load_study

    study = load_study(STUDY.value)
    changes = {}
    for text in SET.value:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set={text} must be key=value")
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    try:
        seeds = tuple(study.seeds if SEEDS.value is None else map(int, SEEDS.value))
    except ValueError:
        raise InputError(f"--seeds={','.join(SEEDS.value)} must be integers separated by commas") from None
    files = {"i3d": I3D, "videomae": VIDEOMAE, "clip": CLIP, "lpips": LPIPS}
    files = {name: flag.value for name, flag in files.items() if flag.value}
    base, num = change_base(study.base, changes), NUM.value or study.num
    return dataclasses.replace(study, base=base, seeds=seeds, num=num, weights=dict(study.weights) | files)


def read_shard() -> tuple[int, int]:
    """Parses --shard to (part, parts)."""
    try:
        part, parts = map(int, SHARD.value.split("/"))
        return part, parts
    except ValueError:
        raise InputError(f"--shard={SHARD.value} must be part/parts, such as 2/4") from None


def this_command(*arguments: str) -> list[str]:
    """The command line of this process, with more arguments."""
    return [sys.executable, *sys.argv, *arguments]


def do_job(plan, job: str, timed: Path) -> None:
    """Does a job of the plan. The job "time-<run>" trains a few steps of a run and saves their time."""
    from vdm_jax.studies.duration import time_steps
    from vdm_jax.studies.run import FLOORS, work

    name = job.removeprefix("time-")
    if name != FLOORS and name not in plan.all_runs:
        raise InputError(f"--job={job} is not a job of this study: was the study changed meanwhile?")
    if name != job:
        time_steps(plan.all_runs[name], timed)
    else:
        work(plan, job)


def dry_run(plan, selected, timed: Path, logs: Path) -> None:
    """Prints the remaining work, and its estimated time."""
    from vdm_jax.studies import jobs
    from vdm_jax.studies.duration import seconds_left, seconds_of_steps, step_of
    from vdm_jax.studies.results import read_result

    study = plan.study
    print(f"{study.name}: {study.claim} ({study.source})")
    places = jobs.places(study.devices, PARALLEL.value)
    done = seconds_of_steps(plan, timed)
    recipes = {run.recipe: run for run in plan.all_runs.values() if run.recipe not in done}.values()
    failed = {}
    for i, run in enumerate(recipes, 1):
        print(f"timing steps, run {i} of {len(recipes)}", file=sys.stderr, flush=True)
        job = f"time-{run.name}"
        failed |= jobs.carry_out([job], lambda job: this_command(f"--job={job}"), logs, places[:1])
    if failed:
        raise InputError(f"a run of the study cannot be trained: {next(iter(failed.values()))}")
    left = seconds_left(plan, selected, timed)
    print("\n| run | state | cells to measure | time |\n|---|---|---|---|")
    for run in selected:
        cells = [cell for cell in plan.cells if cell.run is run]
        missing = [cell for cell in cells if read_result(cell) is None]
        arms = ", ".join(dict.fromkeys(cell.arm for cell in cells))
        arms = arms if len(arms) < 60 else f"{cells[0].arm} … {cells[-1].arm}"
        init = f", init_from {run.begins_with.name}" if run.begins_with is not None else ""
        state = "trained" if run.finished else f"step {step_of(run)} of {run.config.steps}{init}"
        time_left = hours(left[run.name])
        print(
            f"| {run.name}, seed {run.config.seed}: {arms} | {state} | {len(missing)} of {len(cells)} | {time_left} |"
        )
    total = hours(sum(left.values()) / len(places))
    print(f"\n{len(selected)} runs, {len(places)} at a time: about {total}. Nothing was trained or measured.")


def progress_line(plan, jobs: list[str], running: list[str], timed: Path, at_a_time: int) -> str:
    """The number of results, the time left, and the state of the running jobs."""
    from vdm_jax.studies.duration import seconds_left, step_of
    from vdm_jax.studies.run import FLOORS

    runs = [plan.runs[job] for job in jobs if job != FLOORS]
    cells = [cell for cell in plan.cells if cell.run.name in jobs]
    done = sum(cell.file.exists() for cell in cells)
    left = seconds_left(plan, runs, timed)
    time_left = "time left unknown" if left is None else f"{hours(sum(left.values()) / at_a_time)} left"
    parts = [f"{done}/{len(cells)} results", time_left] + ["measuring real clips"] * (FLOORS in running)
    for run in (plan.runs[job] for job in running if job != FLOORS):
        begins = run.begins_with is not None and not run.begins_with.finished
        now, what = (run.begins_with, " of its init_from") if begins else (run, "")
        state = "drawing" if run.finished else f"step {step_of(now)}/{now.config.steps}{what}"
        cell = next((c for c in plan.cells if c.run is run and not c.file.exists()), None)
        parts += [f"{cell.arm}, seed {cell.seed}: {state}"] if cell else []
    return "  ".join(parts)


def hours(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds: 1:02:03; from a day on, also the days."""
    return str(datetime.timedelta(seconds=round(seconds)))


def carry_out(plan, selected, timed: Path, out: Path) -> None:
    """Does the remaining work, and writes the report."""
    from tqdm import tqdm

    from vdm_jax.studies import jobs
    from vdm_jax.studies.report import markdown, read_findings, write_report
    from vdm_jax.studies.results import read_result
    from vdm_jax.studies.run import FLOORS

    command_line = re.sub(r" --?shard[= ]\S+", "", shlex.join(["python", *sys.argv]))
    names = [run.name for run in selected if any(read_result(c) is None for c in plan.cells if c.run is run)]
    if read_result(plan.floors) is None:
        names.insert(0, FLOORS)
    places = jobs.places(plan.study.devices, PARALLEL.value) if names else [jobs.Place()]
    live, last = sys.stderr.isatty(), [0.0, ""]

    def show(running):
        if time.monotonic() - last[0] < (1 if live else 60):
            return
        line = progress_line(plan, names, running, timed, len(places))
        last[0], before, last[1] = time.monotonic(), last[1], line
        if line != before:
            print(f"\r\x1b[2K{line[:150]}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    def after():
        write_report(read_findings(plan), out, command_line)

    def run_jobs(names, places):
        kwargs = {"show": show, "after": after}
        return jobs.carry_out(names, lambda job: this_command(f"--job={job}"), out / "logs", places, **kwargs)

    try:
        failed = run_jobs([FLOORS], places[:1]) if FLOORS in names else {}
        runs = [name for name in names if name != FLOORS]
        if failed and runs:  # the same error would stop every run, after its training
            raise InputError(f"real clips cannot be measured, so no run was started: {failed[FLOORS]}")
        failed |= run_jobs(runs, places)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        raise
    findings = read_findings(plan)
    encoding = {"desc": "encoding videos", "leave": False, "disable": not live}
    write_report(findings, out, command_line, lambda rows: tqdm(rows, **encoding))
    print(f"\n{markdown(findings, command_line)}")
    count = f"{len(findings.results)} of {len(plan.cells)}"
    print(f"{count} results. Table, plot and page: {out}/table.md, plot.svg, report.html")
    if failed:
        job, reason = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {len(names)} jobs failed; all other results are kept. {job}: {reason}")


if __name__ == "__main__":
    command.run(main)
