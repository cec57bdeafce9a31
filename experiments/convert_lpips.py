"""Makes one safetensors file of LPIPS's weights, which are published as two pickles; run it where torch is.

python experiments/convert_lpips.py --network alexnet-owt-7be5be79.pth --layers alex.pth --output lpips-alex.safetensors

The first is torchvision's AlexNet or VGG-16, the second the file of version 0.1 in the authors' package.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, required=True, help="torchvision's .pth file")
    parser.add_argument("--layers", type=Path, required=True, help="the authors' .pth file for the same network")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    files = parser.parse_args()
    network, layers = (
        torch.load(path, map_location="cpu", weights_only=True) for path in (files.network, files.layers)
    )
    tensors = {name: tensor for name, tensor in network.items() if name.startswith("features.")}
    if not tensors or not all(name.startswith("lin") for name in layers):
        parser.error(f"{files.network} must hold features.*, and {files.layers} lin0.model.1.weight and its like")
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in (tensors | layers).items()}
    save_file(tensors, files.output, metadata={"format": "pt"})
    print(f"{files.output}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers")
