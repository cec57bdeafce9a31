"""Extending a video: replacement, reconstruction guidance, and a network that was trained with masks.

    python experiments/ablate.py --study configs/ablations/extension.py --out studies/extension
    python experiments/ablate.py --study configs/ablations/extension.py:bair \
        --out studies/extension-bair --i3d i3d.safetensors

On digits four frames are known and four are drawn. The last arm draws from the runs of
`configs/moving_digits_known.py`, all other arms from the runs of `configs/moving_digits.py`. On BAIR the first frame is
known, as in the paper. `bair` was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "Reconstruction guidance extends a video better than replacement: FVD 136.22 against 451.45 from 16 to 64 frames. "
    "A network that was trained with masks does so at the cost of replacement."
)
SOURCE = "Ho et al. 2022, arXiv 2204.03458, extension of text to video; masks in training are this project's question"


def get_study(scale: Literal["digits", "bair"] = "digits") -> Study:
    """The study at the scale of "digits" or "bair"."""
    if scale == "bair":
        base, mixture = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:bair"), {"nothing": 1.0, "first": 3.0}
        base.sample.eta = 0.0
        known, weights, metrics = "image to video, with the caption", (3, 10, 50), ("fvd", "psnr", "smoothness")
        kwargs = {"num": 256, "devices": 0}
    else:
        base = read_file(CONFIGS / "moving_digits.py")
        mixture = read_file(CONFIGS / "moving_digits_known.py").known.mixture.to_dict()
        known, weights = "extension, half known", (1, 3, 10)
        metrics, kwargs = ("digit_kept", "position_error", "within_pixel", "psnr", "jerk"), {"num": 64}
    base.sample.guidance = 1.0
    arms = {"replacement": {}}
    for w in weights:
        arms[f"reconstruction, w = {w}"] = {"sample.respect": "reconstruct", "sample.reconstruction": float(w)}
    arms["trained with masks"] = {
        "known.mixture": mixture,
        "objective.null_probability": 0.2,
        "sample.respect": "concat",
    }
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, known=known, **kwargs)
