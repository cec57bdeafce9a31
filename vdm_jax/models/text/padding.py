"""What frozen text encoders do with padding: each published family has its own rule."""

import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Text
from vdm_jax.typing import Array, Bool, Float

# What the network sees of padding: nothing; rows of zeros; or the encoder's rows.
PADDING = ("masked", "zeros", "kept")


def check_padding(padding: str) -> None:
    """Raises InputError for an unknown rule."""
    if padding not in PADDING:
        raise InputError(f"text padding={padding!r} must be one of {', '.join(PADDING)}")


def padded_text(x: Float[Array, "*B L E"], real: Bool[Array, "*B L"], padding: str) -> Text:
    """Returns the text of an encoder's rows, of which `real` belong to a text; pooled is the mean of these."""
    weight = real[..., None].astype(x.dtype)
    pooled = (x * weight).sum(-2) / jnp.maximum(weight.sum(-2), 1)
    tokens = x * weight if padding == "zeros" else x
    return Text(tokens, real if padding == "masked" else jnp.ones_like(real), pooled)
