"""Makes golden_autoencoders.npz: what diffusers' modules answer, with the weights and inputs of tiny_autoencoders.py.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden_autoencoders
"""

from pathlib import Path

import numpy as np

from tests.parity.test_autoencoders import decode, encode, theirs
from tests.pretrained.tiny_autoencoders import AUTOENCODERS, inputs

if __name__ == "__main__":
    answers = {}
    for name, (config, *_) in AUTOENCODERS.items():
        module, (given, latents) = theirs(config), inputs(name)
        mean, log_variance = encode(module, given)
        answers |= {
            f"{name}/mean": mean,
            f"{name}/log_variance": log_variance,
            f"{name}/video": decode(module, latents),
        }
    np.savez_compressed(Path(__file__).parent / "golden_autoencoders.npz", **answers)
