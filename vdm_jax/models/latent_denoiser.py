"""A published U-Net and its text encoder as one module, with the face of `Denoiser`."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx

from vdm_jax.models.clip import ClipText
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.space import ONE_DEVICE, Layout
from vdm_jax.models.text import Encoded
from vdm_jax.typing import Array, Float, Int, Key


class LatentDenoiser(nnx.Module):
    """Predicts latents from noisy latents and a text; it is told nothing of the video in channels of their own."""

    told = False

    def __init__(self, text: ClipText, unet: LatentUNet):
        self.text, self.unet = text, unet

    @property
    def window(self) -> tuple[int, int] | None:
        """(length, stride) of FreeNoise's windows, None where the network sees all frames at once."""
        return self.unet.window

    def encode(self, tokens: Int[Array, "B *K L"], shares: Float[Array, "B T K"] | None = None) -> Encoded:
        """Encodes the texts, one for all frames; or K, of which each frame's is a mixture in the given shares."""
        if shares is None:
            return self.text(tokens[:, None])
        texts, mask, pooled = self.text(tokens)
        texts = jnp.einsum("btk,bkle->btle", shares, texts, precision="highest").astype(texts.dtype)
        pooled = jnp.einsum("btk,bke->bte", shares, pooled, precision="highest").astype(pooled.dtype)
        return Encoded(texts, jnp.broadcast_to(mask[:, :1], texts.shape[:3]), pooled)

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B"],
        text: Encoded,
        *,
        known: None = None,
        images: Literal[0] = 0,
        key: Key[Array, ""] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C"]:
        """`text` comes from `encode`. There are no appended stills, and no dropout that a key would be for."""
        return self.unet(z, time, context=text.tokens, layout=layout)
