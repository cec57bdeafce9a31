"""What a study found, as far as it is done: a table in Markdown and in CSV, a plot, and a page that is one file."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.evaluation.metrics import METRICS
from vdm_jax.files import write_text
from vdm_jax.pages.error_bars import Estimate, along, side_by_side, stacked
from vdm_jax.pages.page import Spread, document, embed_video, number, table, video
from vdm_jax.studies.results import Result, read_result
from vdm_jax.studies.study import SAMPLE, Cell, Plan, Study, changed, value_at

COST = {  # name: of a result's cost, and in which unit
    "parameters, M": ("parameters", 1e6),
    "training, min": ("training_seconds", 60),
    "drawn and scored, s/video": ("drawing_seconds", 1),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """The results of a plan that there are."""

    plan: Plan
    cells: dict[str, dict[int, Result]]  # by arm and seed
    floors: Result | None

    @property
    def count(self) -> int:
        return sum(map(len, self.cells.values()))


def read_found(plan: Plan) -> Found:
    """Reads every result that is there."""
    cells = {arm: {} for arm in plan.study.arms}
    for cell in plan.cells:
        if (result := read_result(cell)) is not None:
            cells[cell.arm][cell.seed] = result
    return Found(plan, cells, read_result(plan.floors))


def summarise(values: Sequence[Interval]) -> Interval | Spread | None:
    """Of a figure in several seeds: their mean and standard deviation (over n − 1); in one: its interval."""
    values = [value for value in values if math.isfinite(value.value)]
    if len(values) < 2:
        return values[0] if values else None
    numbers = [value.value for value in values]
    return Spread(statistics.mean(numbers), statistics.stdev(numbers))


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row for each arm, and below them the floors."""
    metrics, rows = found.plan.floors.about["metrics"], []
    for arm, results in found.cells.items():
        row: dict[str, Any] = {"arm": arm, "seeds": ", ".join(map(str, results)) or "none yet"}
        for metric in metrics:
            row[_titled(metric)] = summarise([result.scores[""][metric] for result in results.values()])
        for name, (key, unit) in COST.items():
            spent = [result.cost[key] / unit for result in results.values()]
            per = found.plan.study.num if key == "drawing_seconds" else 1
            row[name] = float(f"{statistics.mean(spent) / per:.3g}") if spent else None
        rows.append(row)
    for floor, scores in (found.floors.scores if found.floors else {}).items():
        rows.append({"arm": f"({floor})", "seeds": ""} | {_titled(m): summarise([scores[m]]) for m in metrics})
    return rows


def _titled(metric: str) -> str:
    return f"{metric} {METRICS[metric].better}"


def write_report(found: Found, out: Path, command: str, progress: Callable[[Iterable], Iterable] | None = None) -> None:
    """Writes table.md, table.csv and plot.svg; with `progress`, over the videos to encode, report.html as well."""
    write_text(out / "table.md", markdown(found, command))
    write_text(out / "table.csv", comma_separated(found))
    charts = charts_of(found)
    if charts:
        write_text(out / "plot.svg", stacked(charts))
    if progress is not None:
        write_text(out / "report.html", page(found, charts, command, progress))


def markdown(found: Found, command: str) -> str:
    """The table with the claim above it, and below it how its figures came to be."""
    study, rows = found.plan.study, rows_of(found)
    columns = list(rows[0])
    lines = [" | ".join(columns), "|".join(["---"] * len(columns))]
    lines += [" | ".join(_cell(row.get(column, "")) for column in columns) for row in rows]
    body = "\n".join(f"| {line} |" if i != 1 else f"|{line}|" for i, line in enumerate(lines))
    claim = f"{study.claim} ({study.source})"
    return "\n\n".join([f"# {study.name}", claim, body, " ".join(_notes(found)), f"```\n{command}\n```"]) + "\n"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|") if isinstance(value, str | Interval | Spread) else number(value)


def _notes(found: Found) -> list[str]:
    """What a reader must know of the figures."""
    study, results = found.plan.study, [r for cells in found.cells.values() for r in cells.values()]
    drawn = f"{study.num} videos for each arm and seed"
    modes = {mode: f"with {mode}" if mode else "on captions of held-out clips" for mode in found.plan.modes}
    notes = [f"{drawn}, {next(iter(modes.values())) if len(modes) == 1 else 'each arm in its mode'}."]
    if any(len(cells) > 1 for cells in found.cells.values()):
        notes.append("± is the standard deviation over seeds of training and drawing together.")
    if any(len(cells) == 1 for cells in found.cells.values()):
        notes.append("[ ] is a 95 % interval over the videos of one seed: another seed is not in it.")
    if found.floors:
        notes.append(f"In parentheses: what the metrics say of real clips (seed {found.plan.floors.seed}).")
    if found.count < len(found.plan.cells):
        notes.append(f"{found.count} of {len(found.plan.cells)} results are there so far.")
    networks = sorted({f"{name} {digest}" for result in results for name, digest in result.networks.items()})
    notes += [f"Measured by {', '.join(networks)}."] if networks else []
    if len({entry.split()[0] for entry in networks}) < len(networks):
        notes.append("They are not of one kind each: distances by different networks do not compare.")
    return notes + [f"{machine}." for machine in sorted({result.machine for result in results})]


