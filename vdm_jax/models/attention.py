"""Attention, written unflattened: batch, frames and pixels keep their own axes, so each can be sharded.

(For cuDNN's kernel alone batch and frames are merged, as it would do itself.)

Queries are `B T P N D`: P = H·W pixels of a frame, N heads of size D. Space attention runs along P, time
attention along T, context attention from every pixel to L tokens.
"""

import functools
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


class Source(NamedTuple):
    """Keys and values that a query may look at, and which of them count: the first ones, as texts are padded after."""

    key: Float[Array, "B G S N D"]
    value: Float[Array, "B G S N D"]
    mask: Bool[Array, "B G S"] | None = None


def attend_time(
    query: Float[Array, "B T P N D"],
    key: Float[Array, "B T P N D"],
    value: Float[Array, "B T P N D"],
    *,
    bias: Float[Array, "N T T"] | None = None,
    mask: Bool[Array, "T T"] | None = None,
) -> Float[Array, "B T P N D"]:
    """Attention over the frames of each pixel: softmax(q kᵀ/√D + bias) v, the softmax in float32.

    `bias` has one table of (query, source) frames per head; `mask` is True where a frame may look.
    """
    query, key, value = (jnp.transpose(x, (0, 2, 3, 1, 4)) for x in (query, key, value))  # B P N T D
    scores = _scores(query, key)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, _LOWEST)
    return jnp.transpose(_average([scores], [value]), (0, 3, 1, 2, 4))


def attend_space(
    query: Float[Array, "B T P N D"], *sources: Source, implementation: str = "xla"
) -> Float[Array, "B T P N D"]:
    """Attention of every pixel to the given sources, under one softmax (float32): pixels, text, or both.

    A source has G = T sets of S positions, one for each frame, or G = 1 that all frames share.
    """
    if implementation == "cudnn":
        return _cudnn_space(query, sources)
    query = jnp.swapaxes(query, 2, 3)  # B T N P D
    scores, values = [], []
    for source in sources:
        key, value = (jnp.swapaxes(x, 2, 3) for x in (source.key, source.value))
        key, value = (jnp.broadcast_to(x, (*query.shape[:3], *x.shape[3:])) for x in (key, value))
        part = _scores(query, key)
        if source.mask is not None:
            part = jnp.where(source.mask[:, :, None, None, :], part, _LOWEST)
        scores.append(part)
        values.append(value)
    return jnp.swapaxes(_average(scores, values), 2, 3)


_LOWEST = jnp.finfo(jnp.float32).min

# Both products have their batch axes first, heads among them, and the softmax divides last: XLA's kernels for CPUs take
# several times as long for other orders (docs/benchmarks.md). No two axes are merged: each may be sharded.


def _scores(query, key):
    query = query / math.sqrt(query.shape[-1])
    return jnp.einsum("...qd,...sd->...qs", query, key, preferred_element_type=jnp.float32)


def _average(scores, values):
    """The values, weighed by one softmax over all scores, in float32: Σ exp(s - max) v / Σ exp(s - max).

    The division comes last, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691, section 3.1).
    """
    # Any constant in place of the maximum would give the same, so nothing is lost by taking it for one.
    greatest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores]))
    weights = [jnp.exp(x - greatest) for x in scores]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    dtype = values[0].dtype
    parts = (
        jnp.matmul(weight.astype(dtype), value, preferred_element_type=jnp.float32)
        for weight, value in zip(weights, values, strict=True)
    )
    return (sum(parts) / total).astype(dtype)


