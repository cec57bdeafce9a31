"""How a video is drawn: the settings of a sampler, and what they must fit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.grids import make_grid, make_network_time, pyramid
from vdm_jax.diffusion.guidance import clipped, guided
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sampler import FIRST_NOISE
from vdm_jax.diffusion.solvers import make_table
from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.typing import Array, Float, Int

RESPECT = ("replace", "reconstruct", "concat", "times")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a video is drawn. All but guidance, reconstruction and known_noise are fixed when the sampler is compiled.

    Args:
        solver_options, grid_options: options of the solver (`diffusion.solvers`) and of the grid (`diffusion.grids`),
            as pairs. `strided` is dropped unless the grid is a complete linspace or trailing grid (strength 1).
        eta: noise of the solvers that take it: 0 none, 1 ancestral sampling.
        first_noise: standard deviation of the first z (`diffusion.sampler.noise_to_z`).
        guidance: scale of classifier-free guidance; 1 is none.
        free_init: rounds of sampling (`diffusion.free_init`: 3); 1 is plain sampling.
        pyramid: each frame is this many steps behind the frame before it (Diffusion Forcing); 0: all at once. Needs a
            network with a time for each frame.
        strength: the time to begin at; below 1 the sampler starts from the noised known video.
        respect: how the known part is kept: replacement, reconstruction guidance, channels of the network ("concat"),
            or known frames at t = 0 ("times").
        reconstruction: weight of reconstruction guidance.
        known_noise: standard deviation of the noise on what the network is conditioned on.
        exact: the known part of the result is the known video, bit for bit; otherwise the network draws it, too.
    """

    steps: int = 32
    solver: str = "ddim"
    solver_options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    eta: float | int = 0.0
    grid: str = "uniform"
    grid_options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    first_noise: str = "total"
    guidance: float | int = 3.0
    rescale: float | int = 0.0
    interval: Sequence[float | int] = (0.0, 1.0)
    clip: str | None = "static"
    free_init: int = 1
    pyramid: int = 0
    strength: float | int = 1.0
    respect: str = "replace"
    reconstruction: float | int = 10.0
    known_noise: float | int = 0.0
    exact: bool = True

    def __post_init__(self):
        for name in ("solver_options", "grid_options", "interval"):  # hashable, as programs are compiled for settings
            pairs = getattr(self, name)
            object.__setattr__(self, name, tuple(pairs.items() if isinstance(pairs, Mapping) else pairs))
        if self.grid not in ("linspace", "trailing") or self.strength != 1:
            options = tuple(pair for pair in self.solver_options if pair[0] != "strided")
            object.__setattr__(self, "solver_options", options)
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise InputError(f"guidance={self.guidance} must not be negative (1 is none)")
        if not 0 < self.strength <= 1:
            raise InputError(f"strength={self.strength} must be above 0 and at most 1 (noise alone)")
        if self.first_noise not in FIRST_NOISE:
            raise InputError(f"first_noise={self.first_noise!r} must be one of {', '.join(FIRST_NOISE)}")
        if self.free_init < 1:
            raise InputError(f"free_init={self.free_init} must be at least 1 (the rounds of sampling)")
        if self.free_init > 1 and self.strength < 1:
            raise InputError(f"free_init={self.free_init} begins with noise alone, and needs strength=1")
        if self.solver == "pndm" and self.respect == "replace" and not self.exact:
            raise InputError("exact=False needs another solver: pndm extrapolates the noise on the known part")
        if self.pyramid < 0:
            raise InputError(f"pyramid={self.pyramid} must be at least 0, the steps that a frame is behind")
        if self.respect not in RESPECT:
            raise InputError(f"respect={self.respect!r} must be one of {', '.join(RESPECT)}")
        if not 0 <= self.reconstruction < float("inf"):
            raise InputError(f"reconstruction={self.reconstruction} must not be negative")
        if not 0 <= self.known_noise < 1:
            raise InputError(f"known_noise={self.known_noise} must be at least 0 and below 1")

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """Returns the settings with changes. Raises InputError for an unknown setting."""
        if "grid" in changes:  # the options belong to the other grid
            changes = {"grid_options": (), "first_noise": "total"} | dict(changes)
        if changes.get("solver", self.solver) != self.solver:
            changes = {"solver_options": (), "eta": 0.0} | dict(changes)
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            names = [field.name for field in dataclasses.fields(Settings)]
            unknown = [name for name in changes if name not in names]
            if not unknown:
                raise InputError(f"{changes}: {error}") from None
            raise InputError(f"{unknown[0]}: no such setting; there are {', '.join(names)}") from None

    def check_model(self, model: Model, coarse: int = 1) -> None:
        """Raises InputError for settings that do not fit a model, or a video enlarged by `coarse`."""
        if model.first_frame is not None and (self.strength, self.respect, self.free_init) != (1, "replace", 1):
            raise InputError(
                "strength, respect and free_init are not for this model, which is conditioned on its first frame"
            )
        if self.respect == "concat" and model.tell != "channels":
            raise InputError(
                "respect='concat' needs a run whose network takes known pixels as channels (config.known.mixture); "
                "this one takes replace or reconstruct"
            )
        if not model.time_per_frame and (self.respect == "times" or self.pyramid):
            setting = "respect='times'" if self.respect == "times" else f"pyramid={self.pyramid}"
            raise InputError(
                f"{setting} needs a run whose network takes a time for each frame (config.known.tell='times' or "
                "config.objective.time_per_frame)"
            )
        if self.pyramid and (self.solver != "ddim" or self.strength != 1 or self.free_init != 1):
            raise InputError(f"pyramid={self.pyramid} needs solver='ddim', strength=1 and free_init=1")
        if coarse > 1 and model.codec.channels is not None:
            raise InputError(f"enlarging a video by {coarse} needs a network that draws pixels; this one draws latents")
        if self.respect != "reconstruct" and coarse != model.downsample:
            raise InputError(
                f"respect={self.respect!r} cannot enlarge a video by {coarse}: this run was trained for "
                f"{model.downsample} (config.known.downsample); take reconstruct"
                if coarse > 1
                else f"this run enlarges videos by {model.downsample} (config.known.downsample), and needs one"
            )
        if coarse > 1 and self.respect == "replace":
            raise InputError(f"respect='replace' cannot enlarge a video by {coarse}: take concat or reconstruct")


