"""Losses: what a training step differentiates. The step itself knows no diffusion, no pixels and no text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.known import draw_known, draw_known_times
from vdm_jax.diffusion.objective import Objective, draw, loss_at
from vdm_jax.model import Model
from vdm_jax.models.conditions import Conditions
from vdm_jax.models.layout import ONE_DEVICE, Layout
from vdm_jax.split import join
from vdm_jax.typing import Array, Key, Params, PyTree, Scalar

Batch = dict[str, Array | np.ndarray | jax.ShapeDtypeStruct]
Metrics = dict[str, Scalar]

# What a step's key is used for; the objective folds its own purposes into DRAW.
DRAW, DROPOUT, KNOWN = range(3)


class Loss(NamedTuple):
    """A loss as two functions.

    `prepare(frozen, batch, key)` makes a whole batch ready: floats, latents, and everything random. Its result is a
    tree of arrays with a leading batch axis, so that it can be divided for gradient accumulation.
    `value(trained, frozen, batch, key)` is differentiated with respect to the trained parameters; it returns the loss
    and metrics, of which one is "loss". Its key is of dropout.
    """

    prepare: Callable[[PyTree, Batch, Key[Array, ""]], PyTree]
    value: Callable[[Params, PyTree, PyTree, Key[Array, ""]], tuple[Scalar, Metrics]]


def to_float(video: Array) -> Array:
    """Converts a uint8 video to float32 in [-1, 1]: bytes travel to the device, floats are made there."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def denoising(model: Model, objective: Objective, *, stills: int = 0, layout: Layout = ONE_DEVICE) -> Loss:
    """Returns the denoising loss of a model.

    A batch holds "video" (uint8, B T H W C), "tokens" (int32, B L), and with K `stills` at the end of each video
    "image_tokens" (B K L). Where the objective drops the condition, the text is the null text. With `time_per_frame`,
    or known frames at t = 0, a video has a time for each frame. The model's parameters are not used: `value` joins
    trained and frozen ones.
    """
    masks, model = model.masks, model.static
    objective = dataclasses.replace(objective, prediction=model.prediction)  # a loaded network brings its own

    def prepare(frozen: PyTree, batch: Batch, key: Key[Array, ""]) -> PyTree:
        latents = model.codec.encode(frozen.get("codec", {}), to_float(batch["video"]))
        draws = draw(objective, model.process, latents, jax.random.fold_in(key, DRAW))
        tokens = batch["tokens"][:, None]
        if stills:
            tokens = jnp.concatenate([tokens, batch["image_tokens"]], axis=1)
        ready = {"x": latents, "tokens": tokens, "draws": draws}
        known_key = jax.random.fold_in(key, KNOWN)
        if model.tell == "channels":
            ready["known"] = draw_known(masks, latents, known_key, stills)
        elif model.tell == "times":
            time, weights = draw_known_times(masks, model.process, draws.time, latents.shape[1], known_key, stills)
            ready |= {"draws": draws._replace(time=time), "frame_weights": weights}
        return ready

    def value(trained: Params, frozen: PyTree, batch: PyTree, key: Key[Array, ""]) -> tuple[Scalar, Metrics]:
        params, x, draws = join(trained, frozen), batch["x"], batch["draws"]
        network = model.merge(params)
        text = None
        if model.text is not None:
            text = model.encode(params, batch["tokens"], frames=x.shape[1])
            null = model.null_text(params, jnp.asarray(model.tokenize("")), text)
            text = jax.tree.map(functools.partial(jax.vmap(jnp.where), draws.drop), null, text)
        is_still = jnp.broadcast_to(jnp.arange(x.shape[1]) >= x.shape[1] - stills, x.shape[:2]) if stills else None
        conditions = Conditions(text, batch.get("known"), model.scalars_of(len(x)), is_still)

        def predict(z, network_time, _):
            return network(z, network_time, conditions, key=key, layout=layout)

        return loss_at(objective, model.process, predict, x, draws, batch.get("frame_weights"))

    return Loss(prepare, value)
