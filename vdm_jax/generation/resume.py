"""Drawing that can be interrupted: the videos lie in a memory-mapped file, so that a long video needs little memory.

`x.npy` holds the videos; `x.json` next to it identifies the drawing and counts the complete windows.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.files import write_text
from vdm_jax.typing import Float


def fingerprint(*parts: Any) -> str:
    """Returns a digest of everything that a drawing depends on: arrays by their bytes, the rest by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def open_partial(path: Path, of: str, shape: tuple[int, ...]) -> tuple[Float[np.ndarray, "B L H W C"], int]:
    """Returns the videos of the drawing `of`, and how many of its windows are complete.

    A file that is missing, damaged or of another drawing is replaced by a new one without complete windows.

    Raises:
        InputError: the file cannot be written, or cannot be read.
    """
    try:
        note = json.loads(path.with_suffix(".json").read_text())
        if note["of"] == of and note["bytes"] == path.stat().st_size:  # NumPy would fill a shorter file with zeros
            videos = np.load(path, mmap_mode="r+")
            if videos.shape == shape:
                return videos, note["done"]
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError, KeyError, TypeError):
        pass
    except OSError as error:  # it may be whole
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        remove_partial(path)
        return np.lib.format.open_memmap(path, "w+", np.float32, shape), 0
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def save_partial(path: Path, of: str, done: int, videos: np.memmap) -> None:
    """Records that `done` windows are complete, once their content is on disk."""
    videos.flush()
    write_text(path.with_suffix(".json"), json.dumps({"of": of, "done": done, "bytes": path.stat().st_size}))


def remove_partial(path: Path) -> None:
    """Deletes both files; a process that has the videos open keeps them."""
    for suffix in (".json", ".npy"):
        path.with_suffix(suffix).unlink(missing_ok=True)
