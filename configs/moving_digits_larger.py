"""Super-resolution: moving digits of 16×16 pixels, drawn at 32×32.

    python experiments/train.py --config=configs/moving_digits_larger.py --workdir=runs/larger
    python experiments/evaluate.py --run=runs/larger --num=32 --known="super-resolution by 2"
    python experiments/sample.py --run=runs/larger --video=small.mp4
    python experiments/sample.py --cascade=runs/moving_digits,runs/larger --prompt="a seven going up"

The network of `moving_digits.py` with twice the patch, which is told the small video, its pixels repeated, with noise
on it (noise augmentation, Ho et al. 2021, section 4.2). About 3 minutes on 2 CPU cores; 34.5 dB PSNR on held-out clips,
where cubic interpolation has 28.1 (November 2026, one seed, docs/modes.md).
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the config."""
    config = runpy.run_path(str(Path(__file__).with_name("moving_digits.py")))["get_config"]()
    config.steps = 800
    config.data.update(builder_config="32x8", height=32, width=32)
    config.model.unet.patch = 4
    # x: the noise of a patch's 32 pixels does not pass through 32 channels, and v-prediction would need it.
    config.objective.prediction = "x"
    config.known.update(mixture=dict(everything=1.0), noise=0.3, downsample=2)
    config.sample.update(prompts=(), every=0)
    return config
