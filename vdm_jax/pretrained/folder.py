"""Folders in the diffusers format: config.json and safetensors, read tensor by tensor."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vdm_jax.errors import InputError
from vdm_jax.files import whole_file, write_text

Config = dict[str, Any]  # of a config.json

NAMES = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read_config(folder: str | Path, name: str = "unet") -> dict[str, Any]:
    """The config.json of a folder, or of its subfolder `name` where the folder is that of a whole pipeline."""
    path = component(folder, name) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise InputError(f"{path} is not a diffusers config: it has no _class_name")
    return config


IGNORED = ("_class_name", "_diffusers_version", "_name_or_path", "sample_size", "num_frames")


def check_settings(config: Config, known: Collection[str], must: Mapping[str, Any]) -> None:
    """Raises InputError for a setting that is neither known nor as it must be; a tuple lists several valid values."""
    for key, value in config.items():
        if key in known or key in IGNORED:
            continue
        if key not in must:
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not known")
        valid = must[key]
        if not (value in valid if isinstance(valid, tuple) else value == valid):
            raise InputError(f"{config['_class_name']}: {key}={value!r} is not implemented; it must be {valid!r}")


def component(folder: str | Path, name: str) -> Path:
    """The folder of one part of a pipeline: its subfolder, or the folder itself where that is the part alone."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; download the model elsewhere and point at it")
    return folder / name if (folder / "model_index.json").exists() else folder


def open_safetensors(file: Path) -> Any:
    """An open file of the library's; raises InputError where it is none."""
    try:
        return safe_open(file, framework="numpy")
    except Exception as error:  # the library's own class, not exported
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error


def write_folder(
    folder: str | Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None, name: str = NAMES[0]
) -> None:
    """Writes `<name>.safetensors`, which is there whole or not at all, and config.json where there is one.

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
                f"{path} is a pickle, which can run any code when it is read; convert it in a place where that does "
                "no harm (diffusers: from_pretrained, then save_pretrained with safe_serialization=True)"
            )


class Weights(Mapping[str, np.ndarray]):
    """The tensors of folders or files by name; one is read from disk when it is asked for."""

    def __init__(self, *paths: Path):
        """Raises InputError where there are none, or only pickles."""
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
        """A tensor, which no longer counts as one of them."""
        tensor = self[name]
        del self._files[name]
        return tensor

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Makes something else of a tensor of the same shape, each time it is read."""
        self._changes.setdefault(name, []).append(change)

    def part(self, *prefixes: str) -> "Weights":
        """The tensors whose names begin so, which no longer count as any of these."""
        part = Weights()
        part._files = {name: self._files.pop(name) for name in [*self._files] if name.startswith(prefixes)}
        part._changes = self._changes
        return part

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read for it."""
        return tuple(self._files[name].get_slice(name).get_shape())


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index lists; full precision before fp16."""
    for name in NAMES:
        for variant in ("", ".fp16"):
            whole = folder / f"{name}{variant}.safetensors"
            if whole.exists():
                return [whole]
            # An index of a variant has its name before or after "index", by the version that wrote it.
            for index in (folder / f"{name}.safetensors{end}.json" for end in (f".index{variant}", f"{variant}.index")):
                if not index.exists():
                    continue
                try:
                    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                except (OSError, ValueError, KeyError, AttributeError) as error:
                    raise InputError(f"{index} cannot be read: {error!r}") from error
                missing = [part for part in parts if not (folder / part).exists()]
                if missing:
                    raise InputError(f"{index} lists {missing[0]}, which is not there")
                return [folder / part for part in parts]
    refuse_pickles(folder.glob("*"))
    raise InputError(f"{folder} holds no {NAMES[0]}.safetensors")
