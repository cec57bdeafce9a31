"""Super-resolution on moving digits: 16×16 pixels to 32×32.

    python experiments/train.py --config=configs/moving_digits_larger.py --workdir=runs/larger
    python experiments/sample.py --run=runs/larger --video=small.mp4
    python experiments/sample.py --cascade=runs/moving_digits,runs/larger --prompt="a seven going up"
    python experiments/evaluate.py --run=runs/larger --num=32 --known="super-resolution by 2"

Paper: noise augmentation of the small video (Cascaded Diffusion Models, Ho et al. 2021, section 4.2).
Network: `moving_digits.py` with twice the patch (1.24 M parameters), which sees the small video, its pixels repeated,
    with noise on it.
Hardware and time: 2 CPU cores; about 3 minutes (November 2026).
Expect (November 2026, one training seed, 32 held-out clips for each of three seeds of sampling): 34.5 dB PSNR, where
cubic interpolation has 28.1 (docs/modes.md).
"""

from pathlib import Path

from vdm_jax.config import read_file


def get_config():
    """Returns the config."""
    config = read_file(Path(__file__).with_name("moving_digits.py"))
    config.steps = 800
    config.data.update(builder_config="32x8", height=32, width=32)
    config.model.network.patch = 4
    # x: the noise of a patch's 32 pixels does not pass through 32 channels, and v-prediction would need it.
    config.objective.prediction = "x"
    config.known.update(mixture=dict(everything=1.0), noise=0.3, downsample=2)
    config.sample.update(prompts=(), every=0)
    return config
