"""Solvers at several numbers of steps.

    python experiments/ablate.py --study configs/ablations/sampler.py --out studies/sampler
    python experiments/ablate.py --study configs/ablations/sampler.py:ucf101 \
        --out studies/sampler-ucf101 --i3d i3d.safetensors

This study only draws, from runs of `configs/moving_digits.py`, which other studies share. Heun's method calls the
network twice in each step but the last: its 4 steps cost as much as 7 steps of another solver. `ucf101` was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study, sweep

CONFIGS = Path(__file__).parents[1]
CLAIM = "Second-order solvers need fewer steps than DDIM, and ancestral sampling needs more."
SOURCE = "DPM-Solver++, Lu et al. 2022, arXiv 2211.01095; Heun's method, Karras et al. 2022, arXiv 2206.00364"
SOLVERS = {
    "DDIM": {"sample.solver": "ddim"},
    "ancestral": {"sample.solver": "ddim", "sample.eta": 1.0},
    "Heun": {"sample.solver": "heun"},
    "DPM-Solver++": {"sample.solver": "dpmpp"},
}


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    arms = sweep(SOLVERS, "sample.steps", {f"{steps} steps": steps for steps in (4, 8, 16, 32, 64)})
    kwargs = {"claim": CLAIM, "source": SOURCE, "arms": arms, "along": "sample.steps"}
    if scale == "ucf101":
        base = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101")
        base.sample.eta = 0.0
        return Study(base=base, metrics=("fvd", "smoothness", "dynamic"), num=2048, devices=0, **kwargs)
    base = read_file(CONFIGS / "moving_digits.py")
    return Study(base=base, metrics=("digit", "digits_fvd", "digits_fid", "jerk"), **kwargs)
