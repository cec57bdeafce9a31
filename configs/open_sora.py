"""Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404), stage 1 of its training: 240p, 51 frames, with known frames.

    python experiments/train.py --config=configs/open_sora.py:stage1 --workdir=runs/open_sora \
        --config.data.data_dir=videos --config.mesh.data=1 --config.mesh.fsdp=8

It needs the autoencoder and the text encoder in `open-sora-1.2` (docs/published.md says how to get them).

Network: STDiT3-XL/2, new: 28 pairs of blocks of width 1152, 1.2 billion parameters.
Process and objective: rectified flow with the shift of this size, logit-normal times. Known frames stand at t = 0.
Optimizer: AdamW at 1e-4 with ε = 1e-15, no weight decay; 1,000 steps of warm-up; clipping at 1; EMA 0.99.
Differences: the published training mixes sizes and lengths in buckets, takes its spatial blocks from PixArt-Σ, and
    learns the null text. This has one size, begins at random, and the null condition is the empty text. The mixture of
    masks is the published one as far as this project has its kinds: never are first and last frames known together.
Hardware and time: meant for a cluster. It was never trained; no time and no score is claimed (December 2026).
"""

from vdm_jax.config import default_config


def get_config(stage: str = "stage1", folder: str = "open-sora-1.2"):
    """Returns the config of a stage; `folder` has the published autoencoder and text encoder."""
    if stage != "stage1":
        raise ValueError(f"stage {stage!r} must be stage1")
    config = default_config()
    frames, height, width = 51, 240, 424
    config.steps, config.batch_size, config.ema = 30_000, 64, 0.99
    config.data.update(dict(name="folder", data_dir="videos", frames=frames, height=height, width=width, channels=3))
    config.data.update(dict(fps=24.0, num_workers=8))
    latents = frames // 17 * 5
    config.process = dict(name="flow", shift=(height * width / 512**2 * latents) ** 0.5)
    config.objective = dict(prediction="flow", time_sampling="logit_normal", null_probability=0.1)
    config.known.tell = "times"
    config.known.mixture = dict(nothing=0.835, frames=0.075, every_nth=0.005, first=0.05, first_k=0.005, last_k=0.03)
    config.model = dict(
        dtype="bfloat16",
        network=dict(
            kind="dit",
            width=1152,
            depth=28,
            heads=16,
            pad=True,
            plane="area",
            interleaved=True,
            cross="each",
            pooled=False,
            scalars=(256, 1),
            variance=True,
            remat="full",
        ),
        text=dict(folder=f"{folder}/text_encoder", length=300),
        codec=dict(folder=f"{folder}/vae"),
    )
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4, warmup=1000, decay="constant"))
    config.optimizer.options = dict(eps=1e-15, weight_decay=0.0)
    config.checkpoint = dict(every=1_000, keep=2, keep_every=10_000)
    config.sample.update(dict(steps=30, guidance=7.0, fps=24.0, clip=None))
    config.lock()
    return config
