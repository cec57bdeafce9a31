"""Charts of estimates with error bars, as SVG for a page or a file: side by side, or along a numeric axis."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

import numpy as np

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages.chart import LEFT, WIDTH, axis, levels, path
from vdm_jax.pages.page import Spread, number, whisker

LABELS, LETTER, ROW = 190, 6, 22  # width of the labels and of a letter; height of a row
TOP, BOTTOM, RIGHT = 26, 26, 12  # margins
HEIGHT = 240  # of a chart along an axis
COLOURS = 6  # .line0 … .line5 of page.css


class Estimate(NamedTuple):
    """A mean with its error, and the single values behind it."""

    error: Interval | Spread
    values: Sequence[float] = ()


def side_by_side(title: str, estimates: Mapping[str, Estimate], real: float | int | None = None) -> str:
    """A row for each name: the mean, its error bar, and the single values as small dots. A dashed line is `real`."""
    bottom = TOP + ROW * len(estimates)
    labels = max(LABELS, 10 + LETTER * max(map(len, estimates), default=0))
    x_of, ticks = axis(_numbers(list(estimates.values()), real), labels + 8, WIDTH - RIGHT)
    drawn = [f'<path class="grid" d="M{x_of(v):.1f} {TOP}V{bottom}"/>' for v in ticks]
    drawn += [f'<text x="{x_of(v):.1f}" y="{bottom + 16}" text-anchor="middle">{v:g}</text>' for v in ticks]
    if real is not None and np.isfinite(real):
        drawn.append(f'<path class="real" d="M{x_of(real):.1f} {TOP}V{bottom}"/>')
    for i, (name, (error, values)) in enumerate(estimates.items()):
        y = TOP + ROW * (i + 0.5)
        drawn.append(f'<text x="{labels}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        drawn.append(whisker(x_of(error.low), x_of(error.high), y))
        drawn += [f'<circle class="dot0 one" cx="{x_of(v):.1f}" cy="{y}" r="2"/>' for v in values]
        drawn.append(f'<circle class="dot0" cx="{x_of(error.value):.1f}" cy="{y}" r="3.5"/>')
    description = "; ".join(f"{name} {estimate.error}" for name, estimate in estimates.items())
    return _svg(title, description, bottom + BOTTOM, drawn)


def along(
    title: str, lines: Mapping[str, Mapping[float, Estimate]], x_label: str, real: float | int | None = None
) -> str:
    """A curve for each name, with an error bar at each point."""
    x_ticks = np.array(sorted({float(x) for line in lines.values() for x in line}))
    log = bool(x_ticks[0] > 0 and x_ticks[-1] >= 8 * x_ticks[0])
    x_of, _ = axis(x_ticks, LEFT + 6, WIDTH - RIGHT - 6, log)
    estimates = [estimate for line in lines.values() for estimate in line.values()]
    y_of, ticks = axis(_numbers(estimates, real), HEIGHT - BOTTOM, TOP + 20)
    drawn = levels(y_of, ticks, WIDTH - RIGHT)
    drawn += [f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{v:g}</text>' for v in x_ticks]
    if real is not None and np.isfinite(real):
        drawn.append(f'<path class="real" d="M{LEFT} {y_of(real):.1f}H{WIDTH - RIGHT}"/>')
    keys, texts = [], []
    for i, (name, line) in enumerate(lines.items()):
        colour, points = i % COLOURS, sorted(line.items())
        shift = 2.5 * (i - (len(lines) - 1) / 2)  # separates the bars of different curves at the same x
        x, errors = [x_of(v) + shift for v, _ in points], [estimate.error for _, estimate in points]
        drawn.append(f'<path class="line{colour}" d="M{path(x, [y_of(error.value) for error in errors])}"/>')
        for place, error in zip(x, errors, strict=True):
            low, middle, high = (y_of(v) for v in (error.low, error.value, error.high))
            left = place - 3
            bar = f"M{left:.1f} {low:.1f}h6M{place:.1f} {low:.1f}V{high:.1f}M{left:.1f} {high:.1f}h6"
            drawn.append(f'<path class="line{colour}" d="{bar}"/>')
            drawn.append(f'<circle class="dot{colour}" cx="{place:.1f}" cy="{middle:.1f}" r="3"/>')
        keys += [f'<tspan class="dot{colour}" dx="12">{escape(name)}</tspan>'] if name else []
        texts += [f"{name} {estimate.error} at {number(v)}".strip() for v, estimate in points]
    drawn.append(f'<text x="{LEFT - 12}" y="{TOP + 8}">{"".join(keys)}</text>')
    return _svg(f"{title} by {x_label}", "; ".join(texts), HEIGHT, drawn)


def stacked(charts: Sequence[str]) -> str:
    """Stacks charts in one SVG file, in the colours of the pages, light and dark."""
    style, y, parts = (resources.files(__package__) / "web" / "page.css").read_text(), 0, []
    for chart in charts:
        height = int(chart.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
        parts.append(chart.replace("<svg ", f'<svg y="{y}" width="{WIDTH}" height="{height}" ', 1))
        y += height + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -8 {WIDTH + 24} {y + 8}" '
        f'width="{1.5 * WIDTH:g}">'
        f"<style>{style}\nsvg {{ font-family: sans-serif; }}</style>"
        f'<rect x="-12" y="-8" width="100%" height="100%" style="fill: var(--paper)"/>{"".join(parts)}</svg>\n'
    )


def _numbers(estimates: Sequence[Estimate], real: float | int | None) -> np.ndarray:
    """All numbers that an axis must fit."""
    numbers = [v for e in estimates for v in (e.error.low, e.error.value, e.error.high, *e.values)]
    return np.array([v for v in (*numbers, *([] if real is None else [real])) if np.isfinite(v)] or [0.0])


def _svg(title: str, description: str, height: int, drawn: Sequence[str]) -> str:
    label = escape(f"{title}: {description}", quote=True)
    heading = f'<text class="title" x="0" y="14">{escape(title)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{heading}{"".join(drawn)}</svg>'
