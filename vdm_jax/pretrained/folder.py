"""Reads and writes folders in the diffusers format: config.json and safetensors, tensor by tensor."""

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vdm_jax.errors import InputError
from vdm_jax.files import whole_file, write_text

Config = dict[str, Any]  # the content of a config.json

NAMES = ("diffusion_pytorch_model", "model")
# Files that are published without a config; the name stands for one.
ALONE = ("Open_Sora_v2", "hunyuan_vae")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read_json(path: Path) -> Config:
    """Returns the object in a JSON file. Raises InputError for a file that cannot be read, or holds no object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold an object, not {type(config).__name__}")
    return config


def read_config(folder: str | Path, name: str = "") -> dict[str, Any]:
    """Returns the config.json of a folder, or of its subfolder `name` (default: the network's) in a pipeline's folder.

    Raises:
        InputError: the file is missing, or is no diffusers config.
    """
    path = (component(folder, name) if name else network_folder(folder)) / "config.json"
    alone = [name for name in ALONE if (path.parent / f"{name}.safetensors").exists()]
    config = {"_class_name": alone[0]} if alone and not path.exists() else read_json(path)
    name = config.get("_class_name") or config.get("model_type")
    if name is None:
        raise InputError(f"{path} is not a diffusers config: it has no _class_name")
    return config | {"_class_name": name}


IGNORED = ("_class_name", "_diffusers_version", "_name_or_path", "sample_size", "num_frames")


def check_settings(config: Config, known: Collection[str], must: Mapping[str, Any]) -> None:
    """Raises InputError for an unknown setting, or a value that is not implemented.

    `must` has the implemented value of a setting; a tuple lists several.
    """
    for key, value in config.items():
        if key in known or key in IGNORED:
            continue
        if key not in must:
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not known")
        valid = must[key]
        if not (value in valid if isinstance(valid, tuple) else value == valid):
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not implemented; it must be {valid!r}")


def component(folder: str | Path, name: str) -> Path:
    """Returns the folder of one part: the subfolder `name` of a whole pipeline, else the folder itself.

    Raises:
        InputError: there is no such folder.
    """
    folder = snapshot(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; download the model elsewhere and point at it")
    return folder / name if is_pipeline(folder) else folder


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds the parts of a whole model: it has a model_index.json, or, put together by hand, a
    transformer."""
    names = ("model_index.json", "transformer/config.json", *(f"transformer/{name}.safetensors" for name in ALONE))
    return any((folder / name).exists() for name in names)


def network_folder(folder: str | Path) -> Path:
    """Returns the folder of the network in a pipeline's folder, else the folder itself."""
    transformer = component(folder, "transformer")
    return transformer if transformer.is_dir() else component(folder, "unet")


def snapshot(folder: str | Path) -> Path:
    """Returns a folder, or the snapshot of refs/main in a folder of the hub's cache (models--<owner>--<name>).

    Raises:
        InputError: the cache names no snapshot, or one that it does not hold.
    """
    folder, main = Path(folder), Path(folder) / "refs" / "main"
    if not (folder / "snapshots").is_dir() or (folder / "config.json").exists():
        return folder
    found = folder / "snapshots" / main.read_text().strip() if main.is_file() else None
    if found is None or not found.is_dir():
        held = ", ".join(sorted(path.name for path in (folder / "snapshots").iterdir())) or "none"
        raise InputError(f"{folder} is a hub cache whose refs/main names no snapshot in it; it holds {held}")
    return found


def package_files(package: str) -> Path:
    """Returns the folder with the files of a Python package, "name==version".

    Raises:
        InputError: it is not installed, or in another version.
    """
    name, _, version = package.partition("==")
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or found.version != version:
        what = "not installed" if found is None else f"installed as {found.version}"
        raise InputError(f"the Python package {package} is {what}: pip install --no-deps {package}")
    return Path(str(found.locate_file("")))


def check_hash(file: Path, digest: str) -> None:
    """Raises InputError if a file cannot be read, or its SHA-256 is not `digest`."""
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if found != digest:
        raise InputError(f"{file} is not the expected file: its SHA-256 is {found}, not {digest}")


def open_safetensors(file: Path) -> Any:
    """Opens a safetensors file. Raises InputError for a damaged file, or a file of another format."""
    try:
        return safe_open(file, framework="numpy")
    except Exception as error:  # the library's own class, not exported
        with contextlib.suppress(OSError), open(file, "rb") as start:
            if start.read(19) == b"version https://git":
                fetch = "`git lfs pull` in its folder, or `hf download`, gets the file"
                raise InputError(f"{file} is a git-lfs pointer, not the file itself: {fetch}") from None
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error


def write_folder(
    folder: str | Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None, name: str = NAMES[0]
) -> None:
    """Writes `<name>.safetensors` completely or not at all, and config.json if a config is passed.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        with whole_file(folder / f"{name}.safetensors") as part:
            save_file(tensors, part, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    if config is not None:
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def refuse_pickles(paths: Iterable[Path]) -> None:
    """Raises InputError for the first pickle among files."""
    for path in sorted(paths):
        if path.suffix in PICKLES:
            raise InputError(
                f"{path} is a pickle, which can run any code when it is read; this makes safetensors of it, and runs "
                f"none: python experiments/convert.py --input {path}"
            )


class Weights(Mapping[str, np.ndarray]):
    """Holds the tensors of folders or files by name; each is read from disk when it is looked up."""

    def __init__(self, *paths: Path):
        """Opens the safetensors files. Raises InputError if a folder holds none, or only pickles."""
        self._files = {}
        for file in (file for path in paths for file in ([path] if path.is_file() else _files(path))):
            opened = open_safetensors(file)
            self._files |= dict.fromkeys(opened.keys(), opened)
        self._changes: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._files[name].get_tensor(name)
        for change in self._changes.get(name, ()):
            tensor = change(tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def take(self, name: str) -> np.ndarray:
        """Returns a tensor, and removes it."""
        tensor = self[name]
        del self._files[name]
        return tensor

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Applies a function to a tensor each time it is read; the shape stays."""
        self._changes.setdefault(name, []).append(change)

    def part(self, *prefixes: str) -> "Weights":
        """Returns the tensors whose names begin with a prefix, and removes them here."""
        part = Weights()
        part._files = {name: self._files.pop(name) for name in [*self._files] if name.startswith(prefixes)}
        part._changes = self._changes
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading the tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())


