"""Finds the videos that experiments/sample.py wrote into a folder, by prompt and number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.video import FilePath, read_metadata, read_video, to_uint8

FORMATS = (".npy", ".mp4", ".webm", ".gif")  # ordered by preference
OF_ONE_VIDEO = ("seed", "image", "image_at", "video", "mask", "fps")  # metadata that may differ within a set


class Sample(NamedTuple):
    """A video file with its metadata."""

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


def check_alike(folder: FilePath, samples: Sequence[Sample]) -> None:
    """Raises InputError if a folder mixes samples of several runs or settings; inputs and seeds may differ."""
    first, *others = samples
    for sample in others:
        for key in sorted(first.settings.keys() | sample.settings.keys()):
            values = [s.settings.get(key) for s in (first, sample)]
            if values[0] != values[1] and key not in OF_ONE_VIDEO:
                raise InputError(
                    f"{folder} mixes videos of several commands: {key}={values[0]} in {first.path.name}, and "
                    f"{values[1]} in {sample.path.name}; each set needs a folder of its own (sample.py --out)"
                )


def find_samples(folder: FilePath) -> dict[str, list[Sample]]:
    """The samples in a folder, for each format in the order of their numbers. Other files are ignored."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of samples")
    by_format = {}
    for suffix in FORMATS:
        for path in sorted(folder.glob(f"[!.]*{suffix}")):
            metadata = read_metadata(path)
            if isinstance(metadata.get("number"), int) and "prompt" in metadata:
                prompt, number = str(metadata.pop("prompt")), metadata.pop("number")
                by_format.setdefault(suffix, []).append(Sample(path, prompt, number, metadata))
    if not by_format:
        raise InputError(f"{folder} holds no videos of experiments/sample.py ({', '.join(FORMATS)})")
    return {suffix: sorted(samples, key=lambda s: s.number) for suffix, samples in by_format.items()}
