"""The moving digits of `moving_digits.py`, and a network that is told what is known of the video: one for every mode.

python experiments/train.py --config=configs/moving_digits_known.py --workdir=runs/known
python experiments/modes.py --run=runs/known --num=32 --seeds=0,1,2
python experiments/sample.py --run=runs/known --video=in.mp4 --extend=8
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the config."""
    config = runpy.run_path(str(Path(__file__).with_name("moving_digits.py")))["get_config"]()
    config.known.mixture = dict(
        nothing=1.0, first=2.0, first_k=2.0, last_k=1.0, every_nth=1.0, frames=1.0, inside=0.5, outside=0.5
    )
    config.objective.null_probability = 0.2  # what is known can stand in for the caption
    return config
