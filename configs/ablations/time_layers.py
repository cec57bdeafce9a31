"""Layers that mix frames: attention over time, attention over space and time at once, convolutions, both, or none.

    python experiments/ablate.py --study configs/ablations/time_layers.py --out studies/time_layers
    python experiments/ablate.py --study configs/ablations/time_layers.py:small --out studies/time_layers
    python experiments/ablate.py --study configs/ablations/time_layers.py:ucf101 \
        --out studies/time_layers-ucf101 --i3d i3d.safetensors

The table has parameters, training time and drawing time next to the scores. On digits the stem takes one frame at a
time, so that only the layers mix frames, and the batch is half of the demo's. `small` has four of the nine arms; the
whole study reuses its results. `ucf101` was never run.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "Separate layers for space and time are enough, if attention over time knows the order of frames. Without the "
    "order, motion is worse and single frames are not."
)
SOURCE = "Ho et al. 2022, arXiv 2204.03458, section 3; convolutions over time: Singer et al. 2022, arXiv 2209.14792"

SMALL = ("attention, relative position", "attention, sinusoidal position", "convolutions and attention", "space alone")


def nowhere(levels: tuple[bool, ...]) -> tuple[bool, ...]:
    """Leaves the slot empty at all levels."""
    return (False,) * len(levels)


def get_study(scale: Literal["digits", "small", "ucf101"] = "digits") -> Study:
    """The study at the scale of "digits" or "ucf101", or its "small" form on digits."""
    if scale == "ucf101":
        base, metrics = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:ucf101"), ("fvd", "smoothness", "dynamic")
        kwargs = {"num": 2048, "devices": 0}
    else:
        base, metrics = (
            read_file(CONFIGS / "moving_digits.py"),
            ("digit", "direction", "digits_fvd", "digits_fid", "jerk"),
        )
        base.model.network.patch_time, base.batch_size, kwargs = 1, 8, {}
    time_conv, attention = "model.network.time_conv", "model.network.time_attention"
    arms = {"convolutions and attention": {time_conv: True}}
    for position in ("relative", "sinusoidal", "rotary", "none"):
        arms[f"attention, {position} position"] = {time_conv: False, "model.network.time_position": position}
    arms["convolutions alone"] = {time_conv: True, attention: nowhere}
    arms["space alone"] = {time_conv: False, attention: nowhere}
    arms["no attention over space"] = {time_conv: False, "model.network.space_attention": nowhere}
    arms["attention over space and time at once"] = {
        time_conv: False,
        attention: nowhere,
        "model.network.all_frames": True,
    }
    if scale == "small":
        arms = {name: arms[name] for name in SMALL}
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, **kwargs)
