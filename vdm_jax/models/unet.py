"""The space-time U-Net, the only one: levels of layers, and every layer four slots (`models.slots`).

A layer is space conv → time conv → space attention → time attention, each slot filled or empty. With the time slots
empty it is an image network; with all four filled it is a video network. Video Diffusion Models (Ho et al. 2022, arXiv
2204.03458) fills space conv, space attention and time attention: the default here. Published networks are arguments:

| slot            | Stable Diffusion | ModelScope     | AnimateDiff   | Stable Video Diffusion   |
|-----------------|------------------|----------------|---------------|--------------------------|
| space conv      | residual         | residual       | residual      | residual                 |
| time conv       |                  | stack          |               | blended                  |
| space attention | transformer      | transformer    | transformer   | space_time               |
| time attention  |                  | transformer    | transformer   | (inside space attention) |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import IMPLEMENTATIONS
from vdm_jax.models.conditions import Conditions, check_divides, embed, with_known
from vdm_jax.models.convolution import Inputs
from vdm_jax.models.layers import Conv, EmbeddingMLP, Fold, GroupNorm, Repeat, StridedConv, Unfold, UpsampleConv
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.models.positions import grid_code
from vdm_jax.models.slots import SHOWS_STILLS, SLOTS, make_layer, one_of, per_level, place_fillings
from vdm_jax.models.stack import REMAT
from vdm_jax.models.transformer import POSITIONS, Transformer
from vdm_jax.typing import Array, Float, Key

CHOICES = {
    "stem": ("patch", "conv"),
    "resample": ("space", "space_time", "conv"),
    "context": ("joint", "cross", "none"),
    "time_position": POSITIONS,
    "attention": IMPLEMENTATIONS,
    "remat": REMAT,
}


class UNet(nnx.Module):
    """Space-time U-Net: from z_t, time and conditions to the prediction, which is shaped like z_t.

    A slot is filled at every level (True), at some (one value a level), or at none (False). True stands for our own
    blocks, whose arguments are marked * below; `dict(kind=..., arguments)` names one of `SLOTS`. The first middle layer
    has what the last filled level has, the second has convolutions only; `dict(down=..., middle=..., up=...)` says
    each.

    Args:
        channels_in: channels of z and of known channels; `channels_out` of the prediction (default: the same).
        channels, multipliers: level i has `channels * multipliers[i]` channels, unless `widths` gives them.
        blocks: layers per level on the way down (one more on the way up).
        stem: "patch" folds `patch` rows and columns and `patch_time` frames into one position; "conv" is a 3×3
            convolution.
        space_position: add a sinusoidal code of row and column after the stem (Dosovitskiy et al. 2021).
        stem_attention: arguments of a `Transformer` over time right after the stem (ModelScope).
        resample: what separates level i from level i + 1: "space" halves rows and columns, "space_time" also frames,
            "conv" halves rows and columns by a strided convolution. One name for all boundaries, or one for each.
        space_conv, time_conv, space_attention, time_attention: how the slots are filled.
        kernel, dropout: * of space conv. A `kernel` of 1 leaves the mixing of pixels to attention, which then needs
            space_position.
        head_size: * of attention; it divides every attended width.
        context: * how space attention reads the text: "joint" or "cross", or "none" (the pooled vector alone).
        all_frames: * space attention sees the pixels of all frames at once; for networks without stills.
        time_position: * how time attention knows the order of frames: relative, rotary, sinusoidal, none.
        max_distance: * frames further apart share one relative position.
        text_width, pooled_width: widths of the text tokens and of the pooled text vector, 0 for none.
        scalars: (width of the sinusoid of each scalar condition, how many there are), None for none.
        embedding: width of the embedding of time and conditions (default: 4 times the first level's).
        groups, epsilon: of the last norm.
        max_frames: upper bound on the number of frames, None for any.
        window: (length, stride) of the windows of FreeNoise, for `check`; the blocks have their own.
        dtype: of the computation; parameters are float32.
        attention: "auto", "xla" or "cudnn".
        remat: which activations a layer keeps for the backward pass: "none" recomputes nothing, "dots" keeps products
            of weights only, "full" keeps a layer's inputs only.
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int | None = None,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        widths: Sequence[int] | None = None,
        blocks: int = 2,
        stem: str = "patch",
        patch: int = 1,
        patch_time: int = 1,
        space_position: bool = False,
        stem_attention: Mapping[str, Any] | None = None,
        resample: str | Sequence[str] = "space",
        space_conv: Any = True,
        time_conv: Any = False,
        space_attention: Any = True,
        time_attention: Any = True,
        kernel: int = 3,
        dropout: float = 0.0,
        head_size: int = 64,
        context: str = "joint",
        all_frames: bool = False,
        time_position: str = "relative",
        max_distance: int = 32,
        text_width: int = 0,
        pooled_width: int = 0,
        scalars: tuple[int, int] | None = None,
        embedding: int | None = None,
        groups: int | None = None,
        epsilon: float = 1e-5,
        max_frames: int | None = None,
        window: tuple[int, int] | None = None,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        widths = tuple(widths or (channels * m for m in multipliers))
        levels = len(widths)
        self.resample = tuple(per_level("resample", resample, levels - 1))
        for name, value in dict(
            stem=stem, attention=attention, remat=remat, time_position=time_position, context=context
        ).items():
            one_of(name, value, CHOICES[name])
        for kind in self.resample:
            one_of("resample", kind, CHOICES["resample"])
        _check_numbers(widths[0], patch, patch_time, kernel, dropout, space_position)
        own = {
            "space_conv": dict(kind="modulated", kernel=kernel, dropout=dropout),
            "time_conv": dict(kind="three"),
            "space_attention": dict(kind="attention", head_size=head_size, context=context, all_frames=all_frames),
            "time_attention": dict(
                kind="attention", head_size=head_size, position=time_position, max_distance=max_distance
            ),
        }
        slots = (space_conv, time_conv, space_attention, time_attention)
        fillings = place_fillings(dict(zip(SLOTS, slots, strict=True)), own, levels)
        for (place, level), filling in fillings.items():
            _check_fillings(widths[-1 if place == "middle" else level], head_size, time_position, filling)

        self.frequencies, self.patch, self.remat, self.all_frames = widths[0], (patch_time, patch), remat, all_frames
        self.channels_in, self.scalar_width, self.max_frames, self.window = channels_in, scalars, max_frames, window
        attending = [f["space_attention"] for f in fillings.values() if f["space_attention"]]
        pairs = [(name, f["kind"]) for place in fillings.values() for name, f in place.items() if f]
        self.shows_stills = bool(stem_attention) or any(pair in SHOWS_STILLS for pair in pairs)
        self.reads_tokens = bool(text_width) and any(filling.get("context") != "none" for filling in attending)
        embedding, common = embedding or 4 * widths[0], dict(dtype=dtype, rngs=rngs)

        def layer(place, level, channels_in, width):
            options = dict(embedding=embedding, text_width=text_width, attention=attention) | common
            return make_layer(fillings[place, level], channels_in, width, **options)

        # --------------------------------------------------------------------------------- embedding and stem
        self.time = EmbeddingMLP(widths[0], embedding, embedding, **common)
        self.scalars = EmbeddingMLP(scalars[0] * scalars[1], embedding, embedding, **common) if scalars else None
        self.pooled = nnx.Linear(pooled_width, embedding, **common) if pooled_width else None
        self.stem = (Conv if stem == "conv" else Fold)(channels_in, widths[0], self.patch, **common)
        self.space_position = space_position
        stem_attention = Transformer(widths[0], along="time", **stem_attention, **common) if stem_attention else None
        self.stem_attention: Transformer | None = stem_attention

        self._build_levels(widths, blocks, layer, common)
        self.norm = GroupNorm(widths[0], dtype, rngs, groups=groups, epsilon=epsilon)
        self.head = (Conv if stem == "conv" else Unfold)(widths[0], channels_out or channels_in, self.patch, **common)

    def _build_levels(self, widths: Sequence[int], blocks: int, layer: Callable, common: dict[str, Any]) -> None:
        """Makes the way down, the middle and the way up; `layer` takes (place, level, channels in, channels)."""
        levels = len(widths)
        factors = [(1 + (kind == "space_time"), 2) for kind in self.resample]
        skips, width = [widths[0]], widths[0]
        self.down, self.downsample = nnx.List(), nnx.List()
        for level, wide in enumerate(widths):
            layers = nnx.List()
            for _ in range(blocks):
                layers.append(layer("down", level, width, wide))
                width = wide
                skips.append(width)
            self.down.append(layers)
            if level < levels - 1:
                halve = StridedConv if self.resample[level] == "conv" else Fold
                self.downsample.append(halve(width, width, factors[level], **common))
                skips.append(width)

        self.middle1, self.middle2 = (layer("middle", i, width, width) for i in range(2))

        self.up, self.upsample = nnx.List(), nnx.List()
        for level in reversed(range(levels)):
            layers = nnx.List()
            for _ in range(blocks + 1):
                layers.append(layer("up", level, width + skips.pop(), widths[level]))
                width = widths[level]
            self.up.append(layers)
            if level:
                double = UpsampleConv if self.resample[level - 1] == "conv" else Repeat
                self.upsample.append(double(width, width, factors[level - 1], **common))

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
            InputError: sizes that do not divide, or a condition that is missing or does not fit.
        """
        self.check(*z.shape[1:4])
        text, known, _, is_still = conditions
        z = with_known(z, known, self.channels_in)
        unfolded = "patch_time=1 and resample='space'"
        embedding = embed(self, time, conditions, reads_text=self.reads_tokens, unfolded=unfolded)

        count = 0

        def run(layer, x):
            nonlocal count
            inputs = Inputs(embedding, text, is_still, None if key is None else jax.random.fold_in(key, count))
            count += 1

            def apply(layer, x, inputs):
                return layer(x, inputs, layout)

            if self.remat != "none":
                apply = nnx.remat(apply, policy=REMAT[self.remat])
            return apply(layer, x, inputs)

        x = self.stem(layout(z, "space"), layout)
        if self.space_position:
            x = x + grid_code(*x.shape[2:]).astype(x.dtype)
        if self.stem_attention is not None:
            x = layout(self.stem_attention(layout(x, "time"), Inputs(), layout), "time")
        x = layout(x, "space")
        skips = [x]
        for level, layers in enumerate(self.down):
            for layer in layers:
                x = run(layer, x)
                skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x, layout)
                skips.append(x)
        x = run(self.middle2, run(self.middle1, x))
        for level, layers in enumerate(self.up):
            for layer in layers:
                x = run(layer, jnp.concatenate([x, skips.pop()], axis=-1))
            if level < len(self.upsample):
                x = self.upsample[level](x, skips[-1].shape[2:4], layout)
        return self.head(jax.nn.silu(self.norm(x)), layout).astype(jnp.float32)

    @property
    def folds_frames(self) -> bool:
        """Whether several frames share a position at some level."""
        return self._time_factor > 1

    @property
    def _time_factor(self) -> int:
        return self.patch[0] * 2 ** self.resample.count("space_time")

    def check(self, frames: int, height: int, width: int, stills: int = 0) -> None:
        """Raises InputError for sizes that the patches and levels do not divide, or too many or too few frames."""
        space = self.patch[1] * 2 ** len([kind for kind in self.resample if kind != "conv"])
        check_divides("patch and levels of the U-Net", (self._time_factor, space), frames, height, width)
        if stills and self.all_frames:
            raise InputError(f"joint_images={stills} needs all_frames=False: stills must not see other frames")
        if stills and self.shows_stills:
            raise InputError(
                f"joint_images={stills} needs our own blocks in the time slots: others show stills to frames"
            )
        if stills and self._time_factor > 1:
            raise InputError(f"joint_images={stills} needs patch_time=1 and resample='space': a still has one frame")
        if self.window and frames < self.window[0]:
            raise InputError(f"frames={frames} must be at least {self.window[0]} (window of free_noise)")
        if self.max_frames is not None and not self.window and frames > self.max_frames:
            raise InputError(f"frames={frames} must be at most {self.max_frames} (positions of the motion modules)")


def _check_numbers(width, patch, patch_time, kernel, dropout, space_position) -> None:
    """Raises InputError for a number that the network cannot be made with."""
    if min(patch, patch_time) < 1:
        raise InputError(f"patch={patch} and patch_time={patch_time} must be at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout} must be at least 0 and below 1")
    if width % 2:
        raise InputError(f"channels={width} must be even: half of the code of time are sines")
    if space_position and width % 4:
        raise InputError(f"channels={width} must be a multiple of 4 for space_position")
    if kernel == 1 and not space_position:
        raise InputError("kernel=1 needs space_position=True: nothing else tells where a pixel is")


def _check_fillings(width: int, head_size: int, time_position: str, fillings: Mapping[str, Any]) -> None:
    """Raises InputError for an empty space conv, or heads that do not fit a width or rotary positions."""
    if not fillings["space_conv"]:
        raise InputError("space_conv must be filled at every level: it changes the channels")
    space, time = (
        bool(fillings[name]) and fillings[name]["kind"] == "attention" for name in ("space_attention", "time_attention")
    )
    if (space or time) and width % head_size:
        raise InputError(f"head_size={head_size} must divide every attended width, not {width}")
    if time and time_position == "rotary" and head_size % 2:
        raise InputError(f"head_size={head_size} must be even for rotary positions")
