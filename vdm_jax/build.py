"""The two ways to a model: `build(config)` and `load(run or published folder)`."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vdm_jax.checkpoints import restore_ema
from vdm_jax.config import read_config
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.errors import InputError
from vdm_jax.frozen import restore_frozen
from vdm_jax.model import Model, TextEncoder
from vdm_jax.models.codec import PIXELS
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.bytes import ByteEncoder
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import sharded
from vdm_jax.pretrained import load as published
from vdm_jax.released import is_released, released_path
from vdm_jax.split import Split, in_common, join, make_split
from vdm_jax.typing import Params, PyTree

# What `kind` names. A new kind is registered here: NETWORKS["mine"] = Mine.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {"unet": UNet}
TEXT_ENCODERS: dict[str, Callable[..., nnx.Module]] = {"bytes": ByteEncoder}


# -------------------------------------------------------------------------------------------- from a config


def build(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Model:
    """Returns the model that a config describes: loaded parts as arrays, new parts as shapes.

    `mesh` is where loaded parts lie (default: all devices along data).

    Raises:
        InputError: a part that cannot be made or loaded, or parts that do not fit each other.
    """
    groups = {name: config[name] for name in ("model", "known", "process", "objective", "seed")}
    groups["data"] = {name: config.data[name] for name in ("frames", "height", "width", "channels", "joint_images")}
    key = ml_collections.ConfigDict(groups).to_json()
    loads = any("folder" in config.model[part] for part in ("network", "text", "codec"))
    # Shapes are kept, as they take half a second: nobody changes a Model.
    model = _build(key, mesh or make_mesh()) if loads else _build_new(key)
    sample = config.sample
    names = ("steps", "eta", "guidance", "rescale")
    if "network" not in model.loaded:  # a loaded network's own scheduler decides the rest
        names += ("solver", "grid", "clip")
    respect = "concat" if model.tell == "channels" else "times" if model.time_per_frame else "replace"
    sampling = {name: sample[name] for name in names} | {"interval": tuple(sample.interval), "respect": respect}
    return dataclasses.replace(model, sampling=dict(model.sampling) | sampling, fps=sample.fps)


def _build(groups: str, mesh: Mesh | None) -> Model:
    config = ml_collections.ConfigDict(json.loads(groups))
    parts, data = config.model, config.data
    loaded = frozenset(name for name in ("network", "text", "codec") if "folder" in parts[name])
    common = dict(mesh=mesh, dtype=parts.dtype, params_dtype="float32")
    params: dict[str, PyTree] = {}
    codec, text, network = PIXELS, None, None
    arguments = _network_arguments(config) if "network" in loaded else {}  # first: these checks take no time
    if "codec" in loaded:
        codec, params["codec"] = _load_part(published.load_codec, "codec", parts.codec.to_dict(), **common)
    elif parts.codec.get("kind") != "pixels":
        raise InputError(f"model.codec.kind={parts.codec.get('kind')!r} must be 'pixels', or model.codec have a folder")
    shape = (data.frames, data.height, data.width, data.channels)
    latents = codec.shape(shape)
    if "text" in loaded:
        text, params["text"] = _load_part(published.load_text, "text", parts.text.to_dict(), **common)
    if "network" in loaded:
        network = _load_part(published.load_network, "network", arguments, seed=config.seed, **common)
        params["network"] = network.params
    modules = nnx.eval_shape(lambda: make_parts(config, latents[3], text))
    for name, module in modules.items():
        params[name] = nnx.to_pure_dict(nnx.split(module)[1])
    if "text" in modules:
        text = TextEncoder(nnx.split(modules["text"])[0], modules["text"].tokenize, *[modules["text"].width] * 2)
    if network:
        _check_loaded(config, network, latents[3], text)
    graphdef = network.graphdef if network else nnx.split(modules["network"])[0]
    module, masks = nnx.merge(graphdef, params["network"]), masks_of(config)
    _check_sizes(module, latents, shape, data.joint_images)
    time_per_frame = objective_of(config).time_per_frame or (masks is not None and masks.tell == "times")
    if time_per_frame and getattr(module, "folds_frames", False):
        raise InputError("a time for each frame needs a network with patch_time=1 and resample='space'")
    return Model(
        network=graphdef,
        text=text,
        codec=codec,
        process=network.schedule.process if network else process_of(config),
        prediction=network.schedule.prediction if network else objective_of(config).prediction,
        shape=shape,
        fps=8.0,
        params=params,
        masks=masks,
        time_per_frame=time_per_frame,
        text_per_frame=network is not None and text is not None,
        sampling=network.sampling if network else {},
        unet_config=network.config if network else None,
        loaded=loaded,
    )


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


@functools.lru_cache(maxsize=8)
def _build_new(groups: str) -> Model:
    return _build(groups, None)


def make_parts(
    config: ml_collections.ConfigDict, channels: int, text: TextEncoder | None = None
) -> dict[str, nnx.Module]:
    """Makes the new parts of a config, the text encoder first, with the random numbers of its seed.

    Args:
        channels: of a latent.
        text: the loaded text encoder, if there is one.

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


