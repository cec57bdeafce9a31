"""BERT's encoder (Devlin et al. 2019, arXiv 1810.04805), which conditioned Video Diffusion Models (Ho et al. 2022)."""

import jax
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Text
from vdm_jax.models.layers import layer_norm
from vdm_jax.models.stack import Stack
from vdm_jax.models.text.padding import check_padding, padded_text
from vdm_jax.models.transformer import EncoderBlock
from vdm_jax.typing import Array, Int


class Bert(nnx.Module):
    """Encodes texts: the last hidden states of all tokens, and their mean; token 0 is padding.

    `padding` is what the network sees of padding (`text.padding`). All tokens have the first of the `types`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        types: int,
        width: int,
        middle: int,
        depth: int,
        heads: int,
        activation: str,
        epsilon: float,
        padding: str = "masked",
        dtype="float32",
        rngs,
    ):
        check_padding(padding)
        common = dict(dtype=dtype, rngs=rngs)
        self.length, self.width, self.padding = length, width, padding
        self.embed = nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(0.02), **common)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, width)))
        self.types = nnx.Param(0.02 * jax.random.normal(rngs.params(), (types, width)))
        self.norm = layer_norm(width, epsilon, **common)
        block = dict(heads=heads, activation=activation, epsilon=epsilon, biased="qkv", post=True, dtype=dtype)
        self.blocks = Stack(lambda rngs: EncoderBlock(width, middle, **block, rngs=rngs), depth, rngs=rngs)

    def __call__(self, tokens: Int[Array, "*B L"]) -> Text:
        """Encodes tokens. Padding is not attended to. Raises InputError for a text that is too long."""
        *lead, length = tokens.shape
        if length > self.length:
            raise InputError(f"text of {length} tokens must have at most {self.length}")
        tokens = tokens.reshape(-1, length)
        x = self.embed(tokens)
        x = self.norm(x + (self.positions[:length] + self.types[0]).astype(x.dtype))
        x = self.blocks(x, tokens > 0)
        return padded_text(x.reshape(*lead, length, self.width), (tokens > 0).reshape(*lead, length), self.padding)
