"""Latte (Ma et al. 2024, arXiv 2401.03048), conditioned on classes: blocks along space and time in turns.

    python experiments/train.py --config=configs/latte.py:ucf101 --workdir=runs/latte --config.data.data_dir=datasets
    python experiments/train.py --config=configs/latte.py:moving_digits_class --workdir=runs/digit_classes
    python experiments/evaluate.py --run=runs/digit_classes --num=200 --guidance=1,3 --metrics=digit
    python experiments/parameters.py --config=configs/latte.py:moving_digits_class

The argument is what it is trained on:

    ucf101                 TFDS, 101 classes, 16 frames of 256×256 in latents of Stable Diffusion's autoencoder
    sky                    a folder of videos (SkyTimelapse), without classes
    moving_digits_class    ten digits in pixels, a network of 1 M parameters

Network: Latte-XL/2, 14 pairs of blocks of width 1152, each with a modulation of its own (adaLN-zero).
Process and optimizer: noise prediction on linear betas; AdamW at a constant 1e-4, without weight decay; EMA 0.9999.
Differences: the learned variance is left out, as samples are drawn by DDIM. A matrix is between the class table and the
    embedding of time.
Hardware and time: ucf101 and sky need `--config.model.codec.folder=<a folder with Stable Diffusion's vae>` and large
    GPUs. Neither was ever trained; no time and no score is claimed. moving_digits_class: 2 CPU cores; its full training
    was not run either (December 2026).
"""

from importlib.util import find_spec
from pathlib import Path

from vdm_jax.config import default_config, read_file

DIGITS = ("0|zero", "1|one", "2|two", "3|three", "4|four", "5|five", "6|six", "7|seven", "8|eight", "9|nine")


def ucf101_classes() -> tuple[str, ...]:
    """Returns the names of the 101 classes, from a file of TFDS."""
    package = Path(find_spec("tensorflow_datasets").origin).parent  # importing it takes a second
    return tuple((package / "video" / "ucf101_labels.txt").read_text().split())


def get_config(data: str = "ucf101"):
    """Returns the config for one of the data sets."""
    if data == "moving_digits_class":
        return _moving_digits()
    if data not in ("ucf101", "sky"):
        raise ValueError(f"data {data!r} must be ucf101, sky or moving_digits_class")
    config = default_config()
    config.steps, config.batch_size, config.ema = 1_000_000, 40, 0.9999
    config.data.update(dict(frames=16, height=256, width=256, channels=3, stride=3, flip=True, num_workers=8))
    config.data.update(dict(name="ucf101") if data == "ucf101" else dict(name="folder", data_dir="sky_timelapse"))
    config.process = dict(name="ddpm")
    config.objective = dict(prediction="eps", null_probability=0.1)
    network = dict(width=1152, depth=14, heads=16, patch=2, time_position="code", qk_norm=None, modulation="block")
    config.model = dict(
        dtype="bfloat16",
        network=dict(kind="dit", cross="none", remat="full", **network),
        text=dict(kind="classes", width=1152, names=ucf101_classes()) if data == "ucf101" else dict(kind="none"),
        codec=dict(folder="stable-diffusion-v1-5"),
    )
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4, warmup=0, decay="constant"))
    config.optimizer.options = dict(weight_decay=0.0)
    config.checkpoint = dict(every=10_000, keep=2, keep_every=100_000)
    config.sample.update(dict(steps=250, guidance=7.0 if data == "ucf101" else 1.0, fps=8.0, clip=None))
    config.lock()
    return config


def _moving_digits():
    config = read_file(Path(__file__).with_name("moving_digits_dit.py"))
    config.process = dict(name="ddpm")
    config.objective = dict(prediction="eps")
    with config.unlocked():
        config.model.text = dict(kind="classes", width=128, names=DIGITS)
        config.model.network.update(modulation="block", time_position="code", qk_norm=None)
    config.sample.prompts = ("3", "seven")
    return config
