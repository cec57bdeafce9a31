"""The two ways to a model: `build(config)` and `load(run or published folder)`."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax.checkpoints import restore_ema
from vdm_jax.config import is_run, read_config, with_base
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.errors import InputError
from vdm_jax.frozen import restore_frozen
from vdm_jax.model import Model, TextEncoder
from vdm_jax.models.codec import PIXELS
from vdm_jax.models.dit import DiT
from vdm_jax.models.mmdit import MMDiT
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.bytes import ByteEncoder
from vdm_jax.models.text.classes import ClassTable
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import sharded
from vdm_jax.pretrained import load as published
from vdm_jax.pretrained.folder import is_pipeline, snapshot
from vdm_jax.released import is_released, released_path
from vdm_jax.split import Split, in_common, join, make_split
from vdm_jax.typing import Params, PyTree

# What `kind` names. A new kind is registered here: NETWORKS["mine"] = Mine.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {"unet": UNet, "dit": DiT, "mmdit": MMDiT}
TEXT_ENCODERS: dict[str, Callable[..., nnx.Module]] = {"bytes": ByteEncoder, "classes": ClassTable}
LOADERS = {"network": published.load_network, "text": published.load_text, "codec": published.load_codec}


# -------------------------------------------------------------------------------------------- from a config


def build(config: ConfigDict, mesh: Mesh | None = None) -> Model:
    """Returns the model that a config describes: loaded parts as arrays, new parts as shapes.

    `mesh` is where loaded parts lie (default: all devices along data).

    Raises:
        InputError: a part that cannot be made or loaded, or parts that do not fit each other.
    """
    groups = {name: config[name] for name in ("model", "known", "process", "objective", "seed")}
    groups["data"] = {name: config.data[name] for name in ("frames", "height", "width", "channels", "joint_images")}
    groups["fps"] = config.sample.fps
    key = ConfigDict(groups).to_json()
    loads = any("folder" in config.model[part] for part in LOADERS)
    model = _build.__wrapped__(key, mesh or make_mesh()) if loads else _build(key)
    sample = config.sample
    names = ("steps", "guidance", "rescale")
    if "network" not in model.loaded:  # a loaded network's own scheduler decides the rest
        names += ("solver", "eta", "grid", "clip")
    respect = "concat" if model.tell == "channels" else "times" if model.time_per_frame else "replace"
    sampling = {name: sample[name] for name in names} | {"interval": tuple(sample.interval), "respect": respect}
    return dataclasses.replace(model, sampling=dict(model.sampling) | sampling)


@functools.lru_cache(maxsize=8)  # shapes take half a second, and nobody changes a Model
def _build(groups: str, mesh: Mesh | None = None) -> Model:
    config = ConfigDict(json.loads(groups))
    parts, data = config.model, config.data
    loaded = frozenset(name for name in LOADERS if "folder" in parts[name])
    params: dict[str, PyTree] = {}
    codec, text, sizes = PIXELS, None, None
    fields: dict[str, Any] = {"masks": masks_of(config)}
    if "network" in loaded:
        _network_arguments(config)  # first: these checks take no time
    if "codec" in loaded:
        codec, params["codec"] = _load_part(config, "codec", mesh)
    elif parts.codec.get("kind") != "pixels":
        raise InputError(f"model.codec.kind={parts.codec.get('kind')!r} must be 'pixels', or model.codec have a folder")
    shape = (data.frames, data.height, data.width, data.channels)
    latents = codec.shape(shape)
    if "text" in loaded:
        text, params["text"] = _load_part(config, "text", mesh)
    if "network" in loaded:
        own, params["network"], sizes = _load_part(config, "network", mesh)
        fields |= published.at_size(own, shape)
    modules = nnx.eval_shape(lambda: make_parts(config, latents[3], text))
    for name, module in modules.items():
        params[name] = nnx.to_pure_dict(nnx.split(module)[1])
    if "text" in modules:
        text = TextEncoder(nnx.split(modules["text"])[0], modules["text"].tokenize, *[modules["text"].width] * 2)
    if sizes:
        _check_loaded(config, sizes, latents[3], text)
    else:
        prediction = objective_of(config).prediction
        fields |= dict(network=nnx.split(modules["network"])[0], process=process_of(config), prediction=prediction)
    module, masks = nnx.merge(fields["network"], params["network"]), fields["masks"]
    if "network" not in loaded and getattr(module, "scalar_width", None):
        fields["scalars"] = (config.fps,)
    for name, size in (("height", data.height), ("width", data.width)):
        if masks and size % masks.downsample:
            raise InputError(f"data.{name}={size} must be a multiple of known.downsample={masks.downsample}")
    _check_sizes(module, latents, shape, data.joint_images)
    time_per_frame = objective_of(config).time_per_frame or (masks is not None and masks.tell == "times")
    time_per_frame |= fields.pop("time_per_frame", False)
    if time_per_frame and getattr(module, "folds_frames", False):
        raise InputError("a time for each frame needs a network with patch_time=1 and resample='space'")
    common = dict(shape=shape, fps=config.fps, params=params, time_per_frame=time_per_frame, loaded=loaded)
    return Model(text=text, codec=codec, **common, **fields)


def _check_sizes(network: nnx.Module, latents: tuple[int, ...], video: tuple[int, ...], stills: int) -> None:
    """Raises InputError for latents that the network cannot draw."""
    if stills and latents[0] != video[0]:
        raise InputError(f"data.joint_images={stills} must be 0: a latent of the autoencoder stands for several frames")
    try:
        network.check(*latents[:3], stills)
    except InputError as error:
        if latents == video:
            raise
        raise InputError(f"latents of {' × '.join(map(str, latents[:3]))}: {error}") from None


def make_parts(config: ConfigDict, channels: int, text: TextEncoder | None = None) -> dict[str, nnx.Module]:
    """Makes the new parts of a config, the text encoder first, with the random numbers of its seed.

    `channels` are a latent's; `text` is the loaded text encoder, if there is one.

    Raises:
        InputError: an unknown kind, or an argument that does not fit.
    """
    parts, rngs, modules = config.model, Keys(config.seed), {}
    widths = (text.width, text.pooled_width) if text else (0, 0)
    if text is None and parts.text.get("kind") != "none":
        modules["text"] = _make(TEXT_ENCODERS, "text", parts.text, dtype=parts.dtype, rngs=rngs)
        widths = (modules["text"].width,) * 2
    if "folder" not in parts.network:
        masks = masks_of(config)
        known = channels + 1 if masks and masks.tell == "channels" else 0
        sizes = dict(channels_in=channels + known, channels_out=channels, text_width=widths[0], pooled_width=widths[1])
        modules["network"] = _make(NETWORKS, "network", parts.network, **sizes, dtype=parts.dtype, rngs=rngs)
    return modules


def new_params(config: ConfigDict, model: Model) -> Params:
    """Computes the parameters of all new parts; to be called under `jax.jit`."""
    text = model.text if "text" in model.loaded else None
    modules = make_parts(config, model.latent_shape[3], text)
    return {name: nnx.to_pure_dict(nnx.split(module)[1]) for name, module in modules.items()}


def _make(kinds: Mapping[str, Callable], part: str, group: ConfigDict, **common: Any) -> nnx.Module:
    arguments = group.to_dict()
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        names = ", ".join([*kinds, *(["none"] if part == "text" else [])])
        raise InputError(f"model.{part}.kind={kind!r} must be one of {names}, or model.{part} have a folder")
    try:
        return kinds[kind](**common | arguments)
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"config.model.{part} does not fit {kind!r}: {error}") from error


def _load_part(config: ConfigDict, part: str, mesh: Mesh | None) -> tuple:
    """Returns what the loader of a part returns; a part of a run is what the run's checkpoint makes of it."""
    arguments = _network_arguments(config) if part == "network" else config.model[part].to_dict()
    arguments.pop("kind", None)
    folder, name = arguments["folder"], f"config.model.{part}"
    if not is_run(folder):
        try:
            return LOADERS[part](**arguments, mesh=mesh, dtype=config.model.dtype, params_dtype="float32")
        except TypeError as error:
            raise InputError(f"{name}={arguments}: {error}") from error
    run = load(folder, mesh=mesh, **{key: value for key, value in arguments.items() if value and key != "folder"})
    if part not in run.params:
        raise InputError(f"{name}.folder={folder} is a run without a {part} of its own")
    if part != "network":
        return getattr(run, part), run.params[part]
    fields = ("network", "process", "prediction", "masks", "text_per_frame", "null_mask", "scalars", "sampling")
    fields = (*fields, "network_config", "time_per_frame", "weights", "guides_known")
    sizes = run.latent_shape[3], run.text.width if run.text else 0
    return {field: getattr(run, field) for field in fields}, run.params["network"], sizes


