"""Makes golden_video_autoencoders.npz: what diffusers' modules answer, with the weights of tiny_video_autoencoders.py.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden_video_autoencoders
"""

from pathlib import Path

import numpy as np

from tests.parity.test_video_autoencoders import decode, encode, theirs
from tests.pretrained.tiny_video_autoencoders import GOLDEN, VIDEO_AUTOENCODERS, inputs

if __name__ == "__main__":
    answers = {}
    for name in GOLDEN:
        module, (video, latents) = theirs(VIDEO_AUTOENCODERS[name][0]), inputs(name)
        mean, log_variance = encode(module, video)
        answers |= {
            f"{name}/mean": mean,
            f"{name}/log_variance": log_variance,
            f"{name}/video": decode(module, latents),
        }
    np.savez_compressed(Path(__file__).parent / "golden_video_autoencoders.npz", **answers)
