"""Charts as inline SVG, in the colours of the pages: curves by step, and estimates with error bars."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Num
from markupsafe import Markup

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages.page import Spread, number, render, whisker
from vdm_jax.typing import Float

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 26  # margins
MOST = 400  # points of a line; a longer line is drawn as means of neighbours, with a band from minimum to maximum
TITLE, TALL = 26, 240  # height of a title; height of a chart with a title
LABELS, LETTER, ROW = 190, 6, 22  # width of the labels and of a letter; height of a row
COLOURS = 6  # .line0 … .line5 of page.css

Values = Sequence[float | int] | Num[np.ndarray, "N"]


class Estimate(NamedTuple):
    """A mean with its error, and the single values behind it."""

    error: Interval | Spread
    values: Sequence[float] = ()


def line_chart(name: str, steps: Values, values: Values, *, log: bool = False) -> Markup:
    """A figure of values by step. Values that are not finite are left out; with a logarithmic axis, so are values ≤ 0.

    The caption shows the value nearest to the pointer; the arrow keys move through the values.
    """
    points = np.array([steps, values, values, values], float)  # the last two are the edges of the band
    points = points[:, np.isfinite(points[1]) & ((points[1] > 0) | (not log))]
    if not points.size:
        return Markup("<figure><figcaption>{}: nothing to draw</figcaption></figure>").format(name)
    if points.shape[1] > MOST:
        parts = np.array_split(points, MOST, axis=1)
        points = np.array([(p[0, -1], p[1].mean(), p[1].min(), p[1].max()) for p in parts]).T
    x, y, low, high = points
    x_of, x_ticks = axis(x, LEFT, WIDTH - RIGHT)
    y_of, y_ticks = axis(points[1:], HEIGHT - BOTTOM, TOP, log)
    drawn = _levels(y_of, y_ticks)
    for v in x_ticks:
        anchor = "end" if x_of(v) > WIDTH - 40 else "middle"
        drawn.append(f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{v:,.12g}</text>')
    if (low < high).any():
        top, bottom = _path(x_of(x), y_of(high)), _path(x_of(x[::-1]), y_of(low[::-1]))
        drawn.append(f'<path class="band0" d="M{top}L{bottom}Z"/>')
    drawn.append(f'<path class="line0" d="M{_path(x_of(x), y_of(y))}h0"/>')  # h0 makes a single point a dot
    drawn.append('<circle class="dot0"/>')
    texts = [f"{number(b)} at step {number(a)}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    hover = list(zip(x_of(x).round(1).tolist(), y_of(y).round(1).tolist(), texts, strict=True))
    svg = _svg(f"{name} by step; last: {texts[-1]}", HEIGHT, drawn, 'tabindex="0" ')
    return Markup(
        '<figure class="chart" data-points="{}"><figcaption><b>{}</b> <output>{}</output></figcaption>{}</figure>'
    ).format(json.dumps(hover), name, texts[-1], svg)


def side_by_side(title: str, estimates: Mapping[str, Estimate], real: float = math.nan) -> Markup:
    """A row for each name: the mean, its error bar, and the single values as small dots. A dashed line is `real`."""
    bottom = TITLE + ROW * len(estimates)
    labels = max(LABELS, 10 + LETTER * max(map(len, estimates), default=0))
    x_of, ticks = axis(_numbers(estimates.values(), real), labels + 8, WIDTH - RIGHT)
    drawn = [_title(title)] + [f'<path class="grid" d="M{x_of(v):.1f} {TITLE}V{bottom}"/>' for v in ticks]
    drawn += [f'<text x="{x_of(v):.1f}" y="{bottom + 16}" text-anchor="middle">{v:g}</text>' for v in ticks]
    if np.isfinite(real):
        drawn.append(f'<path class="real" d="M{x_of(real):.1f} {TITLE}V{bottom}"/>')
    for i, (name, (error, values)) in enumerate(estimates.items()):
        y = TITLE + ROW * (i + 0.5)
        drawn.append(f'<text x="{labels}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        drawn.append(whisker(x_of(error.low), x_of(error.high), y))
        drawn += [f'<circle class="dot0 one" cx="{x_of(v):.1f}" cy="{y}" r="2"/>' for v in values]
        drawn.append(f'<circle class="dot0" cx="{x_of(error.value):.1f}" cy="{y}" r="3.5"/>')
    texts = [f"{name} {estimate.error}" for name, estimate in estimates.items()]
    return _svg(f"{title}: {'; '.join(texts)}", bottom + BOTTOM, drawn)


def along(title: str, lines: Mapping[str, Mapping[float, Estimate]], x_label: str, real: float = math.nan) -> Markup:
    """A curve for each name, with an error bar at each point. A dashed line is `real`."""
    x_ticks = np.array(sorted({float(x) for line in lines.values() for x in line}))
    log = bool(x_ticks[0] > 0 and x_ticks[-1] >= 8 * x_ticks[0])
    x_of, _ = axis(x_ticks, LEFT + 6, WIDTH - RIGHT - 6, log)
    estimates = [estimate for line in lines.values() for estimate in line.values()]
    y_of, ticks = axis(_numbers(estimates, real), TALL - BOTTOM, TITLE + 20)
    drawn = [_title(f"{title} by {x_label}"), *_levels(y_of, ticks)]
    drawn += [f'<text x="{x_of(v):.1f}" y="{TALL - 8}" text-anchor="middle">{v:g}</text>' for v in x_ticks]
    if np.isfinite(real):
        drawn.append(f'<path class="real" d="M{LEFT} {y_of(real):.1f}H{WIDTH - RIGHT}"/>')
    keys, texts = [], []
    for i, (name, line) in enumerate(lines.items()):
        colour, curve, marks = i % COLOURS, [], []
        for v, (error, _) in sorted(line.items()):
            x = x_of(v) + 2.5 * (i - (len(lines) - 1) / 2)  # separates the bars of different curves at the same x
            low, middle, high = (f"{y_of(y):.1f}" for y in (error.low, error.value, error.high))
            bar = f"M{x - 3:.1f} {low}h6M{x:.1f} {low}V{high}M{x - 3:.1f} {high}h6"
            marks.append(f'<path class="line{colour}" d="{bar}"/>')
            marks.append(f'<circle class="dot{colour}" cx="{x:.1f}" cy="{middle}" r="3"/>')
            curve.append(f"{x:.1f} {middle}")
            texts.append(f"{name} {error} at {number(v)}".strip())
        drawn += [f'<path class="line{colour}" d="M{"L".join(curve)}"/>', *marks]
        keys += [f'<tspan class="dot{colour}" dx="12">{escape(name)}</tspan>'] if name else []
    drawn.append(f'<text x="{LEFT - 12}" y="{TITLE + 8}">{"".join(keys)}</text>')
    return _svg(f"{title} by {x_label}: {'; '.join(texts)}", TALL, drawn)


def stacked(charts: Sequence[str]) -> str:
    """Stacks charts in one SVG file, in the colours of the pages, light and dark."""
    y, parts = 0, []
    for chart in charts:
        height = int(chart.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
        parts.append(str(chart).replace("<svg ", f'<svg y="{y}" width="{WIDTH}" height="{height}" ', 1))
        y += height + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -8 {WIDTH + 24} {y + 8}" '
        f'width="{1.5 * WIDTH:g}">'
        f"<style>{render('page.css')}\nsvg {{ font-family: sans-serif; }}</style>"
        f'<rect x="-12" y="-8" width="100%" height="100%" style="fill: var(--paper)"/>{"".join(parts)}</svg>\n'
    )


def axis(values: Float[np.ndarray, "..."], start: int, end: int, log: bool = False) -> tuple[Callable, Sequence[float]]:
    """An axis from `start` to `end` that fits the values: the function from value to position, and the ticks."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{m}e{e}") for e in powers for m in ((1,) if high / low > 1e3 else (1, 2, 5))]
    else:
        power = math.floor(math.log10((high - low) / 5))
        step = min((float(f"{m}e{power}") for m in (1, 2, 5, 10)), key=lambda s: abs(s - (high - low) / 5))
        ticks = [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    scale = np.log10 if log else np.asarray
    first, last = scale(low), scale(high)
    ticks = [tick for tick in ticks if low <= tick <= high]
    return lambda v: start + (end - start) * (scale(v) - first) / (last - first), ticks


def _levels(y_of: Callable, ticks: Sequence[float]) -> list[str]:
    """Horizontal lines at the ticks of a vertical axis, with their labels."""
    lines = [f'<path class="grid" d="M{LEFT} {y_of(v):.1f}H{WIDTH - RIGHT}"/>' for v in ticks]
    return lines + [f'<text x="{LEFT - 7}" y="{y_of(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in ticks]


def _path(x: Values, y: Values) -> str:
    """The points of a polygonal line, for an SVG path."""
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _numbers(estimates: Collection[Estimate], real: float) -> np.ndarray:
    """All numbers that an axis must fit."""
    numbers = [v for e in estimates for v in (e.error.low, e.error.value, e.error.high, *e.values)]
    return np.array([v for v in (*numbers, real) if np.isfinite(v)] or [0.0])


def _title(text: str) -> str:
    return f'<text class="title" x="0" y="14">{escape(text)}</text>'


def _svg(label: str, height: int, drawn: Sequence[str], attributes: str = "") -> Markup:
    label = escape(label, quote=True)
    view = f'viewBox="0 0 {WIDTH} {height}" {attributes}role="img" aria-label="{label}"'
    return Markup(f"<svg {view}>{''.join(drawn)}</svg>")
