"""Results and reports of a study: files, aggregation checked by hand, table, plot and page."""

import csv
import dataclasses
import io
import json
import math
import xml.dom.minidom
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages.page import Spread
from vdm_jax.studies.report import markdown, read_findings, rows_of, summarise, write_report
from vdm_jax.studies.results import Result, read_result, write_result
from vdm_jax.studies.study import Study, make_plan, sweep

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))
VIDEOS = np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)


def result_of(value, **cost):
    scores = {
        "flicker": Interval(value, value - 0.1, value + 0.2, 0.01),
        "jerk": Interval(math.nan, math.nan, math.nan),
    }
    cost = {"parameters": 3_000_000, "training_seconds": 120.0, "drawing_seconds": 8.0} | cost
    return Result({"": scores}, cost, {"judge": "abc"}, "1 × cpu", ["a <b>", "c"])


def plan_in(folder, arms, **changes):
    how = {"claim": "One is <better> than the other.", "source": "somebody 2020", "seeds": (0, 1, 2), "num": 4}
    study = Study(base=tiny["get_config"](), arms=arms, metrics=("flicker", "jerk"), name="both", **how | changes)
    return make_plan(study, folder / "runs", folder / "out")


@pytest.fixture
def plan(tmp_path):
    """Two arms with three seeds: results of all seeds of the first arm, of one seed of the second, and the floors."""
    plan = plan_in(tmp_path, {"v": {}, "ε | w": {"objective.prediction": "eps", "steps": lambda steps: 3 * steps}})
    for cell, value in zip([*plan.cells[::2], plan.cells[1]], (0.2, 0.5, 0.2, 0.7), strict=True):
        write_result(cell, result_of(value, training_seconds=60 * value), VIDEOS)
    floors = result_of(0.05)
    write_result(plan.floors, Result({"real": floors.scores[""]}, {}, {}, "1 × cpu", ["a <b>", "c"]), VIDEOS)
    return plan


def test_a_result_comes_back_as_it_was(plan):
    found = read_result(plan.cells[0])
    assert found.scores[""]["flicker"] == result_of(0.2).scores[""]["flicker"]
    assert math.isnan(found.scores[""]["jerk"].value)
    assert (found.cost["training_seconds"], found.machine, found.prompts) == (12.0, "1 × cpu", ["a <b>", "c"])
    videos = np.load(plan.cells[0].file.with_suffix(".npy"))
    np.testing.assert_allclose(videos / 127.5 - 1, VIDEOS, atol=0.005)
    assert read_result(plan.cells[3]) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"scores": {"": {"flicker": [1, 2]}}}', '{"scores": {}}'])
def test_a_damaged_result_is_set_aside_in_one_line_and_the_others_stay(plan, caplog, damage):
    bad = plan.cells[0]
    bad.file.write_text(damage)
    assert read_result(bad) is None
    (line,) = caplog.messages
    assert f"{bad.file} is damaged (" in line
    assert line.endswith(f"): renamed to {bad.file.stem}.damaged and measured again")
    assert not bad.file.exists()
    assert bad.file.with_suffix(".damaged").read_text() == damage
    assert read_result(bad) is None
    assert len(caplog.messages) == 1
    assert len(read_findings(plan).results) == 3


def test_seeds_are_summarised_as_by_hand():
    def interval(value):
        return Interval(value, 0.0, 1.0)

    spread = summarise([interval(v) for v in (0.2, 0.5, 0.2)])
    assert isinstance(spread, Spread)
    assert (spread.value, spread.deviation) == pytest.approx((0.3, math.sqrt((0.01 + 0.04 + 0.01) / 2)))
    assert summarise([interval(0.7)]) == interval(0.7)
    assert summarise([interval(math.nan), interval(0.7)]) == interval(0.7)
    assert summarise([interval(math.nan)]) is None
    assert summarise([]) is None


def test_rows_have_what_there_is_and_the_cost_beside(plan):
    one, two, real = rows_of(read_findings(plan))
    assert (one["arm"], one["seeds"]) == ("v", "0, 1, 2")
    assert (one["flicker ↓"].value, one["flicker ↓"].deviation) == pytest.approx((0.3, 0.03**0.5))
    assert one["jerk ↓"] is None
    assert (one["parameters, M"], one["training, min"], one["drawn and scored, s/video"]) == (3, 0.3, 2)
    assert (two["seeds"], two["flicker ↓"].value, two["flicker ↓"].low) == ("0", 0.7, pytest.approx(0.6))
    assert (real["arm"], real["flicker ↓"].value) == ("(real)", 0.05)


