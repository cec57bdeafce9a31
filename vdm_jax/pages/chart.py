"""Line charts as inline SVG, in the colours of the page."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from jaxtyping import Num

from vdm_jax.pages.page import number
from vdm_jax.typing import Float

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 26  # margins
COLOURS = 6  # .line0 … .line5 of page.css
MOST = 400  # points of a line; a longer line is drawn as means of neighbours, with a band from minimum to maximum

Values = Sequence[float | int] | Num[np.ndarray, "N"]


@dataclasses.dataclass(frozen=True)
class Line:
    """A named series; `low` and `high` are the edges of a band around it, such as an interval."""

    name: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None


def line_chart(title: str, lines: Sequence[Line], *, log: bool = False, x_label: str = "step") -> str:
    """A figure of lines. Values that are not finite are left out; with a logarithmic axis (`log`), so are values ≤ 0.

    The caption shows the values nearest to the pointer; the arrow keys move through the values.
    """
    series = {line.name: _thinned(_points(line, log)) for line in lines}
    series = {name: points for name, points in series.items() if points.size}
    if not series:
        return f"<figure><figcaption>{escape(title)}: nothing to draw</figcaption></figure>"
    values = np.concatenate(list(series.values()), axis=1)
    x_of, x_ticks = axis(values[0], LEFT, WIDTH - RIGHT)
    y_of, y_ticks = axis(values[1:], HEIGHT - BOTTOM, TOP, log)

    drawn = [f'<path class="grid" d="M{LEFT} {y_of(v):.1f}H{WIDTH - RIGHT}"/>' for v in y_ticks]
    drawn += [f'<text x="{LEFT - 7}" y="{y_of(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in y_ticks]
    for v in x_ticks:
        anchor = "end" if x_of(v) > WIDTH - 40 else "middle"
        drawn.append(f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{v:,.12g}</text>')
    hover, last, keys = [], [], []
    for i, (name, (x, y, low, high)) in enumerate(series.items()):
        colour, label = i % COLOURS, f"{name} " if len(series) > 1 else ""
        if (low < high).any():
            top, bottom = _path(x_of(x), y_of(high)), _path(x_of(x[::-1]), y_of(low[::-1]))
            drawn.append(f'<path class="band{colour}" d="M{top}L{bottom}Z"/>')
        drawn.append(f'<path class="line{colour}" d="M{_path(x_of(x), y_of(y))}h0"/>')  # h0 makes a single point a dot
        drawn.append(f'<circle class="dot{colour}"/>')
        texts = [f"{label}{number(b)} at {x_label} {number(a)}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        hover.append(list(zip(x_of(x).round(1).tolist(), y_of(y).round(1).tolist(), texts, strict=True)))
        last.append(texts[-1])
        keys += [f'<span class="key{colour}">{escape(name)}</span>'] if label else []
    description = escape(f"{title} by {x_label}; last: {'; '.join(last)}", quote=True)
    return (
        f'<figure class="chart" data-points="{escape(json.dumps(hover), quote=True)}">'
        f"<figcaption><b>{escape(title)}</b> {' '.join(keys)} <output>{escape('; '.join(last))}</output></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" aria-label="{description}">{"".join(drawn)}</svg>'
        "</figure>"
    )


def _points(line: Line, log: bool) -> Float[np.ndarray, "4 N"]:
    """x, y, low and high of the points that are finite and, on a logarithmic axis, positive."""
    edges = (line.y if edge is None else edge for edge in (line.low, line.high))
    points = np.array([line.x, line.y, *edges], float)
    return points[:, np.isfinite(points).all(0) & ((points[1:] > 0).all(0) | (not log))]


def _thinned(points: Float[np.ndarray, "4 N"]) -> Float[np.ndarray, "4 M"]:
    """Reduces a line to at most MOST points."""
    if points.shape[1] <= MOST:
        return points
    parts = np.array_split(points, MOST, axis=1)
    return np.array([(p[0, -1], p[1].mean(), p[2].min(), p[3].max()) for p in parts]).T


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


def _path(x: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
