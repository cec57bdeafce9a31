"""What a network is conditioned on next to the noisy video and its time, and the contract that every network keeps."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.models.positions import sinusoid
from vdm_jax.typing import Array, Bool, Float, Key


class Text(NamedTuple):
    """The output of a text encoder for G texts a video: G = 1 for the whole video, or T, one for each frame."""

    tokens: Float[Array, "*B L E"]  # one embedding a token
    mask: Bool[Array, "*B L"]  # which tokens count
    pooled: Float[Array, "*B P"]  # one vector for the whole text


class Conditions(NamedTuple):
    """What a network is conditioned on. None stands for a condition that the network does not take."""

    text: Text | None = None  # arrays B G ...
    known: Float[Array, "B T H W K"] | None = None  # channels next to z
    scalars: Float[Array, "B N"] | None = None  # frame rate, motion, noise level, ...: named by the family
    is_still: Bool[Array, "B T"] | None = None  # frames that are pictures of their own


@runtime_checkable
class Network(Protocol):
    """A denoising network: an `nnx.Module` without hidden state.

    Two attributes are optional. `remat` = "full" asks for a backward pass that keeps the inputs of layers only.
    `folds_frames` says that several frames share a position, so that a frame has no time of its own.
    """

    def check(self, frames: int, height: int, width: int, stills: int = 0) -> None:
        """Raises InputError for a video (or latents) of sizes that the network cannot draw."""

    def __call__(
        self,
        z: Float[Array, "B T H W C"],
        time: Float[Array, "B *T"],
        conditions: Conditions,
        *,
        key: Key[Array, ""] | None = None,
        layout: Layout = ONE_DEVICE,
    ) -> Float[Array, "B T H W C2"]:
        """Predicts from the noisy video z.

        Args:
            z: the noisy video, scaled by `Process.input_scale`.
            time: `Process.network_time` of the whole video (B) or of each frame (B T).
            key: of dropout; None in evaluation.
            layout: constrains activations to a mesh, on both sides of a block (`models.layout`).
        """


def check_divides(by: str, factors: tuple[int, int], frames: int, height: int, width: int) -> None:
    """Raises InputError for sizes that the factors of time and space do not divide. `by` names what divides them."""
    time, space = factors
    for name, size, factor in (("height", height, space), ("width", width, space), ("frames", frames, time)):
        if size % factor:
            raise InputError(f"{name}={size} must be a multiple of {factor} ({by})")


def with_known(
    z: Float[Array, "B T H W C"], known: Float[Array, "B T H W K"] | None, channels: int
) -> Float[Array, "B T H W {channels}"]:
    """Returns the noisy video and its known channels. Raises InputError unless they are `channels` in all."""
    if known is not None:
        z = jnp.concatenate([z, known], axis=-1)
    if z.shape[-1] != channels:
        raise InputError(f"{z.shape[-1]} channels of z and of what is known must be {channels}")
    return z


def embed(
    network: Any, time: Float[Array, "B *T"], conditions: Conditions, *, reads_text: bool, unfolded: str
) -> Float[Array, "B G E"]:
    """Returns the sum of the embeddings of time, scalars and pooled text, for the video (G = 1) or for each frame.

    Args:
        network: has the layers `time`, `scalars` and `pooled`, the last two or None; `frequencies`, the width of the
            sinusoid of time; `scalar_width`, the width of the sinusoid of a scalar and how many there are.
        reads_text: the network needs a text even without `pooled`.
        unfolded: which arguments give each frame a position of its own.

    Raises:
        InputError: a condition that is missing or does not fit.
    """
    text, scalars = conditions.text, conditions.scalars
    if text is None and (reads_text or network.pooled is not None):
        raise InputError("conditions.text=None, but the network was made for a text encoder")
    if time.ndim == 2 and network.folds_frames:
        raise InputError(f"a time for each frame needs {unfolded}")
    embedding = network.time(sinusoid(time.reshape(len(time), -1), network.frequencies))
    if network.scalars is not None:
        width, count = network.scalar_width
        if scalars is None or scalars.shape[-1] != count:
            found = "None" if scalars is None else f"{scalars.shape[-1]} numbers"
            raise InputError(f"conditions.scalars={found}, but the network takes {count}")
        embedding = embedding + network.scalars(sinusoid(scalars, width).reshape(len(scalars), -1))[:, None]
    if network.pooled is not None:
        embedding = embedding + network.pooled(text.pooled)
    return embedding
