"""Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404), STDiT3-XL/2: text to video, known frames at time 0.

    python experiments/train.py --config=configs/open_sora.py:stage1 --workdir=runs/open_sora \
        --config.data.data_dir=my/videos --config.model.text.folder=t5-v1_1-xxl \
        --config.model.codec.folder=OpenSora-VAE-v1.2 --config.mesh.data=1 --config.mesh.fsdp=8
    python experiments/sample.py --run=runs/open_sora --prompt "a panda on a surfboard" --image first.png

Network: 28 pairs of blocks along space and time of width 1152 with 16 heads, all of which read the text, conditioned on
    the frame rate; 1,207,643,936 parameters. STDiT3-XL/2 has 36 more, the frequencies of positions, which are constants
    here. Its null text is a learned buffer; here it is the empty text.
Text: T5 v1.1 XXL, 300 tokens, padding masked. Codec: Open-Sora's autoencoder; 51 frames are 15 latents.
Recipe: rectified flow, times from a logit-normal, shifted by √(rows·columns/512²) · √(5·(frames div 17)) = 2.41;
    AdamW with a rate of 1e-4 after 1000 steps, ε = 1e-15, no weight decay, clipping at 1, an average with 0.99.
    Known frames are clean, at t = 0, and have no loss. Open-Sora's shares of them (stages 1 and 2) and the masks here:

    image_head .05                               first .05
    quarter_head .005                            first_k .005
    quarter_tail .005, image_tail .025           last_k .03
    interpolate .005                             every_nth .005
    random .05, quarter_random .005,
        image_random .025                        frames .08
    quarter_head_tail .005,
        image_head_tail .025                     none: both ends at once have no mask here
    else nothing                                 nothing .83

Differences: one size, 240×424×51, where stage 1 mixes 16 buckets of sizes; all blocks from new parameters, where
    Open-Sora began with PixArt's and trained in eight parts; the numbers of frames of the masks; means of the
    autoencoder in place of samples; the batch of 32 is a choice.
Hardware and time: never run at full size; no time and no score is claimed (November 2026).
"""

from vdm_jax.config import default_config


def get_config(stage: str = "stage1"):
    """Returns the config of the first stage."""
    if stage != "stage1":
        raise ValueError(f"stage {stage!r} must be stage1")
    config, frames, rows, columns = default_config(), 51, 240, 424
    config.steps, config.batch_size, config.ema = 30_000, 32, 0.99
    config.data.update(dict(name="folder", data_dir="videos", frames=frames, height=rows, width=columns, channels=3))
    config.data.update(dict(fps=24.0, num_workers=8))
    config.model.dtype = "bfloat16"
    config.model.network = dict(
        kind="dit",
        width=1152,
        depth=28,
        heads=16,
        pad=True,
        plane="area",
        cross="each",
        interleaved=True,
        pooled=False,
        scalars=(256, 1),
        variance=True,
        remat="full",
    )
    config.model.text = dict(folder="t5-v1_1-xxl", length=300)
    config.model.codec = dict(folder="OpenSora-VAE-v1.2")
    config.process = dict(name="flow", shift=(rows * columns / 512**2 * 5 * (frames // 17)) ** 0.5)
    config.objective = dict(prediction="flow", time_sampling="logit_normal")
    config.known.tell = "times"
    config.known.mixture = dict(nothing=0.83, first=0.05, first_k=0.005, last_k=0.03, every_nth=0.005, frames=0.08)
    options = dict(eps=1e-15, weight_decay=0.0)
    config.optimizer.update(dict(name="adamw", learning_rate=1e-4, warmup=1000, decay="constant", clip=1.0))
    config.optimizer.options = options
    config.checkpoint = dict(every=500, keep=3, keep_every=5_000)
    config.sample.update(dict(steps=30, guidance=7.0, clip=None, fps=24.0))
    config.lock()
    return config
