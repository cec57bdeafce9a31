"""Estimated durations, checked by hand: from runs, results and timed steps, or from similar runs."""

import dataclasses
import json
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.files import write_text
from vdm_jax.studies import duration
from vdm_jax.studies.duration import pace, seconds_left, step_of, training_seconds, untimed
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


def log(run, *lines):
    """Writes metrics.jsonl; each line has the step, videos per second, and seconds."""
    names = ("step", "videos_per_second", "seconds")
    text = "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
    write_text(run.folder / "metrics.jsonl", text)


def finish(run):
    (run.folder / "checkpoints" / str(run.config.steps)).mkdir(parents=True)


def measured(cell, seconds):
    cost = {"parameters": 1, "training_seconds": 1.0, "drawing_seconds": seconds}
    write_result(cell, Result({"": {}}, cost, {}, "", []), np.zeros((1, 4, 8, 8, 3), np.uint8))


def test_nothing_is_known_before_anything_was_timed(plan, tmp_path):
    assert seconds_left(plan, list(plan.runs.values()), tmp_path / "pace.json") is None
    assert len(untimed(plan, tmp_path / "pace.json")) == 2


def test_what_was_timed_goes_for_all_seeds_and_the_mean_for_other_recipes(plan, tmp_path):
    first, eps, *_ = plan.runs.values()
    (tmp_path / "pace.json").write_text(json.dumps({first.recipe: [30.0, 2.0]}))
    assert [run.recipe for run in untimed(plan, tmp_path / "pace.json")] == [eps.recipe]
    left = seconds_left(plan, list(plan.runs.values()), tmp_path / "pace.json")
    # A call takes a third of a step: 2 seconds for 8 videos. 4 videos × 10 steps; guidance doubles the calls.
    call = 2 / 8 / 3
    v = 30 + 20 * 2 + call * 4 * 10 * (1 + 2)
    assert left == pytest.approx(dict(zip(plan.runs, [v, 30 + 40 * 2 + call * 40] * 2, strict=True)))


def test_runs_that_have_begun_are_counted_from_where_they_are(plan, tmp_path):
    first, eps, second, _ = plan.runs.values()
    log(first, (5, 1.0, 50.0), (10, 4.0, 10.0), (15, 8.0, 5.0), (17, 0.5, 3.0))
    assert pace(first) == (50.0, 2.0)  # the median of 4, 8 and 0.5 videos per second
    assert (step_of(first), step_of(eps), training_seconds(first)) == (17, 0, 68.0)
    left = seconds_left(plan, [first], tmp_path / "pace.json")
    assert left[first.name] == pytest.approx(3 * 2 + 2 / 8 / 3 * 120)
    finish(first)
    measured(plan.cells[0], 20.0)  # half a second for each call
    left = seconds_left(plan, [first, second], tmp_path / "pace.json")
    assert left == pytest.approx({first.name: 0.5 * 80, second.name: 50 + 20 * 2 + 0.5 * 120})
    measured(plan.cells[1], 40.0)
    assert seconds_left(plan, [first], tmp_path / "pace.json") == {first.name: 0}


def test_a_line_that_is_cut_off_and_a_damaged_note_do_no_harm(plan, tmp_path):
    first = next(iter(plan.runs.values()))
    log(first, (5, 1.0, 50.0), (10, 4.0, 10.0))
    with (first.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "vi')
    (tmp_path / "pace.json").write_text('{"a": 3')
    assert pace(first) == (50.0, 2.0)
    assert seconds_left(plan, [first], tmp_path / "pace.json") is not None


def test_steps_are_timed_in_a_folder_of_their_own_and_noted_for_all_like_them(plan, tmp_path, monkeypatch):
    first, eps, *_ = plan.runs.values()

    def train(config, folder):
        assert (config.steps, config.log_every, config.optimizer.warmup, config.init_from) == (6, 1, 0, "")
        assert config.objective == eps.config.objective
        log(dataclasses.replace(eps, folder=folder), (1, 1.0, 20.0), *((i, 4.0, 2.0) for i in range(2, 7)))

    monkeypatch.setattr(duration, "train", train)
    (tmp_path / "pace.json").write_text(json.dumps({first.recipe: [30.0, 2.0]}))
    duration.time_step(eps, tmp_path / "pace.json")
    assert json.loads((tmp_path / "pace.json").read_text()) == {first.recipe: [30, 2], eps.recipe: [20, 2]}
    assert untimed(plan, tmp_path / "pace.json") == []
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
    (tmp_path / "pace.json").write_text(json.dumps({a.recipe: [0, 1.0], a.begins_with.recipe: [0, 10.0]}))
    left = seconds_left(plan, [a, b], tmp_path / "pace.json")
    drawing = (1 + 10) / 2 / 8 / 3 * 256
    assert left == pytest.approx({a.name: 20 + 70 + drawing, b.name: 20 * 5.5 + drawing})
    log(a.begins_with, (1, 1.0, 9.0))
    assert training_seconds(a) == 9.0
