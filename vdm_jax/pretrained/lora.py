"""LoRA (Hu et al. 2021, arXiv 2106.09685) of images, motion or texts, added to a network's weights as they are read.

For a module, a file holds two matrices, down or A (rank, in) and up or B (out, rank), and maybe a number α; its weight
becomes W + strength · α / rank · B A. The names are those of PEFT, diffusers, kohya or AnimateDiff.
"""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.parallel.sharding import path_name
from vdm_jax.pretrained.folder import Weights, open_safetensors, refuse_pickles, write_folder
from vdm_jax.pretrained.names import Naming, few, torch_name
from vdm_jax.typing import Params

FILE = "pytorch_lora_weights.safetensors"  # the usual one of a folder
METADATA = "lora_adapter_metadata"  # of a file: the settings that PEFT trained with
PEFT = {"lora_down": "lora_A", "lora_up": "lora_B"}
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32")

_NAME = re.compile(
    r"(?:unet\.|lora_unet_|(?P<text>text_encoder\.|lora_te1?_))?"
    r"(?P<module>.+?)"
    r"(?:(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<matrix>A|B|down|up)\.weight|\.alpha)"
)
# What a module is called elsewhere → what networks call it.
_SPELLINGS = (
    (r"^text_model[._]", ""),
    (r"\.processor(?=\.|$)", ""),
    (r"\.temporal_transformer\.", "."),  # this and the next two are AnimateDiff's own
    (r"\.attention_blocks\.0\.", ".attn1."),
    (r"\.attention_blocks\.1\.", ".attn2."),
    (r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj"),
    (r"\.to_out$", ".to_out.0"),
)
# Settings that make more than a product of two matrices.
_MORE = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "alora_invocation_tokens")
_MORE += ("velora_config", "kasa_config", "monteclora_config", "arrow_config")
_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of training; others change the network's own weights, too


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to the weight of a module: `scale · up @ down`."""

    module: str
    down: np.ndarray
    up: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """What a file adds to a U-Net and to a text encoder, at the strength that was asked for."""

    where: str
    unet: tuple[LowRank, ...]
    text: tuple[LowRank, ...]


def parse_lora(text: str) -> tuple[str, float]:
    """(path, strength) of `path` or `path:strength`; a colon that no number follows belongs to the path."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def read_lora(path: str | Path, strength: float | int = 1.0) -> Lora:
    """Reads a safetensors file, or that of a folder.

    Raises:
        InputError: a pickle, tensors of no known form, a matrix without the other, or a setting that is not
            implemented.
    """
    file = _file(Path(path))
    if not math.isfinite(strength):
        raise InputError(f"{file}: strength={strength} must be a finite number")
    tensors = open_safetensors(file)
    names = {name: _NAME.fullmatch(name) for name in sorted(tensors.keys())}
    if not names:
        raise InputError(f"{file} holds no tensors")
    _refuse(
        file,
        "tensors are of no known form; pairs of matrices (A and B, down and up) and alpha are implemented, DoRA, LoHa, "
        "LoKr, biases and middle matrices are not",
        [name for name, known in names.items() if known is None],
    )
    odd = [name for name in names if tensors.get_slice(name).get_dtype() not in DTYPES]
    _refuse(file, f"tensors must be of dtype {', '.join(DTYPES)}", odd)

    modules: dict[str, dict[str, dict[str, Any]]] = {"unet": {}, "text_encoder": {}}
    for name, known in names.items():
        found = modules["text_encoder" if known["text"] else "unet"]
        entry = found.setdefault(_key(known["module"]), {"module": known["module"]})
        role = {"A": "down", "B": "up", None: "alpha"}.get(known["matrix"], known["matrix"])
        if role in entry:
            raise InputError(f"{file}: {name} is there twice, by two names")
        entry[role] = tensors.get_tensor(name)
    settings = _settings(file, tensors.metadata() or {})
    parts = (
        tuple(_low_rank(file, settings[part], strength, **entry) for entry in found.values())
        for part, found in modules.items()
    )
    return Lora(str(file), *parts)


