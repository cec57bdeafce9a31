"""The text encoder of our own networks: a small byte-level transformer that is trained with the video network.

There is nothing to download, and any prompt can be written.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Text
from vdm_jax.models.positions import frame_code
from vdm_jax.models.transformer import EncoderBlock
from vdm_jax.typing import Array, Bool, Float, Int


def tokenize_bytes(text: str, length: int) -> np.ndarray:
    """Returns the UTF-8 bytes plus one, after a start token 257, zero-padded to `length`: int32 [length].

    The start token is always there, so that the empty text (the null condition) is one real token.

    Raises:
        InputError: a text that does not fit, or has half of a surrogate pair in it.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text {text[:60]!a} is not Unicode: {error.reason}") from error
    if len(data) >= length:
        raise InputError(f"text of {len(data)} bytes must have at most {length - 1}: {text[:60]!r}")
    tokens = np.zeros(length, np.int32)
    tokens[0] = 257
    tokens[1 : len(data) + 1] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return tokens


def hash_ngrams(tokens: Int[Array, "B L"], n: int, buckets: int) -> Int[Array, "B L"]:
    """Returns the bucket, 0 … buckets − 1, of the n tokens that end at each position (zeros before the text).

    A polynomial rolling hash modulo 2³² (Pagnoni et al. 2024, Byte Latent Transformer, section 3.2.1).
    """
    padded = jnp.pad(tokens.astype(jnp.uint32), ((0, 0), (n - 1, 0)))
    code = jnp.zeros_like(tokens, dtype=jnp.uint32)
    for i in range(n):
        code = code * jnp.uint32(0x9E3779B1) + padded[:, i : i + tokens.shape[1]]
    # The last token alone would set the low bits: fold the high ones in.
    return ((code ^ (code >> 15)) % buckets).astype(jnp.int32)


class ByteEncoder(nnx.Module):
    """Pre-norm transformer over bytes; the pooled vector is the sum of the n real tokens' outputs over √n.

    A byte's embedding is its own plus those of the hashed n-grams that end at it, for each n in `ngrams`: a word
    is then seen at once and not spelt out by attention first, which a video's loss teaches slowly. With a mean instead
    of the sum over √n, a word would count less the longer the text is.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        length: int,
        head_size: int = 32,
        ngrams: Sequence[int] = (3,),
        buckets: int = 1024,
        dtype="float32",
        rngs,
    ):
        if width % 2:
            raise InputError(f"text width={width} must be even: half of the code of positions are sines")
        if width % head_size:
            raise InputError(f"text width={width} must be a multiple of its head_size={head_size}")
        if buckets < 1 or any(n < 2 for n in ngrams):
            raise InputError(f"text ngrams={tuple(ngrams)}, buckets={buckets} must be lengths from 2 and at least 1")
        self.length, self.width, self.ngrams, self.buckets = length, width, tuple(ngrams), buckets
        # As large as the position code: with the usual small embeddings the words drown in it at first.
        options = dict(embedding_init=nnx.initializers.normal(1.0), dtype=dtype, rngs=rngs)
        self.embed = nnx.Embed(258, width, **options)
        self.embed_ngrams = nnx.List([nnx.Embed(buckets, width, **options) for _ in ngrams])
        block = dict(heads=width // head_size, activation="gelu_tanh", epsilon=1e-6, fused=True, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(width, 4 * width, **block) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, int32 [length]; runs on the host."""
        return tokenize_bytes(text, self.length)

    def __call__(self, tokens: Int[Array, "*B L"]) -> Text:
        """Encodes tokens; runs on the device."""
        lead = tokens.shape[:-1]
        tokens = tokens.reshape(-1, tokens.shape[-1])
        mask = tokens > 0
        x = _rows(self.embed, tokens, mask)
        for n, embed in zip(self.ngrams, self.embed_ngrams, strict=True):
            x = x + _rows(embed, hash_ngrams(tokens, n, self.buckets), mask)
        x = x + frame_code(x.shape[1], self.width).astype(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        weight = mask[..., None].astype(x.dtype)
        pooled = (x * weight).sum(1) / jnp.sqrt(weight.sum(1))
        return Text(x.reshape(*lead, *x.shape[1:]), mask.reshape(*lead, -1), pooled.reshape(*lead, -1))


def _rows(embed: nnx.Embed, index: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L E"]:
    """Returns the table's rows, and zeros for padding.

    If padding shared one row, GPUs would add all its gradients to that row one after the other, though they are zeros.
    """
    table = embed.embedding[...].astype(embed.dtype)
    return table.at[jnp.where(mask, index, embed.num_embeddings)].get(mode="fill", fill_value=0)