def new_params(config: ml_collections.ConfigDict, model: Model) -> Params:
    """Computes the parameters of all new parts; to be called under `jax.jit`."""
    text = model.text if "text" in model.loaded else None
    modules = make_parts(config, model.latent_shape[3], text)
    return {name: nnx.to_pure_dict(nnx.split(module)[1]) for name, module in modules.items()}


def _make(kinds: Mapping[str, Callable], part: str, group: ml_collections.ConfigDict, **common: Any) -> nnx.Module:
    arguments = group.to_dict()
    kind = arguments.pop("kind", None)
    if kind not in kinds:
        names = ", ".join([*kinds, *(["none"] if part == "text" else [])])
        raise InputError(f"model.{part}.kind={kind!r} must be one of {names}, or model.{part} have a folder")
    try:
        return kinds[kind](**common | arguments)
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"config.model.{part} does not fit {kind!r}: {error}") from error


def _load_part(load: Callable, part: str, group: Mapping[str, Any], **common: Any) -> Any:
    arguments = {key: value for key, value in group.items() if key != "kind"}
    try:
        return load(**arguments, **common)
    except TypeError as error:
        raise InputError(f"config.model.{part}={arguments}: {error}") from error


def _network_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `load_network`: an image network without an adapter gets new motion modules."""
    arguments = config.model.network.to_dict()
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


def _check_loaded(config: ml_collections.ConfigDict, network, channels: int, text: TextEncoder | None) -> None:
    """Raises InputError for parts or settings that do not fit a loaded network."""
    folder = config.model.network.folder
    if config.data.joint_images or config.known.mixture:
        raise InputError("data.joint_images and known.mixture are not for a loaded network: set them to 0 and {}")
    if config.process.to_dict() != {"name": "cosine"}:
        raise InputError(f"process={config.process.to_dict()} is not for a loaded network, which brings its own")
    if channels != network.config["out_channels"]:
        raise InputError(
            f"latents of {channels} channels do not fit the network in {folder}, which draws "
            f"{network.config['out_channels']}: is model.codec the autoencoder of the same folder?"
        )
    width = network.config["cross_attention_dim"]
    if text is None or text.width != width:
        found = "none" if text is None else text.width
        raise InputError(f"model.text has width {found}, but the network in {folder} reads texts of width {width}")


def process_of(config: ml_collections.ConfigDict) -> Process:
    """Returns the diffusion process of a config."""
    process = make_process(**config.process.to_dict())
    if process.frame_correlation and config.data.joint_images:
        raise InputError(
            f"process.frame_correlation={process.frame_correlation} must be 0 with data.joint_images="
            f"{config.data.joint_images}: the noise of a still is its own"
        )
    return process


def objective_of(config: ml_collections.ConfigDict) -> Objective:
    """Returns the training objective of a config."""
    try:
        return Objective(**config.objective.to_dict())
    except TypeError as error:
        raise InputError(f"config.objective={config.objective.to_dict()}: {error}") from error


def masks_of(config: ml_collections.ConfigDict) -> MaskMixture | None:
    """Returns the masks that a config's network is trained on, None where it is not conditioned on known pixels."""
    if not config.known.mixture:
        for name, default in (("noise", 0), ("downsample", 1), ("tell", "channels")):
            if (value := config.known[name]) != default:
                raise InputError(f"known.{name}={value} needs known.mixture, the masks to train on")
        return None
    masks = MaskMixture(**config.known.to_dict())
    for name in ("height", "width"):
        if config.data[name] % masks.downsample:
            size, factor = config.data[name], masks.downsample
            raise InputError(f"data.{name}={size} must be a multiple of known.downsample={factor}")
    return masks


