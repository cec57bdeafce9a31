"""Two text encoders as one: tokens of the first, and the pooled vector of the second."""

from flax import nnx

from vdm_jax.models.conditions import Text
from vdm_jax.typing import Array, Int


class TextPair(nnx.Module):
    """Encodes tokens of both tokenizers, one after the other; the first `length` belong to the first encoder."""

    def __init__(self, first: nnx.Module, second: nnx.Module, length: int):
        self.first, self.second, self.length = first, second, length

    def __call__(self, tokens: Int[Array, "*B L"]) -> Text:
        """Encodes tokens; runs on the device."""
        pooled = self.second(tokens[..., self.length :]).pooled
        return self.first(tokens[..., : self.length])._replace(pooled=pooled)
