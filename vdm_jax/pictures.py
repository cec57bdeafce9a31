"""Turns decoded frames and picture files into RGB of 8 bits that looks as on a screen.

A picture is upright, its pixels are square, transparent parts show a background, and HDR is mapped to SDR.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageOps

from vdm_jax.errors import InputError
from vdm_jax.files import FilePath

PQ, HLG = 16, 18  # transfer characteristics of HDR (ITU-T H.273, table 3)
WHITE, BLACK = 255, 0  # backgrounds
_HDR_WHITE = 203  # candelas a square metre: the white of graphics (ITU-R BT.2408)
_BT2020_TO_BT709 = np.float32(  # linear light (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
)


class Frame(NamedTuple):
    """A decoded frame, with what its file says of it."""

    decoded: av.VideoFrame
    duration: float  # seconds; 0 if the file does not say
    aspect: Fraction | int = 1  # width of a pixel / its height
    transfer: int = 0  # PQ, HLG, or another, which is SDR


def to_rgb(
    frame: Frame, fit: Callable[[np.ndarray], np.ndarray] = lambda image: image, background: int = WHITE
) -> UInt8[np.ndarray, "Y X 3"]:
    """Returns the picture of a frame, cut and resized by `fit`. Transparent parts show `background`."""
    decoded, options = frame.decoded, {}
    if frame.aspect != 1 or decoded.interlaced_frame:
        options = {"width": max(round(decoded.width * frame.aspect), 1), "height": decoded.height}
    if decoded.interlaced_frame:
        decoded = _upper_field(decoded)
    if frame.transfer in (PQ, HLG):
        image = _upright(decoded.to_ndarray(format="rgb48le", interpolation="BICUBIC", **options), frame.decoded)
        channels = [fit(image[..., [channel]]) for channel in range(3)]  # Pillow knows no RGB of 16 bits
        return _to_sdr(np.concatenate(channels, axis=-1), frame.transfer)
    if any(component.is_alpha for component in decoded.format.components):
        rgba = Image.fromarray(decoded.to_ndarray(format="rgba", **options))
        image = np.asarray(_opaque(rgba, background))
    else:
        image = decoded.to_ndarray(format="rgb24", **options)
    return fit(_upright(image, frame.decoded))


def read_picture(path: FilePath, background: int = WHITE) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture of a file. Transparent parts show `background`. Raises InputError if it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(open_rgb(image, background))
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({getattr(error, 'strerror', None) or error})") from error


def open_rgb(image: Image.Image, background: int = WHITE) -> Image.Image:
    """Returns a picture as a camera or painter meant it: upright, without transparency, RGB of 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray(np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    return _opaque(image, background) if image.has_transparency_data else image.convert("RGB")


def _opaque(image: Image.Image, background: int) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*[background] * 3, 255)), image).convert("RGB")


def _upper_field(decoded: av.VideoFrame) -> av.VideoFrame:
    """Returns every second row: the rows between were recorded at another time."""
    kind = dict(width=decoded.width, height=decoded.height, format=decoded.format, time_base=decoded.time_base)
    graph = av.filter.Graph()
    graph.link_nodes(graph.add_buffer(**kind), graph.add("field", "top"), graph.add("buffersink")).configure()
    graph.push(decoded)
    return graph.pull()


def _upright(image: np.ndarray, decoded: av.VideoFrame) -> np.ndarray:
    """Turns and mirrors a picture by the display matrix of its file: x' = a·x + c·y, y' = b·x + d·y."""
    # `decoded.side_data` would be a cycle of references, which keeps a frame in memory.
    matrix = SideDataContainer(decoded).get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(b) > abs(a):  # x and y change places
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _to_sdr(image: UInt16[np.ndarray, "Y X 3"], transfer: int) -> UInt8[np.ndarray, "Y X 3"]:
    """Returns HDR of BT.2020 as sRGB. A light of 203 cd/m² is white, and brighter lights are white, too."""
    linear = (_light(transfer)[image] / _HDR_WHITE @ _BT2020_TO_BT709.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)


@functools.cache
def _light(transfer: int) -> Float[np.ndarray, "65536"]:
    """Returns the light (cd/m²) of every code value of 16 bits."""
    code = (np.arange(65536) / 65280).clip(max=1)  # swscale's white
    if transfer == PQ:  # SMPTE ST 2084
        power = code ** (32 / 2523)
        light = 10_000 * ((power - 107 / 128).clip(0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
    else:  # BT.2100, at 1000 cd/m²; its gamma of 1.2 is put on each channel, not on luminance, as zimg (ffmpeg) does
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = 1000 * scene**1.2
    return light.astype(np.float32)
