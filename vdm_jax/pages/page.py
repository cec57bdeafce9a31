"""Self-contained pages: text, tables, pictures and videos are in one HTML file, and nothing is fetched.

The content security policy of a page forbids the browser to load anything else.
"""

import base64
import dataclasses
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.files import FilePath
from vdm_jax.video import write_video

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data: blob:"
)
STOP = '<p><button id="stop" aria-pressed="false">Pause all videos</button></p>'


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean ± a standard deviation."""

    value: float
    deviation: float

    @property
    def low(self) -> float:
        return self.value - self.deviation

    @property
    def high(self) -> float:
        return self.value + self.deviation

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.deviation:.2g}"


Cell = str | int | float | None | Interval | Spread


def document(title: str, body: str, parts: Sequence[str] = ("page.css", "page.js")) -> str:
    """A page with the given body, and with style sheets and scripts from the folder web/."""
    sources = {name: (resources.files(__package__) / "web" / name).read_text() for name in parts}
    styles = "".join(f"<style>\n{text}</style>\n" for name, text in sources.items() if name.endswith(".css"))
    scripts = "".join(f"<script>\n{text}</script>\n" for name, text in sources.items() if name.endswith(".js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
{styles}</head>
<body>
{body}
{scripts}</body>
</html>
"""


def sections(parts: Mapping[str, str]) -> str:
    """Sections of a page: a heading and its content."""
    return "".join(f"<section>\n<h2>{name}</h2>\n{content}\n</section>\n" for name, content in parts.items())


def missing(text: str) -> str:
    """A note, in HTML, that something does not exist yet."""
    return f'<p class="missing">{text}</p>'


def data_uri(content: bytes, kind: str) -> str:
    """The data URI of bytes of a media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def embed_video(video: UInt8[np.ndarray, "T H W C"] | Float[np.ndarray, "T H W C"], fps: float | int) -> str:
    """The data URI of the video as webm: VP9 is free, and plays in every current browser.

    Pixels of small videos are repeated to about 128 rows or columns: the codec halves the resolution of colour, which
    would blur single pixels. The file has no metadata of the source.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.webm"
        write_video(path, video, fps, scale=max(1, 128 // min(video.shape[1:3])))
        return data_uri(path.read_bytes(), "video/webm")


def video(uri: str, caption: str) -> str:
    """A silent video in a loop; the caption is for screen readers."""
    return f'<video src="{uri}" aria-label="{escape(caption, quote=True)}" autoplay loop muted playsinline></video>'


def image_figure(path: FilePath, caption: str, least: int = 0) -> str:
    """A picture file with sharp pixels, enlarged to a width of at least `least` pixels."""
    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width = image.width * max(1, -(-least // image.width))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture ({error.strerror or error})") from error
    label = escape(caption, quote=True)
    picture = f'<img src="{data_uri(content, "image/png")}" alt="{label}" style="width: {width}px">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def table(rows: Sequence[Mapping[str, Cell]], *, across: bool = False) -> str:
    """A table from rows of named cells; columns are in the order of their first appearance.

    Intervals and spreads are drawn as error bars, on one scale for each column, or for each row if `across`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def ends(row: Mapping[str, Cell], name: str) -> tuple[float, float]:
        cells = row.values() if across else (other.get(name) for other in rows)
        bars = [cell for cell in cells if isinstance(cell, Interval | Spread)]
        return min((b.low for b in bars), default=0.0), max((b.high for b in bars), default=0.0)

    kinds = {name: "words" if any(isinstance(row.get(name), str) for row in rows) else "numbers" for name in columns}
    head = "".join(f'<th scope="col" class="{kinds[name]}">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(name), ends(row, name)) for name in columns)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _cell(cell: Cell, ends: tuple[float, float]) -> str:
    if isinstance(cell, str):
        return f'<th scope="row">{escape(cell)}</th>'
    if isinstance(cell, Interval | Spread):
        return f"<td>{escape(str(cell))} {_error_bar(cell, *ends)}</td>"
    return f"<td>{number(cell)}</td>"


def _error_bar(estimate: Interval | Spread, low: float, high: float) -> str:
    x = [4 + 52 * (v - low) / ((high - low) or 1) for v in (estimate.low, estimate.value, estimate.high)]
    return (
        '<svg class="bar" viewBox="0 0 60 12" aria-hidden="true"><path d="M0 6H60" class="grid"/>'
        f'{whisker(x[0], x[2], 6)}<circle cx="{x[1]:.1f}" cy="6" r="3" class="dot0"/></svg>'
    )


def whisker(low: float, high: float, y: float | int) -> str:
    """A horizontal error bar."""
    return f'<path class="line0" d="M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"/>'


def number(value: Any) -> str:
    """Formats a number: 2,400 or 0.05312; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else escape(str(value))


def json_island(name: str, value: Any) -> str:
    """A script element with data for the script of a page, under an id; no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
