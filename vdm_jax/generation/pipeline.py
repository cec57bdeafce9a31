"""From prompts to videos: a trained run as a function."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import configuration
from vdm_jax.diffusion.conditioning import Conditioning, coarsen, tell
from vdm_jax.diffusion.free_init import in_rounds
from vdm_jax.diffusion.free_noise import rescheduled
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.known import Known, reconstructed, replaced, under
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import INITIAL, TOLD, gaussian, process_noise, sample
from vdm_jax.errors import InputError
from vdm_jax.generation.settings import Settings, check_sampling, grid_of, settings_of
from vdm_jax.generation.travel import texts_and_shares
from vdm_jax.models.text import Encoded
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, full_batches
from vdm_jax.training.trainee import load_averaged
from vdm_jax.typing import Array, Bool, Float, Int, Key, Params, UInt


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """From videos to the latents that a network draws, and back; both take and give whole batches on the device.

    `encode(params, videos)` and `decode(params, latents)`; `shape` is that of the latents of one video (T, H, W, C).
    """

    shape: tuple[int, int, int, int]
    params: Params
    encode: Callable[[Params, Array], Array]
    decode: Callable[[Params, Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A trained model, ready to sample.

    `shape` is that of one video (T, H, W, C); `tokenize` turns a prompt into the tokens of its text encoder;
    `conditioning` is what the network was trained to be told of a video, None for nothing; `codec` stands between
    videos and what the network draws, None where it draws pixels; `unet_config` is the config.json of a published
    U-Net; `text_per_frame` says that the network may be told each frame its own text, so that prompts travel
    (`travel`); `origin` says where and how all this was loaded.
    """

    graphdef: nnx.GraphDef
    params: Params
    process: Process
    prediction: str
    shape: tuple[int, int, int, int]
    tokenize: Callable[[str], np.ndarray]
    mesh: Mesh
    fps: float
    settings: Settings
    step: int
    conditioning: Conditioning | None = None
    codec: Codec | None = None
    unet_config: Mapping[str, Any] | None = None
    text_per_frame: bool = False
    origin: str = ""

    @property
    def takes_text(self) -> bool:
        """Whether prompts do anything."""
        return self.tokenize("").size > 0

    @property
    def takes_guidance(self) -> bool:
        """Whether there is a condition for guidance to lead towards."""
        return self.takes_text

    @property
    def about(self) -> tuple[Any, ...]:
        """All but weights and settings that what it draws depends on."""
        return self.origin, self.step, self.shape, self.process, self.prediction, self.conditioning

    def __call__(
        self, prompts: Sequence[str], *, seed: int = 0, batch_size: int = 16, **changes
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
        **changes,
    ) -> Iterator[Float[np.ndarray, "B T H W C"]]:
        """The same, a batch at a time.

        `first` is the number of the first video (for a part of a longer list), `block` that of the window in a
        longer video, which begins at its `frame`. `negative` is the prompt that guidance leads away from. `known` (host
        arrays, one for each prompt or one for all) is kept as it is, if `exact`. With `coarse` n it is a video of an
        n-th of the rows and columns, each pixel repeated, which is followed instead.
        """
        texts, shares = prompts, None
        if self.text_per_frame:
            texts, shares = texts_and_shares(prompts, frame, self.shape[0])
        asked = {"seed": seed, "batch_size": batch_size, "coarse": coarse, "negative": negative}
        settings, tokens = self.check(texts, **asked, **changes)
        if settings.strength < 1 and known is None:
            raise InputError(f"strength={settings.strength} begins with a video, and none is known")
        if shares is not None:
            tokens = tokens.reshape(len(prompts), -1, tokens.shape[-1])
        draw = _compile(
            self.graphdef,
            self.process,
            self.prediction,
            self.codec.shape if self.codec else self.shape,
            self.codec is None,
            self.mesh,
            dataclasses.replace(settings, guidance=0.0, reconstruction=0.0),
            settings.guidance != 1 and self.takes_guidance,
            coarse,
        )
        weights = float(settings.guidance), float(settings.reconstruction)
        null = self._null(negative)
        if known is not None:
            known = Known(*(np.broadcast_to(array, (len(prompts), *array.shape[1:])) for array in known))
        for start, rows in full_batches(len(prompts), batch_size, self.mesh):
            given = jax.tree.map(lambda x, rows=rows: x[rows], (tokens, shares, known))
            given = *given, np.uint32(first + start + np.arange(len(rows)))
            *texts, pixels, numbers = jax.device_put(given, batch_sharding(self.mesh))
            told = pixels if self.codec is None or pixels is None else self._latent(pixels)
            drawn = draw(self.params, *texts, numbers, told, null, np.uint32([seed, block]), weights)
            if self.codec is not None:
                drawn = jnp.clip(self.codec.decode(self.codec.params, drawn), -1, 1)
                drawn = pixels.put(drawn) if pixels is not None and settings.exact else drawn
            yield whole(drawn, self.mesh)[: len(prompts) - start]

    def check_window(self, known: Bool[np.ndarray, "T H W 1"]) -> None:
        """Raises InputError where a window of which so much is known could not be drawn; this pipeline draws any."""

    def _null(self, negative: str) -> Int[np.ndarray, "L"]:
        """The tokens of what guidance leads away from. Raises InputError where the model takes no text."""
        if negative and not self.takes_text:
            raise InputError(f"negative prompt {negative[:40]!r}: this model takes no text")
        return self.tokenize(negative)

    def _latent(self, known: Known) -> Known:
        """What is known of the latents: those whose pixels all are."""
        down = {name: self.shape[i] // self.codec.shape[i] for i, name in ((1, "i"), (2, "j"))}
        mask = jnp.broadcast_to(known.mask, (*known.video.shape[:-1], 1))
        mask = reduce(mask.astype(jnp.uint8), "b t (h i) (w j) c -> b t h w c", "min", **down).astype(bool)
        return Known(self.codec.encode(self.codec.params, known.video), mask)

    def check(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 16,
        coarse: int = 1,
        negative: str = "",
        **changes,
    ) -> tuple[Settings, Int[np.ndarray, "B L"]]:
        """The settings that `changes` lead to, and the prompts' tokens; draws nothing.

        Raises:
            InputError: what `batches` could not be called with.
        """
        if not 0 <= seed < 2**32:
            raise InputError(f"seed={seed} must be at least 0 and below 2**32")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        self._null(negative)
        if "grid" in changes:  # the options are of another grid
            changes = {"grid_options": ()} | changes
        try:
            settings = dataclasses.replace(self.settings, **changes)
        except TypeError as error:
            known = [field.name for field in dataclasses.fields(Settings)]
            unknown = [name for name in changes if name not in known]
            if not unknown:
                raise InputError(f"{changes}: {error}") from None
            raise InputError(f"{unknown[0]}: no such setting; there are {', '.join(known)}") from None
        if settings.respect == "concat" and self.conditioning is None:
            raise InputError(
                "respect='concat' needs a run that was trained to be told what is known (config.known.mixture); "
                "this one takes replace or reconstruct"
            )
        if self.codec is not None and coarse > 1:
            raise InputError(f"enlarging a video by {coarse} needs a network that draws pixels; this one draws latents")
        trained = self.conditioning.downsample if self.conditioning else 1
        if settings.respect != "reconstruct" and coarse != trained:
            raise InputError(
                f"respect={settings.respect!r} cannot enlarge a video by {coarse}: this run was trained for {trained} "
                "(config.known.downsample); take reconstruct"
                if coarse > 1
                else f"this run enlarges videos by {trained} (config.known.downsample), and needs one"
            )
        if coarse > 1 and settings.respect == "replace":
            raise InputError(f"respect='replace' cannot enlarge a video by {coarse}: take concat or reconstruct")
        return settings, check_sampling(settings, self.process, prompts, self.tokenize)


def sample_keys(seed_and_block: UInt[Array, "2"], index: UInt[Array, "B"]) -> Key[Array, "B"]:
    """The key of every video: a function of the seed, the window and the video's number."""
    seed, block = seed_and_block
    key = jax.random.key(seed)
    key = jnp.where(block == 0, key, jax.random.fold_in(key, block))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


@functools.lru_cache(maxsize=16)
def _compile(
    graphdef: nnx.GraphDef,
    process: Process,
    prediction: str,
    shape: tuple[int, int, int, int],
    in_pixels: bool,
    mesh: Mesh,
    settings: Settings,
    with_guidance: bool,
    coarse: int,
) -> Callable:
    """The jitted sampler at the given settings; parameters and the two weights stay arguments."""
    layout = ActivationLayout(mesh)
    times = grid_of(settings, process)

    def draw(params, tokens, shares, index, known, null, seed_and_block, weights) -> Array:
        guidance, reconstruction = weights
        model = nnx.merge(graphdef, params)
        batch = tokens.shape[0]
        text = null_text = None
        if model.text is not None:
            text = model.encode(tokens) if shares is None else model.encode(tokens, shares)
            null_text = model.encode(null[None])
            both = Encoded(
                *(jnp.concatenate([jnp.broadcast_to(n, c.shape), c]) for n, c in zip(null_text, text, strict=True))
            )

        keys = sample_keys(seed_and_block, index)
        told = None
        if model.told:
            told = jnp.zeros((batch, *shape[:-1], shape[-1] + 1))
            if known is not None and settings.respect == "concat":
                told = tell(known, gaussian(keys, TOLD, shape, jnp.float32), settings.known_noise)

        def predict(z, network_time, drop):
            condition = text if text is None or z.shape[0] == batch else both
            heard = told if told is None or z.shape[0] == batch else jnp.concatenate([told, told])
            model = nnx.merge(graphdef, params)  # here, as rematerialisation inside a gradient needs it
            if known is not None and settings.respect == "reconstruct":
                model.unet.remat = "full"  # the gradient of a call, on little more than the memory of a call
            return model(z, network_time, condition, known=heard, layout=layout)

        denoise = guided(
            predict,
            process,
            prediction,
            weight=guidance if with_guidance else 1.0,
            rescale=settings.rescale,
            interval=settings.interval,
        )
        if known is not None and settings.respect == "reconstruct":
            measure = under(known.mask) if coarse == 1 else functools.partial(coarsen, factor=coarse)
            denoise = reconstructed(denoise, measure(known.video), measure, process, reconstruction)
        denoise = clipped(denoise, process, settings.clip)

        def from_noise(noise, keys):
            alpha, sigma = process.alpha_sigma(times[0])
            z = jnp.hypot(alpha, sigma) * noise  # as in `initial_noise`
            if known is not None and settings.strength < 1:
                z = alpha * known.video + sigma * noise
            kept = denoise
            if known is not None and coarse == 1:
                kept = replaced(denoise, known, process, keys, exact=settings.exact)
            return sample(kept, z, times, process, solver=settings.solver, eta=settings.eta, keys=keys)

        noise = process_noise(process, keys, INITIAL, shape, jnp.float32)
        if model.window is not None:
            noise = rescheduled(noise, keys, *model.window)
        video = in_rounds(from_noise, noise, keys, process, settings.free_init)
        video = jnp.clip(video, -1, 1) if in_pixels else video
        return known.put(video) if known is not None and coarse == 1 and settings.exact else video

    return jax.jit(draw, out_shardings=batch_sharding(mesh))


def whole(videos: Float[Array, "B T H W C"], mesh: Mesh) -> Float[np.ndarray, "B T H W C"]:
    """A batch that lies over all devices, on every process, for any of them to write."""
    return np.asarray(videos if videos.is_fully_addressable else jax.device_put(videos, NamedSharding(mesh, P())))


def make_pipeline(config, graphdef: nnx.GraphDef, params: Params, mesh: Mesh, step: int) -> Pipeline:
    """A pipeline from a training config and (averaged) parameters."""
    data = config.data
    model = configuration.abstract_model(config)
    return Pipeline(
        graphdef=graphdef,
        params=params,
        process=configuration.process_of(config),
        prediction=configuration.objective_of(config).prediction,
        shape=(data.frames, data.height, data.width, data.channels),
        tokenize=model.tokenize,
        mesh=mesh,
        fps=config.sample.fps,
        settings=settings_of(config),
        step=step,
        conditioning=configuration.conditioning_of(config),
    )


def load(run: str | Path, *, mesh: Mesh | None = None) -> Pipeline:
    """Loads the averaged parameters of a run folder's newest checkpoint: `load("runs/x")(["a prompt"], seed=0)`.

    Raises:
        InputError: no run folder, no checkpoint, or a checkpoint that does not fit the config.
    """
    config = configuration.read_config(run)
    mesh = make_mesh() if mesh is None else mesh
    if config.pretrained.folder:
        from vdm_jax.generation.finetune import load_finetuned  # which builds on this file

        return load_finetuned(run, config, mesh)
    step, params = load_averaged(run, config, mesh)
    graphdef = nnx.split(configuration.abstract_model(config))[0]
    return dataclasses.replace(make_pipeline(config, graphdef, params, mesh, step), origin=str(run))
