"""The only attention: along space, time or all positions of a video, to text tokens, or within a text.

Batch, frames and pixels keep their own axes, so that each can be sharded. (Only for cuDNN's kernel batch and frames are
merged; the kernel would merge them itself.) Queries are `B T P N D`: P = H·W pixels of a frame, N heads of size D. A
text is a video of one frame, whose pixels are its tokens.
"""

import functools
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.models.positions import relative_positions, rotate
from vdm_jax.typing import Array, Bool, Float

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
zeros = nnx.initializers.zeros_init()


class Source(NamedTuple):
    """Keys and values, and a mask of source positions or of (query, source) pairs: true where a query sees it."""

    key: Float[Array, "B G S N D"]
    value: Float[Array, "B G S N D"]
    mask: Bool[Array, "#B #G S"] | Bool[Array, "#B #G Q S"] | None = None


class Attention(nnx.Module):
    """Multi-head attention: out(softmax(q kᵀ/√D + bias) v), the softmax in float32.

    Args:
        width: channels of the input and of the output.
        heads, head_size: by default head_size is width / heads, and heads is width / head_size.
        along: which positions see each other: "space", the pixels of each frame; "time", the frames of each pixel;
            "all", all pixels of all frames.
        text_width: width of the text tokens, 0 for none. `context`: "joint" appends the tokens' keys and values to the
            pixels' (Saharia et al. 2022, Imagen, section 2.5); "only" attends to the tokens alone (cross-attention).
        fused: one matrix for queries, keys and values, in which the three parts of a head lie together.
        biased: which of "qkv" have a bias, if they are not fused.
        out_bias: the output matrix has a bias.
        zero: the output matrix starts at zero.
        position: "relative", a learned bias for each head and offset of up to `max_distance` frames, or None.
        qk_norm: RMS norm of queries and keys, of each "head" (Henry et al. 2020, arXiv 2010.04245) or of "all" heads
            together; None for no norm.
        interleaved: rotary positions turn pairs of neighbouring channels (`positions.rotate`).
        scaled: scores are divided by √D; else not (T5).
        causal: a position sees itself and the positions before it.
        implementation: "auto", "xla" or "cudnn", for attention along space and to text.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int | None = None,
        head_size: int | None = None,
        along: str = "space",
        text_width: int = 0,
        context: str = "joint",
        fused: bool = False,
        biased: str = "",
        out_bias: bool = True,
        zero: bool = False,
        position: str | None = None,
        max_distance: int = 32,
        qk_norm: str | None = None,
        interleaved: bool = False,
        scaled: bool = True,
        causal: bool = False,
        implementation: str = "xla",
        dtype="float32",
        rngs,
    ):
        heads = heads or width // head_size
        head_size = head_size or width // heads
        inner, common = heads * head_size, dict(dtype=dtype, rngs=rngs)
        self.heads, self.position, self.max_distance, self.causal = heads, position, max_distance, causal
        self.context = context if text_width else None
        self.along = "space" if self.context == "only" else along
        self.implementation = "xla"
        if implementation != "xla" and self.along != "time":
            self.implementation = choose_implementation(implementation, dtype=dtype, head_size=head_size)

        def linear(width, size, name):
            return nnx.Linear(width, size, use_bias=name in tuple(biased), **common)

        if fused and self.context == "only":
            self.text_kv = linear(text_width, 2 * inner, "fused")
            self.q = linear(width, inner, "fused")
        elif fused:
            self.qkv = linear(width, 3 * inner, "fused")
        else:
            source = text_width if self.context == "only" else width
            self.q, self.k, self.v = linear(width, inner, "q"), linear(source, inner, "k"), linear(source, inner, "v")
        self.out = nnx.Linear(inner, width, use_bias=out_bias, **common | (dict(kernel_init=zeros) if zero else {}))
        if self.context == "joint":
            self.text_kv = linear(text_width, 2 * inner, "fused")
        if position == "relative":
            self.bias = nnx.Param(0.5 * jax.random.normal(rngs.params(), (2 * max_distance + 1, heads), jnp.float32))
        if qk_norm:
            normed = head_size if qk_norm == "head" else inner
            self.q_norm, self.k_norm = (nnx.RMSNorm(normed, **common) for _ in "qk")
        self.fused, self.qk_norm, self.interleaved, self.scaled = fused, qk_norm, interleaved, scaled

    def __call__(
        self,
        x: Float[Array, "B T P C"],
        text: Float[Array, "B G L E"] | None = None,
        *,
        text_mask: Bool[Array, "B G L"] | None = None,
        mask: Bool[Array, "#B _ S"] | Bool[Array, "#B _ Q S"] | None = None,
        angles: Float[Array, "#T #P _ _"] | None = None,
        bias: Float[Array, "N Q S"] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T P C"]:
        """Attends from each pixel; `text` has one text for the video (G = 1) or one for each frame (G = T).

        `angles` are rotary positions (`positions.rotate`), of queries and of the keys of pixels.

        `mask` is true where a pixel sees a source pixel. Along space its second axis is the frame, and positions are
        pixels; along time its second axis is the pixel, and positions are frames; along "all" it has size 1.
        `bias` is added to the scores of each head.
        """
        frames = x.shape[1]
        q, k, v = self._project(x, text)
        if angles is not None:
            q, k = (rotate(x, angles, self.interleaved) for x in (q, k))
        if not self.scaled:
            q = q * math.sqrt(q.shape[-1])  # scores are divided by as much
        if self.along == "all":
            q, k, v = (rearrange(layout.heads(part), "b t p n d -> b 1 (t p) n d") for part in (q, k, v))
        if self.causal:
            count = frames if self.along == "time" else k.shape[2]
            before = jnp.tril(jnp.ones((1, 1, count, count), bool))
            mask = before if mask is None else before & (mask if mask.ndim == 4 else mask[:, :, None])
        sources = [Source(k, v, text_mask if self.context == "only" else mask)]
        if self.context == "joint":
            text_key, text_value = split_heads(self.text_kv(text), 2, self.heads)
            text_key = _normed(self.k_norm, text_key, self.qk_norm) if self.qk_norm else text_key
            sources.append(Source(text_key, text_value, text_mask))
        if self.position == "relative":
            bias = rearrange(self.bias[relative_positions(frames, self.max_distance)], "t s n -> n t s")
        out = attend(q, *sources, along=self.along, bias=bias, implementation=self.implementation)
        if self.along == "all":
            out = layout.heads(rearrange(out, "b 1 (t p) n d -> b t p n d", t=frames), back=True)
        return self.out(rearrange(out, "b t p n d -> b t p (n d)"))

    def _project(self, x, text):
        """Returns queries of x, and keys and values of x or, in cross-attention, of the text."""
        source = text if self.context == "only" else x
        if not self.fused:
            pairs = ((self.q, x), (self.k, source), (self.v, source))
            q, k, v = (split_heads(linear(tokens), 1, self.heads)[0] for linear, tokens in pairs)
        elif self.context == "only":
            (q,), (k, v) = split_heads(self.q(x), 1, self.heads), split_heads(self.text_kv(text), 2, self.heads)
        else:
            q, k, v = split_heads(self.qkv(x), 3, self.heads)
        if self.qk_norm:
            q, k = _normed(self.q_norm, q, self.qk_norm), _normed(self.k_norm, k, self.qk_norm)
        return q, k, v


def _normed(norm: nnx.Module, x: Float[Array, "B T P N D"], over: str) -> Float[Array, "B T P N D"]:
    """Normalises each "head", or "all" heads together."""
    return norm(x) if over == "head" else norm(x.reshape(*x.shape[:3], -1)).reshape(x.shape)


def split_heads(x: Float[Array, "B T P C"], parts: int, heads: int) -> tuple[Array, ...]:
    """Splits the last axis into `parts` arrays of `heads` heads; a head's parts lie together (tensor sharding)."""
    x = rearrange(x, "b t p (n parts d) -> parts b t p n d", parts=parts, n=heads)
    return tuple(x[i] for i in range(parts))


