"""Self-contained pages: text, tables, pictures and videos are in one HTML file, and nothing is fetched.

The content security policy of a page forbids the browser to load anything else.
"""

import base64
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from PIL import Image

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.files import FilePath
from vdm_jax.video import write_video


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean ± a standard deviation."""

    value: float
    deviation: float

    low = property(lambda self: self.value - self.deviation)
    high = property(lambda self: self.value + self.deviation)

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.deviation:.2g}"


Cell = str | int | float | None | Interval | Spread


def number(value: Any) -> str:
    """Formats a number: 2,400 or 0.05312; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("vdm_jax.pages", "web"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"number": number, "json": functools.partial(json.dumps, ensure_ascii=False)}
TEMPLATES.filters |= {"px": "{:.1f}".format, "tick": "{:g}".format, "step": "{:,.12g}".format}
TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False}


def render(template: str, **values: Any) -> Markup:
    """A page, from a template in the folder web/. Text in the values cannot become markup, unless it is `Markup`."""
    return Markup(TEMPLATES.get_template(template).render(values))


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


def video(uri: str, caption: str) -> Markup:
    """A silent video in a loop; the caption is for screen readers."""
    return Markup('<video src="{}" aria-label="{}" autoplay loop muted playsinline></video>').format(uri, caption)


def image_figure(path: FilePath, caption: str, least: int = 0) -> Markup:
    """A picture file with sharp pixels, enlarged to a width of at least `least` pixels."""
    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width = image.width * max(1, -(-least // image.width))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture ({error.strerror or error})") from error
    return Markup('<figure><img src="{}" alt="{}" style="width: {}px"><figcaption>{}</figcaption></figure>').format(
        data_uri(content, "image/png"), caption, width, caption
    )


def table(rows: Sequence[Mapping[str, Cell]], *, across: bool = False) -> Markup:
    """A table from rows of named cells; columns are in the order of their first appearance.

    Intervals and spreads are drawn as error bars, on one scale for each column, or for each row if `across`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    words = {name for row in rows for name, cell in row.items() if isinstance(cell, str)}

    def places(row: Mapping[str, Cell], name: str) -> list[float]:
        """The places of the ends and the middle of an error bar, from 4 to 56; empty for a cell without an error."""
        if not isinstance(cell := row.get(name), Interval | Spread):
            return []
        cells = row.values() if across else (other.get(name) for other in rows)
        bars = [cell for cell in cells if isinstance(cell, Interval | Spread)]
        low, high = min(bar.low for bar in bars), max(bar.high for bar in bars)
        return [4 + 52 * (v - low) / ((high - low) or 1) for v in (cell.low, cell.value, cell.high)]

    return render("table.html", rows=rows, columns=columns, words=words, places=places)
