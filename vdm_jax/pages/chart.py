"""Charts as inline SVG, in the colours of the pages: curves by step, and estimates with error bars."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Num
from markupsafe import Markup

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages.page import Spread, number, render
from vdm_jax.typing import Float

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 26  # margins
MOST = 400  # points of a line; a longer line is drawn as means of neighbours, with a band from minimum to maximum
TITLE, TALL = 26, 240  # height of a title; height of a chart with a title
SIZES = dict(width=WIDTH, left=LEFT, right=WIDTH - RIGHT, top=TITLE, colours=6)  # .line0 … .line5 of page.css

Values = Sequence[float | int] | Num[np.ndarray, "N"]
Estimate = tuple[Interval | Spread, Sequence[float]]  # a mean with its error, and the single values behind it


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
    x_of, x_ticks = axis(points[0], LEFT, WIDTH - RIGHT)
    y_of, y_ticks = axis(points[1:], HEIGHT - BOTTOM, TOP, log)
    texts = [f"{number(y)} at step {number(x)}" for x, y, *_ in points.T.tolist()]
    x, (y, low, high) = x_of(points[0]), y_of(points[1:])
    edges = _path([*x, *x[::-1]], [*high, *low[::-1]]) if (low != high).any() else ""
    hover = list(zip(x.round(1).tolist(), y.round(1).tolist(), texts, strict=True))
    axes = dict(x_of=x_of, y_of=y_of, x_ticks=x_ticks, y_ticks=y_ticks)
    line = dict(name=name, line=_path(x, y), band=edges, hover=hover, last=texts[-1])
    return render("line_chart.html", **SIZES, height=HEIGHT, **axes, **line)


def side_by_side(title: str, estimates: Mapping[str, Estimate], real: float = math.nan) -> Markup:
    """A row for each name: the mean, its error bar, and the single values as small dots. A dashed line is `real`."""
    labels = max(190, 10 + 6 * max(map(len, estimates), default=0))  # their width: 6 for a letter
    x_of, ticks = axis(_numbers(estimates.values(), real), labels + 8, WIDTH - RIGHT)
    texts = [f"{name} {error}" for name, (error, _) in estimates.items()]
    drawn = dict(title=title, estimates=estimates, real=[real] if math.isfinite(real) else [], texts=texts)
    return render("side_by_side.svg", **SIZES, row=22, labels=labels, x_of=x_of, ticks=ticks, **drawn)


def along(title: str, lines: Mapping[str, Mapping[float, Estimate]], x_label: str, real: float = math.nan) -> Markup:
    """A curve for each name, with an error bar at each point. A dashed line is `real`."""
    x_ticks = np.array(sorted({float(x) for line in lines.values() for x in line}))
    x_of, _ = axis(x_ticks, LEFT + 6, WIDTH - RIGHT - 6, bool(x_ticks[0] > 0 and x_ticks[-1] >= 8 * x_ticks[0]))
    estimates = [estimate for line in lines.values() for estimate in line.values()]
    y_of, y_ticks = axis(_numbers(estimates, real), TALL - BOTTOM, TITLE + 20)
    texts = [f"{name} {e} at {number(x)}".strip() for name, line in lines.items() for x, (e, _) in sorted(line.items())]
    axes = dict(x_of=x_of, y_of=y_of, x_ticks=x_ticks, y_ticks=y_ticks)
    drawn = dict(title=title, x_label=x_label, lines=lines, real=[real] if math.isfinite(real) else [], texts=texts)
    return render("along.svg", **SIZES, height=TALL, **axes, **drawn)


def stacked(charts: Sequence[str]) -> Markup:
    """Stacks charts in one SVG file, in the colours of the pages, light and dark."""
    y, parts = 0, []
    for chart in charts:
        height = int(chart.split('viewBox="0 0 ')[1].split('"')[0].split()[1])
        parts.append(Markup(str(chart).replace("<svg ", f'<svg y="{y}" width="{WIDTH}" height="{height}" ', 1)))
        y += height + 10
    return render("stacked.svg", charts=parts, width=WIDTH, height=y)


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


def _path(x: Values, y: Values) -> str:
    """The points of a polygonal line, for an SVG path."""
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _numbers(estimates: Collection[Estimate], real: float) -> np.ndarray:
    """All numbers that an axis must fit."""
    numbers = [v for error, values in estimates for v in (error.low, error.value, error.high, *values)]
    return np.array([v for v in (*numbers, real) if np.isfinite(v)] or [0.0])
