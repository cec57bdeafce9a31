"""Draws videos from a trained run: from prompts alone, or with a part of the video known.

python experiments/sample.py --run runs/digits --prompt "the digit 3 moves left" --num 4 --format gif,mp4,png
python experiments/sample.py --run runs/digits --video in.mp4 --extend 24
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
IMAGE = flags.DEFINE_multi_string("image", [], "A picture that is known; several with --image_at.")
IMAGE_AT = flags.DEFINE_list("image_at", ["0"], "The frames that the pictures are.")
VIDEO = flags.DEFINE_string("video", None, "A video, with one of the next five.")
EXTEND = flags.DEFINE_integer("extend", None, "Frames to draw after the video; negative: before it.")
INTERPOLATE = flags.DEFINE_integer("interpolate", None, "Frame rate times so much, by frames between the known ones.")
MASK = flags.DEFINE_string("mask", None, "Draw anew where this picture or video is white.")
OUTPAINT = flags.DEFINE_list("outpaint", None, "Draw a border of left,right,top,bottom pixels around the video.")
STRENGTH = flags.DEFINE_float("strength", None, "Draw from the video noised to this time: 1 keeps nothing of it.")
FRAMES = flags.DEFINE_integer(
    "frames", None, "Length where no video gives it (default: the run's clips).", lower_bound=1
)
CONTEXT = flags.DEFINE_integer("context", None, "Frames that a window sees of the one before (default: half).")
RESPECT = flags.DEFINE_string("respect", None, "How what is known is kept: replace or reconstruct.")
RECONSTRUCTION = flags.DEFINE_float("reconstruction", None, "Weight of reconstruct (default: 10).")
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

    from vdm_jax.generation.modes import generate, windows_of
    from vdm_jax.generation.pipeline import load
    from vdm_jax.video import WRITABLE, contact_sheet, write_image, write_video

    for suffix in FORMAT.value:
        if f".{suffix}" not in WRITABLE:
            raise InputError(f"--format={suffix} must be of {', '.join(s.lstrip('.') for s in WRITABLE)}")
    pipeline = load(RUN.value)
    chosen = {"steps": STEPS, "solver": SOLVER, "eta": ETA, "grid": GRID, "guidance": GUIDANCE}
    chosen |= {"respect": RESPECT, "reconstruction": RECONSTRUCTION}
    changes = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    task, known = _task(pipeline)
    settings, _ = pipeline.check(prompts, seed=SEED.value, strength=task.strength, **changes)
    count = len(windows_of(pipeline, task, CONTEXT.value))
    metadata = {"run": RUN.value, "step": pipeline.step, "seed": SEED.value, **dataclasses.asdict(settings), **known}

    out = Path(OUT.value) if OUT.value else Path(RUN.value) / "samples" / f"seed{SEED.value}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written: {error.strerror}") from error
    scale = SCALE.value or max(1, 128 // min(pipeline.shape[1:3]))

    everything = [prompt for prompt in prompts for _ in range(NUM.value)]
    drawn = []
    with tqdm(total=len(everything) * count, unit="window" if count > 1 else "video", desc="sampling") as bar:
        for first in range(0, len(everything), BATCH.value):
            part = everything[first : first + BATCH.value]
            blocks = generate(
                pipeline,
                part,
                task,
                context=CONTEXT.value,
                seed=SEED.value,
                first=first,
                batch_size=BATCH.value,
                **changes,
            )
            for so_far in blocks:
                videos = so_far
                bar.update(len(part))
            for video in videos:
                number = len(drawn)
                stem = out / f"{number:03}-{_slug(everything[number])}"
                for suffix in FORMAT.value:
                    about = metadata | {"prompt": everything[number], "number": number}
                    write_video(stem.with_name(f"{stem.name}.{suffix}"), video, task.fps, about, scale)
                drawn.append(video)
    write_image(
        out / "sheet.png",
        contact_sheet(np.stack(drawn[:40]), columns=32, scale=max(1, scale // 2)),
        metadata | {"prompts": everything[:40]},
    )
    print(f"{len(drawn)} videos in {out} ({', '.join(FORMAT.value)}); side by side in {out / 'sheet.png'}")


def _task(pipeline):
    """What the flags say is known: the task, and its words for a file's metadata."""
    from vdm_jax.generation import modes
    from vdm_jax.generation.inputs import read_clip, read_image, read_mask

    frames, *size, channels = pipeline.shape
    ways = {"extend": EXTEND, "interpolate": INTERPOLATE, "mask": MASK, "outpaint": OUTPAINT}
    ways = {name: flag.value for name, flag in ways.items() if flag.value is not None}
    if IMAGE.value and VIDEO.value:
        raise InputError("--image and --video: one of them at a time")
    if not VIDEO.value:
        for name in [*ways, *(["strength"] if STRENGTH.value is not None else [])]:
            raise InputError(f"--{name} needs --video=<file>")
        frames = FRAMES.value or frames
        if not IMAGE.value:
            return modes.text_to_video((frames, *size, channels), pipeline.fps), {}
        at = _whole_numbers("image_at", IMAGE_AT.value)
        if len(at) != len(IMAGE.value):
            raise InputError(
                f"--image_at={','.join(IMAGE_AT.value)} must be {len(IMAGE.value)} frames, one per --image"
            )
        images = {k: read_image(path, tuple(size), channels) for k, path in zip(at, IMAGE.value, strict=True)}
        return modes.keyframes(images, frames, pipeline.fps), {"image": IMAGE.value, "image_at": at}

    if len(ways) > 1 or not (ways or STRENGTH.value):
        raise InputError("--video needs one of --extend, --interpolate, --mask, --outpaint, or --strength")
    borders = _whole_numbers("outpaint", OUTPAINT.value) if OUTPAINT.value else [0, 0, 0, 0]
    inner = (size[0] - sum(borders[2:]), size[1] - sum(borders[:2]))
    if min(inner) < 1:
        raise InputError(f"--outpaint={','.join(OUTPAINT.value)} leaves nothing of {size[0]}×{size[1]} pixels")
    video, fps, pixels = read_clip(VIDEO.value, inner, channels)
    if EXTEND.value is not None:
        task = modes.extend(video, EXTEND.value, fps)
    elif INTERPOLATE.value is not None:
        task = modes.interpolate(video, INTERPOLATE.value, fps)
    elif MASK.value is not None:
        task = modes.inpaint(video, read_mask(MASK.value, tuple(size), pixels), fps)
    elif OUTPAINT.value is not None:
        task = modes.outpaint(video, borders, fps)
    else:
        task = modes.vary(video, STRENGTH.value, fps)
    if STRENGTH.value is not None:
        task = dataclasses.replace(task, strength=STRENGTH.value)
    return task, {"video": VIDEO.value, **ways}


def _whole_numbers(name: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise InputError(f"--{name}={','.join(values)} must be whole numbers with commas between") from None


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