def _network_arguments(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `load_network`: an image network without an adapter gets new motion modules."""
    arguments = config.model.network.to_dict()
    if is_run(arguments["folder"]):
        return arguments
    arguments["seed"] = config.seed
    adapter = arguments["motion_adapter"] = arguments.get("motion_adapter") or None
    kind = published.read_config(arguments["folder"])["_class_name"]
    if kind in published.FAMILIES and published.FAMILIES[kind].first_frame:
        raise InputError(f"model.network.folder={arguments['folder']}: training {kind} is not implemented")
    new_motion = arguments.get("new_motion") or None
    if kind == "UNet2DConditionModel" and adapter is None:
        arguments["new_motion"] = new_motion or {}
    elif new_motion:
        raise InputError(f"model.network.new_motion={new_motion} is for an image model without a motion adapter")
    return arguments


def _check_loaded(config: ConfigDict, sizes: tuple[int, int], channels: int, text) -> None:
    """Raises InputError for what does not fit a loaded network of `sizes`, its channels and its texts' width."""
    folder, found = config.model.network.folder, text.width if text else 0
    if config.data.joint_images or config.known.mixture:
        raise InputError("data.joint_images and known.mixture are not for a loaded network: set them to 0 and {}")
    if config.process.to_dict() != {"name": "cosine"}:
        raise InputError(f"process={config.process.to_dict()} is not for a loaded network, which brings its own")
    if channels != sizes[0]:
        raise InputError(
            f"latents of {channels} channels do not fit the network in {folder}, which draws {sizes[0]}: is "
            "model.codec the autoencoder of the same folder?"
        )
    if found != sizes[1]:
        found = found or "none"
        raise InputError(f"model.text has width {found}, but the network in {folder} reads texts of width {sizes[1]}")


def process_of(config: ConfigDict) -> Process:
    """Returns the diffusion process of a config."""
    process, stills = make_process(**config.process.to_dict()), config.data.joint_images
    if (value := process.frame_correlation) and stills:
        reason = "the noise of a still is its own"
        raise InputError(f"process.frame_correlation={value} must be 0 with data.joint_images={stills}: {reason}")
    return process


def objective_of(config: ConfigDict) -> Objective:
    """Returns the training objective of a config."""
    try:
        return Objective(**config.objective.to_dict())
    except TypeError as error:
        raise InputError(f"config.objective={config.objective.to_dict()}: {error}") from error


def masks_of(config: ConfigDict) -> MaskMixture | None:
    """Returns the masks that a config's network is trained on, None where it is not conditioned on known pixels."""
    if not config.known.mixture:
        for name, default in (("noise", 0), ("downsample", 1), ("tell", "channels")):
            if (value := config.known[name]) != default:
                raise InputError(f"known.{name}={value} needs known.mixture, the masks to train on")
        return None
    return MaskMixture(**config.known.to_dict())


# ------------------------------------------------------------------------------------------- from a folder


def load(path: str | Path, *, mesh: Mesh | None = None, **options: Any) -> Model:
    """Loads a run folder, or the folder of a published model (`pretrained.load.load_published` has the options).

    Of a run the averaged parameters of the newest checkpoint are read; its options are those of `config.with_base`.

    Raises:
        InputError: no such folder, no checkpoint, a checkpoint that does not fit the config, or an unknown option.
    """
    if is_pipeline(snapshot(path)):
        try:
            return published.load_published(path, mesh=mesh, **options)
        except TypeError as error:
            raise InputError(f"{path}: {error}") from error
    if not (Path(path) / "config.json").exists():
        raise InputError(
            f"{path} is no run folder: it holds no config.json; nor a published model: it holds no model_index.json "
            "(hf download <name> --local-dir <folder> makes one; of Open-Sora's parts, docs/published.md says how)"
        )
    if unknown := options.keys() - {"folder", "motion_adapter"}:
        raise InputError(f"{path} is a run, which has no option {min(unknown)}: its config decides")
    model, trained, split = load_trained(path, mesh, **options)
    return dataclasses.replace(model, params=join(trained, split.frozen))


def load_trained(run: str | Path, mesh: Mesh | None = None, **moved: str) -> tuple[Model, Params, Split]:
    """Returns the model of a run before training, the averaged values of what was trained, and the split.

    `moved`: where its published model is now (`config.with_base`).

    Raises:
        InputError: no run folder, no checkpoint, or a checkpoint that does not fit the config.
    """
    config = with_base(read_config(run), run, **moved)
    mesh = mesh or make_mesh()
    model = build(config, mesh)
    model = dataclasses.replace(model, params=restore_frozen(run, model.params, mesh))
    split = split_of(config, model)
    flat, there = flatten_dict(sharded(split.trained, mesh)), {}
    released = is_released(json.loads((Path(run) / "config.json").read_text()))
    for path in flat:
        there[path] = _released(path, own="network" not in model.loaded) if released else path
    ema = unflatten_dict({there[path]: leaf for path, leaf in flat.items()})
    step, ema = restore_ema(Path(run) / "checkpoints", ema)
    ema = flatten_dict(ema)
    trained = unflatten_dict({path: ema[there[path]] for path in flat})
    return dataclasses.replace(model, step=step, origin=str(run)), trained, split


def _released(path: tuple, *, own: bool) -> tuple:
    """Returns the path of a parameter in version 0.1.0."""
    words = released_path("/".join(map(str, path)), own=own).split("/")
    return tuple(int(word) if word.isdigit() else word for word in words)


def split_of(config: ConfigDict, model: Model) -> Split:
    """Divides the parameters of a config's model into trained and frozen ones."""
    parts, rank = config.train.parts, config.train.rank
    loaded = "folder" in config.model.network
    if parts == "lora" and loaded and _network_arguments(config).get("new_motion") is not None:
        raise InputError("train.parts='lora' on an image model needs a motion_adapter: 'time' trains new ones")
    make_new = functools.partial(new_params, config, model)
    split = make_split(model.params, parts, rank, seed=config.seed, loaded=model.loaded, make_new=make_new)
    if "codec" in split.trained:
        raise InputError(f"train.parts={parts!r} matches the codec, which the denoising loss does not train")
    return split


def begin_with(model: Model, run: str | Path, mesh: Mesh) -> Model:
    """Initialises a model from a run's averaged parameters where the names match; other parameters stay new.

    A video network so begins as the image network of the run, frame by frame: new time slots end in zeros, and change
    nothing yet (identity initialisation, Singer et al. 2022, section 3.2; Guo et al. 2024, section 4.2).

    Raises:
        InputError: no such run, no common parameter, another shape under a common name, or a model with a loaded
            network.
    """
    if "network" in model.loaded:
        raise InputError(f"init_from={run} must be empty: a loaded network begins as it was loaded")
    base = load(run, mesh=mesh)
    own = {name: tree for name, tree in model.params.items() if name not in model.loaded}
    common = in_common(own, {name: base.params.get(name, {}) for name in own}, f"init_from={run}")
    count = len(jax.tree.leaves(own))
    logging.info("begins with %d of its %d arrays from %s at step %d", len(common), count, run, base.step)
    return dataclasses.replace(model, params=unflatten_dict(flatten_dict(model.params) | common))
