"""A job in its process: it trains once, measures what is missing, and loses nothing when it is interrupted.

Training is replaced by a function that writes the files of a finished run; tests/end_to_end/test_ablate.py trains.
"""

import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import pytest

from vdm_jax.build import build, load, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import write_config
from vdm_jax.errors import InputError
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.studies import run as study_run
from vdm_jax.studies.results import read_result
from vdm_jax.studies.run import FLOORS, locked, trained, work
from vdm_jax.studies.study import Study, make_plan
from vdm_jax.training.optimizer import optimizer_of
from vdm_jax.training.state import plan_state, to_parts
from vdm_jax.video import to_uint8

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))
IMAGES = {"data.frames": 1, "model.network.time_attention": False, "steps": 3}
trainings = []  # folders, in the order of their training
LOG = (
    '{"step": 10, "videos_per_second": 8.0, "seconds": 30.0}\n{"step": 20, "videos_per_second": 8.0, "seconds": 12.5}\n'
)


def train(config, folder):
    """Writes the files of a finished training; all parameters are zero."""
    trainings.append(folder)
    write_config(folder, config)
    tx, _ = optimizer_of(config)
    state, _ = plan_state(split_of(config, build(config)).trained, dict, tx, one_device())
    state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), state)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(config.steps, to_parts(state) | {"data": {"next_batch": config.steps}})
    checkpoints.close()
    (folder / "metrics.jsonl").write_text(LOG)


def one_device():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    trainings.clear()
    monkeypatch.setattr(study_run, "train", train)
    monkeypatch.setattr(study_run, "load", lambda folder: load(folder, mesh=one_device()))


def plan_in(folder, arms, **changes):
    base = tiny["get_config"]()
    base.model.network.patch_time, base.sample.guidance = 1, 1.0
    base.data.data_dir = str(folder / "videos")
    how = {"seeds": (0,), "num": 5, "batch_size": 4, "metrics": ("flicker",)} | changes
    return make_plan(Study("?", "!", base, arms, **how), folder / "runs", folder / "out")


def fail(*args, **kwargs):
    pytest.fail("this was done already")


@pytest.fixture
def plan(tmp_path):
    """Two arms that share a run."""
    tiny["write_videos"](tmp_path / "videos")
    return plan_in(tmp_path, {"1 step": {"sample.steps": 1}, "2 steps": {}})


