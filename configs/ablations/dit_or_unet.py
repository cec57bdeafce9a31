"""A diffusion transformer or a U-Net, how a transformer attends, and how finely a video is cut into patches.

    python experiments/ablate.py --study configs/ablations/dit_or_unet.py --out studies/dit_or_unet --dry-run
    python experiments/ablate.py --study configs/ablations/dit_or_unet.py --out studies/dit_or_unet

All arms have the same data, text encoder, objective (rectified flow), batch and number of steps. Every transformer has
1.4 to 1.8 M parameters, the U-Net 1.2 M. Compute is not equal: the table has the minutes of training. Arms with
as many positions cost about the same. It was never run as a whole (December 2026).
"""

from pathlib import Path
from typing import Literal

from vdm_jax.config import read_file
from vdm_jax.studies.study import Study

CONFIGS = Path(__file__).parents[1]
CLAIM = (
    "Blocks along space and time in turns are better than attention over all positions (Latte's variant 1 against the "
    "rest), and smaller patches are better than larger ones."
)
SOURCE = (
    "Ma et al. 2024, arXiv 2401.03048, sections 3.2 and 4.3, at another scale; the U-Net is this project's question"
)


def get_study(scale: Literal["digits", "small"] = "digits") -> Study:
    """Returns the study, or its "small" form, the arms with large patches."""
    base = read_file(CONFIGS / "moving_digits_dit.py")
    network = base.model.network.to_dict()
    unet = read_file(CONFIGS / "moving_digits.py").model.network.to_dict()
    turns = network | dict(attend="space_time", depth=4)
    whole = network | dict(attend="all", depth=8)
    networks = {
        "U-Net": unet,
        "in turns, 2×4×4": turns | dict(patch_time=2, patch=4),
        "all positions, 2×4×4": whole | dict(patch_time=2, patch=4),
        "in turns, 4×2×2": turns | dict(patch_time=4, patch=2),
        "all positions, 4×2×2": whole | dict(patch_time=4, patch=2),
    }
    if scale == "small":
        networks = {name: networks[name] for name in ("U-Net", "in turns, 2×4×4", "all positions, 2×4×4")}
    arms = {name: {"model.network": arguments} for name, arguments in networks.items()}
    metrics = ("digit", "direction", "jerk")
    return Study(claim=CLAIM, source=SOURCE, base=base, arms=arms, metrics=metrics, num=200)
