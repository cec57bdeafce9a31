"""A table with a vector for each class, in the place of a text encoder (Peebles & Xie 2023, section 3)."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Text
from vdm_jax.typing import Array, Int


class ClassTable(nnx.Module):
    """A learned vector for each class, and one for the empty text: the only token of a text, and its pooled vector.

    Args:
        width: of a vector.
        names: of the classes. Other names of a class follow after "|": "0|zero".
    """

    def __init__(self, *, width: int, names: Sequence[str], dtype="float32", rngs):
        self.width, self.names = width, tuple(names)
        if not names:
            raise InputError("text names=() must hold the names of the classes")
        embedding = nnx.initializers.normal(0.02)  # as published
        self.embed = nnx.Embed(len(names) + 1, width, embedding_init=embedding, dtype=dtype, rngs=rngs)

    def tokenize(self, text: str) -> np.ndarray:
        """Returns the number of the class that a text is the name of, or has the name of in it: int32 [1].

        The empty text has the number after the last class. Case does not matter. Runs on the host.

        Raises:
            InputError: a text of no class, or of several.
        """
        words = " ".join(text.lower().split())
        if not words:
            return np.int32([len(self.names)])
        named = [(i, name.lower()) for i, names in enumerate(self.names) for name in names.split("|")]
        found = {i for i, name in named if name == words}
        found = found or {i for i, name in named if re.search(rf"\b{re.escape(name)}\b", words)}
        if len(found) != 1:
            some = ", ".join(self.names[:5]) + (", …" if len(self.names) > 5 else "")
            classes = "no class" if not found else f"{len(found)} classes"
            raise InputError(f"text={text[:60]!r} names {classes} of {some}")
        return np.int32([*found])

    def __call__(self, tokens: Int[Array, "*B 1"]) -> Text:
        """Encodes tokens; runs on the device."""
        x = self.embed(tokens)
        return Text(x, jnp.ones(tokens.shape, bool), x[..., 0, :])