def test_a_job_goes_on_where_it_was_interrupted_and_does_nothing_twice(plan, monkeypatch):
    (run,), score, asked = plan.runs.values(), study_run.score, []

    def interrupted(*args, steps, **settings):
        asked.append(steps)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return score(*args, steps=steps, **settings)

    monkeypatch.setattr(study_run, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(plan, run.name)
    assert [read_result(cell) is not None for cell in plan.cells] == [True, False]
    work(plan, run.name)
    assert trainings == [run.folder]
    assert asked == [1, 2, 2]

    # Results have the videos of the pipeline and the cost of the training; other files are removed.
    pipeline = Pipeline(load(run.folder, mesh=one_device()))
    for cell in plan.cells:
        result = read_result(cell)
        assert list(result.scores[""]) == ["flicker"]
        assert result.cost["parameters"] == sum(x.size for x in jax.tree.leaves(pipeline.model.params))
        assert result.cost["training_seconds"] == 42.5
        assert result.cost["drawing_seconds"] > 0
        assert len(result.prompts) == 5
        drawn = pipeline(result.prompts, seed=0, batch_size=4, steps=cell.settings["steps"])
        np.testing.assert_array_equal(np.load(cell.file.with_suffix(".npy")), to_uint8(drawn))
    assert {path.suffix for path in plan.floors.file.parent.iterdir()} == {".json", ".npy"}

    # A damaged result is measured again. If all results exist, nothing is measured.
    before = read_result(plan.cells[1])
    plan.cells[1].file.write_text("{")
    work(plan, run.name)
    assert read_result(plan.cells[1]).scores == before.scores
    assert (asked, trainings) == ([1, 2, 2, 2], [run.folder])
    monkeypatch.setattr(study_run, "load", fail)
    work(plan, run.name)


def test_the_cost_of_a_drawing_is_that_of_all_its_sittings(plan, monkeypatch):
    (run,), score = plan.runs.values(), study_run.score

    def killed(*args, progress, **settings):
        for _ in progress([1, 2], "drawing"):
            time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_run, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        work(plan, run.name)
    spent = plan.cells[0].file.with_suffix("") / "seconds.txt"
    assert float(spent.read_text()) >= 0.2
    spent.write_text("1000\n")
    monkeypatch.setattr(study_run, "score", score)
    work(plan, run.name)
    costs = [read_result(cell).cost["drawing_seconds"] for cell in plan.cells]
    assert costs[0] > 1000 > costs[1]


def test_floors_are_those_of_the_held_out_clips(plan, monkeypatch):
    work(plan, FLOORS)
    result = read_result(plan.floors)
    assert result.scores.keys() == {"real", "shuffled", "frozen"}
    assert result.scores["frozen"]["flicker"].value == 0 < result.scores["real"]["flicker"].value
    assert len(np.load(plan.floors.file.with_suffix(".npy"))) == len(result.prompts) == 5
    monkeypatch.setattr(study_run, "floors", fail)
    work(plan, FLOORS)


def test_arms_are_drawn_in_their_modes_and_floors_measured_in_each(tmp_path):
    tiny["write_videos"](tmp_path / "videos")
    arms = {
        "first": {"known": "image to video, with the caption"},
        "noised": {"known": "video to video", "sample.strength": 0.5},
    }
    plan = plan_in(tmp_path, arms, metrics=("psnr",))
    (run,) = plan.runs.values()
    work(plan, run.name)
    work(plan, FLOORS)
    first, noised = (np.load(cell.file.with_suffix(".npy")) for cell in plan.cells)
    real = np.load(plan.floors.file.with_suffix(".npy"))
    np.testing.assert_array_equal(first[:, 0], real[:, 0])
    assert (first[:, 1:] != real[:, 1:]).any()
    assert (noised[:, 0] != real[:, 0]).any()
    modes = [", image to video, with the caption", ", video to video"]
    assert list(read_result(plan.floors).scores) == [f"{row}{mode}" for mode in modes for row in ("real", "no network")]


def test_a_folder_of_another_training_is_not_drawn_from(plan):
    (run,) = plan.runs.values()
    config = run.config.copy_and_resolve_references()
    config.ema = 0.1
    write_config(run.folder, config)
    (run.folder / "checkpoints" / str(config.steps)).mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds a run of another config .*: move it away"):
        work(plan, run.name)


def test_what_a_run_begins_with_is_trained_before_it_and_once(tmp_path):
    plan = plan_in(tmp_path, {"a": {"init_from": IMAGES}, "b": {"init_from": IMAGES, "ema": 0.5}})
    a, b = plan.runs.values()
    images = len(jax.tree.leaves(trained(a).model.params))
    trained(b)
    trained(a)
    assert trainings == [a.begins_with.folder, a.folder, b.folder]
    assert images == len(jax.tree.leaves(load(a.folder, mesh=one_device()).params))


def test_where_the_last_checkpoint_is_damaged_the_training_is_asked_to_go_on(plan):
    (run,) = plan.runs.values()
    train(run.config, run.folder)
    (run.folder / "checkpoints" / str(run.config.steps)).rename(run.folder / "checkpoints" / "7")
    (run.folder / "checkpoints" / str(run.config.steps)).mkdir()
    trainings.clear()
    with warnings.catch_warnings(action="ignore"):
        assert trained(run).model.step == 20
    assert trainings == [run.folder]


def test_a_run_that_another_process_holds_is_waited_for(plan, monkeypatch):
    (run,) = plan.runs.values()
    lock = run.folder.with_name(f"{run.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    hold = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", hold, str(lock)], **pipes) as other:
        other.stdout.readline()  # the process holds the lock until its input ends
        said = []

        def let_go(text, *arguments):
            said.append(text % arguments)
            other.stdin.close()

        monkeypatch.setattr(study_run.log, "info", let_go)
        late = threading.Timer(60, other.kill)  # ends the test if the message does not come
        late.start()
        with locked(run):
            assert other.wait() == 0
        late.cancel()
    assert [line for line in said if f"another process works on {run.folder}" in line]
