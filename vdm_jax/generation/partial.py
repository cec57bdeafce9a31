"""What has been drawn of a long video, kept on disk after every window: an interrupted command goes on from there."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.typing import Bool, Float


def fingerprint(*parts: Any) -> str:
    """A digest of everything that a drawing depends on: arrays by their bytes, other things by their words."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def save_partial(
    path: Path, of: str, block: int, videos: Float[np.ndarray, "B L H W C"], mask: Bool[np.ndarray, "L H W 1"]
) -> None:
    """Keeps what is drawn after window `block` of the drawing `of`; an older state stays until this one is whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, of=of, block=block, videos=videos, mask=mask)
    temporary.replace(path)


def load_partial(path: Path, of: str) -> tuple[int, Float[np.ndarray, "B L H W C"], Bool[np.ndarray, "L H W 1"]] | None:
    """(last window, videos, mask) of the same drawing; None where there is none, or one of other settings."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            if str(file["of"]) == of:
                return int(file["block"]), file["videos"], file["mask"]
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None
