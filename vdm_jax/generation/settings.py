"""How a video is drawn: the settings of a sampler, and what they must fit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import configuration
from vdm_jax.diffusion.grids import make_grid
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Int

RESPECT = ("replace", "reconstruct", "concat")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a video is drawn; all but the values of the two weights are fixed when the sampler is compiled.

    `grid_options` are those of the grid (`diffusion.grids`), as pairs; `free_init` is the number of rounds of sampling,
    each from noise that holds something of what the one before drew (`diffusion.free_init`: 3; 1 is sampling as usual).
    Steps of one length (`ddim_strided`) are for the whole of a linspace or trailing grid; else they become `ddim`'s.
    The last five are for what is known: `strength`, the time to begin at; how to `respect` it; the weight of
    `reconstruction` guidance (`diffusion.known`); the noise put on what a network is told, `known_noise`
    (`diffusion.conditioning`); and whether the known part stays `exact`, or is drawn by the network, too.
    """

    steps: int = 32
    solver: str = "ddim"
    eta: float | int = 0.0
    grid: str = "uniform"
    grid_options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    guidance: float | int = 3.0
    rescale: float | int = 0.0
    interval: Sequence[float | int] = (0.0, 1.0)
    clip: str | None = "static"
    free_init: int = 1
    strength: float | int = 1.0
    respect: str = "replace"
    reconstruction: float | int = 10.0
    known_noise: float | int = 0.0
    exact: bool = True

    def __post_init__(self):
        if self.solver == "ddim_strided" and (self.grid not in ("linspace", "trailing") or self.strength != 1):
            object.__setattr__(self, "solver", "ddim")
        for name in ("grid_options", "interval"):  # hashable, as it is compiled for
            pairs = getattr(self, name)
            object.__setattr__(self, name, tuple(pairs.items() if isinstance(pairs, Mapping) else pairs))
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise InputError(f"guidance={self.guidance} must not be negative (1 is none)")
        if not 0 < self.strength <= 1:
            raise InputError(f"strength={self.strength} must be above 0 and at most 1 (noise alone)")
        if self.free_init < 1:
            raise InputError(f"free_init={self.free_init} must be at least 1 (the rounds of sampling)")
        if self.free_init > 1 and self.strength < 1:
            raise InputError(f"free_init={self.free_init} begins with noise alone, and needs strength=1")
        if self.respect not in RESPECT:
            raise InputError(f"respect={self.respect!r} must be one of {', '.join(RESPECT)}")
        if not 0 <= self.reconstruction < float("inf"):
            raise InputError(f"reconstruction={self.reconstruction} must not be negative")
        if not 0 <= self.known_noise < 1:
            raise InputError(f"known_noise={self.known_noise} must be at least 0 and below 1")


def check_sampling(
    settings: Settings, process: Process, prompts: Sequence[str], tokenize: Callable[[str], np.ndarray]
) -> Int[np.ndarray, "B L"]:
    """The prompts' tokens. Raises InputError where a setting does not fit the process, or a prompt the encoder."""
    if not prompts:
        raise InputError('prompts=[] must hold at least one prompt ("" is unconditional)')
    if any(prompts) and tokenize("").size == 0:
        raise InputError(f"prompt={next(filter(None, prompts))[:40]!r}: this model takes no text")
    times = grid_of(settings, process)
    jax.eval_shape(lambda: make_table(settings.solver, times, process, float(settings.eta)))  # for its checks alone
    guided(lambda *_: None, process, "v", rescale=settings.rescale, interval=settings.interval)
    clipped(lambda *_: None, process, settings.clip)
    if settings.free_init > 1 and process.alpha_sigma(jnp.float32(1))[0] == 0:
        raise InputError(
            f"free_init={settings.free_init} needs a process that leaves something of the video at t = 1; "
            f"{type(process).__name__} ends in noise alone"
        )
    return np.stack([tokenize(prompt) for prompt in prompts])


def grid_of(settings: Settings, process: Process) -> Float[Array, "points"]:
    """The times to sample at: of the grid those below the strength, and the strength itself before them."""
    times = make_grid(settings.grid, settings.steps, process, **dict(settings.grid_options))
    if settings.strength == 1:
        return times
    return jnp.concatenate([jnp.float32([settings.strength]), times[times < settings.strength]])


def settings_of(config) -> Settings:
    """How a training config's samples are drawn."""
    values = {
        field.name: config.sample[field.name] for field in dataclasses.fields(Settings) if field.name in config.sample
    }
    respect = "concat" if configuration.conditioning_of(config) else "replace"
    return Settings(**values | {"interval": tuple(values["interval"]), "respect": respect})


def check_samples(config) -> None:
    """Raises InputError where the sheets of samples that a training config asks for could not be drawn."""
    if (factor := config.known.downsample) > 1:
        raise InputError(f"sample.prompts must be (): known.downsample={factor} enlarges videos, and draws none")
    tokenize = configuration.abstract_model(config).tokenize
    check_sampling(settings_of(config), configuration.process_of(config), config.sample.prompts, tokenize)
