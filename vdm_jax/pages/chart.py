"""Line charts as inline SVG, in the colours of the page."""

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
MOST = 400  # points of a line; a longer line is drawn as means of neighbours, with a band from minimum to maximum

Values = Sequence[float | int] | Num[np.ndarray, "N"]


def line_chart(name: str, steps: Values, values: Values, *, log: bool = False) -> str:
    """A figure of values by step. Values that are not finite are left out; with a logarithmic axis, so are values ≤ 0.

    The caption shows the value nearest to the pointer; the arrow keys move through the values.
    """
    points = np.array([steps, values, values, values], float)  # the last two are the edges of the band
    points = points[:, np.isfinite(points[1]) & ((points[1] > 0) | (not log))]
    if not points.size:
        return f"<figure><figcaption>{escape(name)}: nothing to draw</figcaption></figure>"
    if points.shape[1] > MOST:
        parts = np.array_split(points, MOST, axis=1)
        points = np.array([(p[0, -1], p[1].mean(), p[1].min(), p[1].max()) for p in parts]).T
    x, y, low, high = points
    x_of, x_ticks = axis(x, LEFT, WIDTH - RIGHT)
    y_of, y_ticks = axis(points[1:], HEIGHT - BOTTOM, TOP, log)
    drawn = levels(y_of, y_ticks, WIDTH - RIGHT)
    for v in x_ticks:
        anchor = "end" if x_of(v) > WIDTH - 40 else "middle"
        drawn.append(f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{v:,.12g}</text>')
    if (low < high).any():
        top, bottom = path(x_of(x), y_of(high)), path(x_of(x[::-1]), y_of(low[::-1]))
        drawn.append(f'<path class="band0" d="M{top}L{bottom}Z"/>')
    drawn.append(f'<path class="line0" d="M{path(x_of(x), y_of(y))}h0"/>')  # h0 makes a single point a dot
    drawn.append('<circle class="dot0"/>')
    texts = [f"{number(b)} at step {number(a)}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    hover = list(zip(x_of(x).round(1).tolist(), y_of(y).round(1).tolist(), texts, strict=True))
    description = escape(f"{name} by step; last: {texts[-1]}", quote=True)
    return (
        f'<figure class="chart" data-points="{escape(json.dumps(hover), quote=True)}">'
        f"<figcaption><b>{escape(name)}</b> <output>{escape(texts[-1])}</output></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" aria-label="{description}">{"".join(drawn)}</svg>'
        "</figure>"
    )


def levels(y_of: Callable, ticks: Sequence[float], right: int) -> list[str]:
    """Horizontal lines at the ticks of a vertical axis, with their labels."""
    lines = [f'<path class="grid" d="M{LEFT} {y_of(v):.1f}H{right}"/>' for v in ticks]
    return lines + [f'<text x="{LEFT - 7}" y="{y_of(v) + 4:.1f}" text-anchor="end">{v:g}</text>' for v in ticks]


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


def path(x: Values, y: Values) -> str:
    """The points of a polygonal line, for an SVG path."""
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
