"""Jobs in processes: places, failures that stop no other job, interrupts, adopted runs, and the progress line."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from absl import flags

from vdm_jax.config import write_config
from vdm_jax.errors import InputError
from vdm_jax.studies.jobs import Place, adopt, carry_out, places
from vdm_jax.studies.results import Result, write_result
from vdm_jax.studies.study import Study, make_plan

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))

SCRIPT = """
import os, signal, sys, time
job, log = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: (open(log, "a").write(f"saved {job}\\n"), sys.exit(0)))
open(log, "a").write(f"began {job} {os.environ.get('PLACE')}\\n")
if job.startswith("long"):
    time.sleep(60)
time.sleep(0.2)
if job.startswith("killed"):
    print("step 1"); os.kill(os.getpid(), signal.SIGKILL)
if job.startswith("bad"):
    print("step 1"); print("error: it cannot be", file=sys.stderr); sys.exit(2)
open(log, "a").write(f"ended {job}\\n")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "log").touch()

    def command(job):
        return [sys.executable, "-S", str(tmp_path / "job.py"), job, str(tmp_path / "log")]

    return command


def said(tmp_path, what):
    return [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines() if line.startswith(what)]


def test_jobs_run_in_their_places_and_one_that_fails_stops_no_other(tmp_path, script):
    seen, ended = [], []
    failed = carry_out(
        ["a", "bad", "c", "d"],
        script,
        tmp_path / "logs",
        [Place({"PLACE": "1"}), Place({"PLACE": "2"})],
        show=seen.append,
        after=lambda: ended.append(1),
    )
    assert failed == {"bad": f"it cannot be ({tmp_path / 'logs' / 'bad.log'})"}
    began = said(tmp_path, "began")
    assert sorted(job for job, _ in began) == ["a", "bad", "c", "d"]
    places = dict(began)
    assert places["a"] != places["bad"]  # the first two jobs run at the same time
    assert sorted(said(tmp_path, "ended")) == [["a"], ["c"], ["d"]]
    assert max(map(len, seen)) == 2
    assert len(ended) == 4
    assert "step 1" in (tmp_path / "logs" / "bad.log").read_text()
    assert carry_out([], script, tmp_path / "logs", [Place()]) == {}
    failed = carry_out(["killed"], script, tmp_path / "logs", [Place()])
    assert failed["killed"].startswith("ended by SIGKILL: by hand, or for lack of memory")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to cores")
def test_on_cpus_runs_at_a_time_have_cores_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6, 8, 9})
    assert places(1) == [Place()]
    assert places(1, 2) == [Place(cores=frozenset({3, 6, 9})), Place(cores=frozenset({5, 8}))]
    assert places(1, 6) == [Place()] * 6
    monkeypatch.undo()

    ours = os.sched_getaffinity(0)
    code = "import os, time; time.sleep(0.5); print(*os.sched_getaffinity(0))"
    where = [Place(cores=frozenset({core})) for core in sorted(ours)]
    jobs = [str(number) for number in range(len(where))]
    assert carry_out(jobs, lambda job: [sys.executable, "-S", "-c", code], tmp_path, where) == {}
    bound = [(tmp_path / f"{job}.log").read_text().splitlines()[-1] for job in jobs]
    assert sorted(map(int, bound)) == sorted(ours)
    assert os.sched_getaffinity(0) == ours


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_when_it_is_stopped_the_jobs_save_first(tmp_path, script, number, raised):
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it by default

    def stop():
        while len(said(tmp_path, "began")) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(raised):
            carry_out(["long1", "long2", "never"], script, tmp_path / "logs", [Place(), Place()])
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    thread.join()
    assert sorted(said(tmp_path, "saved")) == [["long1"], ["long2"]]
    assert "never" not in (tmp_path / "log").read_text()
    assert signal.getsignal(signal.SIGTERM) == before


