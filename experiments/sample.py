"""Draws videos from a trained run.

python experiments/sample.py --run runs/digits --prompt "the digit 3 moves left" --num 4 --format gif,mp4,png
"""

import dataclasses
import re
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder to sample from.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
PROMPTS = flags.DEFINE_string("prompts", None, "A text file with one prompt a line.")
NUM = flags.DEFINE_integer("num", 1, "Videos for each prompt.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same videos.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps (default: the run's config).")
SOLVER = flags.DEFINE_string("solver", None, "ddim, heun or dpmpp (default: the run's config).")
ETA = flags.DEFINE_float("eta", None, "Noise of ddim, from 0 (none) to 1 (ancestral sampling).")
GRID = flags.DEFINE_string("grid", None, "Spacing of the steps: uniform, log_snr, karras …")
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1 is none.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Videos drawn at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Output folder (default: <run>/samples/seed<seed>).")
FORMAT = flags.DEFINE_list("format", ["gif", "mp4", "png"], "Any of gif, mp4, webm, png (frames in a row), npy.")
SCALE = flags.DEFINE_integer("scale", 0, "Enlargement of every pixel; 0: to about 128 pixels.", lower_bound=0)


def main() -> None:
    """Checks the input, loads, draws with progress, writes, and says where."""
    if not RUN.value:
        raise InputError("--run=runs/<name> is needed")
    prompts = _prompts()

    import numpy as np
    from tqdm import tqdm

    from vdm_jax.generation.pipeline import load
    from vdm_jax.video import WRITABLE, contact_sheet, write_image, write_video

    for suffix in FORMAT.value:
        if f".{suffix}" not in WRITABLE:
            raise InputError(f"--format={suffix} must be of {', '.join(s.lstrip('.') for s in WRITABLE)}")
    pipeline = load(RUN.value)
    chosen = {"steps": STEPS, "solver": SOLVER, "eta": ETA, "grid": GRID, "guidance": GUIDANCE}
    changes = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    settings, _ = pipeline.check(prompts, seed=SEED.value, **changes)
    metadata = {"run": RUN.value, "step": pipeline.step, "seed": SEED.value, **dataclasses.asdict(settings)}

    out = Path(OUT.value) if OUT.value else Path(RUN.value) / "samples" / f"seed{SEED.value}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written: {error.strerror}") from error
    scale = SCALE.value or max(1, 128 // min(pipeline.shape[1:3]))

    everything = [prompt for prompt in prompts for _ in range(NUM.value)]
    drawn = []
    with tqdm(total=len(everything), unit="video", desc="sampling") as bar:
        for videos in pipeline.batches(everything, seed=SEED.value, batch_size=BATCH.value, **changes):
            for video in videos:
                number = len(drawn)
                stem = out / f"{number:03}-{_slug(everything[number])}"
                for suffix in FORMAT.value:
                    about = metadata | {"prompt": everything[number], "number": number}
                    write_video(stem.with_name(f"{stem.name}.{suffix}"), video, pipeline.fps, about, scale)
                drawn.append(video)
                bar.update()
    write_image(
        out / "sheet.png",
        contact_sheet(np.stack(drawn[:40]), scale=max(1, scale // 2)),
        metadata | {"prompts": everything[:40]},
    )
    print(f"{len(drawn)} videos in {out} ({', '.join(FORMAT.value)}); side by side in {out / 'sheet.png'}")


def _prompts() -> list[str]:
    prompts = list(PROMPT.value)
    if PROMPTS.value:
        try:
            lines = Path(PROMPTS.value).read_text().splitlines()
        except OSError as error:
            raise InputError(f"--prompts={PROMPTS.value} cannot be read: {error.strerror}") from error
        prompts += [line.strip() for line in lines if line.strip()]
    return prompts or [""]


def _slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "unconditional"


if __name__ == "__main__":
    command.run(main)
