"""The block of a diffusion transformer: attention, cross-attention to text and a feed-forward, modulated by time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.models.attention import Attention
from vdm_jax.models.layers import layer_norm, zeros
from vdm_jax.models.layout import Layout
from vdm_jax.typing import Array, Bool, Float

EPSILON = 1e-6  # of all norms
PLAIN = dict(use_bias=False, use_scale=False)  # a norm without parameters


class Inputs(NamedTuple):
    """What all blocks read next to x."""

    modulation: Float[Array, "B G ..."]  # six vectors of "shared" modulation, or the embedding: G = 1, or T
    tokens: Float[Array, "B G L C"] | None
    text_mask: Bool[Array, "B G L"] | None
    time_mask: Bool[Array, "B 1 T T"] | None  # which frames see each other, where there are stills
    code: Float[Array, "T 1 1 C"] | None  # of the frame, added before the first block along time
    angles: dict[str, Array]  # rotary positions by axis of attention


class Block(nnx.Module):
    """x += g·attention(norm(x)(1 + s) + b); x += cross(x, text); x += g'·MLP(norm(x)(1 + s') + b').

    The six vectors b, s, g, b', s', g' come from the embedding of time. "shared": one matrix for all blocks, plus a
    table of the block (adaLN-single; Chen et al. 2023, PixArt-α, arXiv 2310.00426, section 2.3). "block": a matrix of
    the block (adaLN-zero; Peebles & Xie 2023, section 3.2). The gates g start at zero.
    """

    def __init__(
        self,
        width,
        hidden,
        *,
        along,
        text,
        cross_norm,
        modulation,
        heads,
        qk_norm,
        interleaved,
        implementation,
        dtype,
        rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.along = along
        if modulation == "shared":
            self.table = nnx.Param(jnp.zeros((6, width), jnp.float32))
        else:
            self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, **common)
        self.norm = layer_norm(width, EPSILON, **PLAIN, **common)
        attention = dict(heads=heads, biased="qkv", implementation=implementation, **common)
        normed = dict(qk_norm=qk_norm)
        self.attention = Attention(width, along=along, interleaved=interleaved, **normed, **attention)
        cross = dict(text_width=width, context="only", zero=True, **attention) | (normed if cross_norm else {})
        self.cross_norm = layer_norm(width, EPSILON, **common) if text and cross_norm else None
        self.cross = Attention(width, **cross) if text else None
        self.up, self.down = nnx.Linear(width, hidden, **common), nnx.Linear(hidden, width, **common)

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C"]:
        """Transforms x."""
        where = "time" if self.along == "time" else "space"
        x = layout(x, where)
        shift, scale, gate, shift2, scale2, gate2 = self._vectors(inputs.modulation, x.dtype)
        hidden = _pixels(self.norm(x) * (1 + scale) + shift)
        mask = inputs.time_mask if self.along == "time" else None
        hidden = self.attention(hidden, mask=mask, angles=inputs.angles.get(self.along), layout=layout)
        x = x + gate * hidden.reshape(x.shape)
        if self.cross is not None:
            hidden = _pixels(x if self.cross_norm is None else self.cross_norm(x))
            x = x + self.cross(hidden, inputs.tokens, text_mask=inputs.text_mask).reshape(x.shape)
        hidden = layout.per_position(self._feed, self.norm(x) * (1 + scale2) + shift2)
        return layout(x + gate2 * hidden, where)

    def _feed(self, x):
        return self.down(jax.nn.gelu(self.up(x)))

    def _vectors(self, modulation, dtype):
        if hasattr(self, "modulation"):
            vectors = self.modulation(jax.nn.silu(modulation))
            vectors = vectors.reshape(*vectors.shape[:2], 6, -1)
        else:
            vectors = self.table[...] + modulation
        return jnp.moveaxis(vectors, 2, 0)[..., None, None, :].astype(dtype)


class Layer(nnx.Module):
    """A block along space and a block along time, or one block over all tokens."""

    def __init__(self, alongs, text, **block):
        for along in alongs:
            setattr(self, along, Block(along=along, text=along in text, **block))

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout, *, first: Bool[Array, ""]):
        """Runs the blocks; `first` is true for the first layer."""
        if hasattr(self, "all"):
            return self.all(x, inputs, layout)
        x = self.space(x, inputs, layout)
        if inputs.code is not None:
            x = x + jnp.where(first, inputs.code, 0).astype(x.dtype)
        return self.time(x, inputs, layout)


def _pixels(x: Float[Array, "B T H W C"]) -> Float[Array, "B T P C"]:
    return rearrange(x, "b t h w c -> b t (h w) c")