def check_sampling(settings: Settings, model: Model, prompts: Sequence[str]) -> Int[np.ndarray, "B L"]:
    """Returns the prompts' tokens. Raises InputError for a setting that does not fit the process, or a bad prompt."""
    if not prompts:
        raise InputError('prompts=[] must hold at least one prompt ("" is unconditional)')
    if any(prompts) and model.text is None:
        raise InputError(f"prompt={next(filter(None, prompts))[:40]!r}: this model takes no text")
    process = model.process
    times, _ = grid_of(settings, process, model.latent_shape[0])
    make_table(settings.solver, times, process, float(settings.eta), **dict(settings.solver_options))
    guided(lambda *_: None, process, "v", [None], rescale=settings.rescale, interval=settings.interval)
    clipped(lambda *_: None, process, settings.clip)
    if settings.free_init > 1 and process.alpha_sigma(jnp.float32(1))[0] == 0:
        raise InputError(
            f"free_init={settings.free_init} needs a process that leaves something of the video at t = 1; "
            f"{type(process).__name__} ends in noise alone"
        )
    return np.stack([model.tokenize(prompt) for prompt in prompts])


def grid_of(
    settings: Settings, process: Process, frames: int
) -> tuple[Float[Array, "points *T"], Callable[[Array], Array]]:
    """Returns the times to sample at, and the function from them to the times that the network sees.

    With a strength these are the grid below the strength, with the strength itself as the first time. With a pyramid
    each of the `frames` has its own column of times.
    """
    arguments = (settings.grid, settings.steps, process)
    times = make_grid(*arguments, **dict(settings.grid_options))
    network_time = make_network_time(*arguments, **dict(settings.grid_options))
    if settings.strength < 1:
        times = jnp.concatenate([jnp.float32([settings.strength]), times[times < settings.strength]])
    return (pyramid(times, frames, settings.pyramid) if settings.pyramid else times), network_time
