"""The U-Net of the published latent video models, one for all: Stable Diffusion's network with its time slots filled.

| slot            | Stable Diffusion | ModelScope           | AnimateDiff        | Stable Video Diffusion       |
|-----------------|------------------|----------------------|--------------------|------------------------------|
| space conv      | residual block   | residual block       | residual block     | residual block               |
| time conv       |                  | stack of four        |                    | residual block, blended      |
| space attention | transformer      | transformer          | transformer        | space-time transformer       |
| time attention  |                  | transformer          | motion module      | (inside the one before)      |
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import choose_implementation, sinusoid
from vdm_jax.models.residual import BlendedTimeBlock, ResidualBlock, StridedConv, TimeConvStack, UpsampleConv
from vdm_jax.models.space import ONE_DEVICE, GroupNorm, Layout
from vdm_jax.models.transformer import EmbeddingMLP, SpaceTimeTransformer, Transformer
from vdm_jax.models.trunk import REMAT, Trunk
from vdm_jax.typing import Array, Bool, Float

MIDDLE = -1  # its place among the levels
TIME_SLOTS = ("none", "stack", "motion", "blended")


class LatentLayer(nnx.Module):
    """One layer: the four slots in order, each filled or None."""

    def __init__(self, space_conv, time_conv, space_attention, time_attention):
        self.space_conv: ResidualBlock = space_conv
        self.time_conv: TimeConvStack | BlendedTimeBlock | None = time_conv
        self.space_attention: Transformer | SpaceTimeTransformer | None = space_attention
        self.time_attention: Transformer | None = time_attention

    def __call__(self, x, embedding, context, stills, layout: Layout):
        x = layout(self.space_conv(layout(x, "space"), embedding, layout), "space")
        if isinstance(self.time_conv, BlendedTimeBlock):
            x = layout(self.time_conv(layout(x, "time"), embedding, stills, layout), "time")
        elif self.time_conv is not None:
            x = layout(self.time_conv(layout(x, "time")), "time")
        if isinstance(self.space_attention, SpaceTimeTransformer):
            x = self.space_attention(layout(x, "space"), context, stills, layout)
        elif self.space_attention is not None:
            x = self.space_attention(layout(x, "space"), context)
        if self.time_attention is not None:
            x = layout(self.time_attention(layout(x, "time")), "time")
        return layout(x, "space")


class LatentUNet(Trunk):
    """Space-time U-Net of latents, as published.

    Args:
        channels_in, channels_out: of a latent (in: and of what is concatenated to it).
        widths: channels of each level.
        blocks: layers per level on the way down (one more on the way up).
        heads: of the space attention at each level; 0 for a level without. `middle_heads`: of the middle, which always
            attends. `head_size`: None divides the channels.
        context_width: of the tokens that the space transformers attend to.
        layers: blocks of a transformer.
        time: how the time slots are filled: "none", "stack" (ModelScope), "motion" (AnimateDiff), "blended" (Stable
            Video Diffusion).
        time_heads: of the motion modules, at each level; "stack" has the heads of the space attention.
        time_layers: blocks of a motion module.
        stem_heads: of ModelScope's transformer over time right after the first convolution.
        middle_motion: a motion module in the middle.
        max_frames: so many frames at most (motion modules), None for any number.
        groups: of every group norm.
        epsilon_down, epsilon_middle, epsilon_up: of the norms of residual blocks at each level on the way down, in the
            middle (and of the last norm), and on the way up.
        added: width of the sinusoid of each further number that the network is told, and how many there are.
        per_frame_norm: motion modules normalise each frame apart, as the original AnimateDiff code does; diffusers
            takes all frames together.
        window: (length, stride) of the overlapping windows that motion modules see of a video of any number of frames
            (FreeNoise, Qiu et al. 2023, arXiv 2310.15169); None: all frames at once.
        dtype: of the computation; parameters are float32. attention, remat: as of `UNet`.
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int,
        widths: Sequence[int],
        blocks: int,
        heads: Sequence[int],
        middle_heads: int,
        head_size: int | None = None,
        context_width: int,
        layers: int = 1,
        time: str = "none",
        time_heads: Sequence[int] = (),
        time_layers: int = 1,
        stem_heads: int = 0,
        middle_motion: bool = True,
        max_frames: int | None = None,
        groups: int = 32,
        epsilon_down: Sequence[float],
        epsilon_middle: float = 1e-5,
        epsilon_up: float = 1e-5,
        added: tuple[int, int] | None = None,
        per_frame_norm: bool = False,
        window: tuple[int, int] | None = None,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if time not in TIME_SLOTS:
            raise InputError(f"time={time!r} must be one of {', '.join(TIME_SLOTS)}")
        if remat not in REMAT:
            raise InputError(f"remat={remat!r} must be one of {', '.join(REMAT)}")
        for width in widths:
            if width % groups:
                raise InputError(f"groups={groups} must divide every width, not {width}")
        if window is not None:
            _check_window(window, time, max_frames)
        common = dict(dtype=dtype, rngs=rngs)
        self.width, self.added, self.remat = widths[0], added, remat
        self.max_frames, self.window = max_frames, window
        embedding = 4 * widths[0]
        places = [*zip(widths, heads, strict=True), (widths[-1], middle_heads)]  # the levels, and the middle
        sizes = [head_size or (width // n if n else 0) for width, n in places]
        heads = [n for _, n in places]

        def attending(place, **options):
            kernel = choose_implementation(attention, dtype=dtype, head_size=sizes[place])
            shape = dict(heads=heads[place], head_size=sizes[place], layers=layers, groups=groups)
            return dict(implementation=kernel) | common | shape | options

        def space_attention(width, place):
            options = attending(place, context_width=context_width)
            if time == "blended":
                return SpaceTimeTransformer(width, **options)
            return Transformer(width, along="space", across_frames=False, **options)

        def time_attention(width, place):
            if time == "stack" and heads[place]:
                return Transformer(width, along="time", across_frames=True, **attending(place, layers=1))
            if time == "motion" and (middle_motion or place != MIDDLE):
                n = time_heads[place]
                options = attending(place, heads=n, head_size=width // n, layers=time_layers, position=True)
                options["window"] = window
                return Transformer(width, along="time", across_frames=not per_frame_norm, **options)
            return None

        def time_conv(width, epsilon):
            if time == "stack":
                return TimeConvStack(width, groups=groups, **common)
            if time == "blended":
                return BlendedTimeBlock(width, embedding, groups=groups, epsilon=epsilon, **common)
            return None

        # In the order in which layers are made: down, middle, up.
        epsilons = iter([*(e for e in epsilon_down for _ in range(blocks)), epsilon_middle, epsilon_middle])

        def layer(channels_in, width, where):
            epsilon = next(epsilons, epsilon_up)
            place = {"middle1": MIDDLE, "middle2": None}.get(where, where)
            return LatentLayer(
                ResidualBlock(channels_in, width, embedding, groups=groups, epsilon=epsilon, **common),
                time_conv(width, epsilon),
                space_attention(width, place) if place is not None and heads[place] else None,
                time_attention(width, place) if place is not None else None,
            )

        self.time = EmbeddingMLP(widths[0], embedding, embedding, **common)
        self.added_mlp = EmbeddingMLP(added[0] * added[1], embedding, embedding, **common) if added else None
        self.conv_in = nnx.Conv(channels_in, widths[0], (3, 3), **common)
        stem = attending(0, layers=1, heads=stem_heads, head_size=head_size)
        self.stem_time = Transformer(widths[0], along="time", across_frames=True, **stem) if stem_heads else None
        self.build(
            widths,
            blocks,
            layer=layer,
            downsample=lambda width, boundary: StridedConv(width, **common),
            upsample=lambda width, boundary: UpsampleConv(width, **common),
        )
        self.norm = GroupNorm(widths[0], dtype, rngs, groups=groups, epsilon=epsilon_middle)
        self.conv_out = nnx.Conv(widths[0], channels_out, (3, 3), **common)

    def check_frames(self, frames: int) -> None:
        """Raises InputError for fewer frames than a window has, or more than the motion modules have positions for."""
        least, most = (self.window[0], None) if self.window else (1, self.max_frames)
        if frames < least:
            raise InputError(f"frames={frames} must be at least {least}" + " (window of free_noise)" * (least > 1))
        if most is not None and frames > most:
            raise InputError(f"frames={frames} must be at most {most} (positions of the motion modules)")

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B"],
        *,
        context: Float[Array, "B G L E"],
        added: Float[Array, "B K"] | None = None,
        stills: Bool[Array, "B T"] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C2"]:
        """Predicts from the noisy latents.

        Args:
            z: the noisy latents, with what is concatenated to them.
            time: what the network is told of t, in the family's own units.
            context: tokens of text or image, for the video (G = 1) or for each frame (G = T).
            added: further numbers that the network is told (Stable Video Diffusion: fps − 1, motion, noise).
            stills: frames that blended time slots leave alone.
            layout: told where an activation is about to be mixed in space or in time, to shard it.

        Raises:
            InputError: too many frames, or a condition that is missing.
        """
        self.check_frames(z.shape[1])
        embedding = self.time(sinusoid(time, self.width))[:, None]
        if self.added is not None:
            if added is None:
                raise InputError(f"added=None, but the network is told {self.added[1]} more numbers")
            codes = sinusoid(added, self.added[0]).reshape(len(added), -1)
            embedding = embedding + self.added_mlp(codes)[:, None]

        def run(layer, x):
            def apply(layer, x, embedding, context):
                return layer(x, embedding, context, stills, layout)

            if self.remat != "none":
                apply = nnx.remat(apply, policy=REMAT[self.remat])
            return apply(layer, x, embedding, context)

        x = layout.per_frame(self.conv_in, layout(z, "space"))
        if self.stem_time is not None:
            x = layout(self.stem_time(layout(x, "time")), "time")
        x = self.walk(
            layout(x, "space"), run, lambda down, x: down(x, layout), lambda up, x, skip: up(x, skip.shape[2:4], layout)
        )
        return layout.per_frame(self.conv_out, jax.nn.silu(self.norm(x))).astype(jnp.float32)


def _check_window(window: tuple[int, int], time: str, max_frames: int | None) -> None:
    length, stride = window
    if time != "motion":
        raise InputError(f"free_noise={length},{stride} needs a network with motion modules (AnimateDiff)")
    longest = length if max_frames is None else max_frames
    if not 1 <= stride <= length <= longest:
        raise InputError(
            f"free_noise={length},{stride} must be a context length of at most {longest} frames (positions of the "
            "motion modules), and a stride from 1 to that length"
        )
