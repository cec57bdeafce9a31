"""The trunk: a U-Net whose layers are four slots, space conv → time conv → space attention → time attention.

With the time slots empty it is an image network; with all four filled it is a video network. Video Diffusion
Models (Ho et al. 2022, arXiv 2204.03458) fills space conv, space attention and time attention: the default here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import choose_implementation, grid_code, sinusoid
from vdm_jax.models.space import (
    ONE_DEVICE,
    Downsample,
    GroupNorm,
    Layout,
    SpaceAttention,
    SpaceConv,
    Unpatch,
    Upsample,
)
from vdm_jax.models.time import POSITIONS, TimeAttention, TimeConv
from vdm_jax.models.trunk import REMAT, Trunk
from vdm_jax.typing import Array, Bool, Float, Key


class Layer(nnx.Module):
    """One layer of the trunk: the four slots in order, each filled or None."""

    def __init__(self, space_conv, time_conv, space_attention, time_attention):
        self.space_conv: SpaceConv | None = space_conv
        self.time_conv: TimeConv | None = time_conv
        self.space_attention: SpaceAttention | None = space_attention
        self.time_attention: TimeAttention | None = time_attention

    def __call__(self, x, embedding, context, context_mask, key, images: int, layout: Layout):
        # Laid out on both sides of a slot: the backward pass comes in at the far side, and would else run a space
        # slot in the time layout of the next one.
        def run(slot, where, x, *args):
            return x if slot is None else layout(slot(layout(x, where), *args), where)

        x = run(self.space_conv, "space", x, embedding, key, layout)
        x = run(self.time_conv, "time", x, images)
        x = run(self.space_attention, "space", x, context, context_mask)
        x = run(self.time_attention, "time", x, images)
        return layout(x, "space")


class UNet(Trunk):
    """Space-time U-Net: `z_t`, what it is told of t, and conditions → the prediction, shaped like `z_t`.

    Args:
        channels_in: channels of a pixel, in; `channels_out` of the prediction (default: the same).
        channels: width of the first level; level i has `channels * multipliers[i]`.
        blocks: layers per level on the way down (one more on the way up).
        patch, patch_time: rows and columns, and frames, that the stem folds into one position (1: none).
        kernel: side of the space convolutions; 1 leaves the mixing of pixels to attention, which then needs to be
            told where they are: space_position.
        space_position: add a sinusoidal code of row and column after the stem (Dosovitskiy et al. 2021).
        resample: what separates level i from level i + 1: "space" halves rows and columns, "space_time" also
            frames. One name for all, or one for each of the len(multipliers) - 1 boundaries.
        time_conv: fill the time conv slot.
        space_attention, time_attention: fill the slot at level i; one bool for all levels, or one for each. The
            middle has every slot that any level has.
        all_frames: space attention sees the pixels of all frames at once; for networks without stills.
        time_position: how time attention knows the order of frames: relative, rotary, sinusoidal, none.
        max_distance: of two frames, beyond which relative positions are one.
        head_size: size of an attention head; divides every attended width.
        context_width: width of the context tokens, 0 for none; `context`: "joint" or "cross" attention to them, or
            "none" (the pooled vector alone tells the condition).
        pooled_width: width of the pooled condition vector, 0 for none.
        embedding: width of the time-and-condition embedding (default: 4 · channels).
        dropout: rate inside the residual blocks.
        dtype: of the computation; parameters are float32.
        attention: "auto", "xla" or "cudnn".
        remat: which activations a layer keeps for the backward pass: "none" recomputes nothing, "dots" keeps
            products of weights only, "full" keeps a layer's inputs only.
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int | None = None,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        blocks: int = 2,
        patch: int = 1,
        patch_time: int = 1,
        kernel: int = 3,
        space_position: bool = False,
        resample: str | Sequence[str] = "space",
        time_conv: bool = False,
        space_attention: bool | Sequence[bool] = True,
        time_attention: bool | Sequence[bool] = True,
        all_frames: bool = False,
        time_position: str = "relative",
        max_distance: int = 32,
        head_size: int = 64,
        context_width: int = 0,
        context: str = "joint",
        pooled_width: int = 0,
        embedding: int | None = None,
        dropout: float = 0.0,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        levels = len(multipliers)
        widths = [channels * m for m in multipliers]
        space_at = _per_level("space_attention", space_attention, levels)
        time_at = _per_level("time_attention", time_attention, levels)
        resample = _per_level("resample", resample, levels - 1)
        _one_of("time_position", time_position, POSITIONS)
        _one_of("context", context, ("joint", "cross", "none"))
        _one_of("remat", remat, REMAT)
        for kind in resample:
            _one_of("resample", kind, ("space", "space_time"))
        attended = [w for w, s, t in zip(widths, space_at, time_at, strict=True) if s or t]
        if attended:  # then the middle is, too
            attended.append(widths[-1])
        for width in attended:
            if width % head_size:
                raise InputError(f"head_size={head_size} must divide every attended width, not {width}")
        if kernel == 1 and not space_position:
            raise InputError("kernel=1 needs space_position=True: nothing else tells where a pixel is")
        if space_position and channels % 4:
            raise InputError(f"channels={channels} must be a multiple of 4 for space_position")
        if channels % 2:
            raise InputError(f"channels={channels} must be even: half of the code of time are sines")
        if time_position == "rotary" and any(time_at) and head_size % 2:
            raise InputError(f"head_size={head_size} must be even for rotary positions")
        if min(patch, patch_time) < 1:
            raise InputError(f"patch={patch} and patch_time={patch_time} must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} must be at least 0 and below 1")
        if any(space_at):
            attention = choose_implementation(attention, dtype=dtype, head_size=head_size)

        self.channels, self.remat, self.resample = channels, remat, tuple(resample)
        self.patch, self.all_frames = (patch_time, patch), all_frames
        self.has_context = bool(context_width) and context != "none" and any(space_at)
        embedding = embedding or 4 * channels
        common = dict(dtype=dtype, rngs=rngs)

        slots = dict(enumerate(zip(space_at, time_at, strict=True)))
        slots |= {"middle1": (any(space_at), any(time_at)), "middle2": (False, False)}

        def layer(channels_in, width, where):
            space, time = slots[where]
            return Layer(
                SpaceConv(channels_in, width, embedding, kernel=kernel, dropout=dropout, **common),
                TimeConv(width, **common) if time_conv else None,
                SpaceAttention(
                    width,
                    head_size=head_size,
                    context_width=context_width,
                    context=context,
                    implementation=attention,
                    all_frames=all_frames,
                    **common,
                )
                if space
                else None,
                TimeAttention(width, head_size=head_size, position=time_position, max_distance=max_distance, **common)
                if time
                else None,
            )

        self.time_in = nnx.Linear(channels, embedding, **common)
        self.time_out = nnx.Linear(embedding, embedding, **common)
        self.pooled = nnx.Linear(pooled_width, embedding, **common) if pooled_width else None
        self.stem = Downsample(channels_in, widths[0], self.patch, **common)
        self.space_position = space_position

        self.build(
            widths,
            blocks,
            layer=layer,
            downsample=lambda width, boundary: Downsample(width, width, self._factors(boundary), **common),
            upsample=lambda width, boundary: Upsample(width, width, self._factors(boundary), **common),
        )
        self.norm = GroupNorm(widths[0], dtype, rngs)
        self.head = Unpatch(widths[0], channels_out or channels_in, self.patch, **common)

    def _factors(self, boundary: int) -> tuple[int, int]:
        return (2 if self.resample[boundary] == "space_time" else 1, 2)

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B"],
        *,
        context: Float[Array, "B G L E"] | None = None,
        context_mask: Bool[Array, "B G L"] | None = None,
        pooled: Float[Array, "B G2 P"] | None = None,
        images: int = 0,
        key: Key[Array, ""] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C2"]:
        """Predicts from the noisy video.

        Args:
            z: the noisy video (float32).
            time: what the network is told of t, in units of about a thousandth (`Process.network_time`).
            context, context_mask: text tokens, for the video (G = 1) or for each frame (G = T).
            pooled: condition vectors, added to the time embedding; likewise.
            images: the last so many frames are independent stills, which time slots keep to themselves.
            key: of dropout; None at evaluation.
            layout: told where an activation is about to be mixed in space or in time, to shard it.

        Raises:
            InputError: sizes that do not divide, or a condition that is missing.
        """
        self.check_size(*z.shape[1:4], images)
        if self.has_context and context is None:
            raise InputError("context=None, but the network was made with context_width > 0")
        if self.pooled is not None and pooled is None:
            raise InputError("pooled=None, but the network was made with pooled_width > 0")
        embedding = self.time_out(jax.nn.silu(self.time_in(sinusoid(time, self.channels))))[:, None]
        if self.pooled is not None:
            embedding = embedding + self.pooled(pooled)

        count = 0

        def run(layer, x):
            nonlocal count
            layer_key = None if key is None else jax.random.fold_in(key, count)
            count += 1

            def apply(layer, x, embedding, context, layer_key):
                return layer(x, embedding, context, context_mask, layer_key, images, layout)

            if self.remat != "none":
                apply = nnx.remat(apply, policy=REMAT[self.remat])
            return apply(layer, x, embedding, context, layer_key)

        x = self.stem(layout(z, "space"))
        if self.space_position:
            x = x + grid_code(*x.shape[2:]).astype(x.dtype)
        x = self.walk(x, run, lambda down, x: down(x), lambda up, x, skip: up(x))
        return self.head(jax.nn.silu(self.norm(x))).astype(jnp.float32)

    def check_size(self, frames: int, height: int, width: int, images: int = 0) -> None:
        """Raises InputError where frames, rows or columns cannot be halved as often as the levels need."""
        space = self.patch[1] * 2 ** len(self.resample)
        time = self.patch[0] * 2 ** self.resample.count("space_time")
        for name, size, factor in (
            ("height", height, space),
            ("width", width, space),
            ("frames", frames, time),
        ):
            if size % factor:
                raise InputError(f"{name}={size} must be a multiple of {factor} (patch and levels of the U-Net)")
        if images and self.all_frames:
            raise InputError(f"joint_images={images} needs all_frames=False: stills must not see other frames")
        if images and time > 1:
            raise InputError(f"joint_images={images} needs patch_time=1 and resample='space': a still has one frame")


def _per_level(name: str, value, levels: int) -> list:
    """Spreads one value over all levels, or checks that there is one for each."""
    if isinstance(value, (bool, str)):
        return [value] * levels
    if len(value) != levels:
        raise InputError(f"{name}={tuple(value)!r} must be one value or {levels} of them (one per level)")
    return list(value)


def _one_of(name: str, value: str, valid) -> None:
    if value not in valid:
        raise InputError(f"{name}={value!r} must be one of {', '.join(valid)}")
