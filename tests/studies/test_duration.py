"""Estimated durations, checked by hand: from runs, results and timed steps, or from similar runs."""

import json
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.files import write_text
from vdm_jax.studies import duration
from vdm_jax.studies.duration import seconds_left, seconds_of_steps, step_of, training_seconds
from vdm_jax.studies.results import Result, write_result
from vdm_jax.studies.study import Study, make_plan

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))


@pytest.fixture
def plan(tmp_path):
    """20 steps of 8 videos; two recipes, and two arms that draw from the first."""
    arms = {"v": {}, "guided": {"sample.guidance": 3.0}, "eps": {"objective.prediction": "eps", "steps": 40}}
    base = tiny["get_config"]()
    base.sample.guidance, base.sample.steps = 1.0, 10
    study = Study("?", "!", base, arms, ("flicker",), seeds=(0, 1), num=4)
    return make_plan(study, tmp_path / "runs", tmp_path / "out")


def log(folder, *lines):
    """Writes metrics.jsonl; each line has the step, videos per second, and seconds."""
    names = ("step", "videos_per_second", "seconds")
    text = "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
    write_text(folder / "metrics.jsonl", text)


def time(run, timed, seconds):
    """Notes the seconds of a step of 8 videos for the recipe of a run."""
    log(timed / run.recipe, (1, 0.1, 80.0), (2, 8 / seconds, seconds))


def finish(run):
    (run.folder / "checkpoints" / str(run.config.steps)).mkdir(parents=True)


def measured(cell, seconds):
    cost = {"parameters": 1, "training_seconds": 1.0, "drawing_seconds": seconds}
    write_result(cell, Result({"": {}}, cost, {}, "", []), np.zeros((1, 4, 8, 8, 3), np.uint8))


def test_nothing_is_known_before_anything_was_timed(plan, tmp_path):
    assert seconds_left(plan, list(plan.runs.values()), tmp_path) is None
    assert seconds_of_steps(plan, tmp_path) == {}


def test_what_was_timed_goes_for_all_seeds_and_the_mean_for_other_recipes(plan, tmp_path):
    first, *_ = plan.runs.values()
    time(first, tmp_path, 2.0)
    assert seconds_of_steps(plan, tmp_path) == {first.recipe: 2.0}
    left = seconds_left(plan, list(plan.runs.values()), tmp_path)
    # A call takes a third of a step: 2 seconds for 8 videos. 4 videos × 10 steps; guidance doubles the calls.
    call = 2 / 8 / 3
    v = 20 * 2 + call * 4 * 10 * (1 + 2)
    assert left == pytest.approx(dict(zip(plan.runs, [v, 40 * 2 + call * 40] * 2, strict=True)))


def test_runs_that_have_begun_are_counted_from_where_they_are(plan, tmp_path):
    first, eps, second, _ = plan.runs.values()
    time(first, tmp_path, 7.0)  # the log of a run is preferred
    log(first.folder, (5, 1.0, 50.0), (10, 4.0, 10.0), (15, 8.0, 5.0), (17, 0.5, 3.0))
    assert seconds_of_steps(plan, tmp_path)[first.recipe] == 2.0  # the median of 4, 8 and 0.5 videos per second
    assert (step_of(first), step_of(eps), training_seconds(first)) == (17, 0, 68.0)
    left = seconds_left(plan, [first], tmp_path)
    assert left[first.name] == pytest.approx(3 * 2 + 2 / 8 / 3 * 120)
    finish(first)
    measured(plan.cells[0], 20.0)  # half a second for each call
    left = seconds_left(plan, [first, second], tmp_path)
    assert left == pytest.approx({first.name: 0.5 * 80, second.name: 20 * 2 + 0.5 * 120})
    measured(plan.cells[1], 40.0)
    assert seconds_left(plan, [first], tmp_path) == {first.name: 0}


def test_a_line_that_is_cut_off_does_no_harm(plan, tmp_path):
    first = next(iter(plan.runs.values()))
    log(first.folder, (5, 1.0, 50.0), (10, 4.0, 10.0))
    with (first.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "vi')
    assert seconds_of_steps(plan, tmp_path) == {first.recipe: 2.0}


def test_steps_are_timed_in_a_folder_of_their_own_for_all_runs_of_a_recipe(plan, tmp_path, monkeypatch):
    first, eps, *_ = plan.runs.values()

    def train(config, folder):
        assert (config.steps, config.log_every, config.optimizer.warmup, config.init_from) == (6, 1, 0, "")
        assert config.objective == eps.config.objective
        log(folder, (1, 1.0, 20.0), *((i, 4.0, 2.0) for i in range(2, 7)))
        (folder / "checkpoints").mkdir()

    monkeypatch.setattr(duration, "train", train)
    time(first, tmp_path, 3.0)
    log(tmp_path / eps.recipe, (1, 1.0, 20.0))  # was interrupted
    duration.time_steps(eps, tmp_path)
    assert seconds_of_steps(plan, tmp_path) == {first.recipe: 3, eps.recipe: 2}
    assert [path.name for path in (tmp_path / eps.recipe).iterdir()] == ["metrics.jsonl"]
    assert not eps.folder.exists()


def test_what_a_run_begins_with_is_counted_once(tmp_path):
    images = {"data.frames": 1, "model.network.time_attention": False, "steps": 7}
    base = tiny["get_config"]()
    base.model.network.patch_time, base.sample.steps, base.sample.guidance = 1, 1, 1.0
    study = Study(
        "?", "!", base, {"a": {"init_from": images}, "b": {"init_from": images, "ema": 0.5}}, ("flicker",), (0,)
    )
    plan = make_plan(study, tmp_path / "runs", tmp_path / "out")
    a, b = plan.runs.values()
    assert list(plan.all_runs) == [a.name, a.begins_with.name, b.name]
    time(a, tmp_path, 1.0)
    time(a.begins_with, tmp_path, 10.0)
    left = seconds_left(plan, [a, b], tmp_path)
    drawing = (1 + 10) / 2 / 8 / 3 * 256
    assert left == pytest.approx({a.name: 20 + 70 + drawing, b.name: 20 * 5.5 + drawing})
    log(a.begins_with.folder, (1, 1.0, 9.0))
    assert training_seconds(a) == 9.0
