"""Makes golden.npz: what diffusers' modules answer, with the weights and inputs of networks.py.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden
"""

from pathlib import Path

import numpy as np

from tests.parity.test_unets import call, theirs
from tests.pretrained.networks import UNETS, inputs

if __name__ == "__main__":
    answers = {name: call(theirs(config), inputs(name)) for name, (config, *_) in UNETS.items()}
    np.savez_compressed(Path(__file__).parent / "golden.npz", **answers)