def test_tables_say_the_same_and_what_is_missing(plan):
    text = markdown(read_findings(plan), "python experiments/ablate.py --study x")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert table[0].startswith("| arm | seeds | flicker ↓ | jerk ↓ |")
    assert table[2] == "| v | 0, 1, 2 | 0.3 ± 0.17 | – | 3 | 0.3 | 2 |"
    assert table[3].startswith("| ε \\| w | 0 | 0.7 [0.6, 0.9] | – |")
    assert "4 of 6 results exist so far." in text
    assert "± is the standard deviation over seeds" in text
    assert "One is <better> than the other. (somebody 2020)" in lines
    assert "python experiments/ablate.py --study x" in lines

    write_report(read_findings(plan), plan.floors.file.parents[1], "x")
    with (plan.floors.file.parents[1] / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [("v", "0"), ("ε | w", "0"), ("v", "1"), ("v", "2")]
    assert [float(row["flicker"]) for row in rows] == [0.2, 0.7, 0.5, 0.2]
    assert float(rows[0]["flicker_high"]) == pytest.approx(0.4)
    assert rows[0]["run"] == plan.cells[0].run.name
    assert not (plan.floors.file.parents[1] / "report.html").exists()


def test_the_plot_is_a_file_of_its_own_with_an_error_bar_for_every_arm(plan):
    out = plan.floors.file.parents[1]
    write_report(read_findings(plan), out, "x")
    svg = xml.dom.minidom.parse(str(out / "plot.svg"))
    (chart,) = svg.documentElement.getElementsByTagName("svg")  # jerk has nothing to draw
    assert "flicker ↓: v 0.3 ± 0.17; ε | w 0.7 [0.6, 0.9]" in chart.getAttribute("aria-label")
    bars = [path for path in chart.getElementsByTagName("path") if path.getAttribute("class") == "line0"]
    dots = [float(dot.getAttribute("cx")) for dot in chart.getElementsByTagName("circle")]
    single, mean, other = dots[:3], dots[3], dots[4]
    assert len(bars) == 2
    assert mean == pytest.approx(np.mean(single), abs=0.2)
    assert other > max(single)
    ends = [float(part.split()[0]) for part in bars[0].getAttribute("d").replace("H", "M").split("M")[1:]]
    assert max(ends) - mean == pytest.approx(mean - min(ends), abs=0.2)
    assert [path for path in chart.getElementsByTagName("path") if path.getAttribute("class") == "real"]


def test_along_a_number_arms_that_differ_in_nothing_else_are_one_curve(tmp_path):
    solvers = {"ddim": {}, "heun": {"sample.solver": "heun"}}
    arms = sweep(solvers, "sample.steps", {f"{n} steps": n for n in (4, 8, 64)})
    plan = plan_in(tmp_path, arms, along="sample.steps", seeds=(0, 1))
    for i, cell in enumerate(plan.cells):
        write_result(cell, result_of(0.1 * i), VIDEOS)
    write_report(read_findings(plan), tmp_path / "out", "x")
    svg = xml.dom.minidom.parse(str(tmp_path / "out" / "plot.svg"))
    (chart,) = svg.documentElement.getElementsByTagName("svg")
    texts = [
        "".join(node.data for node in text.childNodes if node.nodeType == 3)
        for text in chart.getElementsByTagName("text")
    ]
    assert texts[0] == "flicker ↓ by steps"
    assert {"4", "8", "64"} <= set(texts)
    assert [key.firstChild.data for key in chart.getElementsByTagName("tspan")] == ["ddim", "heun"]
    of_class = [
        [float(c.getAttribute("cx")) for c in chart.getElementsByTagName("circle") if c.getAttribute("class") == name]
        for name in ("dot0", "dot1")
    ]
    for x in of_class:
        assert len(x) == 3
        assert (x[2] - x[1]) == pytest.approx(3 * (x[1] - x[0]), abs=0.5)  # steps 4, 8, 64 on a logarithmic axis


def test_one_line_alone_needs_no_name(tmp_path):
    plan = plan_in(tmp_path, sweep({"": {}}, "sample.steps", {f"w = {n}": n for n in (4, 8)}), along="sample.steps")
    for cell in plan.cells:
        write_result(cell, result_of(0.1), VIDEOS)
    write_report(read_findings(plan), tmp_path / "out", "x")
    svg = xml.dom.minidom.parse(str(tmp_path / "out" / "plot.svg"))
    assert not svg.getElementsByTagName("tspan")
    assert "flicker ↓ by steps: 0.1 ± 0 at 4; 0.1 ± 0 at 8" in svg.documentElement.toxml()


def test_long_names_are_not_cut_off(tmp_path):
    name = "attention over space and time at once"
    plan = plan_in(tmp_path, {name: {}}, seeds=(0,))
    write_result(plan.cells[0], result_of(0.1), VIDEOS)
    write_report(read_findings(plan), tmp_path / "out", "x")
    svg = xml.dom.minidom.parse(str(tmp_path / "out" / "plot.svg"))
    (end,) = (t.getAttribute("x") for t in svg.getElementsByTagName("text") if t.firstChild.data == name)
    assert float(end) > 5.7 * len(name)  # the width of the drawn text


def test_lines_along_a_number_keep_apart_where_names_do_not(tmp_path):
    arms = {f"{s} {n}": {"sample.solver": s, "sample.steps": n} for s in ("ddim", "heun") for n in (4, 8)}
    plan = plan_in(tmp_path, arms, along="sample.steps", seeds=(0,))
    for cell in plan.cells:
        write_result(cell, result_of(0.1), VIDEOS)
    write_report(read_findings(plan), tmp_path / "out", "x")
    svg = xml.dom.minidom.parse(str(tmp_path / "out" / "plot.svg"))
    assert [key.firstChild.data for key in svg.getElementsByTagName("tspan")] == ["ddim 4", "heun 4"]


def test_floors_of_several_modes_stand_below_each_other_and_no_line_is_that_of_real_clips(tmp_path):
    modes = ("first and last frame", "every second frame")
    plan = plan_in(tmp_path, {mode: {"known": mode} for mode in modes}, seeds=(0,))
    for cell in plan.cells:
        write_result(cell, result_of(0.1), VIDEOS)
    scores = {f"real, {mode}": result_of(0.05).scores[""] for mode in modes}
    write_result(plan.floors, Result(scores, {}, {}, "1 × cpu", ["a <b>", "c"]), VIDEOS)
    found = read_findings(plan)
    assert [row["arm"] for row in rows_of(found)] == [*modes, *(f"(real, {mode})" for mode in modes)]
    assert "4 videos for each arm and seed, each arm in its mode." in markdown(found, "x")
    write_report(found, tmp_path / "out", "x", iter)
    assert 'class="real"' not in (tmp_path / "out" / "plot.svg").read_text()
    assert "dashed line" not in (tmp_path / "out" / "report.html").read_text()


def test_figures_of_two_networks_of_a_kind_are_told_apart(plan):
    assert "different networks" not in markdown(read_findings(plan), "x")
    write_result(plan.cells[0], dataclasses.replace(result_of(0.3), networks={"judge": "def"}), VIDEOS)
    assert "by different networks of a kind: their distances cannot be compared" in markdown(read_findings(plan), "x")


def test_the_page_is_one_file_with_the_videos_of_every_arm_beside_each_other(plan):
    out, seen = plan.floors.file.parents[1], []
    write_report(read_findings(plan), out, "python x", lambda rows: seen.extend(rows) or seen)
    text = (out / "report.html").read_text()
    assert [name for name, *_ in seen] == ["real clips", "v", "ε | w"]
    assert text.count("<video ") == 6
    assert text.count('<th scope="col">a &lt;b&gt;</th>') == 1
    assert 'aria-label="v: a &lt;b&gt;"' in text
    assert "One is &lt;better&gt;" in text
    assert "<td>60</td>" in text or '<th scope="row">60</th>' in text  # three times the base's 20 steps
    assert "http" not in text.split("<main>")[1].replace("http://www.w3.org/2000/svg", "")


def test_the_page_says_what_a_run_begins_with(tmp_path):
    before = {"steps": 7, "batch_size": lambda size: 4 * size}
    plan = plan_in(tmp_path, {"a": {"init_from": before}}, seeds=(0,))
    write_result(plan.cells[0], result_of(0.1), VIDEOS)
    write_report(read_findings(plan), tmp_path / "out", "x", iter)
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"steps: 7, batch_size: {4 * tiny['get_config']().batch_size}" in text
    assert "function" not in text.split("Arms")[1].split("The base config")[0]


def test_results_that_came_without_their_videos_are_on_the_page_as_well(plan):
    plan.cells[0].file.with_suffix(".npy").unlink()
    out = plan.floors.file.parents[1]
    write_report(read_findings(plan), out, "python x", iter)
    text = (out / "report.html").read_text()
    assert text.count("<video ") == 4
    assert '<th scope="row">v</th><td colspan="2" class="missing">Its videos are missing.</td>' in text


def test_a_study_that_has_only_begun_has_a_report_as_well(tmp_path):
    plan = plan_in(tmp_path, {"v": {}})
    write_report(read_findings(plan), tmp_path / "out", "x", iter)
    assert "0 of 3 results exist so far." in (tmp_path / "out" / "table.md").read_text()
    assert "No videos yet." in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "plot.svg").exists()


def test_numbers_of_the_file_are_plain_json(plan):
    values = json.loads(plan.cells[0].file.read_text(), parse_constant=pytest.fail)
    assert values["scores"][""]["jerk"]["value"] is None
    assert io.StringIO(plan.cells[0].file.read_text()).readline() == "{\n"
