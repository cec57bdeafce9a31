"""Text to video on moving digits, small enough for a CPU: the config of `make demo`.

    python experiments/train.py --config=configs/moving_digits.py --workdir=runs/moving_digits
    python experiments/evaluate.py --run=runs/moving_digits --num=200 --guidance=1,3

Sixteen by sixteen pixels, eight frames, ten digits, four directions. A stem of 2×2×2 patches, then two levels with
all four slots of the trunk: 3×3 space convolutions and temporal convolutions everywhere, space attention and temporal
attention with relative positions at the coarser level. Muon (Jordan et al. 2024) for matrices and kernels, Adam for
vectors. The direction follows the caption; the digit does not yet.
"""

from vdm_jax.configuration import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 1000, 32, 0.99

    config.model.unet = dict(
        channels=32,
        multipliers=(1, 3),
        blocks=1,
        patch=2,
        patch_time=2,
        time_conv=True,
        space_attention=(False, True),
        time_attention=(False, True),
        time_position="relative",
        head_size=32,
        context="none",  # the pooled text alone: sixteen positions a frame are fewer than the tokens
    )
    config.model.text = dict(width=64, depth=2, length=64)
    config.optimizer = dict(
        name="muon",
        learning_rate=4e-3,
        warmup=50,
        decay="cosine",
        final=0.0,
        clip=1.0,
        options=dict(consistent_rms=0.2),
    )
    config.checkpoint.every = 250
    config.sample.update(
        dict(steps=16, guidance=3.0, prompts=("the digit 3 moves left", "a seven going up"), every=500)
    )
    config.lock()
    return config
