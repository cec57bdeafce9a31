"""The scale of classifier-free guidance: quality against alignment with the caption.

    python experiments/ablate.py --study configs/ablations/guidance.py --out studies/guidance
    python experiments/ablate.py --study configs/ablations/guidance.py:ucf101 \
        --out studies/guidance-ucf101 --i3d i3d.safetensors

This study only draws, from runs of `configs/moving_digits.py`, which other studies share. `ucf101` is conditioned on
the names of the classes; it was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study, sweep

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "A larger guidance scale follows the caption better; distances from real videos first fall and then rise: FVD "
    "41.65, 50.19, 163.74 and FID 12.49, 10.53, 13.54 at w = 1, 2, 5."
)
SOURCE = "Ho et al. 2022, arXiv 2204.03458, text to video, large model"
WEIGHTS = (0, 1, 2, 3, 5, 8, 15)


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    kwargs = {"claim": CLAIM, "source": SOURCE, "along": "sample.guidance"}
    if scale == "ucf101":
        base = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101")
        base.model.text = dict(kind="bytes", width=512, depth=6, length=64, head_size=64)
        arms = sweep({"": {}}, "sample.guidance", {f"w = {w}": float(w) for w in (1, 2, 3, 5)})
        return Study(base=base, arms=arms, metrics=("fvd", "smoothness", "dynamic"), num=2048, devices=0, **kwargs)
    base = read_file(CONFIGS / "moving_digits.py")
    arms = {"everywhere": {}, "for t in [0.2, 0.7]": {"sample.interval": (0.2, 0.7)}}
    arms = sweep(arms, "sample.guidance", {f"w = {w}": float(w) for w in WEIGHTS})
    for w in (0, 1, 2):  # the interval is for strong guidance
        del arms[f"for t in [0.2, 0.7], w = {w}"]
    metrics = ("digit", "direction", "digits_fvd", "digits_fid", "jerk")
    return Study(base=base, arms=arms, metrics=metrics, **kwargs)
