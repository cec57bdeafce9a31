"""Moving digits with known channels: one network for every mode of generation.

    python experiments/train.py --config=configs/moving_digits_known.py --workdir=runs/known
    python experiments/sample.py --run=runs/known --video=in.mp4 --extend=8
    python experiments/evaluate.py --run=runs/known --num=200 --known="extension, half known"
    python experiments/ablate.py --study=configs/ablations/modes.py:known --out=studies/modes-known

Paper: none; the mixture of masks is this project's own.
Network: `moving_digits.py` (1.23 M parameters), which also sees the known video and its mask as two more channels.
Hardware and time: 2 CPU cores; about 10 minutes (November 2026).
Expect (November 2026, one training seed, 32 held-out clips for each of three seeds of sampling): the digit stays in 96
to 97 % of clips where the first half, the first frame, the first and last, or every second frame is known, 0.2 to 0.4
pixels from its true place (docs/modes.md). As text to video it is weaker than `moving_digits.py`: 49.5 % right digits
at guidance 3.
"""

from pathlib import Path

from vdm_jax.config import read_file


def get_config():
    """Returns the config."""
    config = read_file(Path(__file__).with_name("moving_digits.py"))
    config.known.mixture = dict(
        nothing=1.0, first=2.0, first_k=2.0, last_k=1.0, every_nth=1.0, frames=1.0, inside=0.5, outside=0.5
    )
    config.objective.null_probability = 0.2  # what is known can stand in for the caption
    return config