def attend(
    query: Float[Array, "B T P N D"],
    *sources: Source,
    along: str = "space",
    bias: Float[Array, "N Q S"] | None = None,
    implementation: str = "xla",
) -> Float[Array, "B T P N D"]:
    """Attends from every query to all sources under one softmax (float32). A source is pixels, frames or text tokens.

    A source along space has G = T sets of S positions, one for each frame, or G = 1 that all frames share. Along time
    the source has the axes of the query. `bias` has one table of (query, source) positions per head.
    """
    if along == "time":
        query = query.swapaxes(1, 2)
        sources = [Source(s.key.swapaxes(1, 2), s.value.swapaxes(1, 2), s.mask) for s in sources]
    elif implementation == "cudnn":
        if bias is not None:
            raise ValueError("cuDNN's kernel takes no bias")
        return _cudnn(query, sources)
    query = jnp.swapaxes(query, 2, 3)  # along space B T N P D, along time B P N T D
    scores, values = [], []
    for source in sources:
        key, value = (jnp.swapaxes(x, 2, 3) for x in (source.key, source.value))
        key, value = (jnp.broadcast_to(x, (*query.shape[:3], *x.shape[3:])) for x in (key, value))
        part = _scores(query, key)
        if bias is not None:
            part = part + bias
        if source.mask is not None:
            mask = source.mask if source.mask.ndim == 4 else source.mask[:, :, None]
            part = jnp.where(mask[:, :, None], part, _LOWEST)
        scores.append(part)
        values.append(value)
    out = jnp.swapaxes(_average(scores, values), 2, 3)
    return out.swapaxes(1, 2) if along == "time" else out


