"""CLIP's two encoders (Radford et al. 2021, arXiv 2103.00020), which condition the published latent video models.

Both are pre-norm transformers. The text's looks back only; the image's reads patches behind a class token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Text
from vdm_jax.models.layers import layer_norm
from vdm_jax.models.stack import Stack
from vdm_jax.models.transformer import EncoderBlock
from vdm_jax.typing import Array, Float, Int

# Of the red, green and blue of the images that the models were trained on, in [0, 1].
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.float32([0.26862954, 0.26130258, 0.27577711])


class ClipText(nnx.Module):
    """Tokens to one embedding each, after the last norm, and that of the end token for the whole.

    `end` is the end token, the first of which gives the pooled vector; None means the token of the highest number.
    With a `projection` the pooled vector is brought into the space of that size which text and image share.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        middle: int,
        depth: int,
        heads: int,
        activation: str,
        epsilon: float,
        end: int | None,
        projection: int | None = None,
        dtype="float32",
        rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.length, self.width, self.end = length, width, end
        self.embed = nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(0.02), **common)
        self.positions = nnx.Param(0.01 * jax.random.normal(rngs.params(), (length, width)))
        block = dict(heads=heads, activation=activation, epsilon=epsilon, biased="qkv", causal=True, dtype=dtype)
        self.blocks = Stack(lambda rngs: EncoderBlock(width, middle, **block, rngs=rngs), depth, rngs=rngs)
        self.norm = layer_norm(width, epsilon, **common)
        self.projection = nnx.Linear(width, projection, use_bias=False, **common) if projection else None

    def __call__(self, tokens: Int[Array, "*B L"]) -> Text:
        """Every token counts, padding too: the published U-Nets were trained to see all of them."""
        *lead, length = tokens.shape
        if length > self.length:
            raise InputError(f"text of {length} tokens must have at most {self.length}")
        tokens = tokens.reshape(-1, length)
        x = self.embed(tokens)
        x = x + self.positions[:length].astype(x.dtype)
        x = self.norm(self.blocks(x))
        at = jnp.argmax(tokens if self.end is None else tokens == self.end, axis=-1)
        pooled = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        pooled = pooled if self.projection is None else self.projection(pooled)
        mask = jnp.ones((*lead, length), bool)
        return Text(x.reshape(*lead, length, self.width), mask, pooled.reshape(*lead, -1))


class ClipVision(nnx.Module):
    """Images that were normalised for it to one embedding each, in the space that text and image share."""

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        channels: int,
        width: int,
        middle: int,
        depth: int,
        heads: int,
        activation: str,
        epsilon: float,
        projection: int,
        dtype="float32",
        rngs,
    ):
        if not 0 < patch <= size:
            raise InputError(f"patch={patch} must be at least 1 and at most the image's size={size}")
        common = dict(dtype=dtype, rngs=rngs)
        self.size, self.channels = size, channels
        self.patches = nnx.Conv(
            channels, width, (patch, patch), strides=(patch, patch), padding="VALID", use_bias=False, **common
        )
        self.class_token = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,)))
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), ((size // patch) ** 2 + 1, width)))
        self.norm_in = layer_norm(width, epsilon, **common)
        block = dict(heads=heads, activation=activation, epsilon=epsilon, biased="qkv", dtype=dtype)
        self.blocks = Stack(lambda rngs: EncoderBlock(width, middle, **block, rngs=rngs), depth, rngs=rngs)
        self.norm = layer_norm(width, epsilon, **common)
        self.projection = nnx.Linear(width, projection, use_bias=False, **common)

    def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B P"]:
        """Encodes images that have the model's size."""
        if image.shape[1:] != (self.size, self.size, self.channels):
            expected = f"{self.size}×{self.size}×{self.channels}"
            raise InputError(f"image of {'×'.join(map(str, image.shape[1:]))} must be {expected}")
        x = rearrange(self.patches(image), "b h w c -> b (h w) c")
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...].astype(x.dtype)
        x = self.blocks(self.norm_in(x))
        return self.projection(self.norm(x[:, 0]))


def clip_image_input(image: Float[Array, "B H W 3"], size: int = 224) -> Float[Array, "B {size} {size} 3"]:
    """Images in [-1, 1] of any size as `ClipVision` wants them: resized without aliasing, then normalised.

    So Stable Video Diffusion does it: the whole image is squeezed into the square, and what is bicubic's overshoot
    is not clipped.
    """
    rows, columns = (jnp.asarray(_resize_matrix(n, size)) for n in image.shape[1:3])
    image = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, image, precision="highest")
    return ((image + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)


def _resize_matrix(n: int, size: int) -> np.ndarray:
    """One axis of n pixels to `size`: a Gaussian blur, then cubic interpolation with the corners aligned."""
    if n < 2:
        raise InputError(f"image of {n} pixels along an axis must have at least 2")
    sigma = max((n / size - 1) / 2, 0.001)
    reach = int(max(4 * sigma, 3)) // 2
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-np.square(offsets / sigma) / 2)
    period = 2 * n - 2  # at the borders the image is reflected
    seen = (np.arange(n)[:, None] + offsets) % period
    blur = np.zeros((n, n))
    np.add.at(blur, (np.arange(n)[:, None], np.minimum(seen, period - seen)), kernel / kernel.sum())
    at = np.arange(size, dtype=np.float32) * np.float32((n - 1) / (size - 1))  # rounded as PyTorch does
    taps = np.floor(at)[:, None] + np.arange(-1, 3)  # the border's pixels go on beyond it
    weights = _cubic(np.abs(at[:, None] - taps))
    cubic = np.zeros((size, n))
    np.add.at(cubic, (np.arange(size)[:, None], np.clip(taps, 0, n - 1).astype(int)), weights)
    return (cubic @ blur).astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys's (1981) kernel, with PyTorch's a."""
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
