"""Reads and writes files of weights for the convert_*.py scripts, which need torch but not this package."""

import argparse
import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def read(parser: argparse.ArgumentParser, path: Path) -> Any:
    """Reads a file of torch.save without running its code; ends the command with one line if it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        parser.error(f"{path} cannot be read: {str(error).splitlines()[0]}")


def write(parser: argparse.ArgumentParser, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file, whole or not at all; ends the command with one line if it cannot be written."""
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: x.detach().clone().contiguous() for name, x in tensors.items()}, part, {"format": "pt"})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        parser.error(f"{path} cannot be written: {error}")
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    print(f"{path}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers")
