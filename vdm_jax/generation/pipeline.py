"""From prompts to videos: a trained run as a function."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import configuration
from vdm_jax.diffusion.grids import make_grid
from vdm_jax.diffusion.guidance import guided
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import initial_noise, sample
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.errors import InputError
from vdm_jax.models.text import Encoded
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import activation_layout, batch_sharding, shardings
from vdm_jax.training.checkpoints import restore_ema
from vdm_jax.typing import Array, Float, Int, Params


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a video is drawn; all but `guidance`'s value are fixed when the sampler is compiled."""

    steps: int = 32
    solver: str = "ddim"
    eta: float | int = 0.0
    grid: str = "uniform"
    guidance: float | int = 3.0
    rescale: float | int = 0.0
    interval: tuple[float | int, float | int] = (0.0, 1.0)
    clip: str | None = "static"

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise InputError(f"guidance={self.guidance} must not be negative (1 is none)")


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A trained model, ready to sample.

    `shape` is that of one video (T, H, W, C); `tokenize` turns a prompt into the tokens of its text encoder.
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

    def __call__(
        self, prompts: Sequence[str], *, seed: int = 0, batch_size: int = 16, **changes
    ) -> Float[np.ndarray, "B T H W C"]:
        """Draws one video for each prompt, float32 in [-1, 1]; `changes` are fields of `Settings`.

        The i-th video depends on its prompt, the seed and i alone, not on the batch or the number of devices
        (up to the rounding of differently shaped matrix products).
        """
        return np.concatenate(list(self.batches(prompts, seed=seed, batch_size=batch_size, **changes)))

    def batches(
        self, prompts: Sequence[str], *, seed: int = 0, batch_size: int = 16, first: int = 0, **changes
    ) -> Iterator[Float[np.ndarray, "B T H W C"]]:
        """The same, a batch at a time; `first` is the number of the first video (for a part of a longer list)."""
        settings, tokens = self.check(prompts, seed=seed, batch_size=batch_size, **changes)
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-min(batch_size, len(prompts)) // ways) * ways  # every batch is full: one compilation
        draw = _compile(
            self.graphdef,
            self.process,
            self.prediction,
            self.shape,
            self.mesh,
            dataclasses.replace(settings, guidance=0.0),
            settings.guidance != 1,
        )
        null = self.tokenize("")
        for start in range(0, len(prompts), size):
            part = tokens[start : start + size]
            count = len(part)
            part = np.concatenate([part, np.broadcast_to(null, (size - count, *null.shape))])
            index = first + start + np.arange(size)
            part, index = jax.device_put((part, index), batch_sharding(self.mesh))
            drawn = draw(self.params, part, null, index, np.uint32(seed), float(settings.guidance))
            yield np.asarray(drawn)[:count]

    def check(
        self, prompts: Sequence[str], *, seed: int = 0, batch_size: int = 16, **changes
    ) -> tuple[Settings, Int[np.ndarray, "B L"]]:
        """The settings that `changes` lead to, and the prompts' tokens; draws nothing.

        Raises:
            InputError: what `batches` could not be called with.
        """
        if not 0 <= seed < 2**32:
            raise InputError(f"seed={seed} must be at least 0 and below 2**32")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        try:
            settings = dataclasses.replace(self.settings, **changes)
        except TypeError:
            known = [field.name for field in dataclasses.fields(Settings)]
            unknown = [name for name in changes if name not in known]
            raise InputError(f"{unknown[0]}: no such setting; there are {', '.join(known)}") from None
        return settings, check_sampling(settings, self.process, prompts, self.tokenize)


def check_sampling(
    settings: Settings, process: Process, prompts: Sequence[str], tokenize: Callable[[str], np.ndarray]
) -> Int[np.ndarray, "B L"]:
    """The prompts' tokens. Raises InputError where a setting does not fit the process, or a prompt the encoder."""
    if not prompts:
        raise InputError('prompts=[] must hold at least one prompt ("" is unconditional)')
    make_table(settings.solver, make_grid(settings.grid, settings.steps, process), process, float(settings.eta))
    guided(lambda *_: None, process, "v", **_guidance(settings))
    return np.stack([tokenize(prompt) for prompt in prompts])


def _guidance(settings: Settings) -> dict:
    return {name: getattr(settings, name) for name in ("rescale", "interval", "clip")}


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
    """The jitted sampler at the given settings; parameters and the guidance weight stay arguments."""
    layout = activation_layout(mesh)
    times = make_grid(settings.grid, settings.steps, process)

    def draw(params, tokens, null, index, seed, guidance) -> Array:
        model = nnx.merge(graphdef, params)
        batch = tokens.shape[0]
        text = null_text = None
        if model.text is not None:
            text = model.encode(tokens)
            null_text = model.encode(null[None])
            both = Encoded(
                *(jnp.concatenate([jnp.broadcast_to(n, c.shape), c]) for n, c in zip(null_text, text, strict=True))
            )

        def predict(z, network_time, drop):
            condition = text if text is None or z.shape[0] == batch else both
            return model(z, network_time, condition, layout=layout)

        denoise = guided(
            predict,
            process,
            prediction,
            weight=guidance if with_guidance else 1.0,
            **_guidance(settings),
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)
        z = initial_noise(keys, shape, process)
        video = sample(denoise, z, times, process, solver=settings.solver, eta=settings.eta, keys=keys)
        return jnp.clip(video, -1, 1)

    # Whole on every process, for any of them to write.
    return jax.jit(draw, out_shardings=NamedSharding(mesh, P()))


def settings_of(config) -> Settings:
    """How a training config's samples are drawn."""
    values = {field.name: config.sample[field.name] for field in dataclasses.fields(Settings)}
    return Settings(**values | {"interval": tuple(values["interval"])})


def check_samples(config) -> None:
    """Raises InputError where the sheets of samples that a training config asks for could not be drawn."""
    tokenize = nnx.eval_shape(lambda: configuration.make_model(config, nnx.Rngs(0))).tokenize
    check_sampling(settings_of(config), configuration.process_of(config), config.sample.prompts, tokenize)


def make_pipeline(config, graphdef: nnx.GraphDef, params: Params, mesh: Mesh, step: int) -> Pipeline:
    """A pipeline from a training config and (averaged) parameters."""
    data = config.data
    model = nnx.eval_shape(lambda: configuration.make_model(config, nnx.Rngs(0)))
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
    )


def load(run: str | Path, *, mesh: Mesh | None = None) -> Pipeline:
    """Loads the averaged parameters of a run folder's newest checkpoint: `load("runs/x")(["a prompt"], seed=0)`.

    Raises:
        InputError: no run folder, no checkpoint, or a checkpoint that does not fit the config.
    """
    config = configuration.read_config(run)
    mesh = make_mesh() if mesh is None else mesh
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: configuration.make_model(config, nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(abstract)
    sharded = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings(mesh, abstract)
    )
    step, params = restore_ema(Path(run) / "checkpoints", sharded)
    return make_pipeline(config, graphdef, params, mesh, step)