_LOWEST = jnp.finfo(jnp.float32).min

# Both products have their batch axes first, heads among them, and the softmax divides last: XLA's kernels for CPUs take
# several times as long for other orders (docs/benchmarks.md). No two axes are merged: each may be sharded.


def _scores(query, key):
    query = query / math.sqrt(query.shape[-1])
    return jnp.einsum("...qd,...sd->...qs", query, key, preferred_element_type=jnp.float32)


def _average(scores, values):
    """Returns the values weighted by one softmax over all scores, in float32: Σ exp(s - max) v / Σ exp(s - max).

    The division comes last, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691, section 3.1).
    """
    # The result does not depend on `greatest`, so its gradient can be stopped.
    greatest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores]))
    weights = [jnp.exp(x - greatest) for x in scores]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    dtype = values[0].dtype
    parts = (
        jnp.matmul(weight.astype(dtype), value, preferred_element_type=jnp.float32)
        for weight, value in zip(weights, values, strict=True)
    )
    return (sum(parts) / total).astype(dtype)


def _cudnn(query, sources):
    """Runs the fused kernel over each frame of each video.

    Padding is passed as sequence lengths: a mask would need a full matrix per frame. Odd numbers of pixels and tokens
    are padded to even ones: JAX has a gradient of the kernel for no others (0.10 and 0.12).
    """
    if any(source.mask is not None for source in sources[:-1]) or (
        sources[-1].mask is not None and sources[-1].mask.ndim > 3
    ):
        raise ValueError("cuDNN's kernel takes a padding mask of the last source only")
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
    """Resolves "auto" to the fused cuDNN kernel where it can run, else to XLA, and logs the choice.

    cuDNN's kernel takes 16-bit inputs and head sizes that are multiples of 8, up to 128, on NVIDIA's GPUs from Ampere
    on (compute capability 8.0).

    Raises:
        InputError: an unknown name, or cuDNN asked for where it cannot run.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(f"attention={name!r} must be one of {', '.join(IMPLEMENTATIONS)}")
    device = device or jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))  # AMD's are names, such as gfx942
    recent = capability.replace(".", "").isdecimal() and float(capability) >= 8
    reasons = [
        reason
        for fails, reason in (
            (device.platform not in ("gpu", "cuda"), f"the backend is {device.platform}, not a GPU"),
            (device.platform in ("gpu", "cuda") and not recent, f"compute capability {capability!r} is below 8.0"),
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
    """Logs a line once: a model is built several times in a run (shapes, parameters, samples)."""
    logging.info(line)
