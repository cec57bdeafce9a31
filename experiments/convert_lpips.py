"""Converts LPIPS's weights, which are published as two pickles, to one safetensors file. Needs torch.

python experiments/convert_lpips.py --network alexnet-owt-7be5be79.pth --layers alex.pth --output lpips-alex.safetensors

--network is torchvision's AlexNet or VGG-16, --layers the file of version 0.1 in the authors' package.
"""

import argparse
from pathlib import Path

from convert import read, write

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, required=True, help="torchvision's .pth file")
    parser.add_argument("--layers", type=Path, required=True, help="the authors' .pth file for the same network")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    files = parser.parse_args()
    network, layers = read(parser, files.network), read(parser, files.layers)
    tensors = {name: tensor for name, tensor in network.items() if name.startswith("features.")}
    if not tensors or not all(name.startswith("lin") for name in layers):
        parser.error(
            f"{files.network} must hold features.*, and {files.layers} must hold lin*, such as lin0.model.1.weight"
        )
    write(parser, files.output, tensors | layers)
