"""The smallest run that has every part, on a folder of tiny videos (`write_videos`)."""

from pathlib import Path

import numpy as np

from vdm_jax.config import default_config
from vdm_jax.video import write_video

COUNT = 11  # videos, not a multiple of the batch


def get_config():
    config = default_config()
    config.steps = 20
    config.batch_size = 8
    config.seed = 5
    config.ema = 0.9
    config.data.name = "folder"
    config.data.data_dir = "videos"
    config.data.frames = 4
    config.data.height = config.data.width = 8
    config.data.channels = 3
    config.model.network.update(channels=8, multipliers=(1,), blocks=0, head_size=8, patch=4, patch_time=2)
    config.model.text.update(width=16, depth=0, length=16, head_size=16)
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup = 2
    config.log_every = 1
    config.tensorboard = False
    config.checkpoint.every = 10
    config.sample.every = 10
    config.sample.prompts = ("clip 3",)
    config.sample.steps = 2
    return config


def write_videos(folder: Path) -> Path:
    """Writes videos of noise, larger and longer than the clips cut from them."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        write_video(folder / f"{number}.gif", rng.integers(256, size=(6, 10, 12, 3)).astype(np.uint8), fps=10)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder
