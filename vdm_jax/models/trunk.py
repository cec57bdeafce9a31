"""The skeleton of every U-Net here: levels of layers on the way down, a middle, and the way up with skips.

What a layer is made of, and what separates two levels, is given by the networks that build on it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.typing import Array, Float

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Trunk(nnx.Module):
    """`blocks` layers at each level on the way down, two in the middle, `blocks` + 1 at each on the way up."""

    def build(
        self,
        widths: Sequence[int],
        blocks: int,
        *,
        layer: Callable[[int, int, int | str], nnx.Module],
        downsample: Callable[[int, int], nnx.Module],
        upsample: Callable[[int, int], nnx.Module],
    ) -> None:
        """Fills the skeleton.

        Args:
            widths: channels of each level; the first level's are those of what comes in.
            blocks: layers of a level.
            layer: makes one from (channels in, channels out, where): a level's number, or "middle1", "middle2".
            downsample, upsample: makes one from (channels, the number of the level above).
        """
        skips, width = [widths[0]], widths[0]
        self.down, self.downsample = nnx.List(), nnx.List()
        for level, wide in enumerate(widths):
            layers = nnx.List()
            for _ in range(blocks):
                layers.append(layer(width, wide, level))
                width = wide
                skips.append(width)
            self.down.append(layers)
            if level < len(widths) - 1:
                self.downsample.append(downsample(width, level))
                skips.append(width)

        self.middle1, self.middle2 = layer(width, width, "middle1"), layer(width, width, "middle2")

        self.up, self.upsample = nnx.List(), nnx.List()
        for level in reversed(range(len(widths))):
            layers = nnx.List()
            for _ in range(blocks + 1):
                layers.append(layer(width + skips.pop(), widths[level], level))
                width = widths[level]
            self.up.append(layers)
            if level:
                self.upsample.append(upsample(width, level - 1))

    def walk(
        self,
        x: Float[Array, "B T H W C"],
        run: Callable[[nnx.Module, Array], Array],
        downsample: Callable[[nnx.Module, Array], Array],
        upsample: Callable[[nnx.Module, Array, Array], Array],
    ) -> Float[Array, "B T H W C2"]:
        """Down, through the middle and up: `run` calls a layer; `upsample` is also given the skip that it is to fit."""
        skips = [x]
        for level, layers in enumerate(self.down):
            for layer in layers:
                x = run(layer, x)
                skips.append(x)
            if level < len(self.downsample):
                x = downsample(self.downsample[level], x)
                skips.append(x)
        x = run(self.middle2, run(self.middle1, x))
        for level, layers in enumerate(self.up):
            for layer in layers:
                x = run(layer, jnp.concatenate([x, skips.pop()], axis=-1))
            if level < len(self.upsample):
                x = upsample(self.upsample[level], x, skips[-1])
        return x
