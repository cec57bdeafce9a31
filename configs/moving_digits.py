"""Text to video on moving digits, small enough for a CPU: the config of `make demo`.

    python experiments/train.py --config=configs/moving_digits.py --workdir=runs/moving_digits
    python experiments/evaluate.py --run=runs/moving_digits --num=200 --guidance=1,3 --steps=8

Paper: Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458, section 3), with convolutions over time added.
Network: 1.23 M parameters; a stem of 2×2×2 patches, then two levels; 3×3 space convolutions and time convolutions
    everywhere; space attention, and time attention with relative positions, at the coarser level.
Data: 8 frames of 16×16 pixels, ten digits, four directions, drawn from scikit-learn's handwriting.
Optimizer: Muon (Jordan et al. 2024) for matrices and kernels, Adam for vectors.
Hardware and time: 2 CPU cores; 4 to 10 minutes of training, 5 to 13 minutes for `make demo` (November 2026).
Expect (November 2026, one seed, 200 held-out captions, 8 DDIM steps; real clips have 99.5 %, 100 % and 0):

    guidance    right digit    right direction    jerk in pixels
    3           94 %           100 %              0.34
    1           74 %           100 %              0.18

A share of 200 has a standard error of 2 to 3 points. docs/evaluation.md has more.
"""

from vdm_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 2400, 16, 0.99
    # Eight frames show one digit eight times: it is seen through more noise than a single image, so the schedule is
    # shifted by √8 (simple diffusion's rule for more pixels), and times are drawn where shape and caption are decided.
    config.process.shift = 8**0.5
    config.objective = dict(prediction="v", time_sampling="logit_normal", mean=-0.3, std=0.8)

    config.model.network = dict(
        kind="unet",
        channels=32,
        multipliers=(1, 2),
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
    config.model.text = dict(kind="bytes", width=128, depth=1, length=48)
    config.optimizer = dict(
        name="muon",
        learning_rate=4e-3,
        warmup=50,
        decay="cosine",
        final=0.0,
        clip=1.0,
        options=dict(consistent_rms=0.2),
    )
    config.checkpoint.every = 300
    config.sample.update(
        dict(steps=16, guidance=3.0, prompts=("the digit 3 moves left", "a seven going up"), every=800)
    )
    config.lock()
    return config
