"""Position codes: sinusoids, rotary embeddings and relative offsets."""

import math

import jax.numpy as jnp
from einops import rearrange

from vdm_jax.typing import Array, Float


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


def rotate(x: Float[Array, "B T P N D"], positions: Float[Array, "T"]) -> Float[Array, "B T P N D"]:
    """Rotates x by the position of its frame: rotary embedding (Su et al. 2021, arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (positions[:, None] * frequencies)[:, None, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_positions(frames: int, max_distance: int) -> Array:
    """Returns the index of each (query, source) pair of frames in a table of 2·max_distance + 1 offsets, clipped."""
    offsets = jnp.arange(frames)[None, :] - jnp.arange(frames)[:, None]
    return jnp.clip(offsets, -max_distance, max_distance) + max_distance