# ------------------------------------------------------------------------------------------- from a folder


def load(path: str | Path, *, mesh: Mesh | None = None, **options: Any) -> Model:
    """Loads a run folder, or the folder of a published model (`pretrained.load.load_published` has the options).

    Of a run the averaged parameters of the newest checkpoint are read.

    Raises:
        InputError: no such folder, no checkpoint, a checkpoint that does not fit the config, or an unknown option.
    """
    if (Path(path) / "model_index.json").exists():
        return published.load_published(path, mesh=mesh, **options)
    if options:
        raise InputError(f"{path} is a run, which has no option {min(options)}")
    model, trained, split = load_trained(path, mesh)
    return dataclasses.replace(model, params=join(trained, split.frozen))


def load_trained(run: str | Path, mesh: Mesh | None = None) -> tuple[Model, Params, Split]:
    """Returns the model of a run before training, the averaged values of what was trained, and the split.

    Raises:
        InputError: no run folder, no checkpoint, or a checkpoint that does not fit the config.
    """
    config = read_config(run)
    mesh = mesh or make_mesh()
    model = build(config, mesh)
    model = dataclasses.replace(model, params=restore_frozen(run, model.params, mesh))
    split = split_of(config, model)
    abstract = sharded(split.trained, mesh)
    if not is_released(json.loads((Path(run) / "config.json").read_text())):
        step, trained = restore_ema(Path(run) / "checkpoints", abstract)
    else:
        step, trained = _restore_released(run, abstract, own="network" not in model.loaded)
    return dataclasses.replace(model, step=step, origin=str(run)), trained, split


def _restore_released(run: str | Path, abstract: PyTree, *, own: bool) -> tuple[int, Params]:
    """Reads averaged parameters under their names of version 0.1.0."""
    flat = flatten_dict(abstract)
    older = {}
    for path in flat:
        words = released_path("/".join(map(str, path)), own=own).split("/")
        older[path] = tuple(int(word) if word.isdigit() else word for word in words)
    step, trained = restore_ema(
        Path(run) / "checkpoints", unflatten_dict({older[path]: leaf for path, leaf in flat.items()})
    )
    trained = flatten_dict(trained)
    return step, unflatten_dict({path: trained[older[path]] for path in flat})


def split_of(config: ml_collections.ConfigDict, model: Model) -> Split:
    """Divides the parameters of a config's model into trained and frozen ones."""
    parts, rank = config.train.parts, config.train.rank
    if parts == "lora" and _has_new_motion(config):
        raise InputError("train.parts='lora' on an image model needs a motion_adapter: 'time' trains new ones")
    make_new = functools.partial(new_params, config, model)
    split = make_split(model.params, parts, rank, seed=config.seed, loaded=model.loaded, make_new=make_new)
    if "codec" in split.trained:
        raise InputError(f"train.parts={parts!r} matches the codec, which the denoising loss does not train")
    return split


def _has_new_motion(config: ml_collections.ConfigDict) -> bool:
    return "folder" in config.model.network and _network_arguments(config).get("new_motion") is not None


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
    own = {
        name: model.params[name] for name in ("network", "text") if name in model.params and name not in model.loaded
    }
    common = in_common(own, {name: base.params.get(name, {}) for name in own}, f"init_from={run}")
    count = len(jax.tree.leaves(own))
    logging.info("begins with %d of its %d arrays from %s at step %d", len(common), count, run, base.step)
    return dataclasses.replace(model, params=unflatten_dict(flatten_dict(model.params) | common))
