"""Charts of estimates with error bars, as SVG for a page or a file: side by side, or along a numeric axis."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources

import numpy as np

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages.chart import COLOURS, axis
from vdm_jax.pages.page import Spread, number

WIDTH, LABELS, LETTER, ROW = 480, 190, 6, 22  # width of a chart, of its labels and of a letter; height of a row
TOP, BOTTOM, RIGHT = 26, 26, 12  # margins
HEIGHT, LEFT = 240, 52  # height and left margin of a chart along an axis


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its error, and the single values behind it."""

    error: Interval | Spread
    values: Sequence[float] = ()


def side_by_side(title: str, estimates: Mapping[str, Estimate], real: float | int | None = None) -> str:
    """A row for each name: the mean, its error bar, and the single values as small dots. A dashed line is `real`."""
    height = TOP + ROW * len(estimates) + BOTTOM
    labels = max(LABELS, 10 + LETTER * max(map(len, estimates), default=0))
    x_of, ticks = axis(_numbers(list(estimates.values()), real), labels + 8, WIDTH - RIGHT)
    drawn = [_heading(title), *_vertical(x_of, ticks, height - BOTTOM), *_real_at_x(x_of, real, height - BOTTOM)]
    for i, (name, estimate) in enumerate(estimates.items()):
        y = TOP + ROW * (i + 0.5)
        drawn.append(f'<text x="{labels}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        low, high = (x_of(v) for v in (estimate.error.low, estimate.error.high))
        drawn.append(
            f'<path class="line0" d="M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"/>'
        )
        drawn += [f'<circle class="dot0 one" cx="{x_of(v):.1f}" cy="{y}" r="2"/>' for v in estimate.values]
        drawn.append(f'<circle class="dot0" cx="{x_of(estimate.error.value):.1f}" cy="{y}" r="3.5"/>')
    values = "; ".join(f"{name} {estimate.error}" for name, estimate in estimates.items())
    return _svg(f"{title}: {values}", height, drawn)


def along(
    title: str, lines: Mapping[str, Mapping[float, Estimate]], x_label: str, real: float | int | None = None
) -> str:
    """A curve for each name, with an error bar at each point."""
    points = [(x, estimate) for line in lines.values() for x, estimate in line.items()]
    x_ticks = np.array(sorted({float(x) for x, _ in points}))
    log = bool(x_ticks[0] > 0 and x_ticks[-1] >= 8 * x_ticks[0])
    x_of, _ = axis(x_ticks, LEFT + 6, WIDTH - RIGHT - 6, log)
    y_of, ticks = axis(_numbers([estimate for _, estimate in points], real), HEIGHT - BOTTOM, TOP + 20)
    drawn = [_heading(f"{title} by {x_label}")]
    drawn += [f'<path class="grid" d="M{LEFT} {y_of(v):.1f}H{WIDTH - RIGHT}"/>' for v in ticks]
    drawn += [f'<text x="{LEFT - 6}" y="{y_of(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in ticks]
    drawn += [f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{v:g}</text>' for v in x_ticks]
    if real is not None and np.isfinite(real):
        drawn.append(f'<path class="real" d="M{LEFT} {y_of(real):.1f}H{WIDTH - RIGHT}"/>')
    keys, values = [], []
    for i, (name, line) in enumerate(lines.items()):
        shift = 2.5 * (i - (len(lines) - 1) / 2)  # separates the bars of different curves at the same x
        drawn += _curve([(x_of(x) + shift, estimate.error) for x, estimate in sorted(line.items())], y_of, i % COLOURS)
        if name:
            keys.append(f'<tspan class="dot{i % COLOURS}" dx="12">{escape(name)}</tspan>')
        values += [f"{name} {estimate.error} at {number(x)}".strip() for x, estimate in sorted(line.items())]
    drawn.append(f'<text x="{LEFT - 12}" y="{TOP + 8}">{"".join(keys)}</text>')
    return _svg(f"{title} by {x_label}: {'; '.join(values)}", HEIGHT, drawn)


def _curve(marks: Sequence[tuple[float, Interval | Spread]], y_of: Callable, colour: int) -> list[str]:
    """A curve through estimates at horizontal positions, with their error bars."""
    path = "L".join(f"{x:.1f} {y_of(error.value):.1f}" for x, error in marks)
    drawn = [f'<path class="line{colour}" d="M{path}"/>']
    for x, error in marks:
        low, high = y_of(error.low), y_of(error.high)
        drawn.append(
            f'<path class="line{colour}" d="M{x - 3:.1f} {low:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}'
            f'M{x - 3:.1f} {high:.1f}h6"/><circle class="dot{colour}" cx="{x:.1f}" cy="{y_of(error.value):.1f}" r="3"/>'
        )
    return drawn


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


def _heading(title: str) -> str:
    return f'<text class="title" x="0" y="14">{escape(title)}</text>'


def _vertical(x_of, ticks: Sequence[float], bottom: int) -> list[str]:
    lines = [f'<path class="grid" d="M{x_of(v):.1f} {TOP}V{bottom}"/>' for v in ticks]
    return lines + [f'<text x="{x_of(v):.1f}" y="{bottom + 16}" text-anchor="middle">{v:g}</text>' for v in ticks]


def _real_at_x(x_of, real: float | int | None, bottom: int) -> list[str]:
    if real is None or not np.isfinite(real):
        return []
    return [f'<path class="real" d="M{x_of(real):.1f} {TOP}V{bottom}"/>']


def _svg(description: str, height: int, drawn: Sequence[str]) -> str:
    label = escape(description, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
