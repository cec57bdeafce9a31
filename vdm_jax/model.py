"""A model: the parts of a video diffusion model, and how conditions are made of words and known pixels.

A run folder and a published folder are both loaded as one (`build.load`), and a config describes one (`build.build`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.diffusion.known import Known, MaskMixture, known_channels, nearest_known
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.models.codec import Codec
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.typing import Array, Bool, Float, Int, Params, PyTree


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """From prompts to the text condition: `tokenize` on the host, the module of `graphdef` on the device."""

    graphdef: nnx.GraphDef
    tokenize: Callable[[str], np.ndarray]
    width: int  # of a token
    pooled_width: int

    def __call__(self, params: Params, tokens: Int[Array, "B G L"]) -> Text:
        """Encodes G texts a video."""
        return nnx.merge(self.graphdef, params)(tokens)


def one_weight(guidance: Array | float, steps: int, frames: int) -> list[Any]:
    """Returns the weights of plain guidance."""
    return [guidance]


@dataclasses.dataclass(frozen=True)
class Model:
    """A video diffusion model. Without `params` it is hashable: a program is compiled once for equal models.

    Args:
        network: of a `models.conditions.Network`.
        text: None where the network takes no text.
        params: {"network": ..., "text": ..., "codec": ...}: arrays, or shapes of parameters that are new.
        prediction: what the network predicts (`diffusion.prediction`).
        shape: of one video (frames, rows, columns, channels), in pixels.
        fps: frames a second of what it draws.
        masks: which masks the network was trained to be conditioned on, None for none.
        first_frame: conditions on the first frame, else None (`families.stable_video_diffusion.FirstFrame`).
        time_per_frame: the network was trained with a time for each frame.
        text_per_frame: each frame may have a text of its own, so that prompts can change from frame to frame.
        null_mask: the null text of guidance counts as many tokens as the prompt.
        scalars: numbers that the network is conditioned on, such as the frame rate.
        weights: from (guidance scale, steps, frames of latents) to the weights of guidance between its branches
            (`diffusion.guidance.guided`).
        guides_known: what is known is a branch of its own, between the null condition and the full one.
        noise_window: (length, stride) of FreeNoise's windows, None for independent noise.
        sampling: defaults of `generation.settings.Settings`.
        network_config: config.json of a published network.
        loaded: the parts that come out of a folder.
        origin, step: where all this was loaded from, and the step of a run.
    """

    network: nnx.GraphDef
    text: TextEncoder | None
    codec: Codec
    process: Process
    prediction: str
    shape: tuple[int, int, int, int]
    fps: float
    params: PyTree = None
    masks: MaskMixture | None = None
    first_frame: Callable[..., Conditions] | None = None
    time_per_frame: bool = False
    text_per_frame: bool = False
    null_mask: bool = False
    scalars: tuple[float, ...] = ()
    weights: Callable[..., list[Any]] = one_weight
    guides_known: bool = False
    noise_window: tuple[int, int] | None = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    network_config: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False, compare=False)
    loaded: frozenset[str] = frozenset()
    origin: str = dataclasses.field(default="", compare=False)
    step: int = dataclasses.field(default=0, compare=False)

    @property
    def static(self) -> "Model":
        """The model without its parameters: what a program is compiled for."""
        return dataclasses.replace(self, params=None)

    @property
    def tell(self) -> str:
        """How the network is conditioned on known pixels: "nothing", "channels", "times" or "first_frame"."""
        if self.first_frame is not None:
            return "first_frame"
        return self.masks.tell if self.masks is not None else "nothing"

    @property
    def downsample(self) -> int:
        """The factor by which it enlarges videos; 1 where it does not."""
        return self.masks.downsample if self.masks is not None else 1

    @property
    def identity(self) -> tuple[Any, ...]:
        """All but weights and settings that a drawing depends on."""
        return self.origin, self.step, self.shape, self.process, self.prediction, self.masks

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """The shape of what the network draws."""
        return self.codec.shape(self.shape)

    def tokenize(self, prompt: str) -> np.ndarray:
        """Returns the tokens of a prompt, int32 [L]; L = 0 where the network takes no text."""
        return np.zeros(0, np.int32) if self.text is None else self.text.tokenize(prompt)

    def merge(self, params: Params) -> nnx.Module:
        """Returns the network with its parameters."""
        return nnx.merge(self.network, params["network"])

    def known_latents(self, params: Params, known: Known) -> Known:
        """Returns what is known of the latents: those whose pixels are all known."""
        mask, video = jnp.broadcast_to(known.mask, (*known.video.shape[:-1], 1)), known.video
        if self.codec.factors[0] > 1:  # normalisation over time shows the unknown frames to the known ones
            video = nearest_known(video, mask)
        return Known(self.codec.encode(params.get("codec", {}), video), self.codec.mask(mask))

    def encode(
        self, params: Params, tokens: Int[Array, "B G L"], *, frames=0, shares: Float[Array, "B T K"] | None = None
    ) -> Text | None:
        """Encodes the texts of a batch; None where the network takes none.

        G = 1 is a text for the whole video. With `shares` the text of a frame is a mixture of G = K texts. Otherwise
        the first text is the clip's and the others belong to the stills after it, `frames` in all.
        """
        if self.text is None:
            return None
        text = self.text(params["text"], tokens)
        if shares is not None:
            mixed = jnp.einsum("btk,bkle->btle", shares, text.tokens, precision="highest").astype(text.tokens.dtype)
            pooled = jnp.einsum("btk,bke->bte", shares, text.pooled, precision="highest").astype(text.pooled.dtype)
            return Text(mixed, jnp.broadcast_to(text.mask[:, :1], mixed.shape[:3]), pooled)
        if tokens.shape[1] > 1:
            stills = tokens.shape[1] - 1
            repeats = jnp.array([frames - stills] + [1] * stills)
            return jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=1, total_repeat_length=frames), text)
        return text

    def null_text(self, params: Params, null: Int[Array, "L"], text: Text | None) -> Text | None:
        """Returns the text of the null condition, in the shape of the prompts' `text`.

        It is the text of the tokens `null`, or the network's own null text, which counts as many tokens as the prompt.
        """
        if text is None:
            return None
        if (rows := params["network"].get("null_text")) is not None:
            return text._replace(tokens=jnp.broadcast_to(rows.astype(text.tokens.dtype), text.tokens.shape))
        empty = jax.tree.map(lambda n, c: jnp.broadcast_to(n, c.shape), self.encode(params, null[None, None]), text)
        return empty._replace(mask=text.mask) if self.null_mask else empty

    def scalars_of(self, batch: int) -> Float[Array, "B N"] | None:
        """Returns the numbers that the network is conditioned on; None where there are none."""
        return jnp.broadcast_to(jnp.float32(self.scalars), (batch, len(self.scalars))) if self.scalars else None

    def channels(
        self, batch: int, known: Known | None, noise: Float[Array, "B T H W C"], level: Array | float = 0.0
    ) -> Float[Array, "B T H W K"] | None:
        """Returns the known latents as channels for a network that takes them, zeros where nothing is known.

        `level` is the amount of noise on them, for each video or for all.
        """
        if self.tell != "channels":
            return None
        if known is None:
            *sizes, channels = self.latent_shape
            return jnp.zeros((batch, *sizes, channels + 1))
        return known_channels(known, noise, level)

    def check_known(self, mask: Bool[np.ndarray, "T H W 1"]) -> None:
        """Raises InputError for a mask of known pixels that the model cannot be conditioned on."""
        first = (np.arange(self.shape[0]) == 0)[:, None, None, None]
        if self.first_frame is not None and (mask != first).any():
            raise InputError(
                "this model animates a picture: its first frame must be known, and no other (--image; or --extend by a "
                f"multiple of {self.shape[0] - 1} with --context 1)"
            )
