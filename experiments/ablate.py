"""Trains and measures every arm of a study with every seed, and writes a table, a plot and a page.

python experiments/ablate.py --study configs/ablations/guidance.py --out studies/guidance [--dry-run]

What is done is not done again, and what was interrupted goes on. Runs lie in one folder, named by what decides their
training: arms that are trained alike share one, in whatever study they are.
"""

import ast
import dataclasses
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
RUNS = flags.DEFINE_string("runs", "studies/runs", "Folder of trained runs, shared by all studies.")
SEEDS = flags.DEFINE_list("seeds", None, "Seeds (default: the study's).")
NUM = flags.DEFINE_integer("num", None, "Videos for each arm and seed (default: the study's).", lower_bound=2)
SET = flags.DEFINE_multi_string("set", [], "Changes a key of the base config, as in --set data.data_dir=/data.")
ADOPT = flags.DEFINE_list("adopt", [], "Finished run folders to use for arms that are trained alike.")
SHARD = flags.DEFINE_string("shard", "1/1", "This machine's share of the runs, as in 2/4.")
PARALLEL = flags.DEFINE_integer("parallel", None, "Runs at a time (default: as GPUs allow, else 1).", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan with the time it takes, after timing a few steps.")
I3D = flags.DEFINE_string("i3d", None, "Weights for fvd (docs/features.md).")
VIDEOMAE = flags.DEFINE_string("videomae", None, "Weights for videomae.")
CLIP = flags.DEFINE_string("clip", None, "Weights for clip, clip_fid and consistency.")
LPIPS = flags.DEFINE_string("lpips", None, "Weights for lpips.")
JOB = flags.DEFINE_string("job", "", "Do one job in this process; the command starts itself with this.")


def main() -> None:
    """Plans, then carries out the plan; a job of it in its own process."""
    if not STUDY.value or not OUT.value:
        raise InputError("--study=configs/ablations/<study>.py and --out=studies/<name> are needed")

    import jax

    if not JOB.value:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the jobs
        logging.getLogger().setLevel(logging.WARNING)  # and so is what they have to say

    from vdm_jax.studies import jobs
    from vdm_jax.studies.study import make_plan, shard

    out, runs = Path(OUT.value), Path(RUNS.value)
    plan = make_plan(read_study(), runs, out)
    timed = runs / "pace.json"
    if JOB.value:
        return do_job(plan, JOB.value, timed)
    for folder in ADOPT.value:
        run = jobs.adopt(Path(folder), plan)
        print(f"{folder} is {run.folder}")
    ours = shard(plan, *read_shard())
    if DRY_RUN.value:
        return dry_run(plan, ours, timed, out / "logs")
    return carry_out(plan, ours, timed, out)


def read_study():
    """The study with the flags' changes."""
    from vdm_jax.studies.study import change_base, load_study

    study = load_study(STUDY.value)
    changes = {}
    for text in SET.value:
        key, is_there, value = text.partition("=")
        if not is_there:
            raise InputError(f"--set={text} must be key=value")
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    try:
        seeds = tuple(study.seeds if SEEDS.value is None else map(int, SEEDS.value))
    except ValueError:
        raise InputError(f"--seeds={','.join(SEEDS.value)} must be numbers with commas between") from None
    files = {"i3d": I3D, "videomae": VIDEOMAE, "clip": CLIP, "lpips": LPIPS}
    files = {name: flag.value for name, flag in files.items() if flag.value}
    base, num = change_base(study.base, changes), NUM.value or study.num
    return dataclasses.replace(study, base=base, seeds=seeds, num=num, weights=dict(study.weights) | files)


def read_shard() -> tuple[int, int]:
    """--shard as (part, parts)."""
    try:
        part, parts = map(int, SHARD.value.split("/"))
        return part, parts
    except ValueError:
        raise InputError(f"--shard={SHARD.value} must be a part of so many, as in 2/4") from None


def this_command(*more: str) -> list[str]:
    """The command that was given."""
    return [sys.executable, *sys.argv, *more]


def do_job(plan, job: str, timed: Path) -> None:
    """A job of the plan; "time-" and a run's name takes a few steps of it and notes how long one is."""
    from vdm_jax.studies.duration import time_step
    from vdm_jax.studies.run import FLOORS, work

    name = job.removeprefix("time-")
    runs = {r.name: r for run in plan.runs.values() for r in (run, run.begins_with) if r is not None}
    if name != FLOORS and name not in runs:
        raise InputError(f"--job={job} is not one of this study: was it changed meanwhile?")
    if name != job:
        time_step(runs[name], timed)
    else:
        work(plan, job)


def dry_run(plan, ours, timed: Path, logs: Path) -> None:
    """Prints what there is to do, and how long it takes."""
    from vdm_jax.studies import jobs
    from vdm_jax.studies.duration import seconds_left, step_of, untimed
    from vdm_jax.studies.results import read_result

    study = plan.study
    print(f"{study.name}: {study.claim} ({study.source})")
    where = jobs.places(study.devices, PARALLEL.value)
    todo = untimed(plan, timed)
    failed = {}
    for i, run in enumerate(todo, 1):
        print(f"timing the steps of a run, {i} of {len(todo)}", file=sys.stderr, flush=True)
        job = f"time-{run.name}"
        failed |= jobs.carry_out([job], lambda job: this_command(f"--job={job}"), logs, where[:1])
    if failed:
        raise InputError(f"a run of the study cannot be trained: {next(iter(failed.values()))}")
    left = seconds_left(plan, ours, timed)
    print("\n| run | state | cells to measure | time |\n|---|---|---|---|")
    for run in ours:
        cells = [cell for cell in plan.cells if cell.run is run]
        missing = [cell for cell in cells if read_result(cell) is None]
        arms = ", ".join(dict.fromkeys(cell.arm for cell in cells))
        arms = arms if len(arms) < 60 else f"{cells[0].arm} … {cells[-1].arm}"
        before = f", begins with {run.begins_with.name}" if run.begins_with is not None else ""
        state = "trained" if run.finished else f"step {step_of(run)} of {run.config.steps}{before}"
        took = jobs.hours(left[run.name])
        print(f"| {run.name}, seed {run.config.seed}: {arms} | {state} | {len(missing)} of {len(cells)} | {took} |")
    total = sum(left.values()) / len(where)
    print(f"\n{len(ours)} runs, {len(where)} at a time: about {jobs.hours(total)}. Nothing was trained or measured.")


def carry_out(plan, ours, timed: Path, out: Path) -> None:
    """Does what is left to do, and writes the report."""
    from tqdm import tqdm

    from vdm_jax.studies import jobs
    from vdm_jax.studies.report import markdown, read_found, write_report
    from vdm_jax.studies.results import read_result
    from vdm_jax.studies.run import FLOORS

    given = re.sub(r" --?shard[= ]\S+", "", shlex.join(["python", *sys.argv]))
    names = [run.name for run in ours if any(read_result(c) is None for c in plan.cells if c.run is run)]
    if read_result(plan.floors) is None:
        names.insert(0, FLOORS)
    where = jobs.places(plan.study.devices, PARALLEL.value) if names else [jobs.Place()]
    live, last = sys.stderr.isatty(), [0.0, ""]

    def show(running):
        if time.monotonic() - last[0] < (1 if live else 60):
            return
        line = jobs.progress_line(plan, names, running, timed, len(where))
        last[0], before, last[1] = time.monotonic(), last[1], line
        if line != before:
            print(f"\r\x1b[2K{line[:150]}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    def after():
        write_report(read_found(plan), out, given)

    def done(names, where):
        how = {"show": show, "after": after}
        return jobs.carry_out(names, lambda job: this_command(f"--job={job}"), out / "logs", where, **how)

    try:
        failed = done([FLOORS], where[:1]) if FLOORS in names else {}
        rest = [name for name in names if name != FLOORS]
        if failed and rest:  # what is wrong with real clips would end every run, after its training
            raise InputError(f"real clips cannot be measured, and no run was begun: {failed[FLOORS]}")
        failed |= done(rest, where)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        raise
    found = read_found(plan)
    write_report(found, out, given, lambda rows: tqdm(rows, desc="encoding videos", leave=False, disable=not live))
    print(f"\n{markdown(found, given)}")
    print(f"{found.count} of {len(plan.cells)} results. Table, plot and page: {out}/table.md, plot.svg, report.html")
    if failed:
        job, why = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {len(names)} jobs failed; the results of the others are kept. {job}: {why}")


if __name__ == "__main__":
    command.run(main)
