"""I3D (Carreira & Zisserman 2017, arXiv 1705.07750): Inception-v1 in space and time, the network of FVD.

Convolutions are TensorFlow's: "SAME" padding depends on the size of the input, and an odd row is at the end. Batch norm
has the moments of training: it is one scale and one shift for each channel.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

SIZE, FRAMES = 224, 9  # rows and columns; the fewest frames, which leave two for the last pooling

# The channels of each mixed block (figure 3, right): the pointwise branch; reduction and 3×3×3 convolution of the
# second and of the third branch; the convolution after pooling.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
# Before these blocks a maximum is taken: (window, strides) over frames, rows and columns.
POOLED = {"3b": ((1, 3, 3), (1, 2, 2)), "4b": ((3, 3, 3), (2, 2, 2)), "5b": ((2, 2, 2), (2, 2, 2))}


class Seen(NamedTuple):
    """The output of I3D for each clip."""

    logits: Float[Array, "B K"]  # one for each class; the features of Fréchet video distances
    pooled: Float[Array, "B D"]  # the layer before


class I3D(nnx.Module):
    """Maps clips to the logits of 400 actions; `width` is the channels of the first convolution and scales the rest."""

    def __init__(self, *, classes: int = 400, width: int = 64, epsilon: float = 1e-3, rngs):
        if width < 8 or width % 8:
            raise InputError(f"width={width} must be a multiple of 8")
        common = dict(epsilon=epsilon, rngs=rngs)
        self.conv1a = _Unit(3, width, 7, 2, **common)
        self.conv2b = _Unit(width, width, 1, **common)
        self.conv2c = _Unit(width, 3 * width, 3, **common)
        channels, mixed = 3 * width, []
        for plan in MIXED.values():
            mixed.append(_Mixed(channels, [count * width // 64 for count in plan], common))
            channels = mixed[-1].channels
        self.mixed = nnx.List(mixed)
        self.logits = nnx.Conv(channels, classes, (1, 1, 1), rngs=rngs)

    def __call__(self, videos: Float[Array, "B T H W C"]) -> Seen:
        """Encodes clips in [-1, 1]. Raises InputError for too few frames or another size."""
        _, frames, *image = videos.shape
        if image != [SIZE, SIZE, 3] or frames < FRAMES:
            shape = "×".join(map(str, videos.shape[1:]))
            raise InputError(f"clips of {shape} must be {SIZE}×{SIZE}×3, and have at least {FRAMES} frames")
        x = self.conv1a(videos)
        x = nnx.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = self.conv2c(self.conv2b(x))
        for name, block in zip(MIXED, self.mixed, strict=True):
            if name in POOLED:
                x = nnx.max_pool(x, *POOLED[name], "SAME")
            x = block(x)
        # One position is left in space; over time the linear map and the mean commute.
        pooled = nnx.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID").mean(1, keepdims=True)
        return Seen(self.logits(pooled)[:, 0, 0, 0], pooled[:, 0, 0, 0])


class _Unit(nnx.Module):
    def __init__(self, channels_in, channels, kernel, stride=1, *, epsilon, rngs):
        size, strides = (kernel,) * 3, (stride,) * 3
        self.conv = nnx.Conv(channels_in, channels, size, strides, padding="SAME", use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, use_running_average=True, epsilon=epsilon, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class _Mixed(nnx.Module):
    def __init__(self, channels_in, plan, common):
        one, reduce1, three1, reduce2, three2, last = plan
        self.channels = one + three1 + three2 + last
        self.b0 = _Unit(channels_in, one, 1, **common)
        self.b1a, self.b1b = _Unit(channels_in, reduce1, 1, **common), _Unit(reduce1, three1, 3, **common)
        self.b2a, self.b2b = _Unit(channels_in, reduce2, 1, **common), _Unit(reduce2, three2, 3, **common)
        self.b3b = _Unit(channels_in, last, 1, **common)

    def __call__(self, x):
        pooled = nnx.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)
        return jnp.concatenate(branches, axis=-1)
