"""The videos that experiments/sample.py has written into a folder, by prompt and number."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.video import FilePath, read_metadata, read_video, to_uint8

FORMATS = (".npy", ".mp4", ".webm", ".gif")  # the one that keeps most comes first


@dataclasses.dataclass(frozen=True)
class Sample:
    """A video file, and what `sample.py` wrote into it."""

    path: Path
    prompt: str
    number: int
    settings: dict[str, Any]

    def read(self) -> tuple[np.ndarray, float]:
        """The video, uint8 [T, H, W, C], and its frames per second. Raises InputError for a damaged file."""
        if self.path.suffix != ".npy":
            return read_video(self.path)
        try:
            return to_uint8(np.load(self.path, allow_pickle=False)), float(self.settings["fps"])
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} cannot be read as a video ({error})") from error


def find_samples(folder: FilePath) -> dict[str, list[Sample]]:
    """The samples in a folder by format, each format in the order of the numbers; other files are left out.

    Raises:
        InputError: the folder is not there, or holds no sample.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of samples")
    found = {}
    for suffix in FORMATS:
        for path in sorted(folder.glob(f"[!.]*{suffix}")):
            about = read_metadata(path)
            if isinstance(about, dict) and isinstance(about.get("number"), int) and "prompt" in about:
                prompt, number = str(about.pop("prompt")), about.pop("number")
                found.setdefault(suffix, []).append(Sample(path, prompt, number, about))
    if not found:
        raise InputError(f"{folder} holds no videos of experiments/sample.py ({', '.join(FORMATS)})")
    return {suffix: sorted(samples, key=lambda s: s.number) for suffix, samples in found.items()}
