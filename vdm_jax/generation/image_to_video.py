"""Stable Video Diffusion as a pipeline: a video that begins with a picture (Blattmann et al. 2023, arXiv 2311.15127).

The network is told the picture twice: its latents beside the noisy ones, and its CLIP embedding in the place of a text.
Guidance grows over the frames from 1 to `guidance`. In the words of the modes: the first frame is known, and no other.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.known import Known
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import TOLD, gaussian, initial_noise, sample
from vdm_jax.errors import InputError
from vdm_jax.generation.pipeline import Pipeline, sample_keys, whole
from vdm_jax.generation.settings import Settings, grid_of
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, full_batches
from vdm_jax.typing import Array, Bool, Float, Int


def no_words(prompt: str) -> np.ndarray:
    """The tokens of a model that takes no text."""
    return np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageToVideo(Pipeline):
    """A pipeline whose videos begin with a picture; `graphdef` and `params` are of the U-Net alone.

    `look` takes pictures in [-1, 1] and the same with noise, both B H W C, to the embeddings of the first and the
    latents of the second. `motion` is the motion bucket, more for more motion; `known_noise` of the settings is the
    noise on the picture.
    """

    look: Callable[[Array, Array], tuple[Array, Array]] | None = None
    motion: float | int = 127

    @property
    def takes_guidance(self) -> bool:
        """Towards the picture."""
        return True

    def check(self, prompts: Sequence[str], **asked) -> tuple[Settings, Int[np.ndarray, "B L"]]:
        """As `Pipeline.check`; there is one way to begin, and to keep the picture."""
        settings, tokens = super().check(prompts, **asked)
        if settings.strength != 1 or settings.respect != "replace" or settings.free_init != 1:
            raise InputError("strength, respect and free_init are not for this model, which is told its first frame")
        return settings, tokens

    def check_window(self, known: Bool[np.ndarray, "T H W 1"]) -> None:
        """Raises InputError where anything but the first frame is known."""
        if (known != (np.arange(self.shape[0]) == 0)[:, None, None, None]).any():
            raise InputError(
                "this model animates a picture: its first frame is to be known, and no other (--image; or --extend by "
                f"a multiple of {self.shape[0] - 1} with --context 1)"
            )

    def batches(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 16,
        first: int = 0,
        block: int = 0,
        known: Known | None = None,
        coarse: int = 1,
        negative: str = "",
        **changes,
    ) -> Iterator[Float[np.ndarray, "B T H W C"]]:
        """As `Pipeline.batches`, with empty prompts and the first frame known.

        Raises:
            InputError: more or less is known, or a setting does not fit.
        """
        asked = {"seed": seed, "batch_size": batch_size, "coarse": coarse, "negative": negative}
        settings, _ = self.check(prompts, **asked, **changes)
        if known is None:
            known = Known(np.zeros((1, *self.shape), np.float32), np.zeros((1, *self.shape[:3], 1), bool))
        self.check_window(known.mask[0])
        fixed = dataclasses.replace(settings, guidance=0.0, known_noise=0.0)
        how = (fixed, settings.guidance != 1)
        draw = _compile(self.graphdef, self.process, self.prediction, self.codec.shape, self.mesh, *how)
        pictures = np.broadcast_to(known.video[:, 0], (len(prompts), *self.shape[1:]))
        added = np.float32([self.fps - 1, self.motion, settings.known_noise])  # trained on frames a second − 1
        for start, rows in full_batches(len(prompts), batch_size, self.mesh):
            given = pictures[rows], np.uint32(first + start + np.arange(len(rows))), np.tile(added, (len(rows), 1))
            pixels, index, numbers = jax.device_put(given, batch_sharding(self.mesh))
            keys = sample_keys(jnp.uint32([seed, block]), index)
            noise = settings.known_noise * gaussian(keys, TOLD, self.shape[1:], jnp.float32)
            embedding, latents = self.look(pixels, pixels + noise)
            drawn = draw(self.params, keys, embedding, latents, numbers, float(settings.guidance))
            drawn = jnp.clip(self.codec.decode(self.codec.params, drawn), -1, 1)
            drawn = drawn.at[:, 0].set(pixels) if settings.exact else drawn
            yield whole(drawn, self.mesh)[: len(prompts) - start]


@functools.lru_cache(maxsize=16)
def _compile(
    graphdef: nnx.GraphDef,
    process: Process,
    prediction: str,
    shape: tuple[int, int, int, int],
    mesh: Mesh,
    settings: Settings,
    with_guidance: bool,
) -> Callable:
    """The jitted sampler at the given settings; parameters, pictures and the weight of guidance stay arguments."""
    layout, times, frames = ActivationLayout(mesh), grid_of(settings, process), shape[0]

    def draw(params, keys, embedding, latents, added, guidance) -> Array:
        model = nnx.merge(graphdef, params)

        def predict(z, network_time, drop):
            parts = len(z) // len(embedding)
            told, picture, numbers = (jnp.concatenate([x] * parts) for x in (embedding, latents, added))
            # Without its condition the network is told zeros.
            told, picture = (jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in (told, picture))
            picture = jnp.repeat(picture[:, None], frames, axis=1)
            z = jnp.concatenate([z, picture], axis=-1)
            return model(z, network_time, context=told[:, None, None], added=numbers, layout=layout)

        weight = jnp.linspace(1.0, guidance, frames) if with_guidance else 1.0
        denoise = guided(
            predict, process, prediction, weight=weight, rescale=settings.rescale, interval=settings.interval
        )
        z = initial_noise(keys, shape, process, times[0])
        denoise = clipped(denoise, process, settings.clip)
        return sample(denoise, z, times, process, solver=settings.solver, eta=settings.eta, keys=keys)

    return jax.jit(draw, out_shardings=batch_sharding(mesh))
