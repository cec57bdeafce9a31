"""From prompts to videos: a model as a function, the only jitted sampler."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.diffusion.free_init import in_rounds
from vdm_jax.diffusion.free_noise import rescheduled
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.known import Known, coarsen, known_in_time, reconstructed, replaced, under, whole_frames
from vdm_jax.diffusion.sampler import CHANNELS, INITIAL, gaussian, noise_to_z, process_noise, sample
from vdm_jax.errors import InputError
from vdm_jax.generation.prompts import texts_and_shares
from vdm_jax.generation.settings import Settings, check_sampling, grid_of
from vdm_jax.model import Model
from vdm_jax.models.conditions import Conditions
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, full_batches
from vdm_jax.typing import Array, Float, Int, Key, Params, UInt


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A model, ready to sample: `Pipeline(load("runs/x"))(["a prompt"], seed=0)`.

    `mesh` is by default the one that the model was loaded on, `settings` are the model's own.
    """

    model: Model
    mesh: Mesh | None = None
    settings: Settings | None = None

    def __post_init__(self):
        if self.mesh is None:
            layouts = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(self.model.params)]
            meshes = [layout.mesh for layout in layouts if isinstance(layout, NamedSharding)]
            object.__setattr__(self, "mesh", meshes[0] if meshes else make_mesh())
        if self.settings is None:
            object.__setattr__(self, "settings", Settings(**self.model.sampling))

    @property
    def takes_guidance(self) -> bool:
        """Whether there is a condition for guidance: a text, or a first frame."""
        return self.model.text is not None or self.model.first_frame is not None

    def __call__(
        self, prompts: Sequence[str], *, seed: int = 0, batch_size: int = 16, **changes: Any
    ) -> Float[np.ndarray, "B T H W C"]:
        """Draws one video for each prompt, float32 in [-1, 1]; `changes` are fields of `Settings`.

        The i-th video depends on its prompt, the seed and i alone, not on the batch or the number of devices
        (up to the rounding of differently shaped matrix products).
        """
        return np.concatenate(list(self.batches(prompts, seed=seed, batch_size=batch_size, **changes)))

    def batches(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 16,
        first: int = 0,
        block: int = 0,
        frame: int = 0,
        known: Known | None = None,
        coarse: int = 1,
        negative: str = "",
        **changes: Any,
    ) -> Iterator[Float[np.ndarray, "B T H W C"]]:
        """Draws one video for each prompt, a batch at a time.

        Args:
            first: index of the first prompt in the full list.
            block, frame: index and first frame of this window of a longer video.
            known: host arrays, one a prompt or one for all. The known part is kept as it is, if `exact`.
            coarse: if n > 1, `known` is a low-resolution video with every pixel repeated n times: all of it conditions
                the sampler, none of it is copied to the result.
            negative: the prompt that guidance leads away from.
            changes: fields of `Settings`.

        Raises:
            InputError: an argument that does not fit the model.
        """
        model, texts, shares = self.model, prompts, None
        if model.text_per_frame:
            texts, shares = texts_and_shares(prompts, frame, model.shape[0])
        settings, tokens = self.check(
            texts, seed=seed, batch_size=batch_size, coarse=coarse, negative=negative, **changes
        )
        known = self._checked_known(known, len(prompts), settings)
        tokens = tokens.reshape(len(prompts), len(texts) // len(prompts), tokens.shape[1])
        guides = settings.guidance != 1 and self.takes_guidance
        draw = _compile(
            model.static,
            self.mesh,
            # Known frames stand at the time of their noise level, which is part of the program.
            dataclasses.replace(
                settings,
                guidance=0.0,
                reconstruction=0.0,
                known_noise=settings.known_noise if settings.respect == "times" else 0.0,
            ),
            guides,
            coarse,
        )
        weights = tuple(float(x) for x in (settings.guidance, settings.reconstruction, settings.known_noise))
        null = self._null_tokens(negative)
        for start, rows in full_batches(len(prompts), batch_size, self.mesh):
            inputs = jax.tree.map(lambda x, rows=rows: x[rows], (tokens, shares, known))
            inputs = *inputs, np.uint32(first + start + np.arange(len(rows)))
            tokens_, shares_, pixels, index = jax.device_put(inputs, batch_sharding(self.mesh))
            latents = draw(model.params, tokens_, shares_, pixels, index, null, np.uint32([seed, block]), weights)
            videos = jnp.clip(model.codec.decode(model.params.get("codec", {}), latents, model.shape[0]), -1, 1)
            if pixels is not None and coarse == 1 and settings.exact:
                videos = pixels.put(videos)
            yield whole(videos, self.mesh)[: len(prompts) - start]

    def _checked_known(self, known: Known | None, count: int, settings: Settings) -> Known | None:
        """Returns what is known, one row a prompt. Raises InputError where the model cannot be conditioned on it."""
        model = self.model
        if known is None and settings.strength < 1:
            raise InputError(f"strength={settings.strength} begins with a video, and none is known")
        if known is None and model.first_frame is not None:
            known = Known(np.zeros((1, *model.shape), np.float32), np.zeros((1, *model.shape[:3], 1), bool))
        if known is None:
            return None
        model.check_known(np.broadcast_to(known.mask[0], (*model.shape[:3], 1)))
        if settings.respect == "times" and not whole_frames(known.mask):
            raise InputError("respect='times' takes whole known frames; respect='replace' takes parts of frames")
        return Known(*(np.broadcast_to(array, (count, *array.shape[1:])) for array in known))

    def _null_tokens(self, negative: str) -> Int[np.ndarray, "L"]:
        """Returns the tokens of the null condition. Raises InputError where the model takes no text."""
        if negative and self.model.text is None:
            raise InputError(f"negative prompt {negative[:40]!r}: this model takes no text")
        if negative and "null_text" in self.model.params["network"]:
            raise InputError(f"negative prompt {negative[:40]!r}: this model has a learned null text instead")
        return self.model.tokenize(negative)

    def check(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 16,
        coarse: int = 1,
        negative: str = "",
        **changes: Any,
    ) -> tuple[Settings, Int[np.ndarray, "B L"]]:
        """Returns the settings with `changes`, and the prompts' tokens; draws nothing.

        Raises:
            InputError: an argument that `batches` would refuse.
        """
        if not 0 <= seed < 2**32:
            raise InputError(f"seed={seed} must be at least 0 and below 2**32")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        self._null_tokens(negative)
        settings = self.settings.changed(changes)
        settings.check_model(self.model, coarse)
        return settings, check_sampling(settings, self.model, prompts)


def sample_keys(seed_and_block: UInt[Array, "2"], index: UInt[Array, "B"]) -> Key[Array, "B"]:
    """Returns the key of every video: a function of the seed, the window and the video's number."""
    seed, block = seed_and_block
    key = jax.random.key(seed)
    key = jnp.where(block == 0, key, jax.random.fold_in(key, block))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


@functools.lru_cache(maxsize=16)
def _compile(model: Model, mesh: Mesh, settings: Settings, guides: bool, coarse: int) -> Callable:
    """Returns the jitted sampler at the given settings; parameters and the weights stay arguments."""
    layout, process, shape = ActivationLayout(mesh), model.process, model.latent_shape
    times, network_time = grid_of(settings, process, shape[0])
    reconstructs = settings.respect == "reconstruct"

    def draw(params, tokens, shares, pixels, index, null, seed_and_block, weights) -> Array:
        guidance, reconstruction, known_noise = weights
        keys = sample_keys(seed_and_block, index)
        known = None if pixels is None else model.known_latents(params, pixels)
        branches = _branches(model, params, tokens, shares, null, pixels, known, keys, settings, known_noise)

        def predict(z, network_time, conditions):
            network = model.merge(params)  # here, as rematerialisation inside a gradient needs it
            if known is not None and reconstructs:
                network.remat = "full"  # the gradient of a call, on little more than the memory of a call
            return network(z, network_time, conditions, layout=layout)

        branches = branches if guides else branches[-1:]
        last = model.weights(guidance, settings.steps, shape[0])[::-1][: len(branches) - 1][::-1]
        denoise = guided(
            predict,
            process,
            model.prediction,
            branches,
            last,
            rescale=settings.rescale,
            interval=settings.interval,
            network_time=network_time,
        )
        if known is not None and reconstructs:
            measure = under(known.mask) if coarse == 1 else functools.partial(coarsen, factor=coarse)
            denoise = reconstructed(denoise, measure(known.video), measure, process, reconstruction)
        denoise = clipped(denoise, process, settings.clip)
        # A first frame conditions the network, and is not replaced; nor is what is a branch of guidance, until the end.
        keeps = known is not None and coarse == 1 and model.first_frame is None
        replaces = keeps and not (model.guides_known and settings.respect == "concat")

        def from_noise(noise, keys):
            start = known.video if known is not None and settings.strength < 1 else None
            z = noise_to_z(noise, process, times[0], start, settings.first_noise)
            kept = denoise
            if keeps and settings.respect == "times":
                kept = known_in_time(denoise, known, process, keys, settings.known_noise, settings.exact)
            elif replaces:
                kept = replaced(denoise, known, process, keys, exact=settings.exact)
            options = dict(settings.solver_options)
            return sample(kept, z, times, process, solver=settings.solver, eta=settings.eta, keys=keys, **options)

        noise = process_noise(process, keys, INITIAL, shape, jnp.float32)
        if model.noise_window is not None:
            noise = rescheduled(noise, keys, *model.noise_window)
        video = in_rounds(from_noise, noise, keys, process, settings.free_init)
        return known.put(video) if keeps and settings.exact else video

    return jax.jit(draw, out_shardings=batch_sharding(mesh))


def _branches(
    model: Model,
    params: Params,
    tokens: Int[Array, "B G L"],
    shares: Float[Array, "B T G"] | None,
    null: Int[Array, "L"],
    pixels: Known | None,
    known: Known | None,
    keys: Key[Array, "B"],
    settings: Settings,
    known_noise: Float[Array, ""] | float,
) -> list[Conditions]:
    """Returns the conditions of the branches of guidance, the null condition first and the full one last."""
    if model.first_frame is not None:
        noise = gaussian(keys, CHANNELS, model.shape[1:], jnp.float32)
        full = model.first_frame(params, pixels.video[:, 0], noise, known_noise, model.latent_shape[0])
        return [model.first_frame.null(full), full]
    noise = gaussian(keys, CHANNELS, model.latent_shape, jnp.float32)
    channels = model.channels(len(tokens), known if settings.respect == "concat" else None, noise, known_noise)
    full = Conditions(model.encode(params, tokens, shares=shares), channels, model.scalars_of(len(tokens)))
    branches = [full._replace(text=model.null_text(params, null, full.text)), full]
    if model.guides_known and known is not None and settings.respect == "concat":
        branches.insert(0, branches[0]._replace(known=jnp.zeros_like(channels)))
    return branches


def whole(videos: Float[Array, "B T H W C"], mesh: Mesh) -> Float[np.ndarray, "B T H W C"]:
    """Returns a batch that lies over all devices as a host array, on every process."""
    return np.asarray(videos if videos.is_fully_addressable else jax.device_put(videos, NamedSharding(mesh, P())))
