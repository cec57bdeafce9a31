"""What a config means: every key with its default, and the objects that a config stands for.

Experiments in `configs/` start from `default_config()` and change what they need; it is locked, so a misspelt key
is an error. The other packages take plain arguments and know nothing of configs.
"""

import functools
import json
from pathlib import Path
from typing import Any

import ml_collections
from flax import nnx

from vdm_jax.diffusion.conditioning import Conditioning
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.errors import InputError
from vdm_jax.files import write_text
from vdm_jax.models.denoiser import Denoiser
from vdm_jax.models.keys import Keys
from vdm_jax.training.optimizer import learning_rate, make_optimizer


def default_config() -> ml_collections.ConfigDict:
    """All keys of a training run. Groups marked * are keyword arguments: they take that function's other ones too."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 10_000
    config.batch_size = 32  # over all devices
    config.accumulate = 1  # work through the batch in so many parts
    config.ema = 0.999
    config.max_skipped = 20  # stop after so many non-finite steps in a row, when a line is due
    config.init_from = ""  # a run whose averaged parameters this one begins with, where both have them

    config.data = dict(
        name="moving_digits",  # or "folder", or a TFDS data set
        data_dir="datasets",
        split="train",
        builder_config="",
        video_key="",  # of a TFDS data set; "": found by itself
        caption_key="",
        frames=8,
        height=16,
        width=16,
        channels=1,
        stride=1,
        fps=0.0,  # 0: frames as they come
        crop="random",
        flip=False,
        caption_dropout=0.0,
        joint_images=0,  # stills appended to each clip (Ho et al. 2022, section 4.3.1)
        num_workers=0,
        prefetch=4,
    )
    config.model = ml_collections.ConfigDict(
        dict(
            dtype="float32",  # of the computation; "bfloat16" on accelerators
            unet={},  # * models.unet.UNet
            text=dict(width=64, depth=2, length=64),  # * models.text.ByteEncoder; length 0: no text
        )
    )
    # A published model in the place of `model`, `process` and `objective.prediction`: its folder says all that.
    config.pretrained = dict(
        folder="",
        motion_adapter="",  # "": an image model gets new motion modules, which do nothing yet
        new_motion=dict(),  # * pretrained.unets.NEW_MOTION
        train="all",  # of its U-Net; "time": its time slots; "lora": low-rank changes of its attention
        rank=8,  # of these
        unet=dict(),  # * pretrained.unets.load_unet: remat, attention, per_frame_norm
    )
    config.process = dict(name="cosine")  # * diffusion.process.make_process
    config.objective = dict(prediction="v")  # * diffusion.objective.Objective
    config.known = dict(mixture=dict(), noise=0.0, downsample=1)  # * diffusion.conditioning.Conditioning; {}: not told
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
    config.profile = dict(start=0, steps=0)  # trace so many steps from this one on
    config.lock()  # before the groups are opened: it locks what it holds
    for group in ("model", "process", "objective"):
        _open(config[group])
    _open(config.optimizer.options)
    for group in (config.known.mixture, config.pretrained.new_motion, config.pretrained.unet):
        _open(group)
    return config


def _open(group: ml_collections.ConfigDict) -> None:
    """Keyword groups take further keys; the function that they are for checks them."""
    for value in group.values():
        if isinstance(value, ml_collections.ConfigDict):
            _open(value)
    group.unlock()


# The smallest value of numbers that are counted with.
_AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "max_skipped": 1,
    "log_every": 1,
    "seed": 0,
    "data.fps": 0,
    "data.num_workers": 0,
    "data.prefetch": 0,
    "data.joint_images": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 0,
    "sample.every": 0,
    "sample.seed": 0,
    "profile.start": 0,
    "profile.steps": 0,
}


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a config file that gave a group anew left keys out, or has some that nothing reads."""
    _check_group("config", config, default_config())


