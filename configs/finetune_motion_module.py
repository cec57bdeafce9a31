"""AnimateDiff's training (Guo et al. 2024, arXiv 2307.04725, section 4.2): motion modules in a frozen image model.

    python experiments/train.py --config=configs/finetune_motion_module.py --workdir=runs/motion \
        --config.pretrained.folder=stable-diffusion-v1-5 --config.data.data_dir=my/videos

The image model is a folder in the diffusers format. Without `pretrained.motion_adapter` it gets new motion modules that
do nothing yet, with one they are tuned further. With one, `--config.pretrained.train=lora` trains low-rank changes of
every attention instead; `all` trains the whole U-Net. Clips are 16 frames of 256×256 at 8 frames a second, as there.
A start for one large GPU; nothing has been measured with it, for want of published weights (November 2026).
"""

from vdm_jax.configuration import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 10_000, 8, 0.999
    config.data.update(
        dict(name="folder", data_dir="videos", frames=16, height=256, width=256, channels=3, fps=8.0, num_workers=4)
    )
    config.model.dtype = "bfloat16"
    config.pretrained.folder = "stable-diffusion-v1-5"
    config.pretrained.train = "time"
    config.pretrained.unet = dict(remat="full")
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4, warmup=100, decay="constant"))
    config.objective.null_probability = 0.1
    config.sample.update(dict(every=1_000, prompts=("",), steps=25, guidance=7.5, fps=8.0))
    config.checkpoint = dict(every=1_000, keep=2, keep_every=0)
    config.lock()
    return config
