"""Adds LoRA files (Hu et al. 2021, arXiv 2106.09685) to the weights of networks and text encoders as they are read.

For each module a file holds two matrices, down or A (rank, in) and up or B (out, rank), and possibly a number α. The
module's weight becomes W + Δ with Δ = strength · α / rank · B A. LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098) holds
two pairs, and multiplies their products element by element. DoRA (Liu et al. 2024, arXiv 2402.09353) holds a magnitude
m next to a pair: the weight becomes m · (W + Δ) / ‖W + Δ‖, with the norm of each row. Files of PEFT, diffusers, kohya,
LyCORIS and AnimateDiff are read.
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
from vdm_jax.pretrained.folder import Weights, open_safetensors, read_json, refuse_pickles, snapshot, write_folder
from vdm_jax.pretrained.names import Naming, first_three, tensors_for
from vdm_jax.typing import Params

FILE = "pytorch_lora_weights.safetensors"  # the usual name in a folder
SETTINGS = "adapter_config.json"  # PEFT's settings next to a file
METADATA = "lora_adapter_metadata"  # the key of PEFT's settings in the header of a file
PEFT = {"lora_down": "lora_A", "lora_up": "lora_B"}
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32")

_NAME = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:unet\.|transformer\.|diffusion_model\.|lora_unet_|(?P<text>text_encoder\.|lora_te1?_|(?=text_model\.|encoder\.layers\.)))?"
    r"(?P<module>.+?)"
    r"(?:(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<matrix>A|B|down|up)\.weight"
    r"|\.(?P<role>alpha|hada_w[12]_[ab]|dora_scale|lora_magnitude_vector)(?:(?<=vector)\.weight)?)"
)
# Arguments of `_low_rank`.
_ROLES = {"A": "down", "B": "up", "hada_w1_a": "up", "hada_w1_b": "down", "hada_w2_a": "up2", "hada_w2_b": "down2"}
_ROLES |= {"lora_magnitude_vector": "magnitude", "dora_scale": "magnitude"}
# Other spellings of a module's name, and the spelling of networks.
_SPELLINGS = (
    (r"^text_model[._]", ""),
    (r"\.processor(?=\.|$)", ""),
    (r"\.temporal_transformer\.", "."),  # this and the next two are AnimateDiff's spelling
    (r"\.attention_blocks\.0\.", ".attn1."),
    (r"\.attention_blocks\.1\.", ".attn2."),
    (r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj"),
    (r"\.to_out$", ".to_out.0"),
    # Wan's own names, with kohya's underscores or without: the spelling of musubi-tuner and of ComfyUI.
    (r"(?<=blocks)[._](\d+)[._]self_attn[._]", r".\1.attn1."),
    (r"(?<=blocks)[._](\d+)[._]cross_attn[._]", r".\1.attn2."),
    (r"(?<=\.attn[12]\.)([qkv])$", r"to_\1"),
    (r"(?<=\.attn[12]\.)o$", "to_out.0"),
    (r"[._]ffn[._]0$", ".ffn.net.0.proj"),
    (r"[._]ffn[._]2$", ".ffn.net.2"),
    (r"^(time|text)_embedding[._]0$", r"condition_embedder.\1_embedder.linear_1"),
    (r"^(time|text)_embedding[._]2$", r"condition_embedder.\1_embedder.linear_2"),
    (r"^time_projection[._]1$", "condition_embedder.time_proj"),
    (r"^head[._]head$", "proj_out"),
)
# Settings of changes that are not implemented.
_UNSUPPORTED = ("use_qalora", "use_bdlora", "lora_bias", "layer_replication", "alora_invocation_tokens")
_UNSUPPORTED += ("velora_config", "kasa_config", "monteclora_config", "arrow_config")
# Initialisations of training that leave the network's weights as they are.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a module's weight: `scale · up @ down` is added to it.

    Args:
        factor: another (down, up), whose product the product is multiplied by (LoHa).
        magnitude: norms of the changed weight: (out, 1) of its rows, or (1, in) of its columns (DoRA).
    """

    module: str
    down: np.ndarray
    up: np.ndarray
    scale: float
    factor: tuple[np.ndarray, np.ndarray] | None = None
    magnitude: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """The changes of a file, scaled by its strength, for a U-Net and for a text encoder."""

    where: str
    unet: tuple[LowRank, ...]
    text: tuple[LowRank, ...]


