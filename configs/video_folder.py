"""Your own videos: a small text-to-video model on a folder of clips with captions.

    python experiments/train.py --config=configs/video_folder.py --workdir=runs/mine --config.data.data_dir=my/videos
    python experiments/sample.py --run=runs/mine --prompt="a dog runs along a beach"

Data: mp4, m4v, mov, 3gp, mkv, webm, avi and gif files, in any mix, in subfolders too. Captions come from
    `metadata.jsonl`, .csv or .parquet (file_name, text), else from a .txt next to each video. Clips are 16 frames at 8
    frames a second, cropped and resized to 64×64.
Network: 66.9 M parameters, in pixels, with layers over time as in Video Diffusion Models (Ho et al. 2022) and
    convolutions over time.
Hardware and time: meant for one GPU. It has not been trained; no time and no score is claimed (November 2026).
"""

from vdm_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 50_000, 16, 0.9995
    config.data.update(
        dict(name="folder", data_dir="videos", frames=16, height=64, width=64, channels=3, fps=8.0, num_workers=4)
    )
    config.model.dtype = "bfloat16"
    config.model.network = dict(
        kind="unet",
        channels=96,
        multipliers=(1, 2, 3, 4),
        blocks=2,
        patch=2,
        time_conv=True,
        space_attention=(False, True, True, True),
        time_attention=True,
        head_size=48,
        dropout=0.05,
    )
    config.model.text = dict(kind="bytes", width=256, depth=4, length=128)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 1000
    config.sample.update(dict(every=5_000, prompts=("",), steps=50, fps=8.0))
    config.checkpoint = dict(every=2_500, keep=2, keep_every=0)
    config.lock()
    return config
