"""The text encoder of class-conditional networks: a learned vector for each class, and one for no class."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.errors import InputError, some
from vdm_jax.models.conditions import Text
from vdm_jax.typing import Array, Int


class ClassTable(nnx.Module):
    """Returns the vector of a class as the pooled text, and as its only token (Peebles & Xie 2023, section 3.2).

    Args:
        classes: the name of each class, or a pair of its name and a regular expression. A text belongs to the class
            whose expression, or name if it has none, it holds as whole words in any capitals. The empty text belongs to
            no class, and has a vector of its own.
        width: of a vector.
    """

    def __init__(self, *, classes: Sequence[str | Sequence[str]], width: int, dtype="float32", rngs):
        if not classes:
            raise InputError("model.text.classes=() must hold at least one class")
        pairs = [(entry, re.escape(entry)) if isinstance(entry, str) else entry for entry in classes]
        try:
            self.classes, self.patterns = zip(*pairs, strict=True)
            for pattern in self.patterns:
                re.compile(pattern)
        except (ValueError, re.error) as error:
            raise InputError(f"model.text.classes must hold names, or pairs of name and expression: {error}") from error
        self.width = width
        init = nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(len(classes) + 1, width, embedding_init=init, dtype=dtype, rngs=rngs)

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the number of the class that a text holds, int32 [1]; runs on the host.

        Raises:
            InputError: a text of no class, or of several.
        """
        if not text.strip():
            return np.array([len(self.classes)], np.int32)
        found = [i for i, one in enumerate(self.patterns) if re.search(rf"\b(?:{one})\b", text, re.IGNORECASE)]
        if len(found) != 1:
            holds = some([self.classes[i] for i in found]) or "none"
            raise InputError(
                f"text {text[:60]!r} must be empty or hold one of the {len(self.classes)} classes "
                f"{some(self.classes)}; it holds {holds}"
            )
        return np.array(found, np.int32)

    def __call__(self, tokens: Int[Array, "*B 1"]) -> Text:
        """Looks up the vectors; runs on the device."""
        x = self.embed(tokens)
        return Text(x, jnp.ones(tokens.shape, bool), x[..., 0, :])
