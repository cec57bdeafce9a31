"""Position codes: sinusoids, rotary embeddings and relative offsets."""

import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vdm_jax.typing import Array, Float, Int


def sinusoid(positions: Float[Array, "*S"], width: int) -> Float[Array, "*S {width}"]:
    """Returns sinusoids, cosines first, with periods from 2π to 20,000π (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def frame_code(frames: int, width: int) -> Float[Array, "T C"]:
    """Returns the sinusoids of each frame's number."""
    return sinusoid(jnp.arange(frames, dtype=jnp.float32), width)


def interleaved_code(frames: int, width: int) -> Float[Array, "T C"]:
    """Returns the sinusoids of each frame's number, sines and cosines in turns (Vaswani et al. 2017, section 3.5)."""
    cosines, sines = jnp.split(frame_code(frames, width), 2, axis=-1)
    return rearrange(jnp.stack([sines, cosines], -1), "t c two -> t (c two)")


def grid_code(rows: int, columns: int, width: int) -> Float[Array, "H W C"]:
    """Returns the sinusoids of row (first half of the channels) and column (second half) of every position."""
    row, column = (frame_code(n, width // 2) for n in (rows, columns))
    shape = (rows, columns, width // 2)
    return jnp.concatenate([jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None], shape)], axis=-1)


def plane_code(
    rows: int, columns: int, width: int, span: tuple[float, float] | None = None
) -> Float[np.ndarray, "H W {width}"]:
    """Returns sinusoids of the column (first half of the channels) and of the row, sines before cosines in each half.

    Rows and columns are stretched to 0 … `span`, so that pictures of all sizes share their positions; by default they
    are counted. (Chen et al. 2023, PixArt-α, arXiv 2310.00426.)
    """
    span = (rows, columns) if span is None else span
    row, column = (
        np.roll(_code(np.arange(n) * (size / n), width // 2), width // 4, axis=-1)
        for n, size in zip((rows, columns), span, strict=True)
    )
    shape = (rows, columns, width // 2)
    return np.concatenate([np.broadcast_to(column[None], shape), np.broadcast_to(row[:, None], shape)], axis=-1)


def _code(positions: Float[np.ndarray, "S"], width: int) -> Float[np.ndarray, "S {width}"]:
    """Computes `sinusoid` in float64."""
    angles = rotary_angles(positions, width)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def rotary_angles(
    positions: Float[np.ndarray, "S"] | Int[np.ndarray, "S"], size: int
) -> Float[np.ndarray, "S {size}//2"]:
    """Returns the angle of each pair of `size` channels at each position, in float64 (Su et al. 2021, equation 15)."""
    return positions[:, None] * 10_000.0 ** (-np.arange(size // 2) * 2 / size)


def frame_angles(frames: int, size: int) -> Float[Array, "T 1 1 {size}//2"]:
    """Returns the rotary angles of each frame's number."""
    return jnp.asarray(rotary_angles(np.arange(frames), size)[:, None, None], jnp.float32)


def axis_angles(frames: int, rows: int, columns: int, sizes: tuple[int, int, int]) -> Float[Array, "T P 1 D"]:
    """Returns rotary angles of frame, row and column; `sizes` channels of a head belong to each of the three."""
    shape, angles = (frames, rows, columns), []
    for axis, (count, size) in enumerate(zip(shape, sizes, strict=True)):
        code = rotary_angles(np.arange(count), size)
        code = code.reshape([-1 if i == axis else 1 for i in range(3)] + [size // 2])
        angles.append(np.broadcast_to(code, (*shape, size // 2)))
    angles = np.concatenate(angles, axis=-1).reshape(frames, rows * columns, 1, -1)
    return jnp.asarray(angles, jnp.float32)


def rotate(
    x: Float[Array, "B T P N D"], angles: Float[Array, "#T #P #N D//2"], interleaved: bool = False
) -> Float[Array, "B T P N D"]:
    """Rotates pairs of channels: rotary embedding (Su et al. 2021, arXiv 2104.09864, equation 34).

    A pair are the channels i and i + D/2, or with `interleaved` 2i and 2i + 1.
    """
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return rotated.reshape(x.shape)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_positions(frames: int, max_distance: int) -> Array:
    """Returns the index of each (query, source) pair of frames in a table of 2·max_distance + 1 offsets, clipped."""
    offsets = jnp.arange(frames)[None, :] - jnp.arange(frames)[:, None]
    return jnp.clip(offsets, -max_distance, max_distance) + max_distance
