"""Text encoder and trunk as one module: what is trained, and what a sampler calls."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.models.text import ByteEncoder, Encoded
from vdm_jax.models.unet import UNet
from vdm_jax.typing import Array, Float, Int


class Denoiser(nnx.Module):
    """A U-Net conditioned on text; `text=None` makes it unconditional.

    Args:
        channels: of a pixel.
        unet: keyword arguments of `UNet`.
        text: keyword arguments of `ByteEncoder`, or None.
        told: also sees what is known of the video, in `channels` + 1 more channels (`diffusion.conditioning`).
    """

    window = None  # sees all frames at once

    def __init__(
        self,
        *,
        channels: int,
        unet: dict,
        text: dict | None,
        told: bool = False,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.text = ByteEncoder(**text, dtype=dtype, rngs=rngs) if text else None
        width = self.text.width if self.text else 0
        self.told = told
        self.unet = UNet(
            channels_in=2 * channels + 1 if told else channels,
            channels_out=channels,
            context_width=width,
            pooled_width=width,
            dtype=dtype,
            rngs=rngs,
            **unet,
        )

    def tokenize(self, text: str) -> np.ndarray:
        """Host side: a prompt's tokens, int32 [L]; nothing (L = 0) for an unconditional model."""
        return np.zeros(0, np.int32) if self.text is None else self.text.tokenize(text)

    def encode(self, tokens: Int[Array, "B L"], image_tokens: Int[Array, "B K L"] | None = None) -> Encoded:
        """Encodes one text for each video, and one for each appended still: arrays `B G …`, G = 1 + K."""
        texts = tokens[:, None]
        if image_tokens is not None:
            texts = jnp.concatenate([texts, image_tokens], axis=1)
        return self.text(texts)

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B"],
        text: Encoded | None,
        *,
        known: Float[Array, "B T H W C1"] | None = None,
        **kwargs,
    ) -> Float[Array, "B T H W C"]:
        """Predicts from the noisy video; `text` comes from `encode`, other arguments are `UNet.__call__`'s.

        A network that is `told` takes in `known` what is known, zeros for nothing.
        """
        if self.told:
            z = jnp.concatenate([z, known], axis=-1)
        if text is None:
            return self.unet(z, time, **kwargs)
        groups = text.mask.shape[1]
        if groups > 1:  # the clip's text for each of its frames, then each still's own
            repeats = jnp.array([z.shape[1] - groups + 1] + [1] * (groups - 1))
            text = Encoded(*(jnp.repeat(a, repeats, axis=1, total_repeat_length=z.shape[1]) for a in text))
        return self.unet(z, time, context=text.tokens, context_mask=text.mask, pooled=text.pooled, **kwargs)
