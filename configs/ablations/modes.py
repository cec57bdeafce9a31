"""Every mode of generation with every way to respect the known part of a video; docs/modes.md discusses the results.

    python experiments/ablate.py --study configs/ablations/modes.py --out studies/modes
    python experiments/ablate.py --study configs/ablations/modes.py:known --out studies/modes-known
    python experiments/ablate.py --study configs/ablations/modes.py:larger --out studies/modes-larger

`digits` draws from runs of `configs/moving_digits.py`, which were trained without masks. `known` draws from runs of
`configs/moving_digits_known.py`, which were trained with masks. `larger` draws from runs of
`configs/moving_digits_larger.py`: super-resolution from 16×16 to 32×32 pixels; the floor is cubic interpolation.
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.evaluation.known import MODES, VIDEO_TO_VIDEO
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "In every mode, reconstruction guidance continues the known part better than replacement. A network that was "
    "trained with masks continues it at least as well, at the cost of replacement."
)
SOURCE = "Ho et al. 2022, arXiv 2204.03458, for extension; the rest is this project's own question"

REPLACE, CONCAT = {"sample.respect": "replace"}, {"sample.respect": "concat"}


def get_study(scale: Literal["digits", "known", "larger"] = "digits") -> Study:
    """The study at the scale of "digits", "known" or "larger"."""
    base = read_file(CONFIGS / f"moving_{'digits' if scale == 'digits' else f'digits_{scale}'}.py")
    base.sample.guidance = 1.0
    kwargs = {"claim": CLAIM, "source": SOURCE, "base": base, "num": 32, "batch_size": 32}
    if scale == "larger":
        arms = {"concat": CONCAT}
        return Study(arms=arms, metrics=("psnr", "ssim"), known="super-resolution by 2", **kwargs)
    ways = {"replace": REPLACE, "concat": CONCAT}
    if scale == "digits":
        weights = {w: {"sample.respect": "reconstruct", "sample.reconstruction": float(w)} for w in (1, 3, 10)}
        ways = {"replace": REPLACE} | {f"reconstruct, w = {w}": change for w, change in weights.items()}
    modes = [name for name, mode in MODES.items() if name != VIDEO_TO_VIDEO and mode.factor == 1]
    arms = {f"{mode}: {way}": {"known": mode} | change for mode in modes for way, change in ways.items()}
    arms[f"{VIDEO_TO_VIDEO}, strength 0.6"] = {"known": VIDEO_TO_VIDEO, "sample.strength": 0.6} | REPLACE
    return Study(arms=arms, metrics=("digit_kept", "position_error", "within_pixel"), **kwargs)
