"""The encoders of T5 v1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020) and of UMT5 (Chung et al. 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import Attention
from vdm_jax.models.conditions import Text
from vdm_jax.models.stack import Stack
from vdm_jax.models.text.padding import check_padding, padded_text
from vdm_jax.typing import Array, Bool, Float, Int


class T5(nnx.Module):
    """Encodes texts: the last hidden states of all tokens, and their mean; token 0 is padding.

    Args:
        middle: width of the gated feed-forward.
        buckets, max_distance: of relative positions (`relative_buckets`).
        shared: one table of position biases serves all blocks (T5); else each block has its own (UMT5).
        masked: padding is not attended to.
        padding: what the network sees of padding (`text.padding`).
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        middle: int,
        depth: int,
        heads: int,
        head_size: int,
        buckets: int,
        max_distance: int,
        epsilon: float,
        shared: bool,
        masked: bool = True,
        padding: str = "masked",
        dtype="float32",
        rngs,
    ):
        check_padding(padding)
        if buckets % 4 or max_distance <= buckets // 4:
            raise InputError(f"buckets={buckets} must be a multiple of 4, below 4 × max_distance={max_distance}")
        common = dict(dtype=dtype, rngs=rngs)
        self.width, self.masked, self.padding = width, masked, padding
        self.buckets, self.max_distance = buckets, max_distance
        self.embed = nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(1.0), **common)
        self.position_bias = _position_bias(buckets, heads, rngs) if shared else None
        block = dict(heads=heads, head_size=head_size, epsilon=epsilon, buckets=0 if shared else buckets, dtype=dtype)
        self.blocks = Stack(lambda rngs: T5Block(width, middle, **block, rngs=rngs), depth, rngs=rngs)
        self.norm = nnx.RMSNorm(width, epsilon=epsilon, **common)

    def __call__(self, tokens: Int[Array, "*B L"]) -> Text:
        """Encodes tokens."""
        *lead, length = tokens.shape
        tokens = tokens.reshape(-1, length)
        buckets = relative_buckets(length, self.buckets, self.max_distance)
        bias = None if self.position_bias is None else _biases(self.position_bias[...], buckets)
        x = self.blocks(self.embed(tokens), tokens > 0 if self.masked else None, buckets, bias)
        x = self.norm(x).reshape(*lead, length, self.width)
        return padded_text(x, (tokens > 0).reshape(*lead, length), self.padding)


class T5Block(nnx.Module):
    """A pre-norm transformer block with RMS norms, a gated GELU (tanh) and no biases.

    With `buckets` it has its own table of position biases.
    """

    def __init__(self, width, middle, *, heads, head_size, epsilon, buckets, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.norm1 = nnx.RMSNorm(width, epsilon=epsilon, **common)
        self.attention = Attention(width, heads=heads, head_size=head_size, out_bias=False, scaled=False, **common)
        self.position_bias = _position_bias(buckets, heads, rngs) if buckets else None
        self.norm2 = nnx.RMSNorm(width, epsilon=epsilon, **common)
        self.gate_up, self.up = (nnx.Linear(width, middle, use_bias=False, **common) for _ in range(2))
        self.down = nnx.Linear(middle, width, use_bias=False, **common)

    def __call__(
        self,
        x: Float[Array, "B L C"],
        mask: Bool[Array, "B L"] | None,
        buckets: Int[np.ndarray, "L L"],
        bias: Float[Array, "N L L"] | None,
    ) -> Float[Array, "B L C"]:
        """Transforms the tokens; a `bias` is added to the scores where the block has no table."""
        bias = bias if self.position_bias is None else _biases(self.position_bias[...], buckets)
        mask = None if mask is None else mask[:, None]
        x = x + self.attention(self.norm1(x)[:, None], mask=mask, bias=bias)[:, 0]
        hidden = self.norm2(x)
        return x + self.down(jax.nn.gelu(self.gate_up(hidden)) * self.up(hidden))


def _position_bias(buckets: int, heads: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.5 * jax.random.normal(rngs.params(), (buckets, heads), jnp.float32))


def _biases(table: Float[Array, "K N"], buckets: Int[np.ndarray, "L L"]) -> Float[Array, "N L L"]:
    return rearrange(table[buckets], "q s n -> n q s").astype(jnp.float32)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "{length} {length}"]:
    """Returns the bucket of each (query, source) pair of tokens by their distance (Raffel et al. 2020, section 2.1).

    Half of the buckets are for sources after the query. Of each half, the first half has one distance a bucket; the
    others grow in geometric steps up to `max_distance`, and the last takes all that is farther. It is computed by
    NumPy: XLA's logarithm may fall below an edge.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance, half = np.abs(offset), buckets // 2
    exact = half // 2
    steps = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact) * (half - exact)
    bucket = np.where(distance < exact, distance, np.minimum(exact + steps.astype(np.int64), half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)
