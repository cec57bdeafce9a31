"""Wan 2.1 (Wan team 2025, arXiv 2503.20314): text to video with attention to all positions of a video.

    python experiments/train.py --config=configs/wan.py:1b3_lora --workdir=runs/style --config.data.data_dir=my/videos
    python experiments/export.py --run=runs/style --lora --out=exported/style    # diffusers loads it
    python experiments/train.py --config=configs/wan.py:1b3_full --workdir=runs/wan --config.data.data_dir=my/videos \
        --config.mesh.data=1 --config.mesh.fsdp=8
    python experiments/export.py --run=runs/wan --out=exported/transformer

The argument is a row, or a row and a folder: `1b3_lora,my/Wan2.1-T2V-14B-Diffusers`.

    row         trained                                                              parameters
    1b3         a new network of the size of Wan 2.1 1.3B                            1,418,996,800
    1b3_full    all of the network in the folder                                     1,418,996,800
    1b3_lora    changes of rank 32 of all attention of the network in the folder     23,592,960

The folder is `Wan2.1-T2V-1.3B-Diffusers`, in the diffusers format. Its text encoder (UMT5-XXL, 512 tokens) and its
autoencoder are frozen.
Data: a folder of videos with captions; 81 frames of 480×832 at 16 frames a second are 21 latents of 60×104.
Recipe: rectified flow, times from a logit-normal, shifted by 3 as the published scheduler shifts them. Rates, batches
    and numbers of steps are choices, not the report's.
Hardware and time: never run at full size; no time and no score is claimed (November 2026).
"""

from vdm_jax.config import default_config

ROWS = ("1b3", "1b3_full", "1b3_lora")


def get_config(argument: str = "1b3"):
    """Returns the config of a row, with the default folder or another."""
    row, _, folder = argument.partition(",")
    if row not in ROWS:
        raise ValueError(f"row {row!r} must be one of {', '.join(ROWS)}")
    folder, new = folder or "Wan2.1-T2V-1.3B-Diffusers", row == "1b3"
    config = default_config()
    config.steps, config.batch_size, config.ema = (100_000, 64, 0.9999) if new else (5_000, 8, 0.99)
    config.data.update(dict(name="folder", data_dir="videos", frames=81, height=480, width=832, channels=3))
    config.data.update(dict(fps=16.0, num_workers=8))
    config.model.dtype = "bfloat16"
    config.model.network = dict(folder=folder, remat="full")
    config.model.text = dict(folder=folder, length=512, padding="zeros", clean="html")
    config.model.codec = dict(folder=folder)
    config.objective = dict(prediction="flow", time_sampling="logit_normal")
    if new:
        config.model.network = dict(
            kind="dit",
            width=1536,
            depth=30,
            heads=12,
            hidden=8960,
            attend="all",
            plane=None,
            qk_norm="all",
            cross="each",
            cross_norm=True,
            interleaved=True,
            pooled=False,
            remat="full",
        )
        config.process = dict(name="flow", shift=3.0)
        config.sample.update(dict(solver="unipc", clip=None))
    config.train.update(dict(parts="lora" if row == "1b3_lora" else "all", rank=32))
    rate = {"1b3": 1e-4, "1b3_full": 1e-5, "1b3_lora": 1e-4}[row]
    config.optimizer.update(dict(name="adamw", learning_rate=rate, warmup=100, decay="constant", clip=1.0))
    config.checkpoint = dict(every=500, keep=2, keep_every=0)
    config.sample.update(dict(steps=50, guidance=5.0, fps=16.0))
    config.lock()
    return config
