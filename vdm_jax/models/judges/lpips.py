"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): how different two images look, by features of AlexNet or VGG-16."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float

# Of ImageNet, in [-1, 1], as the authors' code rounds them.
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Plan(NamedTuple):
    """A network up to the last layer that is compared.

    Args:
        layers: for each that is compared, (channels, kernel, stride) of the convolutions since the one before.
        pooled: for each, the window of the maximum before it; None: there is none.
        smallest: side of an image that is not pooled away.
    """

    layers: tuple[tuple[tuple[int, int, int], ...], ...]
    pooled: tuple[int | None, ...]
    smallest: int


def _vgg(channels: int, count: int) -> tuple[tuple[int, int, int], ...]:
    return ((channels, 3, 1),) * count


PLANS = {
    "alex": Plan(
        (((64, 11, 4),), ((192, 5, 1),), ((384, 3, 1),), ((256, 3, 1),), ((256, 3, 1),)), (None, 3, 3, None, None), 31
    ),
    "vgg": Plan((_vgg(64, 2), _vgg(128, 2), _vgg(256, 3), _vgg(512, 3), _vgg(512, 3)), (None, 2, 2, 2, 2), 16),
}


class LPIPS(nnx.Module):
    """The distance of image pairs, with weights for the channels of five layers.

    Args:
        kind: "alex" or "vgg".
        width: channels of the first convolution, others in proportion; 64 as published.
    """

    def __init__(self, kind: str, *, width: int = 64, rngs):
        self.kind, channels_in, convolutions, linear = kind, 3, [], []
        for layer in PLANS[kind].layers:
            for channels, kernel, stride in layer:
                channels = channels * width // 64
                # Of its first kernel AlexNet pads 2, not the half.
                how = {"strides": stride, "padding": min(kernel // 2, 2)}
                convolutions.append(nnx.Conv(channels_in, channels, (kernel, kernel), **how, rngs=rngs))
                channels_in = channels
            linear.append(nnx.Conv(channels_in, 1, (1, 1), use_bias=False, rngs=rngs))
        self.convolutions, self.linear = nnx.List(convolutions), nnx.List(linear)

    def __call__(self, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
        """Returns the distance of images in [-1, 1] (equation 1). Raises InputError for images that are too small."""
        smallest = PLANS[self.kind].smallest
        if min(a.shape[1:3]) < smallest:
            raise InputError(
                f"frames of {a.shape[1]}×{a.shape[2]} must be at least {smallest}×{smallest} for LPIPS of {self.kind}"
            )
        pairs = zip(self._features(a), self._features(b), self.linear, strict=True)
        return sum(linear(jnp.square(x - y)).mean((1, 2, 3)) for x, y, linear in pairs)

    def _features(self, x):
        """Returns the features of each compared layer, of length 1 at every position."""
        x, convolutions, found = (x - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION), iter(self.convolutions), []
        for layer, window in zip(*PLANS[self.kind][:2], strict=True):
            if window:
                x = nnx.max_pool(x, (window, window), (2, 2))
            for _ in layer:
                x = nnx.relu(next(convolutions)(x))
            # The root of 0 has no gradient, but none is taken.
            found.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return found
