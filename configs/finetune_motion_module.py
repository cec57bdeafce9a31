"""AnimateDiff's training: new motion modules in a frozen image model.

    python experiments/train.py --config=configs/finetune_motion_module.py:stable-diffusion-v1-5 --workdir=runs/motion \
        --config.data.data_dir=my/videos
    python experiments/sample.py --run=runs/motion --prompt="a panda on a surfboard"
    python experiments/export.py --run=runs/motion --out=exported/unet

The argument is the image model's folder in the diffusers format.

Paper: AnimateDiff (Guo et al. 2024, arXiv 2307.04725, section 4.2): clips of 16 frames of 256×256 at 8 frames a second.
Network: the image model with new motion modules that do nothing at first; or with published motion modules, which are
    tuned further (`--config.model.network.motion_adapter=<folder>`).
Trained (`--config.train.parts`): `time`, the default here, trains the layers over time; `all` the whole U-Net; `lora`
    low-rank changes of every attention (`--config.train.rank=8`), which needs published motion modules.
Hardware and time: meant for one large GPU. It has not been run with published weights, as none were at hand; no time
    and no score is claimed (November 2026).
"""

from vdm_jax.config import default_config


def get_config(folder: str = "stable-diffusion-v1-5"):
    """Returns the config of fine-tuning the model in a folder."""
    config = default_config()
    config.steps, config.batch_size, config.ema = 10_000, 8, 0.999
    config.data.update(
        dict(name="folder", data_dir="videos", frames=16, height=256, width=256, channels=3, fps=8.0, num_workers=4)
    )
    config.model.dtype = "bfloat16"
    config.model.network = dict(folder=folder, motion_adapter="", remat="full")
    config.model.text = dict(folder=folder)
    config.model.codec = dict(folder=folder)
    config.train.parts = "time"
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4, warmup=100, decay="constant"))
    config.objective.null_probability = 0.1
    config.sample.update(dict(every=1_000, prompts=("",), steps=25, guidance=7.5, fps=8.0))
    config.checkpoint = dict(every=1_000, keep=2, keep_every=0)
    config.lock()
    return config