def _files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder: one file, or the files of an index; full precision before fp16."""
    for name in (*NAMES, *ALONE):
        for variant in ("", ".fp16"):
            whole = folder / f"{name}{variant}.safetensors"
            if whole.exists():
                return [whole]
            # Versions of diffusers differ in where the file name of an index has the variant.
            for index in (folder / f"{name}.safetensors{end}.json" for end in (f".index{variant}", f"{variant}.index")):
                if not index.exists():
                    continue
                try:
                    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                except (OSError, ValueError, KeyError, AttributeError) as error:
                    raise InputError(f"{index} cannot be read: {error!r}") from error
                missing = [part for part in parts if not (folder / part).exists()]
                if missing:
                    raise InputError(f"{index} lists {missing[0]}, which does not exist")
                return [folder / part for part in parts]
    for file in sorted(path.name for path in folder.glob("*.safetensors")):
        if shard := re.fullmatch(r"(.+)-\d+-of-\d+", file.removesuffix(".safetensors")):
            index = f"{shard[1]}.safetensors.index.json"
            raise InputError(f"{folder} holds shards ({file}, …) without {index}, which lists them: download it, too")
        if "non_ema" in file:
            raise InputError(
                f"{folder} holds {file} alone, weights of training without their average: get {NAMES[0]}.safetensors"
            )
    refuse_pickles(folder.glob("*"))
    raise InputError(f"{folder} holds no {NAMES[0]}.safetensors")