def parse_lora(text: str) -> tuple[str, float]:
    """Returns (path, strength) of `path` or `path:strength`; a colon without a number after it belongs to the path."""
    path, colon, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def read_lora(path: str | Path, strength: float | int = 1.0) -> Lora:
    """Reads a safetensors file, or the file of a folder.

    Raises:
        InputError: a pickle, tensors of no known form, a matrix without its partner, or a setting that is not
            implemented.
    """
    file = _file(Path(path))
    if not math.isfinite(strength):
        raise InputError(f"{file}: strength={strength} must be a finite number")
    tensors = open_safetensors(file)
    matches = {name: _NAME.fullmatch(name) for name in sorted(tensors.keys())}
    if not matches:
        raise InputError(f"{file} holds no tensors")
    _refuse(
        file,
        "tensors are of no known form; pairs of matrices (A and B, down and up, LoHa's hada_w1 and hada_w2), alpha and "
        "DoRA's magnitudes are implemented, LoKr, biases, middle matrices and LoHa's hada_t1 are not",
        [name for name, match in matches.items() if match is None],
    )
    other = [name for name in matches if tensors.get_slice(name).get_dtype() not in DTYPES]
    _refuse(file, f"tensors must be of dtype {', '.join(DTYPES)}", other)

    modules: dict[str, dict[str, dict[str, Any]]] = {"unet": {}, "text_encoder": {}}
    for name, match in matches.items():
        part = modules["unet" if match["text"] is None else "text_encoder"]
        entry = part.setdefault(_key(match["module"]), {"module": match["module"]})
        role = match["matrix"] or match["role"]
        role = _ROLES.get(role, role)
        if role in entry:
            raise InputError(f"{file}: {name} is there twice, by two names")
        tensor = tensors.get_tensor(name)
        # PEFT has the magnitudes of rows in several shapes; LyCORIS has them in a shape that says rows or columns.
        entry[role] = tensor.reshape(-1, 1) if match["role"] == "lora_magnitude_vector" else tensor
    settings = _settings(file, tensors.metadata() or {})
    parts = (
        tuple(_low_rank(file, settings[part], strength, **entry) for entry in entries.values())
        for part, entries in modules.items()
    )
    return Lora(str(file), *parts)


def save_lora(changes: Params, naming: Naming, folder: str | Path) -> None:
    """Writes low-rank changes of a network's matrices into a folder, under PEFT's names.

    Args:
        changes: instead of each matrix (in, out) its `lora_down` (in, rank) and `lora_up` (rank, out).

    Raises:
        InputError: the folder cannot be written.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(changes):
        kernel, _, matrix = path_name(path).rpartition("/")
        names, array = tensors_for(kernel, leaf.shape, naming), np.asarray(leaf)
        for (name, *_), block in zip(names, array if array.ndim == 3 else [array], strict=True):
            module = f"{'transformer' if naming.patch else 'unet'}.{name.removesuffix('.weight')}"
            tensors[f"{module}.{PEFT[matrix]}.weight"] = np.ascontiguousarray(block.T)
    write_folder(folder, tensors, name=FILE.removesuffix(".safetensors"))


def merge_lora(where: str, changes: tuple[LowRank, ...], weights: Weights) -> None:
    """Adds changes to the tensors of a network, each when it is read.

    Raises:
        InputError: modules that the network does not have, or that have other shapes.
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
    """Returns the changed weight in float32. For a convolution A has the shape of its kernel, and B one pixel."""

    def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
        down, up = (matrix.astype(np.float32).reshape(len(matrix), -1) for matrix in (down, up))
        return up @ down

    delta = product(change.down, change.up)
    if change.factor is not None:
        delta *= product(*change.factor)
    weight = weight.astype(np.float32) + np.float32(change.scale) * delta.reshape(weight.shape)
    if change.magnitude is None:
        return weight
    magnitude = change.magnitude.astype(np.float32).reshape(*change.magnitude.shape, *[1] * (weight.ndim - 2))
    others = tuple(axis for axis, size in enumerate(magnitude.shape) if size == 1)
    return magnitude * weight / np.sqrt((weight**2).sum(others, keepdims=True))


