"""A study as a user runs it: trained and measured, resumed after a file was damaged, and its plan."""

import csv
import json
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))

STUDY = """
from runpy import run_path
from vdm_jax.studies.study import Study

def get_study():
    base = run_path({config!r})["get_config"]()
    base.steps, base.optimizer.warmup = 2, 1
    arms = {{"2 steps": {{}}, "3 steps": {{"sample.steps": 3}}}}
    return Study("More is better.", "nobody 2020", base, arms, metrics=("flicker",), seeds=(0,), num=4)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    tiny["write_videos"](folder / "videos")
    (folder / "study.py").write_text(STUDY.format(config=str(ROOT / "tests" / "tiny_config.py")))
    return folder


def rows_of(folder):
    with (folder / "out" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_in_two_sittings(run, outcome, folder):
    study = ["ablate.py", "--study=study.py", "--out=out", "--runs=runs"]
    out, _ = run(folder, *study)
    assert "2 of 2 results." in out
    assert (folder / "out" / "table.md").read_text().strip() in out
    assert "| (shuffled) |" in out
    two, three = rows_of(folder)
    assert (two["arm"], three["arm"]) == ("2 steps", "3 steps")
    assert two["run"] == three["run"]
    assert two["flicker"] != three["flicker"]
    trained = folder / "runs" / two["run"]
    assert [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (folder / "out" / "report.html").read_text().count("<video ") == 3 * 4
    assert (folder / "out" / "plot.svg").read_text().startswith("<svg ")

    # The second sitting does only the missing work.
    log = folder / "out" / "logs" / f"{two['run']}.log"
    before = log.read_text()
    assert "2 steps of 8" in before
    (damaged,) = (folder / "out" / "results").glob("3-steps-*.json")
    damaged.write_text(damaged.read_text()[:50])
    out, err = run(folder, *study)
    assert f"{damaged.name} is damaged (" in err
    assert "2 of 2 results." in out
    assert rows_of(folder)[1]["flicker"] == three["flicker"]
    again = log.read_text().removeprefix(before)
    assert "measuring 3 steps, seed 0" in again
    assert "2 steps of 8" not in again  # no step was trained
    assert "measuring 2 steps" not in again

    # An error in the real clips is reported before anything is trained.
    (folder / "more.py").write_text((folder / "study.py").read_text().replace("num=4", "num=40"))
    status, _, err = outcome(folder, ROOT / "experiments" / "ablate.py", "--study=more.py", "--out=more", "--runs=none")
    assert status == 2
    assert "real clips cannot be measured, so no run was started: num=40 needs 80 real clips" in err
    assert not (folder / "none").exists()

    # The plan of a finished study: nothing to time.
    out, _ = run(folder, *study, "--dry-run")
    assert f"| {two['run']}, seed 0: 2 steps, 3 steps | trained | 0 of 2 | 0:00:00 |" in out
    assert "1 runs, 1 at a time: about 0:00:00." in out