def _cudnn_space(query, sources):
    """The fused kernel over each frame of each video.

    What counts is said in lengths, as a mask would be a matrix for each frame. Odd numbers of pixels and tokens are
    made even: JAX has a gradient of the kernel for no others (0.10 and 0.12).
    """
    if any(source.mask is not None for source in sources[:-1]):
        raise ValueError("cuDNN's kernel takes a mask of the last source only")
    batch, frames, pixels = query.shape[:3]

    def per_frame(x):
        return jnp.broadcast_to(x, (batch, frames, *x.shape[2:])).reshape(batch * frames, *x.shape[2:])

    def even(x):
        return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)])

    key, value = (jnp.concatenate([per_frame(getattr(s, n)) for s in sources], 1) for n in ("key", "value"))
    count, mask = key.shape[1], sources[-1].mask
    lengths = jnp.full(batch * frames, count, jnp.int32) if count % 2 else None
    if mask is not None:
        lengths = per_frame(count - mask.shape[-1] + mask.sum(-1, dtype=jnp.int32))
    out = jax.nn.dot_product_attention(
        even(per_frame(query)), even(key), even(value), key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :pixels].reshape(query.shape)


def choose_implementation(name: str, *, dtype, head_size: int, device=None) -> str:
    """Resolves `auto` to the fused cuDNN kernel where it can run, else XLA, and logs the choice.

    cuDNN's kernel takes 16-bit inputs and head sizes that are multiples of 8, up to 128, on NVIDIA's GPUs from Ampere
    on (compute capability 8.0).

    Raises:
        InputError: an unknown name, or cuDNN asked for where it cannot run.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(f"attention={name!r} must be one of {', '.join(IMPLEMENTATIONS)}")
    device = device or jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))  # AMD's are names, such as gfx942
    new = capability.replace(".", "").isdecimal() and float(capability) >= 8
    reasons = [
        reason
        for fails, reason in (
            (device.platform not in ("gpu", "cuda"), f"the backend is {device.platform}, not a GPU"),
            (device.platform in ("gpu", "cuda") and not new, f"compute capability {capability!r} is not 8.0 or more"),
            (jnp.dtype(dtype).itemsize != 2, f"dtype={jnp.dtype(dtype).name} is not 16-bit"),
            (head_size % 8 or head_size > 128, f"head_size={head_size} is not a multiple of 8 up to 128"),
        )
        if fails
    ]
    if name == "cudnn" and reasons:
        raise InputError(f"attention='cudnn' cannot run: {'; '.join(reasons)}; use 'auto' or 'xla'")
    chosen = "cudnn" if name != "xla" and not reasons else "xla"
    _log_once(f"attention: {chosen}" + (f" ({'; '.join(reasons)})" if name == "auto" and reasons else ""))
    return chosen


@functools.cache
def _log_once(line: str) -> None:
    """A model is built several times in a run: for its shapes, its parameters, its samples."""
    logging.info(line)


def rotate(x: Float[Array, "B T P N D"], positions: Float[Array, "T"]) -> Float[Array, "B T P N D"]:
    """Rotary position embedding along time (Su et al. 2021, arXiv 2104.09864, equation 34)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (positions[:, None] * frequencies)[:, None, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_positions(frames: int, max_distance: int) -> Array:
    """Index of each (query, source) pair of frames into a table of 2·max_distance + 1 offsets, clipped."""
    offsets = jnp.arange(frames)[None, :] - jnp.arange(frames)[:, None]
    return jnp.clip(offsets, -max_distance, max_distance) + max_distance


def sinusoid(positions: Float[Array, "*S"], width: int) -> Float[Array, "*S {width}"]:
    """Sinusoidal embedding, cosines first, periods from 2π to 20,000π (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def grid_code(rows: int, columns: int, width: int) -> Float[Array, "H W C"]:
    """Sinusoidal code of row (first half of the channels) and column (second half) of every position."""
    row, column = (sinusoid(jnp.arange(n, dtype=jnp.float32), width // 2) for n in (rows, columns))
    shape = (rows, columns, width // 2)
    return jnp.concatenate([jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None], shape)], axis=-1)


def clip_mask(frames: int, images: int) -> Bool[Array, "T T"]:
    """Which frames a frame may look at when the last `images` are independent stills (Ho et al. 2022, 4.3.1).

    Frames of the clip see the clip; an appended image sees only itself.
    """
    position = jnp.arange(frames)
    in_clip = position < frames - images
    return (in_clip[:, None] & in_clip[None, :]) | jnp.eye(frames, dtype=bool)