def save_lora(changes: Params, naming: Naming, folder: str | Path) -> None:
    """Writes low-rank changes W + B A of a U-Net's matrices, by PEFT's names, as the file of a folder.

    Args:
        changes: in the place of each matrix (in, out), its `lora_down` (in, rank) and `lora_up` (rank, out).

    Raises:
        InputError: the folder cannot be written.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(changes):
        kernel, _, matrix = path_name(path).rpartition("/")
        module = torch_name(kernel, naming).removesuffix(".weight")
        tensors[f"unet.{module}.{PEFT[matrix]}.weight"] = np.ascontiguousarray(np.asarray(leaf).T)
    write_folder(folder, tensors, name=FILE.removesuffix(".safetensors"))


def merge_lora(where: str, changes: tuple[LowRank, ...], weights: Weights) -> None:
    """Adds changes to the tensors of a network, each when it is read.

    Raises:
        InputError: modules that the network does not have, or of other shapes; the first few.
    """
    names = {_key(name.removesuffix(".weight")): name for name in weights if name.endswith(".weight")}
    absent = [change.module for change in changes if _key(change.module) not in names]
    _refuse(where, "modules are not in the network", absent)
    placed = {names[_key(change.module)]: change for change in changes}
    misshapen = [
        f"{change.module} {change.up.shape} times {change.down.shape}, not {weights.shape(name)}"
        for name, change in placed.items()
        if not _fits(change, weights.shape(name))
    ]
    _refuse(where, "modules are misshapen", misshapen)
    for name, change in placed.items():
        weights.change(name, functools.partial(_add, change))


def _add(change: LowRank, weight: np.ndarray) -> np.ndarray:
    """W + scale · B A in float32. A convolution's A has its kernel's shape, and B is one of one pixel."""
    down, up = (matrix.astype(np.float32).reshape(len(matrix), -1) for matrix in (change.down, change.up))
    return weight.astype(np.float32) + np.float32(change.scale) * (up @ down).reshape(weight.shape)


def _fits(change: LowRank, shape: tuple[int, ...]) -> bool:
    """Whether the product is of a shape, where a matrix may stand for a convolution of one pixel, and one for it."""

    def trimmed(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return trimmed(sizes[:-1]) if sizes and sizes[-1] == 1 else sizes

    inputs = trimmed(change.down.shape[1:]) == trimmed(shape[1:])
    return len(shape) > 1 and inputs and trimmed(change.up.shape[2:]) == () and len(change.up) == shape[0]


def _key(module: str) -> str:
    """The one key of a module's names: kohya's have underscores for dots."""
    for pattern, spelling in _SPELLINGS:
        module = re.sub(pattern, spelling, module)
    return module.replace(".", "_")


def _low_rank(file, settings, strength, *, module, down=None, up=None, alpha=None) -> LowRank:
    if down is None or up is None:
        raise InputError(f"{file}: {module} has no {'down (A)' if down is None else 'up (B)'}")
    if min(down.ndim, up.ndim) < 2 or up.shape[1] != len(down) or 0 in (*down.shape, *up.shape):
        raise InputError(f"{file}: {module} has shapes {down.shape} and {up.shape}, not (rank, in) and (out, rank)")
    if alpha is not None and (settings or alpha.size != 1):
        raise InputError(f"{file}: alpha of {module} must be one number, said once: in a tensor or in {METADATA}")
    rank = len(down)
    scale = (rank if alpha is None else alpha.item()) / rank
    if settings:
        try:
            scale = _scale(settings, module, rank)
        except (KeyError, TypeError, AttributeError, re.error) as error:
            raise InputError(f"{file}: {METADATA} do not say alpha of {module}: {error!r}") from error
    return LowRank(module, down, up, strength * scale)


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """α / rank as PEFT has it: the first pattern that fits decides; rank-stabilised, α / √rank (arXiv 2312.03732)."""
    patterns = (settings.get("alpha_pattern") or {}).items()
    fitting = (value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = next(fitting, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _settings(file: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Part → PEFT's settings for it, where a file holds them."""
    try:
        everything = json.loads(metadata.get(METADATA, "{}")).items()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: {METADATA} cannot be read: {error}") from error
    text = "text_encoder."
    parts = {
        "unet": {key.removeprefix("unet."): value for key, value in everything if not key.startswith(text)},
        "text_encoder": {key.removeprefix(text): value for key, value in everything if key.startswith(text)},
    }
    for key, value in (setting for settings in parts.values() for setting in settings.items()):
        if (key in _MORE and value) or (key == "init_lora_weights" and value not in _STARTS):
            raise InputError(f"{file}: {key}={value!r} is not implemented")
    return parts


def _file(path: Path) -> Path:
    """The safetensors file that a path is, or that the folder holds."""
    refuse_pickles([path])
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path} is neither a safetensors file nor a folder of one")
        return path
    files = sorted(file.name for file in path.glob("*.safetensors"))
    if not files:
        refuse_pickles(path.glob("*"))
    if FILE not in files and len(files) != 1:
        raise InputError(f"{path} must hold {FILE} or one .safetensors file, not {len(files)}: {few(files)}")
    return path / (FILE if FILE in files else files[0])


def _refuse(where: str | Path, problem: str, names: list[str]) -> None:
    if names:
        raise InputError(f"{where}: {len(names)} {problem} ({few(names)})")