def plan_in(folder, **changes):
    config = tiny["get_config"]()
    config.update(changes)
    study = Study("?", "!", config, {"v": {}, "ε": {"objective.prediction": "eps"}}, ("flicker",), seeds=(0, 5))
    return make_plan(study, folder / "runs", folder / "out")


def finished_run(folder, config):
    write_config(folder, config)
    (folder / "checkpoints" / str(config.steps)).mkdir(parents=True)
    return folder


def test_a_run_that_was_trained_elsewhere_is_adopted_and_left_as_it_is(tmp_path):
    plan, config = plan_in(tmp_path), tiny["get_config"]()  # its seed is 5
    config.log_every, config.data.num_workers = 3, 2
    run = adopt(finished_run(tmp_path / "mine", config), plan)
    assert (run.config.seed, run.finished) == (5, True)
    assert run.folder.resolve() == tmp_path / "mine"
    assert adopt(tmp_path / "mine", plan) is run
    run.folder.unlink()
    run.folder.symlink_to(tmp_path / "gone")
    assert adopt(tmp_path / "mine", plan).folder.resolve() == tmp_path / "mine"
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["checkpoints", "config.json"]


def test_what_cannot_be_adopted(tmp_path):
    plan, config = plan_in(tmp_path), tiny["get_config"]()
    config.ema = 0.5
    with pytest.raises(InputError, match=r"no run of this study has its training; the nearest has ema=0.9, not 0.5$"):
        adopt(finished_run(tmp_path / "mine", config), plan)
    write_config(tmp_path / "begun", tiny["get_config"]())
    with pytest.raises(InputError, match=r"begun: it must be trained to step 20 first"):
        adopt(tmp_path / "begun", plan)
    with pytest.raises(InputError, match="is no run folder"):
        adopt(tmp_path / "none", plan)
    ours = finished_run(tmp_path / "ours", tiny["get_config"]())
    (begun,) = (
        run.folder for run in plan.runs.values() if run.config.seed == 5 and run.config.objective.prediction == "v"
    )
    begun.mkdir(parents=True)
    with pytest.raises(InputError, match=r"has begun the same training: move it away"):
        adopt(ours, plan)


@pytest.fixture
def ablate(monkeypatch):
    """The functions of the command, without its flags, whose names other commands have, too."""
    for name in filter(lambda name: name.startswith("DEFINE"), dir(flags)):
        monkeypatch.setattr(flags, name, lambda *args, **kwargs: None)
    return run_path(str(Path(__file__).parents[2] / "experiments" / "ablate.py"))


def test_the_progress_says_what_is_done_what_is_left_and_what_goes_on(tmp_path, ablate):
    plan, progress_line, hours = plan_in(tmp_path), ablate["progress_line"], ablate["hours"]
    v, eps, *_ = plan.runs.values()
    jobs, timed = ["floors", v.name, eps.name], tmp_path / "timed"
    assert progress_line(plan, jobs, ["floors"], timed, 1) == "0/2 results  time left unknown  measuring real clips"
    v.folder.mkdir(parents=True)
    line = '{"step": 8, "videos_per_second": 8.0, "seconds": 4.0}\n'
    (v.folder / "metrics.jsonl").write_text(line + line)
    drawing = 50.0  # drawing time of ε, which is finished
    done = Result({"": {}}, {"drawing_seconds": drawing}, {}, "", [])
    write_result(plan.cells[1], done, np.zeros((1, 4, 8, 8, 3), np.uint8))
    text = progress_line(plan, jobs, [v.name], timed, 1)
    assert text == f"1/2 results  {hours(12 + drawing)} left  v, seed 0: step 8/20"
    (v.folder / "checkpoints" / "20").mkdir(parents=True)
    assert progress_line(plan, jobs, [v.name], timed, 2).endswith(f"{hours(drawing / 2)} left  v, seed 0: drawing")
    assert hours(3723.4) == "1:02:03"