def comma_separated(found: Found) -> str:
    """A row for each arm and seed, with every interval: for whoever wants to compute something else."""
    metrics = found.plan.floors.about["metrics"]
    names = [f"{metric}{part}" for metric in metrics for part in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "run", *names, *(key for key, _ in COST.values())])
    for cell in found.plan.cells:
        result = found.cells[cell.arm].get(cell.seed)
        if result is not None:
            scores = [result.scores[""][metric] for metric in metrics]
            values = [v for score in scores for v in (score.value, score.low, score.high)]
            writer.writerow([cell.arm, cell.seed, cell.run.name, *values, *(result.cost[k] for k, _ in COST.values())])
    return text.getvalue()


# ------------------------------------------------------------------------------------------------- charts


def charts_of(found: Found) -> list[str]:
    """A chart for each metric that there are results of."""
    charts = []
    for metric in found.plan.floors.about["metrics"]:
        estimates = {}
        for arm, results in found.cells.items():
            scores = [result.scores[""][metric] for result in results.values()]
            if (error := summarise(scores)) is not None:
                single = [s.value for s in scores if math.isfinite(s.value)] if len(scores) > 1 else []
                estimates[arm] = Estimate(error, single)
        if not estimates:
            continue
        real = None
        if _real(found) and metric != "psnr":  # psnr is 100 dB for equal frames: the arms would share a corner
            real = _real(found)[metric].value
        if found.plan.study.along:
            lines = _lines(found.plan.study, estimates)
            charts.append(along(_titled(metric), lines, found.plan.study.along.removeprefix(SAMPLE), real))
        else:
            charts.append(side_by_side(_titled(metric), estimates, real))
    return charts


def _real(found: Found) -> dict[str, Interval]:
    """The figures of real clips; none where each mode has its own."""
    return found.floors.scores.get("real", {}) if found.floors else {}


def _lines(study: Study, estimates: Mapping[str, Estimate]) -> dict[str, dict[float, Estimate]]:
    """Arms that differ in nothing but the key of the axis are one line, named by what is before the last comma.

    Where that names no other or two lines, the first arm does; one line alone needs no name.
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


def page(found: Found, charts: Sequence[str], command: str, progress: Callable[[Iterable], Iterable]) -> str:
    """The whole page: the claim, the table, the charts, videos of all arms side by side, and what each arm changes."""
    study = found.plan.study
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in _notes(found))
    drawn = "".join(f'<figure class="chart">{chart}</figure>' for chart in charts)
    changes = [
        {"arm": arm} | {key: _said(study, key, v) for key, v in what.items()} for arm, what in study.arms.items()
    ]
    sections = {
        "Scores": f"{table(rows_of(found))}\n{notes}",
        "Plots": f'<div class="grid charts">{drawn}</div>\n<p class="muted">{_legend(found)}</p>',
        "Videos": _videos(found, progress),
        "Arms": f"{table(changes)}\n<details><summary>The base config</summary>"
        f"<pre>{escape(study.base.to_yaml(default_flow_style=None))}</pre></details>",
        "Command": f"<pre>{escape(command)}</pre>",
    }
    body = "".join(f"<section>\n<h2>{name}</h2>\n{content}\n</section>\n" for name, content in sections.items())
    head = f'<h1>{escape(study.name)}</h1>\n<p>{escape(study.claim)}</p>\n<p class="muted">{escape(study.source)}</p>\n'
    return document(f"{study.name}: study", f"<main>\n{head}{body}</main>")


def _said(study: Study, key: str, value: Any) -> str:
    """A change in words; a function of the base's value by what it comes to."""
    if isinstance(value, Mapping):
        return ", ".join(f"{inner}: {_said(study, inner, v)}" for inner, v in value.items())
    return str(value_at(changed(study.base, {key: value}), key) if callable(value) else value)


def _legend(found: Found) -> str:
    bars = "Large dots are means, bars a standard deviation over seeds, small dots the seeds"
    one = "bars are 95 % intervals of the seed that there is"
    several = any(len(cells) > 1 for cells in found.cells.values())
    real = "; the dashed line is that of real clips" if _real(found) else ""
    return f"{bars if several else one[0].upper() + one[1:]}{real}."


def _videos(found: Found, progress: Callable[[Iterable], Iterable]) -> str:
    """A row of videos for each arm, of the first seed: columns have one caption and one noise."""
    first = found.plan.study.seeds[0]
    shown: list[tuple[str, Cell, Result]] = []
    if found.floors:
        shown.append(("real clips", found.plan.floors, found.floors))
    for cell in found.plan.cells:
        if cell.seed == first and first in found.cells[cell.arm]:
            shown.append((cell.arm, cell, found.cells[cell.arm][first]))
    if not shown:
        return '<p class="missing">No videos yet.</p>'
    rows, fps = "", found.plan.study.base.sample.fps
    for name, cell, result in progress(shown):
        try:
            videos = np.load(cell.file.with_suffix(".npy"), allow_pickle=False)
        except FileNotFoundError:  # a result that was brought from elsewhere without them
            cells = f'<td colspan="{len(result.prompts)}" class="missing">Its videos are not here.</td>'
        else:
            labels = [f"{name}: {prompt}" for prompt in result.prompts]
            cells = "".join(
                f"<td>{video(embed_video(v, fps), label)}</td>" for v, label in zip(videos, labels, strict=False)
            )
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n'
    head = "".join(f'<th scope="col">{escape(prompt)}</th>' for prompt in shown[0][2].prompts)
    return (
        f'<p class="muted">The first of each arm, seed {first}, none chosen.</p>\n'
        '<p><button id="stop" aria-pressed="false">Pause all videos</button></p>\n<div class="scroll">'
        f'<table class="videos"><thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'
    )
