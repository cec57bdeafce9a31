"""Joint training on videos and images, compared at equal batches of videos and at equal compute.

    python experiments/ablate.py --study configs/ablations/joint_training.py --out studies/joint_training
    python experiments/ablate.py --study configs/ablations/joint_training.py:ucf101 \
        --out studies/joint_training-ucf101 --i3d i3d.safetensors

The images are frames of other videos, appended to each clip; time slots do not see them. A step with eight frames and
four or eight images costs 1.5 or 2 times as much as without images. The arms "compute of" have no images and more
steps, at the same cost. On digits the stem takes one frame at a time, and the batch is half of the demo's. `ucf101` was
never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = "Joint training on images improves samples: FVD 202.28, 68.11, 57.84 with 0, 4, 8 images for each video."
SOURCE = "Ho et al. 2022, arXiv 2204.03458, joint training, small model"


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    if scale == "ucf101":
        base, frames = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101"), 16
        metrics, kwargs = ("fvd", "smoothness", "dynamic"), {"num": 2048, "devices": 0}
    else:
        base, frames = read_file(CONFIGS / "moving_digits.py"), 8
        base.model.network.patch_time, base.batch_size = 1, 8
        metrics, kwargs = ("digit", "direction", "digits_fvd", "digits_fid", "jerk"), {}
    arms = {f"{images} images": {"data.joint_images": images} for images in (0, 4, 8)}
    for images in (4, 8):
        longer = 1 + images / frames
        arms[f"0 images, compute of {images}"] = {"steps": lambda steps, longer=longer: round(steps * longer)}
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, **kwargs)
