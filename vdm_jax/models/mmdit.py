"""The diffusion transformer with two streams, video and text, under one attention (Esser et al. 2024).

Double blocks have weights for each stream (arXiv 2403.03206), single blocks one set for both (FLUX). Open-Sora 2.0
(Peng et al. 2025, arXiv 2503.09642) is its arguments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.attention import IMPLEMENTATIONS, Source, attend, choose_implementation, split_heads
from vdm_jax.models.conditions import Conditions, check_divides
from vdm_jax.models.dit_block import EPSILON, PLAIN
from vdm_jax.models.layers import EmbeddingMLP, Fold, Unfold, layer_norm, zeros
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.models.positions import axis_angles, rotate, sinusoid
from vdm_jax.models.slots import one_of
from vdm_jax.models.stack import REMAT, Stack
from vdm_jax.typing import Array, Bool, Float, Key

Pair = tuple[Float[Array, "B T H W C"], Float[Array, "B 1 L C"]]  # video and text


class Inputs(NamedTuple):
    """What all blocks read next to the two streams."""

    embedding: Float[Array, "B C"]  # of time and conditions
    mask: Bool[Array, "B 1 L"]  # which text tokens count
    angles: Float[Array, "T P 1 D//2"]  # rotary positions of the video


class Stream(nnx.Module):
    """A modulated norm, and queries, keys and values of one stream. `vectors` counts the vectors of the modulation."""

    def __init__(self, width, heads, vectors, *, dtype, rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.heads, self.vectors = heads, vectors
        self.modulation = nnx.Linear(width, vectors * width, kernel_init=zeros, **common)
        self.norm = layer_norm(width, EPSILON, **PLAIN, **common)
        self.q, self.k, self.v = (nnx.Linear(width, width, **common) for _ in "qkv")
        self.q_norm, self.k_norm = (nnx.RMSNorm(width // heads, epsilon=EPSILON, **common) for _ in "qk")

    def modulate(self, embedding: Float[Array, "B C"]) -> Float[Array, "vectors B 1 1 C"]:
        """Returns shift, scale, gate, and for two sublayers another three."""
        vectors = self.modulation(jax.nn.silu(embedding))
        return rearrange(vectors, "b (six c) -> six b 1 1 c", six=self.vectors)

    def project(self, hidden: Float[Array, "B T P C"]) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values, B T P N D."""
        q, k, v = (split_heads(linear(hidden), 1, self.heads)[0] for linear in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v


def attend_jointly(video, text, inputs: Inputs, layout: Layout, *, interleaved: bool, implementation: str):
    """Returns what video and text attend to in both, B T P C; the arguments are (queries, keys, values), B T P N D."""
    frames, pixels = video[0].shape[1:3]
    q, k = (rotate(x, inputs.angles, interleaved) for x in video[:2])
    q, k, v = (rearrange(layout.heads(x), "b t p n d -> b 1 (t p) n d") for x in (q, k, video[2]))
    sources = Source(k, v), Source(text[1], text[2], inputs.mask)
    out, text_out = (attend(query, *sources, implementation=implementation) for query in (q, text[0]))
    out = layout.heads(rearrange(out, "b 1 (t p) n d -> b t p n d", t=frames, p=pixels), back=True)
    return tuple(rearrange(x, "b t p n d -> b t p (n d)") for x in (out, text_out))


class DoubleBlock(nnx.Module):
    """Both streams: x += g·out(attention); x += g'·MLP(norm(x)(1 + s') + b'); each with its own weights."""

    def __init__(self, width, heads, *, dtype, rngs, **attention):
        common, self.options = dict(dtype=dtype, rngs=rngs), tuple(attention.items())  # hashable
        for name in ("video", "text"):
            setattr(self, name, Stream(width, heads, 6, **common))
            setattr(self, f"{name}_out", nnx.Linear(width, width, **common))
            setattr(self, f"{name}_up", nnx.Linear(width, 4 * width, **common))
            setattr(self, f"{name}_down", nnx.Linear(4 * width, width, **common))

    def __call__(self, pair: Pair, inputs: Inputs, layout: Layout) -> Pair:
        """Transforms both streams."""
        pair = [layout(pair[0], "space"), pair[1]]
        vectors = [getattr(self, name).modulate(inputs.embedding) for name in ("video", "text")]
        projected = []
        for name, x, (shift, scale, *_) in zip(("video", "text"), map(_tokens, pair), vectors, strict=True):
            stream = getattr(self, name)
            projected.append(stream.project(stream.norm(x) * (1 + scale) + shift))
        mixed = attend_jointly(*projected, inputs, layout, **dict(self.options))
        for i, name in enumerate(("video", "text")):
            _, _, gate, shift, scale, gate2 = vectors[i]
            x = _tokens(pair[i]) + gate * getattr(self, f"{name}_out")(mixed[i])
            hidden = jax.nn.gelu(getattr(self, f"{name}_up")(getattr(self, name).norm(x) * (1 + scale) + shift))
            pair[i] = (x + gate2 * getattr(self, f"{name}_down")(hidden)).reshape(pair[i].shape)
        return layout(pair[0], "space"), pair[1]


class SingleBlock(nnx.Module):
    """Both streams with the same weights: x += g·out([attention, GELU(up(norm(x)(1 + s) + b))])."""

    def __init__(self, width, heads, *, dtype, rngs, **attention):
        common, self.options = dict(dtype=dtype, rngs=rngs), tuple(attention.items())  # hashable
        self.both = Stream(width, heads, 3, **common)
        self.up, self.out = nnx.Linear(width, 4 * width, **common), nnx.Linear(5 * width, width, **common)

    def __call__(self, pair: Pair, inputs: Inputs, layout: Layout) -> Pair:
        """Transforms both streams."""
        pair = layout(pair[0], "space"), pair[1]
        shift, scale, gate = self.both.modulate(inputs.embedding)
        hidden = [self.both.norm(_tokens(x)) * (1 + scale) + shift for x in pair]
        mixed = attend_jointly(*map(self.both.project, hidden), inputs, layout, **dict(self.options))
        video, text = (
            (_tokens(x) + gate * self._out(m, h)).reshape(x.shape) for x, m, h in zip(pair, mixed, hidden, strict=True)
        )
        return layout(video, "space"), text

    def _out(self, mixed, hidden):
        return self.out(jnp.concatenate([mixed, jax.nn.gelu(self.up(hidden))], axis=-1))


class MMDiT(nnx.Module):
    """Diffusion transformer with two streams: from z_t, time and conditions to the prediction, shaped like z_t.

    Args:
        channels_in: channels of z and of known channels; `channels_out` of the prediction (default: the same). Known
            channels have a stem of their own; zeros stand for nothing known.
        width, heads, double, single: of the blocks, and how many there are of each kind.
        patch, patch_time: rows and columns, and frames, that fold into one position.
        axes: channels of a head that rotate with frame, row and column (default: thirds).
        interleaved: rotary positions turn neighbouring channels (`positions.rotate`).
        text_width, pooled_width: of text tokens, and of the pooled text vector.
        dtype: of the computation; parameters are float32.
        attention: "auto", "xla" or "cudnn". remat: what a block keeps for the backward pass (`stack.REMAT`).
    """

    def __init__(
        self,
        *,
        channels_in: int,
        channels_out: int | None = None,
        width: int = 384,
        heads: int = 6,
        double: int = 6,
        single: int = 6,
        patch: int = 2,
        patch_time: int = 1,
        axes: tuple[int, int, int] | None = None,
        interleaved: bool = False,
        text_width: int,
        pooled_width: int,
        dtype: str = "float32",
        attention: str = "auto",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        one_of("attention", attention, IMPLEMENTATIONS)
        one_of("remat", remat, REMAT)
        size = width // heads
        plane = 2 * (size // 6)
        self.axes = tuple(axes) if axes else (size - 2 * plane, plane, plane)
        if width % heads or sum(self.axes) != size or any(n % 2 for n in self.axes):
            raise InputError(f"axes={self.axes} must be even and have the sum of width / heads = {width} / {heads}")
        if not text_width or not pooled_width:
            raise InputError("a transformer of two streams needs model.text")
        self.channels_in, self.channels_out = channels_in, channels_out or channels_in
        self.patch, self.remat, common = (patch_time, patch), remat, dict(dtype=dtype, rngs=rngs)
        known = channels_in - self.channels_out
        self.stem = Fold(self.channels_out, width, self.patch, **common)
        self.known = Fold(known, width, self.patch, **common) if known else None
        self.text = nnx.Linear(text_width, width, **common)
        self.time = EmbeddingMLP(256, width, width, **common)
        self.pooled = EmbeddingMLP(pooled_width, width, width, **common)
        chosen = choose_implementation(attention, dtype=dtype, head_size=size) if attention != "xla" else "xla"
        options = dict(interleaved=interleaved, implementation=chosen, dtype=dtype)
        self.double = Stack(lambda r: DoubleBlock(width, heads, rngs=r, **options), double, remat=remat, rngs=rngs)
        self.single = Stack(lambda r: SingleBlock(width, heads, rngs=r, **options), single, remat=remat, rngs=rngs)
        self.last = nnx.Linear(width, 2 * width, kernel_init=zeros, **common)
        self.norm = layer_norm(width, EPSILON, **PLAIN, **common)
        self.head = Unfold(width, self.channels_out, self.patch, **common)

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
            InputError: sizes that do not divide, a time for each frame, several texts, or a condition that is missing.
        """
        del key  # no dropout
        self.check(*z.shape[1:4])
        text, known = conditions.text, conditions.known
        if text is None or text.tokens.shape[1] != 1:
            raise InputError("conditions.text must be one text a video for a transformer of two streams")
        if time.ndim > 1:
            raise InputError("a time for each frame is not for a transformer of two streams: the text has one time")
        if known is not None and (self.known is None or z.shape[-1] + known.shape[-1] != self.channels_in):
            raise InputError(f"{known.shape[-1]} known channels must be {self.channels_in - self.channels_out}")
        x = layout(self.stem(layout(z, "space"), layout), "space")
        if self.known is not None:
            shape = (*z.shape[:-1], self.channels_in - self.channels_out)
            known = jnp.zeros(shape, z.dtype) if known is None else jnp.roll(known, 1, axis=-1)  # the mask comes first
            x = x + layout(self.known(layout(known, "space"), layout), "space")
        embedding = self.time(sinusoid(time, 256)) + self.pooled(text.pooled[:, 0])
        inputs = Inputs(embedding, text.mask, axis_angles(*x.shape[1:4], self.axes))
        x, _ = self.single(self.double((x, self.text(text.tokens)), inputs, layout), inputs, layout)
        shift, scale = rearrange(self.last(jax.nn.silu(embedding)), "b (two c) -> two b 1 1 1 c", two=2)
        return self.head(self.norm(layout(x, "space")) * (1 + scale) + shift).astype(jnp.float32)

    folds_frames = True  # a frame has no time of its own

    def check(self, frames: int, height: int, width: int, stills: int = 0) -> None:
        """Raises InputError for sizes that the patches do not divide, or for stills."""
        check_divides("patch of the transformer", self.patch, frames, height, width)
        if stills:
            raise InputError(f"joint_images={stills} is not for a transformer whose tokens all see each other")


def _tokens(x: Float[Array, "B T ... C"]) -> Float[Array, "B T P C"]:
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
