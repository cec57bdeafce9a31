"""VideoMAE's encoder (Tong et al. 2022, arXiv 2203.12602; v2: Wang et al. 2023, arXiv 2303.16727).

A plain transformer over tubelets: all space-time patches of a clip see each other. Content-debiased Fréchet video
distances (Ge et al. 2024, arXiv 2404.12391) are of its features.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.layers import layer_norm
from vdm_jax.models.stack import Stack
from vdm_jax.models.transformer import EncoderBlock
from vdm_jax.typing import Array, Float


class VideoMAE(nnx.Module):
    """Clips of one length and size to one vector each.

    `mean` averages all tokens, else the first one speaks for all; `final` is the epsilon of the norm that follows,
    None for no norm. `biased`: queries and values have a bias (keys never have).
    """

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        channels: int,
        tubelet: int,
        patch: int,
        width: int,
        middle: int,
        depth: int,
        heads: int,
        activation: str,
        epsilon: float,
        biased: bool,
        mean: bool,
        final: float | None,
        rngs,
    ):
        if not (0 < tubelet <= frames and 0 < patch <= size):
            raise InputError(f"tubelet={tubelet} must be at most frames={frames}, patch={patch} at most size={size}")
        common = dict(rngs=rngs)
        self.shape, self.mean = (frames, size, size, channels), mean
        block = (tubelet, patch, patch)
        self.patches = nnx.Conv(channels, width, block, strides=block, padding="VALID", **common)
        options = dict(heads=heads, activation=activation, epsilon=epsilon, biased="qv" if biased else "")
        self.blocks = Stack(lambda rngs: EncoderBlock(width, middle, **options, rngs=rngs), depth, rngs=rngs)
        self.norm = None if final is None else layer_norm(width, final, **common)

    def __call__(self, videos: Float[Array, "B T H W C"]) -> Float[Array, "B D"]:
        """Returns the features of clips that have the model's shape."""
        if videos.shape[1:] != self.shape:
            found, expected = ("×".join(map(str, shape)) for shape in (videos.shape[1:], self.shape))
            raise InputError(f"clips of {found} must be {expected}")
        x = rearrange(self.patches(videos), "b t h w c -> b (t h w) c")
        x = x + jnp.asarray(_sinusoid(*x.shape[1:]))
        x = self.blocks(x)
        x = x.mean(1) if self.mean else x[:, 0]
        return x if self.norm is None else self.norm(x)


def _sinusoid(count: int, width: int) -> np.ndarray:
    """Fixed positions (Vaswani et al. 2017, section 3.5): sine and cosine of a frequency lie side by side."""
    angles = np.arange(count)[:, None] / 10000 ** (np.arange(width) // 2 * 2 / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
