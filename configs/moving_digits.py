"""Text to video on moving digits in minutes on a CPU: the config of `make demo`.

    python experiments/train.py --config=configs/moving_digits.py --workdir=runs/moving_digits
    python experiments/evaluate.py --run=runs/moving_digits --num=200 --guidance=1,3

Sixteen by sixteen pixels, eight frames, ten digits, four directions. The trunk with all four slots at one level: a stem of
2×4×4 patches, pointwise residual blocks (space attention and a position code do what 3×3 convolutions would, at a
third of the time on a CPU), temporal convolution and temporal attention with relative positions. Muon (Jordan et al.
2024) reaches in 250 steps the loss that Adam reaches in 750.

@@RESULT@@
"""

from vdm_jax.configuration import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 1500, 32, 0.99

    config.model.unet = dict(
        channels=96,
        multipliers=(1,),
        blocks=1,
        patch=4,
        patch_time=2,
        kernel=1,
        space_position=True,
        time_conv=True,
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
    config.sample.update(dict(steps=16, guidance=3.0, prompts=("the digit 3 moves left", "a seven going up"), every=500))
    config.lock()
    return config
