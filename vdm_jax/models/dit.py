"""The diffusion transformer on spacetime patches (Peebles & Xie 2023, arXiv 2212.09748), the only one with one stream.

A block is attention, cross-attention to the text, and a feed-forward, modulated by the time. Published networks are
arguments:

| argument      | Latte      | Open-Sora 1.2                  | Wan                      |
|---------------|------------|--------------------------------|--------------------------|
| attend        | space_time | space_time                     | all                      |
| plane         | 32         | area                           |                          |
| time_position | code       | rotary                         | (rotary on three axes)   |
| qk_norm       |            | head                           | all                      |
| cross         | space      | each                           | each, with cross_norm    |
| other         | variance   | variance, frame rate, pad      |                          |
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import IMPLEMENTATIONS
from vdm_jax.models.conditions import Conditions, check_divides, embed, with_known
from vdm_jax.models.dit_block import EPSILON, PLAIN, Inputs, Layer
from vdm_jax.models.layers import EmbeddingMLP, Fold, Unfold, layer_norm, zeros
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.models.positions import axis_angles, frame_angles, frame_code, plane_code
from vdm_jax.models.slots import one_of
from vdm_jax.models.stack import REMAT, Stack
from vdm_jax.models.transformer import clip_mask
from vdm_jax.typing import Array, Bool, Float, Key

CHOICES = {
    "attend": ("space_time", "all"),
    "time_position": ("rotary", "code", "none"),
    "qk_norm": ("head", "all", None),
    "cross": ("space", "each", "none"),
    "modulation": ("shared", "block"),
    "attention": IMPLEMENTATIONS,
    "remat": REMAT,
}


class DiT(nnx.Module):
    """Diffusion transformer: from z_t, time and conditions to the prediction, which is shaped like z_t.

    Args:
        channels_in: channels of z and of known channels; `channels_out` of the prediction (default: the same).
        width, depth, heads: of the blocks; `depth` counts pairs of blocks for `attend="space_time"`.
        hidden: width inside the feed-forward (default: 4 times the width).
        attend: "space_time" alternates between the pixels of a frame and the frames of a pixel; "all" attends to all
            positions of the video.
        patch, patch_time: rows and columns, and frames, that fold into one position.
        pad: rows and columns that `patch` does not divide are padded with zeros; otherwise they are an error.
        plane: positions of the sinusoidal code of column and row, added after the patches: "count"; a number, onto
            which every size is stretched; "area", Open-Sora 1.2's rule; None for no code.
        time_position: how attention along time knows the order of frames: rotary, a sinusoidal code that is added once,
            or none. Attention over all positions has rotary positions on three axes.
        interleaved: rotary positions turn neighbouring channels (`positions.rotate`).
        qk_norm: as in `Attention`.
        cross: which blocks read the text: "space", the blocks along space, or over all positions; "each"; "none".
        cross_norm: cross-attention has a layer norm before it, and `qk_norm`.
        modulation: "shared" or "block" (`Block`).
        text_width, pooled_width: of text tokens, and of the pooled text vector, 0 for none. `pooled`: the pooled vector
            is added to the embedding of time.
        scalars: (width of the sinusoid of each scalar condition, how many there are), None for none. A new network
            takes one, the frame rate.
        frequencies: width of the sinusoid of time.
        null_text: rows of a learned null text, 0 for none. The network does not read them: `Model.null_text` puts them
            in the place of a prompt's tokens.
        variance: the network also predicts a variance for each channel, which is dropped (Nichol & Dhariwal 2021).
        max_frames: upper bound on the number of frames, None for any.
        dtype: of the computation; parameters are float32.
        attention: "auto", "xla" or "cudnn". remat: what a layer keeps for the backward pass (`stack.REMAT`).
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int | None = None,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        hidden: int | None = None,
        attend: str = "space_time",
        patch: int = 2,
        patch_time: int = 1,
        pad: bool = False,
        plane: float | int | str | None = "count",
        time_position: str = "rotary",
        interleaved: bool = False,
        qk_norm: str | None = "head",
        cross: str = "space",
        cross_norm: bool = False,
        modulation: str = "shared",
        text_width: int = 0,
        pooled_width: int = 0,
        pooled: bool = True,
        scalars: Sequence[int] | None = None,
        frequencies: int = 256,
        null_text: int = 0,
        variance: bool = False,
        max_frames: int | None = None,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        settings = locals()
        for name, valid in CHOICES.items():
            one_of(name, settings[name], valid)
        _check_numbers(width, heads, patch, patch_time, frequencies, plane, time_position, attend)
        self.channels_in, self.channels_out = channels_in, channels_out or channels_in
        self.patch, self.pad, self.plane, self.max_frames = (patch_time, patch), pad, plane, max_frames
        self.attend, self.time_position, self.modulated = attend, time_position, modulation
        self.scalar_width, self.frequencies, self.head_size, self.remat = scalars, frequencies, width // heads, remat
        common = dict(dtype=dtype, rngs=rngs)

        self.stem = Fold(channels_in, width, self.patch, **common)
        self.time = EmbeddingMLP(frequencies, width, width, **common)
        self.scalars = EmbeddingMLP(scalars[0] * scalars[1], width, width, **common) if scalars else None
        self.pooled = nnx.Linear(pooled_width, width, **common) if pooled and pooled_width else None
        reads = bool(text_width) and cross != "none"
        self.text = EmbeddingMLP(text_width, width, width, activation=jax.nn.gelu, **common) if reads else None
        if null_text:
            self.null_text = nnx.Param(0.02 * jax.random.normal(rngs.params(), (null_text, text_width), jnp.float32))
        alongs = {"space_time": ("space", "time"), "all": ("all",)}[attend]
        block = dict(width=width, hidden=hidden or 4 * width, heads=heads, qk_norm=qk_norm, interleaved=interleaved)
        block |= dict(cross_norm=cross_norm, modulation=modulation)
        block |= dict(implementation=attention, text=alongs if reads and cross == "each" else alongs[:reads])

        def layer(rngs):
            return Layer(alongs, dtype=dtype, rngs=rngs, **block)

        if modulation == "shared":
            self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, **common)
            self.table = nnx.Param(jnp.zeros((2, width), jnp.float32))
        else:
            self.last = nnx.Linear(width, 2 * width, kernel_init=zeros, **common)
        self.layers = Stack(layer, depth, remat=remat, rngs=rngs)
        self.norm = layer_norm(width, EPSILON, **PLAIN, **common)
        self.head = Unfold(width, self.channels_out * (1 + variance), self.patch, **common)

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B *T"],
        conditions: Conditions,
        *,
        key: Key[Array, ""] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C2"]:
        """Predicts from the noisy video, as `models.conditions.Network` says.

        Raises:
            InputError: sizes that do not fit, or a condition that is missing or does not fit.
        """
        del key  # no dropout
        frames, height, width = z.shape[1:4]
        self.check(frames, height, width)
        z = with_known(z, conditions.known, self.channels_in)
        if self.pad:
            z = jnp.pad(z, ((0, 0), (0, 0), (0, -height % self.patch[1]), (0, -width % self.patch[1]), (0, 0)))
        x = layout(self.stem(layout(z, "space"), layout), "space")
        embedding = embed(self, time, conditions, reads_text=self.text is not None, unfolded="patch_time=1")
        if self.plane is not None:
            x = x + plane_code(*x.shape[2:], self._span(height, width, *x.shape[2:4])).astype(x.dtype)
        x = self.layers(x, self._inputs(x, embedding, conditions), layout, each={"first": self._is_first()})
        x = layout(x, "space")
        if self.modulated == "shared":
            vectors = self.table[...] + embedding[:, :, None]
        else:
            vectors = rearrange(self.last(jax.nn.silu(embedding)), "b g (two c) -> b g two c", two=2)
        shift, scale = jnp.moveaxis(vectors, 2, 0)[..., None, None, :].astype(x.dtype)
        out = self.head(self.norm(x) * (1 + scale) + shift)
        return out[:, :, :height, :width, : self.channels_out].astype(jnp.float32)

    def _is_first(self) -> Bool[Array, "depth"]:
        depth = jax.tree.leaves(nnx.state(self.layers))[0].shape[0]
        return jnp.arange(depth) == 0

    def _span(self, height: int, width: int, rows: int, columns: int) -> tuple[float, float] | None:
        """Returns onto which positions rows and columns are stretched, None for none."""
        if self.plane == "count":
            return None
        if self.plane == "area":  # latents of 64 × 64, 512 × 512 pixels, count as they are
            return (round((rows * columns) ** 0.5) * 64 / (height * width) ** 0.5,) * 2
        return (float(self.plane), float(self.plane))

    def _inputs(self, x: Float[Array, "B T H W C"], embedding: Float[Array, "B G C"], conditions: Conditions) -> Inputs:
        """Computes what all blocks read."""
        frames, rows, columns, width = x.shape[1:]
        modulation = embedding
        if self.modulated == "shared":
            modulation = self.modulation(jax.nn.silu(embedding))
            modulation = rearrange(modulation, "b g (six c) -> b g six c", six=6)
        tokens, text_mask = (None, None) if self.text is None else conditions.text[:2]
        mask = None if conditions.is_still is None else clip_mask(conditions.is_still)[:, None]
        code, angles, size = None, {}, self.head_size
        if self.attend == "all":
            plane = 2 * (size // 6)
            angles["all"] = axis_angles(frames, rows, columns, (size - 2 * plane, plane, plane))
        elif self.time_position == "rotary":
            angles["time"] = frame_angles(frames, size)
        elif self.time_position == "code" and frames > 1:
            code = jnp.roll(frame_code(frames, width), width // 2, axis=-1)[:, None, None]  # sines first
        return Inputs(modulation, None if tokens is None else self.text(tokens), text_mask, mask, code, angles)

    @property
    def folds_frames(self) -> bool:
        """Whether several frames share a position."""
        return self.patch[0] > 1

    def check(self, frames: int, height: int, width: int, stills: int = 0) -> None:
        """Raises InputError for sizes that the patches do not divide, too many frames, or stills that are seen."""
        factors = (self.patch[0], 1 if self.pad else self.patch[1])
        check_divides("patch of the transformer", factors, frames, height, width)
        if stills and (self.attend == "all" or self.folds_frames or self.time_position == "code"):
            raise InputError(
                f"joint_images={stills} needs attend='space_time', patch_time=1 and time_position='rotary' or 'none'"
            )
        if self.max_frames is not None and frames > self.max_frames:
            raise InputError(f"frames={frames} must be at most {self.max_frames} (positions of the transformer)")


def _check_numbers(width, heads, patch, patch_time, frequencies, plane, time_position, attend) -> None:
    """Raises InputError for a number that the network cannot be made with."""
    if min(patch, patch_time) < 1:
        raise InputError(f"patch={patch} and patch_time={patch_time} must be at least 1")
    if width % heads:
        raise InputError(f"width={width} must be a multiple of heads={heads}")
    if frequencies % 2:
        raise InputError(f"frequencies={frequencies} must be even: half of the code of time are sines")
    if plane is not None and width % 4:
        raise InputError(f"width={width} must be a multiple of 4 for a code of row and column")
    if isinstance(plane, str) and plane not in ("count", "area"):
        raise InputError(f"plane={plane!r} must be 'count', 'area', a number or None")
    if (attend == "all" or time_position == "rotary") and (width // heads) % 2:
        raise InputError(f"width / heads = {width // heads} must be even for rotary positions")