def _fits(change: LowRank, shape: tuple[int, ...]) -> bool:
    """Returns whether a change has a shape; a matrix and a convolution of one pixel count as equal."""

    def trimmed(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return trimmed(sizes[:-1]) if sizes and sizes[-1] == 1 else sizes

    def fits(down: np.ndarray, up: np.ndarray) -> bool:
        flat = change.factor is not None and down.shape[1:] == (math.prod(shape[1:]),)  # LoHa flattens kernels
        inputs = flat or trimmed(down.shape[1:]) == trimmed(shape[1:])
        return inputs and trimmed(up.shape[2:]) == () and len(up) == shape[0]

    pairs = [(change.down, change.up), *([change.factor] if change.factor else [])]
    magnitude = change.magnitude is None or change.magnitude.shape in ((shape[0], 1), (1, shape[1]))
    return len(shape) > 1 and all(fits(*pair) for pair in pairs) and magnitude


def _key(module: str) -> str:
    """Returns the same key for all names of a module: kohya's names have underscores instead of dots."""
    for pattern, spelling in _SPELLINGS:
        module = re.sub(pattern, spelling, module)
    return module.replace(".", "_")


def _low_rank(file, settings, strength, *, module, alpha=None, magnitude=None, **matrices: np.ndarray) -> LowRank:
    pairs = [("down", "up"), *([("down2", "up2")] if {"down2", "up2"} & {*matrices} else [])]
    for down, up in pairs:
        for name, title in ((down, "down (A)"), (up, "up (B)")):
            if name not in matrices:
                raise InputError(f"{file}: {module} has no {title if len(pairs) == 1 else f'hada_w: {name}'}")
        a, b = matrices[down], matrices[up]
        if min(a.ndim, b.ndim) < 2 or b.shape[1] != len(a) or 0 in (*a.shape, *b.shape):
            raise InputError(f"{file}: {module} has shapes {a.shape} and {b.shape}, not (rank, in) and (out, rank)")
    if alpha is not None and (settings or alpha.size != 1):
        raise InputError(f"{file}: alpha of {module} must be one number, in a tensor or in settings, not in both")
    if settings.get("use_dora") and magnitude is None:
        raise InputError(f"{file}: use_dora=True, but {module} has no lora_magnitude_vector")
    if magnitude is not None:
        magnitude = magnitude.reshape(*magnitude.shape[:1], -1)
    rank = len(matrices["down"])
    scale = (rank if alpha is None else alpha.item()) / rank
    if settings:
        try:
            scale = _scale(settings, module, rank)
        except (KeyError, TypeError, AttributeError, re.error) as error:
            raise InputError(f"{file}: PEFT's settings have no valid alpha for {module}: {error!r}") from error
    factor = (matrices["down2"], matrices["up2"]) if len(pairs) > 1 else None
    return LowRank(module, matrices["down"], matrices["up"], strength * scale, factor, magnitude)


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """Returns α / rank by PEFT's settings, or α / √rank if they are rank-stabilised (arXiv 2312.03732).

    The first matching pattern gives α.
    """
    patterns = (settings.get("alpha_pattern") or {}).items()
    matching = (value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = next(matching, settings["alpha" if settings.get("peft_type") == "LOHA" else "lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _settings(file: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns PEFT's settings of a file for each part, from its header or from the file next to it; empty if none."""
    beside, text = file.with_name(SETTINGS), "text_encoder."
    if METADATA not in metadata and beside.is_file():
        items = read_json(beside).items()
        parts = {part: dict(items) for part in ("unet", "text_encoder")}
    else:
        try:
            items = json.loads(metadata.get(METADATA, "{}")).items()
        except (ValueError, AttributeError) as error:
            raise InputError(f"{file}: {METADATA} cannot be read: {error}") from error
        parts = {
            "unet": {key.removeprefix("unet."): value for key, value in items if not key.startswith(text)},
            "text_encoder": {key.removeprefix(text): value for key, value in items if key.startswith(text)},
        }
    for key, value in (setting for settings in parts.values() for setting in settings.items()):
        if (key in _UNSUPPORTED and value) or (key == "init_lora_weights" and value not in _INITIALISATIONS):
            raise InputError(f"{file}: {key}={value!r} is not implemented")
    return parts


def _file(path: Path) -> Path:
    """Returns the safetensors file at a path, or in a folder."""
    refuse_pickles([path])
    path = snapshot(path)
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path} is neither a safetensors file nor a folder of one")
        return path
    files = sorted(file.name for file in path.glob("*.safetensors"))
    if not files:
        refuse_pickles(path.glob("*"))
    if FILE not in files and len(files) != 1:
        raise InputError(f"{path} must hold {FILE} or one .safetensors file, not {len(files)}: {first_three(files)}")
    return path / (FILE if FILE in files else files[0])


def _refuse(where: str | Path, problem: str, names: list[str]) -> None:
    if names:
        raise InputError(f"{where}: {len(names)} {problem} ({first_three(names)})")
