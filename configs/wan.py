"""Wan 2.1 T2V-1.3B (Wan team 2025, arXiv 2503.20314), tuned on a folder of videos.

    python experiments/train.py --config=configs/wan.py:1b3 --workdir=runs/wan --config.data.data_dir=my/videos \
        --config.mesh.data=1 --config.mesh.fsdp=8
    python experiments/train.py --config=configs/wan.py:1b3_lora --workdir=runs/wan_lora \
        --config.data.data_dir=my/videos
    python experiments/export.py --run=runs/wan_lora --lora --out=exported/wan_lora

The argument is what is trained: `1b3` all 1,418,996,800 parameters of the network, `1b3_lora` low-rank changes of its
attention. The model is read from the folder Wan2.1-T2V-1.3B-Diffusers.

Data: 49 frames of 480×832 at 16 frames a second; the autoencoder takes 1 + 4 k frames.
Optimizer: AdamW at 1e-5, or at 1e-4 for low-rank changes: common choices, not the paper's, which are not published.
Hardware and time: meant for large GPUs. It was not run with published weights, as none were at hand; no time and no
    score is claimed (December 2026).
"""

from vdm_jax.config import default_config


def get_config(trained: str = "1b3", folder: str = "Wan2.1-T2V-1.3B-Diffusers"):
    """Returns the config of tuning the model in a folder."""
    if trained not in ("1b3", "1b3_lora"):
        raise ValueError(f"{trained!r} must be 1b3 or 1b3_lora")
    lora = trained == "1b3_lora"
    config = default_config()
    config.steps, config.batch_size, config.ema = 5_000, 8, 0.999
    config.data.update(dict(name="folder", data_dir="videos", frames=49, height=480, width=832, channels=3))
    config.data.update(dict(fps=16.0, num_workers=8))
    config.model.dtype = "bfloat16"
    config.model.network = dict(folder=folder, remat="full")
    config.model.text = dict(folder=folder, length=512, padding="zeros")
    config.model.codec = dict(folder=folder)
    config.train.update(dict(parts="lora" if lora else "all", rank=32))
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4 if lora else 1e-5, warmup=100, decay="constant"))
    config.objective = dict(prediction="flow", time_sampling="logit_normal", null_probability=0.1)
    config.checkpoint = dict(every=500, keep=2, keep_every=0)
    config.sample.update(dict(steps=50, guidance=5.0, fps=16.0))
    config.lock()
    return config
