"""The keys of a config with their defaults, their checks, and the file of a run folder.

Experiments in `configs/` start from `default_config()` and change what they need; it is locked, so a misspelt key is an
error. `build` makes objects of a config; the other packages take plain arguments and know nothing of configs.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import ml_collections

from vdm_jax.errors import InputError
from vdm_jax.files import write_text
from vdm_jax.released import is_released, translate_config


def default_config() -> ml_collections.ConfigDict:
    """Returns all keys of a training run.

    A group marked * is passed to the named function as keyword arguments; any other argument of that function may be
    added.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 10_000
    config.batch_size = 32  # over all devices
    config.accumulate = 1  # parts that a batch is divided into, whose gradients are averaged
    config.ema = 0.999
    config.max_skipped = 20  # stop after this many non-finite steps in a row, when a line is due
    config.init_from = ""  # a run, whose averaged parameters this one begins with where names match

    config.data = dict(
        name="moving_digits",  # or "folder", or a TFDS data set
        data_dir="datasets",
        split="train",
        builder_config="",
        video_key="",  # of a TFDS data set; "": the only video feature
        caption_key="",
        frames=8,
        height=16,
        width=16,
        channels=1,
        stride=1,
        fps=0.0,  # 0: frames as they come
        captions="one",  # of a file in a folder: "first" of several, or "all": a sample draws one; "one": an error
        crop="random",
        flip=False,
        joint_images=0,  # stills that follow each clip (Ho et al. 2022, section 4.3.1)
        num_workers=0,
        prefetch=4,
    )
    # Each part is new, dict(kind=..., arguments), or out of a folder, dict(folder=..., arguments of its loader). A
    # network out of a published folder brings its own process and prediction.
    config.model = dict(
        dtype="float32",  # of the computation; "bfloat16" on accelerators
        network=dict(kind="unet"),  # * models.unet.UNet; build.NETWORKS has all kinds
        text=dict(kind="bytes", width=64, depth=2, length=64),  # * models.text.bytes.ByteEncoder; kind "none": no text
        codec=dict(kind="pixels"),
    )
    # Which parameters are trained: "all" of the network, its "time" slots, its "attention", "lora" (changes of low
    # `rank` to its attention), or a regular expression on parameter paths.
    config.train = dict(parts="all", rank=8)
    config.process = dict(name="cosine")  # * diffusion.process.make_process
    config.objective = dict(prediction="v")  # * diffusion.objective.Objective
    # * diffusion.known.MaskMixture; an empty mixture: the network is not conditioned on known pixels
    config.known = dict(mixture=dict(), noise=0.0, downsample=1, tell="channels")
    config.optimizer = dict(
        name="adamw", learning_rate=1e-3, warmup=200, decay="cosine", final=0.0, clip=1.0, options=dict()
    )  # options: * the Optax optimizer
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)

    config.log_every = 50
    config.tensorboard = True  # where TensorFlow is installed
    config.checkpoint = dict(every=1000, keep=2, keep_every=0)
    config.sample = dict(
        every=0,  # steps between sheets of samples; 0: none
        prompts=(),
        seed=0,
        steps=32,
        solver="ddim",
        eta=0.0,
        grid="uniform",
        guidance=3.0,
        rescale=0.0,
        interval=(0.0, 1.0),
        clip="static",
        fps=8.0,
    )
    config.profile = dict(start=0, steps=0)  # trace this many steps, from step `start` on
    config.lock()  # before the groups are opened: it locks what it holds
    parts = (config.model.network, config.model.text, config.model.codec)
    for group in (*parts, config.process, config.objective, config.optimizer.options, config.known.mixture):
        _open(group)
    return config


def _open(group: ml_collections.ConfigDict) -> None:
    """Unlocks a group, so that it takes further keys; the function that takes them checks them."""
    for value in group.values():
        if isinstance(value, ml_collections.ConfigDict):
            _open(value)
    group.unlock()


# Lower bounds of counts.
_AT_LEAST = dict.fromkeys(("steps", "batch_size", "accumulate", "max_skipped", "log_every"), 1)
_AT_LEAST |= dict.fromkeys(("checkpoint.every", "checkpoint.keep"), 1)
_AT_LEAST |= dict.fromkeys(("seed", "sample.seed", "sample.every", "checkpoint.keep_every"), 0)
_AT_LEAST |= dict.fromkeys(("data.fps", "data.num_workers", "data.prefetch", "data.joint_images"), 0)
_AT_LEAST |= dict.fromkeys(("profile.start", "profile.steps"), 0)


