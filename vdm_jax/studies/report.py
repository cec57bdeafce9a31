"""Reports the results of a study so far: a table in Markdown and CSV, a plot, and a self-contained page."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.evaluation.metrics import METRICS
from vdm_jax.files import write_text
from vdm_jax.pages.chart import Estimate, along, side_by_side, stacked
from vdm_jax.pages.page import Spread, embed_video, number, render, table, video
from vdm_jax.studies.results import Result, read_result
from vdm_jax.studies.study import SAMPLE, Plan, Study, changed, value_at

COST = {  # title: (key in the cost of a result, unit)
    "parameters, M": ("parameters", 1e6),
    "training, min": ("training_seconds", 60),
    "drawn and scored, s/video": ("drawing_seconds", 1),
}


class Findings(NamedTuple):
    """The results of a plan so far."""

    plan: Plan
    cells: dict[str, dict[int, Result]]  # by arm and seed
    floors: Result | None

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.plan.floors.inputs["metrics"]

    @property
    def results(self) -> list[Result]:
        return [result for cells in self.cells.values() for result in cells.values()]


def read_findings(plan: Plan) -> Findings:
    """Reads all results that exist."""
    cells = {arm: {} for arm in plan.study.arms}
    for cell in plan.cells:
        if (result := read_result(cell)) is not None:
            cells[cell.arm][cell.seed] = result
    return Findings(plan, cells, read_result(plan.floors))


def summarise(values: Sequence[Interval]) -> Interval | Spread | None:
    """The mean and standard deviation (n − 1) over seeds; for a single seed, its interval."""
    values = [value for value in values if math.isfinite(value.value)]
    if len(values) < 2:
        return values[0] if values else None
    numbers = [value.value for value in values]
    return Spread(statistics.mean(numbers), statistics.stdev(numbers))


def rows_of(findings: Findings) -> list[dict[str, Any]]:
    """The rows of the table: the arms, then the floors."""
    metrics, rows = findings.metrics, []
    for arm, results in findings.cells.items():
        row: dict[str, Any] = {"arm": arm, "seeds": ", ".join(map(str, results)) or "none yet"}
        for metric in metrics:
            row[_titled(metric)] = summarise([result.scores[""][metric] for result in results.values()])
        for name, (key, unit) in COST.items():
            costs = [result.cost[key] / unit for result in results.values()]
            count = findings.plan.study.num if key == "drawing_seconds" else 1
            row[name] = float(f"{statistics.mean(costs) / count:.3g}") if costs else None
        rows.append(row)
    for floor, scores in (findings.floors.scores if findings.floors else {}).items():
        rows.append({"arm": f"({floor})", "seeds": ""} | {_titled(m): summarise([scores[m]]) for m in metrics})
    return rows


def _titled(metric: str) -> str:
    return f"{metric} {METRICS[metric].better}"


def write_report(
    findings: Findings, out: Path, command: str, progress: Callable[[Iterable], Iterable] | None = None
) -> None:
    """Writes table.md, table.csv and plot.svg. With `progress`, which wraps the videos to encode, also report.html."""
    write_text(out / "table.md", markdown(findings, command))
    write_text(out / "table.csv", comma_separated(findings))
    if charts := charts_of(findings):
        write_text(out / "plot.svg", stacked(charts))
    if progress is not None:
        write_text(out / "report.html", page(findings, charts, command, progress))


def markdown(findings: Findings, command: str) -> str:
    """The claim, the table, and notes on its figures."""
    study, rows = findings.plan.study, rows_of(findings)
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    cells = [[number(row.get(column, "")).replace("|", "\\|") for column in rows[0]] for row in rows]
    body = "\n".join(lines + [f"| {' | '.join(row)} |" for row in cells])
    claim, notes = f"{study.claim} ({study.source})", " ".join(_notes(findings))
    return f"# {study.name}\n\n{claim}\n\n{body}\n\n{notes}\n\n```\n{command}\n```\n"


def _notes(findings: Findings) -> list[str]:
    """Notes that a reader of the figures needs."""
    results, counts = findings.results, set(map(len, findings.cells.values()))
    modes = [f"with {mode}" if mode else "on captions of held-out clips" for mode in findings.plan.modes]
    mode = modes[0] if len(modes) == 1 else "each arm in its mode"
    notes = [f"{findings.plan.study.num} videos for each arm and seed, {mode}."]
    if max(counts) > 1:
        notes.append("± is the standard deviation over seeds of training and drawing together.")
    if 1 in counts:
        notes.append("[ ] is a 95 % interval over the videos of one seed; it does not include the choice of the seed.")
    if findings.floors:
        notes.append(f"In parentheses: the floors, from real clips (seed {findings.plan.floors.seed}).")
    if len(results) < len(findings.plan.cells):
        notes.append(f"{len(results)} of {len(findings.plan.cells)} results exist so far.")
    networks = sorted({f"{name} {digest}" for result in results for name, digest in result.networks.items()})
    notes += [f"Measured by {', '.join(networks)}."] if networks else []
    if len({entry.split()[0] for entry in networks}) < len(networks):
        notes.append("Results are by different networks of a kind: their distances cannot be compared.")
    return notes + [f"{machine}." for machine in sorted({result.machine for result in results})]


def comma_separated(findings: Findings) -> str:
    """A row for each arm and seed, with all intervals, for further computation."""
    metrics = findings.metrics
    names = [f"{metric}{part}" for metric in metrics for part in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "run", *names, *(key for key, _ in COST.values())])
    for cell in findings.plan.cells:
        result = findings.cells[cell.arm].get(cell.seed)
        if result is not None:
            scores = [result.scores[""][metric] for metric in metrics]
            values = [v for score in scores for v in (score.value, score.low, score.high)]
            writer.writerow([cell.arm, cell.seed, cell.run.name, *values, *(result.cost[k] for k, _ in COST.values())])
    return text.getvalue()


# ------------------------------------------------------------------------------------------------- charts


def charts_of(findings: Findings) -> list[str]:
    """A chart for each metric with results."""
    charts, study, real = [], findings.plan.study, _real(findings)
    for metric in findings.metrics:
        estimates = {}
        for arm, results in findings.cells.items():
            scores = [result.scores[""][metric] for result in results.values()]
            if (error := summarise(scores)) is not None:
                estimates[arm] = error, [s.value for s in scores if math.isfinite(s.value)] * (len(scores) > 1)
        # The 100 dB of a real clip would press all arms into a corner of the chart.
        level = real[metric].value if real and metric != "psnr" else math.nan
        if estimates and study.along:
            axis = study.along.removeprefix(SAMPLE)
            charts.append(along(_titled(metric), _lines(study, estimates), axis, level))
        elif estimates:
            charts.append(side_by_side(_titled(metric), estimates, level))
    return charts


def _real(findings: Findings) -> dict[str, Interval]:
    """The figures of real clips; empty if there are several modes, each with its own."""
    return findings.floors.scores.get("real", {}) if findings.floors else {}


def _lines(study: Study, estimates: Mapping[str, Estimate]) -> dict[str, dict[float, Estimate]]:
    """Groups estimates into lines: arms that differ only in the key of the axis are one line.

    The name of a line is the name of its first arm up to the last comma, or the whole name if the part would be empty
    or taken. A single line has no name.
    """
    names: dict[str, str] = {}
    lines: dict[str, dict[float, Estimate]] = {}
    for arm, estimate in estimates.items():
        rest = repr(sorted(((k, v) for k, v in study.arms[arm].items() if k != study.along), key=repr))
        if rest not in names:
            name = arm.rpartition(", ")[0]
            names[rest] = arm if name in ("", *lines) else name
        lines.setdefault(names[rest], {})[float(study.arms[arm][study.along])] = estimate
    return lines if len(lines) > 1 else {"": next(iter(lines.values()))}


# --------------------------------------------------------------------------------------------------- page


def page(findings: Findings, charts: Sequence[str], command: str, progress: Callable[[Iterable], Iterable]) -> str:
    """The page: claim, table, charts, videos of all arms side by side, and the changes of each arm."""
    study = findings.plan.study
    arms = [{"arm": arm} | {k: _value_text(study, k, v) for k, v in x.items()} for arm, x in study.arms.items()]
    return render(
        "ablation.html",
        title=f"{study.name}: study",
        study=study,
        scores=table(rows_of(findings)),
        notes=_notes(findings),
        charts=charts,
        several_seeds=any(len(cells) > 1 for cells in findings.cells.values()),
        real=_real(findings),
        rows=list(_videos(findings, progress)),
        arms=table(arms),
        command=command,
    )


def _value_text(study: Study, key: str, value: Any) -> str:
    """The text of a changed value; a function is shown as its result."""
    if isinstance(value, Mapping):
        return ", ".join(f"{inner}: {_value_text(study, inner, v)}" for inner, v in value.items())
    return str(value_at(changed(study.base, {key: value}), key) if callable(value) else value)


def _videos(
    findings: Findings, progress: Callable[[Iterable], Iterable]
) -> Iterator[tuple[str, Sequence[str], list[str]]]:
    """Yields for each arm its name, its prompts, and the videos of the first seed; none if their file is missing.

    A column has the same caption and noise in all rows.
    """
    first = findings.plan.study.seeds[0]
    shown = [("real clips", findings.plan.floors, findings.floors)] if findings.floors else []
    arms = [cell for cell in findings.plan.cells if cell.seed == first and first in findings.cells[cell.arm]]
    shown += [(cell.arm, cell, findings.cells[cell.arm][first]) for cell in arms]
    fps = findings.plan.study.base.sample.fps
    for name, cell, result in progress(shown):
        try:
            videos = np.load(cell.file.with_suffix(".npy"), allow_pickle=False)
        except FileNotFoundError:  # a result that was copied without its videos
            videos = ()
        labels = [f"{name}: {prompt}" for prompt in result.prompts]
        yield name, result.prompts, [video(embed_video(v, fps), x) for v, x in zip(videos, labels, strict=False)]
