"""The page of a run folder: curves, samples, scores, config. The page names what is missing."""

import json
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import vdm_jax
from vdm_jax.config import default_config, read_config
from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.files import read_json_lines
from vdm_jax.pages.chart import line_chart
from vdm_jax.pages.page import embed_video, image_figure, number, render, table, video
from vdm_jax.pages.samples import find_samples
from vdm_jax.video import read_metadata

LINEAR = ("learning_rate", "videos_per_second", "seconds")  # other metrics have logarithmic axes
SHEETS = 12  # number of sheets from training on the page: the first, the last, and some between
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def make_report(run: Path, *, num: int = 24, progress: Callable[[Iterable], Iterable] = iter) -> Markup:
    """The page of a run, with at most `num` videos of each folder in samples/.

    JAX sets up no device, so a run that is still training is not disturbed. Raises InputError if the folder is not a
    run, or a file in it is damaged.
    """
    config = json.loads(read_config(run).to_json())
    metrics = read_json_lines(run / "metrics.jsonl")
    sheets = sorted((int(path.stem), path) for path in (run / "samples").glob("*.png") if path.stem.isdigit())
    shown = sorted(set(np.linspace(0, len(sheets) - 1, min(len(sheets), SHEETS)).round().astype(int).tolist()))
    columns = {"begun": "time", "at step": "step", "mesh": "mesh", "on": "machine"}
    starts = [{k: x[name] for k, name in columns.items()} for x in read_json_lines(run / "environment.jsonl")]
    return render(
        "run.html",
        title=f"{run.name}: report",
        run=run,
        metrics=metrics,
        step=metrics[-1]["step"] if metrics else 0,
        seconds=sum(line["seconds"] for line in metrics),
        rate=statistics.median(line["videos_per_second"] for line in metrics) if metrics else None,
        **_curves(metrics),
        sheets=sheets,
        prompts=read_metadata(sheets[-1][1]).get("prompts") if sheets else (),
        shown=[image_figure(sheets[i][1], f"step {sheets[i][0]:,}", least=320) for i in shown],
        folders=list(_samples(run / "samples", num, progress)),
        scores=_scores(run),
        config=config,
        default=json.loads(default_config().to_json()),
        parameters=_parameters(run / "parameters.txt"),
        starts=table(starts) if starts else "",
        environment=_environment(run),
    )


def _curves(metrics: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The charts of the metrics, and notes on metrics without a chart."""
    steps = [line["step"] for line in metrics]
    names = dict.fromkeys(name for line in metrics for name in line if name != "step")
    charts, notes, drawn = [], [], {}
    for name in sorted(names, key=lambda name: (name != "loss", name in LINEAR)):
        values = tuple(np.nan if line.get(name) is None else float(line[name]) for line in metrics)
        if values in drawn:
            notes.append(f"{name} is the same as {drawn[values]}.")
        elif len(set(values)) == 1 and len(values) > 1:
            notes.append(f"{name} is {number(values[0])} throughout.")
        elif name != "seconds":  # the same information as videos_per_second
            drawn[values] = name
            charts.append(line_chart(name, steps, values, log=name not in LINEAR))
    return {"charts": charts, "notes": notes}


def _samples(root: Path, num: int, progress: Callable[[Iterable], Iterable]) -> Iterator[dict[str, Any]]:
    """Yields for each folder its settings and its first videos, or what is wrong with it."""
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        try:
            samples = next(iter(find_samples(folder).values()))
        except InputError as error:
            yield {"error": error, "videos": []}
            continue
        common = {k: v for k, v in samples[0].settings.items() if all(s.settings.get(k) == v for s in samples)}
        captions = [(sample, sample.prompt or "no prompt") for sample in samples[:num]]
        yield {
            "error": None,
            "name": folder.name,
            "settings": ", ".join(f"{k} {v}" for k, v in common.items() if k not in ("run", "fps")),
            "count": len(samples),
            "videos": [(video(embed_video(*sample.read()), text), text) for sample, text in progress(captions)],
        }


def _scores(run: Path) -> dict[str, tuple[str, Markup | str]]:
    """The settings and the table of each file of scores."""
    tables = {}
    for path in sorted(run.glob("evaluation*.json"), key=lambda path: path.stem):
        try:
            scores = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error
        settings = ", ".join(f"{k} {v}" for k, v in scores.items() if not isinstance(v, dict))
        columns = {k: {name: _cell(x) for name, x in v.items()} for k, v in scores.items() if isinstance(v, dict)}
        metrics = dict.fromkeys(metric for column in columns.values() for metric in column)
        rows = [{"": metric, **{k: column.get(metric) for k, column in columns.items()}} for metric in metrics]
        tables[path.name] = settings, table(rows, across=True) if rows else ""
    return tables


def _cell(score: Any) -> Any:
    """A score of evaluation.json as a cell of a table."""
    if isinstance(score, dict):
        ends = [score.get(key) for key in ("value", "low", "high")]
        if all(isinstance(x, int | float) for x in ends):
            return Interval(*map(float, ends))
    return score if isinstance(score, str | int | float | None) else json.dumps(score)


def _parameters(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    text = path.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("+")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = [dict(zip(cells[0], row, strict=False)) for row in cells[1:]] if cells else []
    count = re.search(r"Total: ([\d,]+)", text)
    millions = int(count[1].replace(",", "")) / 1e6 if count else None
    return {"total": lines[-1] if lines else "", "millions": millions, "table": table(rows), "cut": "[...]" in lines}


def _environment(run: Path) -> Markup:
    versions = {"vdm_jax": vdm_jax.__version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    files = {"begun": "parameters.txt", "last metrics": "metrics.jsonl", "last evaluation": "evaluation.json"}
    dates = {
        what: f"{datetime.fromtimestamp((run / name).stat().st_mtime):%Y-%m-%d %H:%M} ({name})"
        for what, name in files.items()
        if (run / name).exists()
    }
    rows = dates | {"report made": f"{datetime.now():%Y-%m-%d %H:%M}", "on": platform.platform()} | versions
    return table([{"": key, " ": value} for key, value in rows.items()])
