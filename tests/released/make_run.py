"""Made the run and the drawings in this folder: a config and a command of version 0.1.0 (commit 0a124a3).

They run in a checkout of that version only. There, with this file next to them:

    python experiments/train.py --config=make_run.py --workdir=tiny_run
    python make_run.py tiny_run drawings.npz

Of the run, config.json and the averaged parameters of its checkpoint are kept: what a sampler reads.
losses.json holds the first 50 losses of configs/moving_digits.py and configs/moving_digits_known.py of that version, on
one CPU device (--config.log_every=1 --config.mesh.data=1); `compare_losses.py` computes them with this version.
"""

import sys

import numpy as np


def get_config():
    """Returns the config: two levels, patches in space and time, joint attention, known pixels as channels."""
    from vdm_jax.configuration import default_config

    config = default_config()
    config.steps, config.batch_size, config.ema, config.seed = 20, 8, 0.9, 3
    config.process.shift = 2.0
    config.model.unet = dict(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        patch=2,
        patch_time=2,
        time_conv=True,
        space_attention=(False, True),
        time_attention=(False, True),
        head_size=8,
        context="joint",
    )
    config.model.text = dict(width=16, depth=1, length=48, head_size=16)
    config.known.mixture = dict(nothing=1.0, first_k=1.0, inside=1.0)
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-2, 2
    config.log_every, config.tensorboard = 1, False
    config.checkpoint.every = 20
    config.sample.steps = 4
    return config


def main(run: str, out: str) -> None:
    """Draws two videos in four ways; three frames are known in the last three."""
    from vdm_jax import load
    from vdm_jax.diffusion.known import Known

    pipeline = load(run)
    prompts = ["the digit 3 moves left", ""]
    video = np.random.default_rng(0).uniform(-1, 1, (2, *pipeline.shape)).astype(np.float32)
    mask = np.zeros((1, *pipeline.shape[:3], 1), bool)
    mask[:, :3] = True
    known = Known(video, mask)

    def draw(**settings):
        return np.concatenate(list(pipeline.batches(prompts, seed=7, known=known, **settings)))

    np.savez_compressed(
        out,
        text=pipeline(prompts, seed=7, guidance=3.0),
        concat=draw(respect="concat", guidance=2.0),
        replace=draw(respect="replace", guidance=1.0, eta=0.5),
        reconstruct=draw(respect="reconstruct", guidance=1.0, reconstruction=2.0),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
