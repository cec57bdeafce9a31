"""Text to video on moving digits with a spacetime diffusion transformer.

    python experiments/train.py --config=configs/moving_digits_dit.py --workdir=runs/moving_digits_dit
    python experiments/evaluate.py --run=runs/moving_digits_dit --num=200 --guidance=1,3 --steps=8

Paper: Latte (Ma et al. 2024, arXiv 2401.03048), blocks along space and time in turns; rectified flow with logit-normal
    times (Esser et al. 2024, arXiv 2403.03206).
"""

from pathlib import Path

from vdm_jax.config import read_file


def get_config():
    """Returns the config."""
    config = read_file(Path(__file__).with_name("moving_digits.py"))
    with config.unlocked():
        config.steps = 2000
        config.process = dict(name="flow", shift=8**0.5)
        config.objective = dict(prediction="flow", time_sampling="logit_normal", mean=-0.3, std=0.8)
        config.model.network = dict(kind="dit", width=128, depth=4, heads=4, patch=4, patch_time=2, cross="none")
    return config
