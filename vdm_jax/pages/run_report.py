"""The page of a run folder: curves, samples, scores, config. The page names what is missing."""

import json
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import vdm_jax
from vdm_jax.config import default_config, read_config
from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.files import read_json_lines
from vdm_jax.pages.chart import line_chart
from vdm_jax.pages.page import STOP, document, embed_video, image_figure, missing, number, sections, table, video
from vdm_jax.pages.samples import Sample, find_samples
from vdm_jax.video import read_metadata

LINEAR = ("learning_rate", "videos_per_second", "seconds")  # other metrics have logarithmic axes
SHEETS = 12  # number of sheets from training on the page: the first, the last, and some between
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def make_report(run: Path, *, num: int = 24, progress: Callable[[Iterable], Iterable] = iter) -> str:
    """The page of a run, with at most `num` videos of each folder in samples/.

    JAX sets up no device, so a run that is still training is not disturbed. Raises InputError if the folder is not a
    run, or a file in it is damaged.
    """
    config = json.loads(read_config(run).to_json())
    metrics = read_json_lines(run / "metrics.jsonl")
    parts = {
        "Curves": _curves(metrics),
        "Samples over training": _sheets(run / "samples"),
        "Samples": _samples(run / "samples", num, progress),
        "Scores": _scores(run),
        "Config": _config(config),
        "Parameters": _parameters(run / "parameters.txt"),
        "Environment": _environment(run),
    }
    return document(f"{run.name}: report", f"<main>\n{_summary(run, config, metrics)}{sections(parts)}</main>")


# ------------------------------------------------------------------------------------------------ training


def _summary(run: Path, config: Mapping[str, Any], metrics: list[dict[str, Any]]) -> str:
    step, steps = metrics[-1]["step"] if metrics else 0, config["steps"]
    data = config["data"]
    shape = f"{data['frames']} frames of {data['height']}×{data['width']}×{data['channels']}"
    tiles = {f"Steps of {number(steps)}": number(step)}
    if metrics:
        seconds = sum(line["seconds"] for line in metrics)
        tiles |= {
            "Loss": number(metrics[-1]["loss"]),
            "Training time": f"{seconds // 3600:.0f} h {seconds // 60 % 60:.0f} min",
            "Videos a second": number(statistics.median(line["videos_per_second"] for line in metrics)),
            "Videos seen": number(step * config["batch_size"]),
        }
    if (file := run / "parameters.txt").exists() and (total := re.search(r"Total: ([\d,]+)", file.read_text())):
        tiles["Parameters"] = f"{int(total[1].replace(',', '')) / 1e6:.2f} M"
    state = "" if step >= steps else f" The run is at {step / steps:.0%} of its steps."
    target, process = config["objective"]["prediction"], config["process"]["name"]
    description = f"{data['name']}, {shape}, prediction {target}, {process} process"
    return (
        f'<h1>{escape(str(run))}</h1>\n<p class="muted">{escape(description)}.{state}</p>\n'
        f'<dl class="tiles">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles.items())}</dl>\n'
    )


def _curves(metrics: list[dict[str, Any]]) -> str:
    if not metrics:
        return missing("No metrics.jsonl yet: training writes a line every log_every steps.")
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
    return f'<div class="grid charts">{"".join(charts)}</div>\n<p class="muted">{escape(" ".join(notes))}</p>'


# ------------------------------------------------------------------------------------------------- samples


def _sheets(folder: Path) -> str:
    sheets = sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdigit())
    if not sheets:
        return missing("No sheets: training draws one every config.sample.every steps, of config.sample.prompts.")
    shown = sorted(set(np.linspace(0, len(sheets) - 1, min(len(sheets), SHEETS)).round().astype(int).tolist()))
    prompts = "; ".join(read_metadata(sheets[-1][1]).get("prompts", ()))
    note = f"A row for each prompt, a column for each frame. Prompts: {prompts}." if prompts else ""
    if len(shown) < len(sheets):
        note += f" {len(shown)} of {len(sheets)} sheets are shown."
    figures = "".join(image_figure(sheets[i][1], f"step {sheets[i][0]:,}", least=320) for i in shown)
    return f'<p class="muted">{escape(note)}</p>\n<div class="grid sheets">{figures}</div>'


def _samples(root: Path, num: int, progress: Callable[[Iterable], Iterable]) -> str:
    parts = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        try:
            by_format = find_samples(folder)
        except InputError as error:
            parts.append(missing(escape(f"{error}.")))
            continue
        samples = next(iter(by_format.values()))
        shown = samples[:num]
        figures = "".join(_video_figure(sample) for sample in progress(shown))
        common = {k: v for k, v in samples[0].settings.items() if all(s.settings.get(k) == v for s in samples)}
        note = ", ".join(f"{k} {v}" for k, v in common.items() if k not in ("run", "fps"))
        count = f" The first {len(shown)} of {len(samples)}." if len(shown) < len(samples) else ""
        parts.append(f'<h3>{escape(folder.name)}</h3>\n<p class="muted">{escape(note)}.{count}</p>')
        parts.append(f'<div class="grid">{figures}</div>')
    if not any("<video" in part for part in parts):
        return missing("No videos: python experiments/sample.py --run &lt;this run&gt; draws some.") + "".join(parts)
    return f"{STOP}\n" + "\n".join(parts)