def check_keys(group: Any, name: str = "config", default: ml_collections.ConfigDict | None = None) -> None:
    """Raises InputError where a config file replaced a group and left keys out, or has keys that nothing reads."""
    default = default_config() if default is None else default
    if not isinstance(group, ml_collections.ConfigDict):
        raise InputError(f"{name}={group!r} must be a group with the keys {', '.join(default)}")
    if not default.is_locked:  # the function that takes it checks it
        return
    if missing := [key for key in default if key not in group]:
        raise InputError(f"{name}.{missing[0]} is missing: a group that is replaced needs all its keys")
    if unknown := [key for key in group if key not in default]:
        raise InputError(f"{name}.{unknown[0]} is not known; {name} has {', '.join(default)}")
    for key, value in default.items():
        if isinstance(value, ml_collections.ConfigDict):
            check_keys(group[key], f"{name}.{key}", value)


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for counts out of range; the functions that take the other values check them."""
    values = flatten(config.to_dict())
    for key, least in _AT_LEAST.items():
        if values[key] is None or values[key] < least:
            raise InputError(f"config.{key}={values[key]} must be at least {least}")
    for key in ("seed", "sample.seed"):
        if values[key] >= 2**32:
            raise InputError(f"config.{key}={values[key]} must be below 2**32")
    if not 0 <= config.ema < 1:
        raise InputError(f"config.ema={config.ema} must be at least 0 and below 1")


def source_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the keyword arguments of `data.source.make_source`."""
    data = config.data
    arguments = {key: data[key] for key in ("name", "split", "data_dir", "frames", "stride", "crop", "captions")}
    arguments |= {key: data[key] or None for key in ("builder_config", "video_key", "caption_key", "fps")}
    return arguments | dict(size=(data.height, data.width), seed=config.seed)


# Keys that may change when a run is continued: past updates do not depend on them. `steps` is also the length of a
# cosine decay: with more steps the learning rate rises again.
FREE_KEYS = ("steps", "log_every", "tensorboard", "checkpoint", "sample", "profile", "mesh", "max_skipped")
FREE_KEYS += ("init_from", "data.data_dir", "data.num_workers", "data.prefetch")
FREE_KEYS += ("model.network.folder", "model.network.motion_adapter", "model.text.folder", "model.codec.folder")


def is_free(key: str) -> bool:
    """Returns whether a key, such as data.fps, is one of FREE_KEYS or in a group of them."""
    return key.split(".")[0] in FREE_KEYS or key in FREE_KEYS


def is_run(folder: str | Path) -> bool:
    """Returns whether a folder is of a run, not of a published model."""
    file = Path(folder) / "config.json"
    return file.is_file() and '"model": {' in file.read_text()


def check_run(run: Path, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a run folder exists, and belongs to another training."""
    if not (run / "config.json").exists():
        return
    if is_released(json.loads((run / "config.json").read_text())):
        raise InputError(f"{run} was begun by version 0.1.0, which alone can continue it; this version samples from it")
    old, new = (flatten(json.loads(c.to_json())) for c in (read_config(run), config))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not is_free(key):
            raise InputError(
                f"{run} was started with config.{key}={old.get(key)!r}, not {new.get(key)!r}: "
                "use another workdir, or that value"
            )


def write_config(run: Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json` into a run folder. Raises InputError where it cannot be written."""
    write_text(run / "config.json", json.dumps(json.loads(config.to_json()), indent=2) + "\n")


def read_config(run: str | Path) -> ml_collections.ConfigDict:
    """Reads the config of a run folder; a folder of version 0.1.0 is translated.

    A key that a group lacks, because it is newer than the run, has its default.

    Raises:
        InputError: the config is missing, or cannot be read.
    """
    path = Path(run) / "config.json"
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is no run folder: it holds no config.json (train with --workdir={run})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not the config of a run")
    default, values = default_config(), translate_config(values)
    if missing := [key for key in default if key not in values]:
        raise InputError(f"{path} is not the config of a run: it lacks {', '.join(missing)}")
    return ml_collections.ConfigDict(_with_defaults(values, default))


def _with_defaults(values: dict[str, Any], default: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns a group with the default of each missing key; groups that take any key stay as they are."""
    filled = default.to_dict() | values
    for key, value in default.items():
        if isinstance(value, ml_collections.ConfigDict) and value.is_locked and isinstance(filled[key], dict):
            filled[key] = _with_defaults(filled[key], value)
    return filled


def read_file(file: str | Path) -> ml_collections.ConfigDict:
    """Returns the config of a file in configs/, or of "file.py:argument", for another file to start from.

    Raises:
        InputError: the file cannot be read, or raises an error of its own.
    """
    path, *argument = str(file).split(":", 1)
    try:
        return runpy.run_path(path)["get_config"](*argument)
    except InputError:
        raise
    except Exception as error:  # a config is a program: what it may raise has no limit
        raise InputError(f"config {file} cannot be read: {type(error).__name__}: {error}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": 1} for {"a": {"b": 1}}; a group without keys leaves nothing."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def with_base(
    config: ml_collections.ConfigDict, run: str | Path, folder: str = "", motion_adapter: str = ""
) -> ml_collections.ConfigDict:
    """Returns the config of a run whose published model, or its motion adapter, now lies in another folder.

    Raises:
        InputError: the run has no such part, or its folder is gone and no other is passed.
    """
    parts = [part for part in (config.model.network, config.model.text, config.model.codec) if part.get("folder")]
    base, adapter = parts[0].folder if parts else "", config.model.network.get("motion_adapter")
    for name, moved, old in (("pretrained", folder, base), ("motion_adapter", motion_adapter, adapter)):
        if moved and not old:
            raise InputError(f"--{name}={moved}: {run} was not trained on such a folder")
        if old and not Path(moved or old).is_dir():
            raise InputError(f"{run} needs the folder {moved or old}, which is not there: --{name}=<folder> says where")
    for part in parts:
        part.folder = folder if folder and part.folder == base else part.folder
    if motion_adapter:
        config.model.network.motion_adapter = motion_adapter
    return config
