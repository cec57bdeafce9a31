"""Extending a video: replacement, reconstruction guidance, and networks that were trained to see known frames.

    python experiments/ablate.py --study configs/ablations/extension.py --out studies/extension
    python experiments/ablate.py --study configs/ablations/extension.py:frames --out studies/extension-frames
    python experiments/ablate.py --study configs/ablations/extension.py:bair \
        --out studies/extension-bair --i3d i3d.safetensors

On digits four frames are known and four are drawn. The last arm of "digits" draws from the runs of
`configs/moving_digits_known.py`, all other arms from the runs of `configs/moving_digits.py`. "frames" compares networks
with a time for each frame, which need a stem of one frame: all of its arms have that stem, and half the batch. It also
compares a pyramid of times with windows. On BAIR
the first frame is known, as in the paper. `bair` was never run.
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


# Masks of whole frames, which are all that a time for each frame can show.
FRAMES = dict(nothing=1.0, first=2.0, first_k=2.0, last_k=1.0, every_nth=1.0, frames=1.0)
METRICS = ("digit_kept", "position_error", "within_pixel", "psnr", "jerk")


def get_study(scale: Literal["digits", "frames", "bair"] = "digits") -> Study:
    """Returns the study at the scale of "digits", "frames" or "bair"."""
    if scale == "frames":
        return frames()
    if scale == "bair":
        base, mixture = read_file(f"{CONFIGS / 'video_diffusion_models.py'}:bair"), {"nothing": 1.0, "first": 3.0}
        base.sample.eta = 0.0
        known, weights, metrics = "image to video, with the caption", (3, 10, 50), ("fvd", "psnr", "smoothness")
        kwargs = {"num": 256, "devices": 0}
    else:
        base = read_file(CONFIGS / "moving_digits.py")
        mixture = read_file(CONFIGS / "moving_digits_known.py").known.mixture.to_dict()
        known, weights = "extension, half known", (1, 3, 10)
        metrics, kwargs = METRICS, {"num": 64}
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


def frames() -> Study:
    """Returns the comparison of four ways to train a network for known frames, at equal steps and equal stems.

    With `time_per_frame` the network never saw a mask: known frames stand at t = 0, one of the times of training
    (Diffusion Forcing, Chen et al. 2024, arXiv 2407.01392). A pyramid draws the frames one after the other. Windows of
    two frames draw the first two, and then the last two, which see them.
    """
    base = read_file(CONFIGS / "moving_digits.py")
    base.model.network.patch_time, base.batch_size, base.sample.guidance = 1, 8, 1.0
    masks = {"known.mixture": FRAMES, "objective.null_probability": 0.2}
    forcing = {"objective.time_per_frame": True, "objective.null_probability": 0.2, "sample.respect": "times"}
    arms = {
        "replacement": {"sample.respect": "replace"},
        "known frames as channels": masks | {"sample.respect": "concat"},
        "known frames at t = 0": masks | {"known.tell": "times", "sample.respect": "times"},
        "a time for each frame": forcing,
        "a time for each frame, pyramid of 2 steps": forcing | {"sample.pyramid": 2},
    }
    windows = {"known": "extension, half known, two frames at a time"}
    arms |= {f"{name}, two at a time": arm | windows for name, arm in arms.items() if "sample.pyramid" not in arm}
    claim = (
        "A network with a time for each frame extends a video by known frames at t = 0, as well as a network that sees "
        "them as channels; a pyramid of times keeps the frames in order."
    )
    source = "Chen et al. 2024, arXiv 2407.01392; Open-Sora 1.2; the comparison is this project's question"
    known = "extension, half known"
    return Study(claim=claim, source=source, base=base, arms=arms, metrics=METRICS, known=known, num=64)
