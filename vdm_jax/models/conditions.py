"""What a network is conditioned on next to the noisy video and its time, and the contract that every network keeps."""

from typing import NamedTuple, Protocol, runtime_checkable

from vdm_jax.models.layout import ONE_DEVICE, Layout
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
