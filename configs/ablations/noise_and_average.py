"""Noise correlated between frames, weights of the loss, and the decay of the parameter average.

    python experiments/ablate.py --study configs/ablations/noise_and_average.py --out studies/noise_and_average
    python experiments/ablate.py --study configs/ablations/noise_and_average.py:ucf101 \
        --out studies/noise_and_average-ucf101 --i3d i3d.safetensors

"base" is `configs/moving_digits.py` unchanged: independent noise, no weights, an average over about 100 steps. A
correlation of 0.5 is PYoCo's α = 1. `ucf101` was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "Noise that is correlated between frames suits video; weights min(SNR, 5) train faster; and the length of the "
    "parameter average matters as much as many other choices."
)
SOURCE = (
    "PYoCo, Ge et al. 2023, arXiv 2305.10474; min-SNR, Hang et al. 2023, arXiv 2303.09556; averaging, Karras et al. "
    "2024, arXiv 2312.02696"
)


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    if scale == "ucf101":
        base, averages = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101"), (0.0, 0.999)
        metrics, kwargs = ("fvd", "smoothness", "dynamic"), {"num": 2048, "devices": 0}
    else:
        base, averages = read_file(CONFIGS / "moving_digits.py"), (0.0, 0.999)
        metrics, kwargs = ("digit", "direction", "digits_fvd", "digits_fid", "jerk"), {}
    arms = {"base": {}}
    arms |= {f"correlation {rho:g}": {"process.frame_correlation": rho} for rho in (0.2, 0.5)}
    arms["min-SNR"] = {"objective.weighting": "min_snr"}
    arms |= {f"average {decay:g}": {"ema": decay} for decay in averages}
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, **kwargs)
