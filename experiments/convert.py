"""Makes safetensors of PyTorch's files (.bin, .ckpt, .pt, .pth), next to them. Needs torch, but not this package.

python experiments/convert.py --input stable-diffusion-v1-5/unet/diffusion_pytorch_model.bin
python experiments/convert.py --input stable-diffusion-v1-5    # every such file in the folder

Files are read by torch.load(weights_only=True), which runs no code of theirs. Shards become one file. The other
convert_*.py scripts read and write by the functions here.
"""

import argparse
import contextlib
import pickle
import re
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


SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


def beside(path: Path) -> Path:
    """Returns the safetensors file of a pickle; transformers and diffusers look for it under this name."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.stem)
    return path.with_name(f"{re.sub(r'^pytorch_model', 'model', stem)}.safetensors")


def tensors_of(parser: argparse.ArgumentParser, path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a state dict's file; a checkpoint of training may hold them under state_dict."""
    held = read(parser, path)
    held = held.get("state_dict", held) if isinstance(held, dict) else {}
    tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) < len(held):
        parser.error(f"{path} is not a state dict: it holds other things than named tensors")
    return tensors


def main() -> None:
    """Converts a file with its other shards, or every file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="a file, or a folder with such files")
    path = parser.parse_args().input
    siblings = path.rglob("*") if path.is_dir() else path.parent.glob("*")
    outputs: dict[Path, list[Path]] = {}
    for file in sorted(file for file in siblings if file.suffix in SUFFIXES):
        if path.is_dir() or beside(file) == beside(path):
            outputs.setdefault(beside(file), []).append(file)
    if not outputs:
        parser.error(f"{path} is no file of PyTorch, and no folder with one ({', '.join(SUFFIXES)})")
    for output, files in outputs.items():
        write(parser, output, {name: x for file in files for name, x in tensors_of(parser, file).items()})


if __name__ == "__main__":
    main()
