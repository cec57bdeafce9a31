"""Converts I3D's weights, which are published as pickles or TorchScript, to a safetensors file. Needs torch.

python experiments/convert_i3d.py --input i3d_torchscript.pt --output i3d.safetensors

A state dict is read by torch.load(weights_only=True), which runs no code of the file. A TorchScript archive is a
program: take it from a source that you trust.
"""

import argparse
import zipfile
from pathlib import Path

import torch
from convert import read, write


def tensors_of(parser: argparse.ArgumentParser, path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a TorchScript archive, or of a state dict's file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
    return read(parser, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="the published .pt file")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    files = parser.parse_args()
    tensors = tensors_of(parser, files.input)
    if not tensors:
        parser.error(f"{files.input} holds no named tensors; a frozen TorchScript program has none")
    write(parser, files.output, tensors)