def _video_figure(sample: Sample) -> str:
    caption = sample.prompt or "no prompt"
    return f"<figure>{video(embed_video(*sample.read()), caption)}<figcaption>{escape(caption)}</figcaption></figure>"


# -------------------------------------------------------------------------------------------------- scores


def _scores(run: Path) -> str:
    parts = []
    if not (run / "evaluation.json").exists():
        parts.append(missing("No evaluation.json: python experiments/evaluate.py --run … measures samples."))
    for path in sorted(run.glob("evaluation*.json"), key=lambda path: path.stem):
        try:
            scores = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error
        settings = ", ".join(f"{k} {v}" for k, v in scores.items() if not isinstance(v, dict))
        columns = {k: {name: _cell(x) for name, x in v.items()} for k, v in scores.items() if isinstance(v, dict)}
        metrics = dict.fromkeys(metric for column in columns.values() for metric in column)
        rows = [{"": metric, **{k: column.get(metric) for k, column in columns.items()}} for metric in metrics]
        scores_table = table(rows, across=True) if rows else ""
        parts.append(f'<h3>{escape(path.name)}</h3>\n<p class="muted">{escape(settings)}</p>\n{scores_table}')
        if "] <svg" in scores_table:
            parts.append('<p class="muted">In brackets, and as bars: 95 % intervals over the clips.</p>')
    return "\n".join(parts)


def _cell(score: Any) -> Any:
    """A score of evaluation.json as a cell of a table."""
    if isinstance(score, dict):
        ends = [score.get(key) for key in ("value", "low", "high")]
        if all(isinstance(x, int | float) for x in ends):
            return Interval(*map(float, ends))
    return score if isinstance(score, str | int | float | None) else json.dumps(score)


# --------------------------------------------------------------------------------------- config and machine


def _config(config: Mapping[str, Any]) -> str:
    default = json.loads(default_config().to_json())
    return (
        '<p class="muted">Bold: differs from the default in vdm_jax/config.py.</p>\n'
        f"<details><summary>config.json</summary>{''.join(_tree(config, default))}</details>"
    )


def _tree(config: Mapping[str, Any], default: Any) -> Iterator[str]:
    """Yields the HTML of a group of the config: its values, then its nested groups."""
    default = default if isinstance(default, dict) else {}
    groups = {key: value for key, value in config.items() if isinstance(value, dict) and value}
    rows = ""
    for key, value in config.items():
        if key not in groups:
            changed = "" if value == default.get(key, ...) else ' class="changed"'
            text = escape(json.dumps(value, ensure_ascii=False))
            rows += f"<div><dt>{escape(key)}</dt><dd{changed}>{text}</dd></div>"
    yield f"<dl>{rows}</dl>" if rows else ""
    for key, value in groups.items():
        yield f"<details open><summary>{escape(key)}</summary>{''.join(_tree(value, default.get(key)))}</details>"


def _parameters(path: Path) -> str:
    if not path.exists():
        return missing("No parameters.txt yet: training writes it before the first step.")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("+")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = [dict(zip(cells[0], row, strict=False)) for row in cells[1:]] if cells else []
    total = lines[-1] if lines else ""
    note = "Rows are left out: experiments/parameters.py prints all." if "[...]" in lines else ""
    return f'<details><summary>{escape(total)}</summary>{table(rows)}<p class="muted">{note}</p></details>'


def _environment(run: Path) -> str:
    versions = {"vdm_jax": vdm_jax.__version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    files = {"begun": "parameters.txt", "last metrics": "metrics.jsonl", "last evaluation": "evaluation.json"}
    dates = {
        what: f"{datetime.fromtimestamp((run / name).stat().st_mtime):%Y-%m-%d %H:%M} ({name})"
        for what, name in files.items()
        if (run / name).exists()
    }
    lines = read_json_lines(run / "environment.jsonl")
    starts = [{"begun": x["time"], "at step": x["step"], "mesh": x["mesh"], "on": x["machine"]} for x in lines]
    rows = dates | {"report made": f"{datetime.now():%Y-%m-%d %H:%M}", "on": platform.platform()} | versions
    return (
        (table(starts) if starts else missing("No environment.jsonl: the machine of the training is unknown."))
        + '<p class="muted">Dates: of files in the run. Versions: of the software that made this report.</p>\n'
        + table([{"": key, " ": value} for key, value in rows.items()])
    )