def _check_group(name: str, group: Any, default: ml_collections.ConfigDict) -> None:
    if not isinstance(group, ml_collections.ConfigDict):
        raise InputError(f"{name}={group!r} must be a group with the keys {', '.join(default)}")
    if not default.is_locked:  # its function checks it
        return
    if missing := [key for key in default if key not in group]:
        raise InputError(f"{name}.{missing[0]} is not there: a group that is given anew needs all its keys")
    if unknown := [key for key in group if key not in default]:
        raise InputError(f"{name}.{unknown[0]} is not known; {name} has {', '.join(default)}")
    for key, value in default.items():
        if isinstance(value, ml_collections.ConfigDict):
            _check_group(f"{name}.{key}", group[key], value)


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for counts that nothing can be counted with; what takes the other values checks them."""
    values = flatten(config.to_dict())
    for key, least in _AT_LEAST.items():
        if values[key] is None or values[key] < least:
            raise InputError(f"config.{key}={values[key]} must be at least {least}")
    for key in ("seed", "sample.seed"):
        if values[key] >= 2**32:
            raise InputError(f"config.{key}={values[key]} must be below 2**32")
    if not 0 <= config.ema < 1:
        raise InputError(f"config.ema={config.ema} must be at least 0 and below 1")


def make_model(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> Denoiser:
    """Text encoder and trunk of a config. Raises InputError for a network that is loaded, or that cannot be."""
    if config.pretrained.folder:
        raise InputError(f"pretrained.folder={config.pretrained.folder}: this needs a network that a config describes")
    text = config.model.text.to_dict()
    try:
        return Denoiser(
            channels=config.data.channels,
            unet=config.model.unet.to_dict(),
            text=text if text.get("length") else None,
            told=conditioning_of(config) is not None,
            dtype=config.model.dtype,
            rngs=rngs,
        )
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"config.model does not fit the network: {error}") from error


def abstract_model(config: ml_collections.ConfigDict) -> Denoiser:
    """A config's model with shapes in the place of arrays; kept, as it takes half a second: read it, change nothing."""
    groups = {name: config[name].to_dict() for name in ("model", "known", "pretrained")}
    groups["data"] = {name: config.data[name] for name in ("channels", "height", "width")}
    return _abstract_model(json.dumps(groups))


@functools.lru_cache(maxsize=8)
def _abstract_model(config: str) -> Denoiser:
    return nnx.eval_shape(lambda: make_model(ml_collections.ConfigDict(json.loads(config)), Keys(0)))


def process_of(config: ml_collections.ConfigDict) -> Process:
    """The diffusion process of a config."""
    process = make_process(**config.process.to_dict())
    if process.frame_correlation and config.data.joint_images:
        raise InputError(
            f"process.frame_correlation={process.frame_correlation} must be 0 with data.joint_images="
            f"{config.data.joint_images}: the noise of a still is its own"
        )
    return process


def objective_of(config: ml_collections.ConfigDict) -> Objective:
    """The training objective of a config."""
    try:
        return Objective(**config.objective.to_dict())
    except TypeError as error:
        raise InputError(f"config.objective={config.objective.to_dict()}: {error}") from error


def conditioning_of(config: ml_collections.ConfigDict) -> Conditioning | None:
    """What a config's network is trained to be told of the video; None where it is told nothing."""
    if not config.known.mixture:
        for name, nothing in (("noise", 0), ("downsample", 1)):
            if (value := config.known[name]) != nothing:
                raise InputError(f"known.{name}={value} needs known.mixture: without it the network is told nothing")
        return None
    conditioning = Conditioning(**config.known.to_dict())
    for name in ("height", "width"):
        if config.data[name] % conditioning.downsample:
            size, factor = config.data[name], conditioning.downsample
            raise InputError(f"data.{name}={size} must be a multiple of known.downsample={factor}")
    return conditioning


def optimizer_of(config: ml_collections.ConfigDict):
    """(gradient transformation, learning-rate schedule) of a config."""
    group = config.optimizer
    schedule = learning_rate(
        peak=group.learning_rate,
        warmup=group.warmup,
        steps=config.steps,
        decay=group.decay,
        final=group.final,
    )
    return make_optimizer(group.name, schedule, clip=group.clip, **group.options.to_dict()), schedule


def source_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keyword arguments of `data.source.make_source`."""
    data = config.data
    return dict(
        name=data.name,
        split=data.split,
        data_dir=data.data_dir,
        builder_config=data.builder_config or None,
        video_key=data.video_key or None,
        caption_key=data.caption_key or None,
        frames=data.frames,
        size=(data.height, data.width),
        stride=data.stride,
        fps=data.fps or None,
        crop=data.crop,
        seed=config.seed,
    )


# Keys that may change between the sessions of one run: they leave the updates before as they are. `steps` is the length
# of a cosine decay, too: more of them take the rate up again.
FREE_KEYS = (
    "steps",
    "log_every",
    "tensorboard",
    "checkpoint",
    "sample",
    "profile",
    "mesh",
    "max_skipped",
    "data.data_dir",
    "init_from",
    "pretrained.folder",
    "pretrained.motion_adapter",
    "data.num_workers",
    "data.prefetch",
)


def is_free(key: str) -> bool:
    """Whether a key, such as data.fps, is one of FREE_KEYS or in such a group."""
    return key.split(".")[0] in FREE_KEYS or key in FREE_KEYS


def check_run(run: Path, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where a run folder is there, and belongs to another training."""
    if not (run / "config.json").exists():
        return
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
    """The config of a run folder.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = Path(run) / "config.json"
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is no run folder: it holds no config.json (train with --workdir={run})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    default = default_config()
    missing = [key for key in default if not isinstance(values, dict) or key not in values]
    if missing and set(missing) <= {"known", "pretrained", "init_from"}:  # a run of before there were these
        values |= {key: default.to_dict()[key] for key in missing}
    elif missing:
        raise InputError(f"{path} is not the config of a run: it lacks {', '.join(missing)}")
    return ml_collections.ConfigDict(values)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; a group without keys leaves nothing."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
