"""Prediction target, process and training times, with few and with many sampling steps.

    python experiments/ablate.py --study configs/ablations/prediction.py --out studies/prediction
    python experiments/ablate.py --study configs/ablations/prediction.py:ucf101 \
        --out studies/prediction-ucf101 --i3d i3d.safetensors

"v" is `configs/moving_digits.py` unchanged. The flow has the same shift as the cosine schedule, so that both have the
same noise. The base of `ucf101` is the row of the paper (ε, uniform times, no shift); it was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study, sweep

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "On images the flow with logit-normal times has the best mean rank of 61 formulations, 1.54; ε on linear betas has "
    "2.88, the flow with uniform times 5.67, v on cosine 9.17. More pixels, or frames, need a schedule with more noise."
)
SOURCE = "Esser et al. 2024, arXiv 2403.03206; the shift: Hoogeboom et al. 2023, arXiv 2301.11093"


def get_study(scale: Literal["digits", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101"."""
    uniform = {"objective.time_sampling": "uniform"}
    logit_normal = {"objective.time_sampling": "logit_normal", "objective.mean": 0.0, "objective.std": 1.0}
    if scale == "ucf101":
        base, shift = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101"), 1.0
        base.sample.eta = 0.0
        arms = {"ε": {}, "v": {"objective.prediction": "v"}, "x": {"objective.prediction": "x"}}
        arms["v, shift 4"] = {"objective.prediction": "v", "process.shift": 4.0}
        steps, metrics, kwargs = (16, 256), ("fvd", "smoothness", "dynamic"), {"num": 2048, "devices": 0}
    else:
        base = read_file(CONFIGS / "moving_digits.py")
        shift = base.process.shift
        arms = {"v": {}, "ε": {"objective.prediction": "eps"}, "x": {"objective.prediction": "x"}}
        arms |= {"v, uniform times": uniform, "v, no shift": {"process.shift": 1.0}}
        steps, metrics, kwargs = (4, 16), ("digit", "digits_fvd", "digits_fid", "jerk"), {}
    flow = {"process": {"name": "flow", "shift": shift}, "objective.prediction": "flow"}
    arms |= {"flow, uniform times": flow | uniform, "flow, logit-normal times": flow | logit_normal}
    arms = sweep(arms, "sample.steps", {f"{n} steps": n for n in steps})
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, **kwargs)
