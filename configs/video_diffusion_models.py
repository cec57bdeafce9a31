"""Video Diffusion Models (Ho, Salimans, Gritsenko, Chan, Norouzi & Fleet 2022, arXiv 2204.03458), 64×64×16.

    python experiments/train.py --config=configs/video_diffusion_models.py:ucf101 --workdir=runs/ucf101 \
        --config.data.data_dir=datasets --config.mesh.data=1 --config.mesh.fsdp=8
    python experiments/parameters.py --config=configs/video_diffusion_models.py:text_small

The argument is a row of the paper's hyperparameter tables (appendix A):

    row           what                                           parameters
    ucf101        unconditional, TFDS                            1,115 M
    kinetics      unconditional, a folder of videos              1,115 M
    bair          unconditional, TFDS                            143 M
    text_small    text to video, a folder of videos              322 M
    text_large    text to video, a folder of videos              1,155 M

Shared by all rows: cosine process with log-SNR in [-20, 20], attention at 32, 16 and 8 pixels, head size 64,
conditioning width 1024, Adam with β₂ = 0.99 (bair: AdamW, 0.999, weight decay 0.01). The paper's prediction tasks
condition when sampling.

Differences: the paper's text-video data is not public, so the other rows read a folder of videos. The text encoder is
the small one on bytes, not the paper's BERT-large. Samples are ancestral with the lower of the paper's two variances
(its γ = 0; the rows ucf101, text_small and text_large have 0.1, 0.3 and 0.3, which is not implemented).

Hardware and time: no row has been trained; no time and no score is claimed (November 2026).
The paper's figures: UCF-101 FID 295 ± 3 and IS 57 ± 0.62; BAIR, 15 frames after 1, FVD 68.19 (ancestral, 512 steps).
"""

from vdm_jax.config import default_config

# channels, multipliers, blocks, learning rate, batch, steps, EMA, dropout, sampling steps, target
ROWS = {
    "ucf101": (256, (1, 2, 4, 8), 2, 3e-4, 128, 60_000, 0.9999, 0.1, 256, "eps"),
    "bair": (128, (1, 2, 3, 4), 3, 2e-4, 128, 660_000, 0.999, 0.1, 256, "v"),
    "kinetics": (256, (1, 2, 4, 8), 2, 2e-4, 256, 220_000, 0.9999, 0.1, 128, "v"),
    "text_small": (128, (1, 2, 4, 8), 2, 3e-4, 128, 200_000, 0.9999, 0.0, 256, "eps"),
    "text_large": (256, (1, 2, 4, 8), 2, 3e-4, 128, 700_000, 0.9999, 0.0, 256, "eps"),
}
DATA = {
    "ucf101": dict(name="ucf101"),
    "bair": dict(name="bair_robot_pushing_small", video_key="image_main"),
}


def get_config(row: str = "text_small"):
    """Returns the config of one row of the paper's tables."""
    if row not in ROWS:
        raise ValueError(f"row {row!r} must be one of {', '.join(ROWS)}")
    channels, multipliers, blocks, rate, batch, steps, ema, dropout, sample_steps, target = ROWS[row]
    config = default_config()
    config.steps, config.batch_size, config.ema = steps, batch, ema

    config.data.update(DATA.get(row, dict(name="folder", data_dir="videos")))
    config.data.update(dict(frames=16, height=64, width=64, channels=3, num_workers=8))

    config.model.dtype = "bfloat16"
    config.model.network = dict(
        kind="unet",
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
        space_attention=(False, True, True, True),
        time_attention=(False, True, True, True),
        time_position="relative",
        head_size=64,
        embedding=1024,
        dropout=dropout,
        remat="dots",
    )
    if row.startswith("text"):
        config.model.text = dict(kind="bytes", width=512, depth=6, length=128, head_size=64)
    else:
        config.model.text = dict(kind="none")

    config.objective.prediction = target
    config.optimizer.name = "adam" if row != "bair" else "adamw"
    config.optimizer.learning_rate = rate
    config.optimizer.decay = "constant"
    config.optimizer.options = dict(b2=0.999, weight_decay=0.01) if row == "bair" else dict(b2=0.99)
    config.data.flip = row == "bair"
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)

    config.checkpoint = dict(every=5_000, keep=3, keep_every=50_000)
    config.sample.update(dict(steps=sample_steps, eta=1.0, clip="dynamic", guidance=1.0))
    config.lock()
    return config
