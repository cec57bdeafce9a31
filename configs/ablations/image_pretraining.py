"""Initialisation from an image network, with new time layers that begin as the identity, against training from scratch.

    python experiments/ablate.py --study configs/ablations/image_pretraining.py --out studies/image_pretraining
    python experiments/ablate.py --study configs/ablations/image_pretraining.py:ucf101 \
        --out studies/image_pretraining-ucf101 --i3d i3d.safetensors

All parameters are trained. The images are single frames of all videos; "few" is one video in a hundred. Training on
images has the same number of steps, and batches with the same number of frames, so it doubles the cost. The arm "from
scratch, twice the steps" has the doubled cost, too. On digits the stem takes one frame at a time, and the batch is half
of the demo's. `ucf101` was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = "A video network that is initialised from an image network needs fewer videos, and less training on them."
SOURCE = "Make-A-Video, Singer et al. 2022, arXiv 2209.14792; AnimateDiff, Guo et al. 2024, arXiv 2307.04725"


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    if scale == "ucf101":
        base, frames = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101"), 16
        metrics, kwargs = ("fvd", "smoothness", "dynamic"), {"num": 2048, "devices": 0}
    else:
        base, frames = read_file(CONFIGS / "moving_digits.py"), 8
        base.model.network.patch_time, base.batch_size = 1, 8
        metrics, kwargs = ("digit", "direction", "digits_fvd", "digits_fid", "jerk"), {}
    images = {
        "data.frames": 1,
        "batch_size": lambda size: size * frames,
        "model.network.time_conv": False,
        "model.network.time_attention": lambda levels: (False,) * len(levels),
    }
    few = {"data.split": "train[:1%]"}
    arms = {
        "from scratch": {},
        "from scratch, twice the steps": {"steps": lambda steps: 2 * steps},
        "from images": {"init_from": images},
        "few videos, from scratch": few,
        "few videos, from images": few | {"init_from": images},
    }
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, **kwargs)
