"""Draws videos from a trained run or a published model: from prompts alone, or with a part of the video known.

python experiments/sample.py --run runs/digits --prompt "the digit 3 moves left" --num 4 --format gif,mp4,png
python experiments/sample.py --run runs/digits --video in.mp4 --extend 24
python experiments/sample.py --pretrained text-to-video-ms-1.7b --prompt "a panda on a surfboard" --dtype bfloat16
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError, some

RUN = flags.DEFINE_string("run", None, "Run folder to sample from.")
CASCADE = flags.DEFINE_list("cascade", None, "Several runs, instead of --run: each refines the videos before it.")
PRETRAINED = flags.DEFINE_string("pretrained", None, "Folder of a published model; with --run: where its model is now.")
ADAPTER = flags.DEFINE_string("motion_adapter", None, "Folder of AnimateDiff's motion modules, for an image model.")
LORA = flags.DEFINE_multi_string("lora", None, "LoRA for --pretrained: path or path:strength. Can be repeated.")
FREE_NOISE = flags.DEFINE_list("free_noise", None, "Draw all --frames of AnimateDiff in windows: length,stride.")
SIZE = flags.DEFINE_list("size", None, "Rows,columns of a published model's videos (default: as published).")
SCHEDULER = flags.DEFINE_string("scheduler", None, "Another scheduler for --pretrained: dpmpp, unipc … or a JSON file.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Type in which a published model computes (default: bfloat16; float32 on CPUs).",
)
MOTION = flags.DEFINE_float("motion", None, "Motion bucket of Stable Video Diffusion (default: 127).")
CHUNK = flags.DEFINE_integer(
    "chunk", None, "Frames that Stable Video Diffusion decodes at a time (default: all).", lower_bound=1
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "A prompt. Can be repeated. '0: one text | 8: another' changes at frame 8."
)
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with one prompt a line.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "Prompt that guidance leads away from (default: an empty one).")
NUM = flags.DEFINE_integer("num", 1, "Videos for each prompt.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise: the same seed draws the same videos.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps (default: the run's config).")
SOLVER = flags.DEFINE_string("solver", None, "ddim, heun, dpmpp, unipc … (default: the run's config, or as published).")
ETA = flags.DEFINE_float("eta", None, "Noise of ddim, dpmpp or tcd, from 0 (none) to 1 (ancestral sampling).")
GRID = flags.DEFINE_string("grid", None, "Spacing of the steps: uniform, log_snr, karras …")
FREE_INIT = flags.DEFINE_integer("free_init", None, "Rounds of sampling, each from the result before it (FreeInit: 3).")
PYRAMID = flags.DEFINE_integer(
    "pyramid", None, "Steps by which each frame is behind the frame before it, for runs with a time for each frame."
)
GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance; 1 is none.")
IMAGE = flags.DEFINE_multi_string("image", [], "Picture that is a known frame. Can be repeated, with --image_at.")
IMAGE_AT = flags.DEFINE_list("image_at", None, "Numbers of the frames that the pictures are (default: 0).")
VIDEO = flags.DEFINE_string(
    "video", None, "Video for --extend, --interpolate, --mask, --outpaint, --enlarge or --strength."
)
EXTEND = flags.DEFINE_integer("extend", None, "Frames to draw after the video; negative: before it.")
INTERPOLATE = flags.DEFINE_integer("interpolate", None, "Factor of the frame rate: new frames between the known ones.")
MASK = flags.DEFINE_string("mask", None, "Picture or video that is white where the video is drawn again.")
OUTPAINT = flags.DEFINE_list("outpaint", None, "Border to draw around the video, in pixels: left,right,top,bottom.")
ENLARGE = flags.DEFINE_integer("enlarge", None, "Factor of the video's rows and columns.")
STRENGTH = flags.DEFINE_float(
    "strength", None, "Time to which the video is noised before it is drawn again; 1 is noise alone."
)
FRAMES = flags.DEFINE_integer("frames", None, "Frames of a video without --video (default: a clip's).", lower_bound=1)
CONTEXT = flags.DEFINE_integer(
    "context", None, "Frames that a window sees of the window before it (default: half a window)."
)
RESPECT = flags.DEFINE_string(
    "respect",
    None,
    "How known pixels are respected: replace, reconstruct, concat (as channels of the network) or times (known frames "
    "at t = 0); default: concat or times for runs trained with it, else replace.",
)
RECONSTRUCTION = flags.DEFINE_float("reconstruction", None, "Weight of --respect=reconstruct (default: 10).")
KNOWN_NOISE = flags.DEFINE_float(
    "known_noise", None, "Noise on the known pixels that the network sees by concat or times (default: 0; SVD: 0.02)."
)
EXACT = flags.DEFINE_bool("exact", None, "--noexact: the network draws the known pixels, too, so no edge is cut.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Videos drawn at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Output folder (default: <run>/samples/seed<seed>, or samples/<model>/…).")
FORMAT = flags.DEFINE_list("format", ["gif", "mp4", "png"], "Any of gif, mp4, webm, png (frames in a row), npy.")
SCALE = flags.DEFINE_integer("scale", 0, "Factor by which pixels are enlarged; 0: to about 128 pixels.", lower_bound=0)

OF_PUBLISHED = (ADAPTER, LORA, FREE_NOISE, SIZE, MOTION, CHUNK, DTYPE, SCHEDULER)
MODES = (EXTEND, INTERPOLATE, MASK, OUTPAINT, ENLARGE)


def main() -> None:
    """Checks the input, loads, draws with a progress bar, and writes."""
    check_flags()

    from tqdm import tqdm

    from vdm_jax.build import load
    from vdm_jax.files import alone_in
    from vdm_jax.generation import cascade
    from vdm_jax.generation.pipeline import Pipeline
    from vdm_jax.generation.prompts import read_prompts

    prompts = [*PROMPT.value, *(read_prompts(PROMPTS.value) if PROMPTS.value else [])] or [""]
    moved = {"folder": PRETRAINED.value or "", "motion_adapter": ADAPTER.value or ""}
    models = [load_pretrained()] if published() else [load(run, **moved) for run in CASCADE.value or [RUN.value]]
    task, known = read_task(models[0])
    kwargs = {"seed": SEED.value, "negative": NEGATIVE.value or "", "context": CONTEXT.value}
    changes = changes_of_settings(len(models))
    stages = cascade.plan([Pipeline(model) for model in models], task, prompts, changes, **kwargs)
    check_use(stages)

    out = make_out()
    repeated = [prompt for prompt in prompts for _ in range(NUM.value)]
    with alone_in(out):  # two commands would take each other's windows for their own
        videos, fps = cascade.draw(stages, repeated, out, tqdm, batch_size=BATCH.value, **kwargs)
        written = write(videos, fps, repeated, stages, known, out)
    others = sorted(path.name for path in out.glob("[0-9]*") if path.suffix != ".json" and path not in written)
    if others:
        print(f"{out} also holds {len(others)} files of earlier commands: {some(others)}")
    print(f"{len(videos)} videos in {out} ({', '.join(FORMAT.value)}); side by side in {out / 'sheet.png'}")


# --------------------------------------------------------------------------------------------------- the flags


def check_flags() -> None:
    """Checks what needs no model."""
    from vdm_jax.video import WRITABLE

    if [bool(RUN.value), bool(CASCADE.value), published()].count(True) != 1:
        raise InputError("--run=runs/<name> is needed, or --cascade=<run>,<run>,… or --pretrained=<folder> instead")
    for name in {} if published() else values(*OF_PUBLISHED[RUN.value is not None :]):
        raise InputError(f"--{name} needs --pretrained=<model>, without a run")
    for suffix in FORMAT.value:
        if f".{suffix}" not in WRITABLE:
            raise InputError(f"--format={suffix} must be of {', '.join(s.lstrip('.') for s in WRITABLE)}")


def published() -> bool:
    """Returns whether the model is a published one; next to a run --pretrained says where the run's model is."""
    return bool(PRETRAINED.value and not RUN.value)


def values(*chosen: flags.FlagHolder) -> dict[str, Any]:
    """Returns the values of the flags that are set, by name."""
    return {flag.name: flag.value for flag in chosen if flag.value is not None}


def integers(flag: flags.FlagHolder, names: str = "") -> list[int]:
    """Returns the numbers of a list flag; `names` are the names of the numbers, where their count is fixed."""
    text = ",".join(flag.value)
    try:
        numbers = [int(value) for value in flag.value]
    except ValueError:
        raise InputError(f"--{flag.name}={text} must be whole numbers separated by commas") from None
    if names and len(numbers) != len(names.split(",")):
        raise InputError(f"--{flag.name}={text} must be {names}")
    return numbers


def load_pretrained():
    """Loads the model of --pretrained."""
    from vdm_jax.pretrained.load import load_published
    from vdm_jax.pretrained.lora import parse_lora

    options = values(ADAPTER, DTYPE, MOTION, CHUNK, SCHEDULER)
    options["loras"] = [parse_lora(text) for text in LORA.value or []]
    if SIZE.value:
        options["size"] = tuple(integers(SIZE, "rows,columns"))
    if FREE_NOISE.value:  # otherwise a longer video is drawn window by window
        options |= {"free_noise": tuple(integers(FREE_NOISE, "length,stride")), "frames": FRAMES.value}
    return load_published(PRETRAINED.value, at_most=FRAMES.value, **options)


# ---------------------------------------------------------------------------------------------------- the task


def read_task(model):
    """Returns the task that the flags describe, and its entries for the metadata of files."""
    from vdm_jax.generation.modes import text_to_video

    if IMAGE.value and VIDEO.value:
        raise InputError("--image and --video: one of them at a time")
    if VIDEO.value:
        return task_of_video(model)
    for name in values(*MODES, STRENGTH):
        raise InputError(f"--{name} needs --video=<file>")
    frames, *size = model.shape
    frames = FRAMES.value or frames
    return task_of_images(model, frames) if IMAGE.value else (text_to_video((frames, *size), model.fps), {})


def task_of_images(model, frames: int):
    """Returns the task of a video with known frames."""
    from vdm_jax.generation.inputs import read_image
    from vdm_jax.generation.modes import keyframes

    at, count = integers(IMAGE_AT) if IMAGE_AT.value else [0], len(IMAGE.value)
    if len(set(at)) != count or len(at) != count:
        raise InputError(f"--image_at={','.join(map(str, at))} must be {count} different frames, one per --image")
    _, *size, channels = model.shape
    images = {k: read_image(path, tuple(size), channels) for k, path in zip(at, IMAGE.value, strict=True)}
    return keyframes(images, frames, model.fps), {"image": IMAGE.value, "image_at": at}


def task_of_video(model):
    """Returns the task of --video."""
    from vdm_jax.generation import modes
    from vdm_jax.generation.inputs import read_clip, read_mask

    chosen = values(*MODES)
    if model.downsample > 1:  # the run enlarges, and does nothing else
        chosen.setdefault("enlarge", model.downsample)
    if len(chosen) > 1 or not (chosen or STRENGTH.value):
        raise InputError("--video needs one of --extend, --interpolate, --mask, --outpaint, --enlarge, or --strength")
    mode = next(iter(chosen), "strength")
    if STRENGTH.value is not None and mode in ("extend", "interpolate", "outpaint"):
        raise InputError(f"--strength noises the video, and --{mode} adds pixels that the video does not have")
    borders = integers(OUTPAINT) if OUTPAINT.value else [0, 0, 0, 0]
    size = size_of_video(model.shape, chosen.get("enlarge", 1), borders)
    video, fps, pixels = read_clip(VIDEO.value, size, model.shape[3])
    match mode:
        case "extend":
            task = modes.extend(video, EXTEND.value, fps)
        case "interpolate":
            task = modes.interpolate(video, INTERPOLATE.value, fps)
        case "mask":
            task = modes.inpaint(video, read_mask(MASK.value, size, pixels), fps)
        case "outpaint":
            task = modes.outpaint(video, borders, fps)
        case "enlarge":
            task = modes.enlarge(video, chosen["enlarge"], fps)
        case _:
            task = modes.variation(video, STRENGTH.value, fps)
    if STRENGTH.value is not None:
        task = dataclasses.replace(task, strength=STRENGTH.value)
    return task, {"video": VIDEO.value, **chosen}


def size_of_video(shape: tuple[int, ...], factor: int, borders: list[int]) -> tuple[int, int]:
    """Returns the rows and columns of a video that is enlarged, or gets borders, to a model's shape."""
    _, rows, columns, _ = shape
    if factor < 1 or rows % factor or columns % factor:
        raise InputError(f"--enlarge={factor} must divide the {rows}×{columns} pixels that the run draws")
    size = (rows // factor - sum(borders[2:]), columns // factor - sum(borders[:2]))
    if min(size) < 1:
        raise InputError(f"--outpaint={','.join(OUTPAINT.value)} leaves nothing of {rows}×{columns} pixels")
    return size


# --------------------------------------------------------------------------------------------------- the stages


def changes_of_settings(stages: int) -> list[dict[str, Any]]:
    """Returns the changes of each stage's settings: known pixels of later stages are respected by channels alone."""
    common = values(STEPS, SOLVER, ETA, GRID, GUIDANCE)
    first = common | values(FREE_INIT, PYRAMID, RESPECT, RECONSTRUCTION, EXACT)
    if stages == 1:
        return [first | values(KNOWN_NOISE)]
    return [first, *[common | values(KNOWN_NOISE)] * (stages - 1)]


def check_use(stages: list) -> None:
    """Raises InputError for a flag that would change nothing."""
    first, last = stages[0], stages[-1]
    # A later window knows what the windows before it drew, and a later stage the video of the stage before it.
    knows = len(first.windows) > 1 or first.task.mask.any() or first.task.strength < 1 or first.task.coarse > 1
    sees = last.settings.respect in ("concat", "times") or last.pipeline.model.first_frame is not None
    requirements = (
        (IMAGE_AT, IMAGE.value, "--image=<file>"),
        (FRAMES, published() or not VIDEO.value, "a task without --video, which has a length of its own"),
        (CONTEXT, first.task.coarse == 1, "windows that see each other; the windows of an enlarged video do not"),
        (RESPECT, knows, "known pixels (--image, --video)"),
        (EXACT, knows, "known pixels (--image, --video)"),
        (RECONSTRUCTION, first.settings.respect == "reconstruct" and knows, "--respect=reconstruct"),
        (
            KNOWN_NOISE,
            sees and (knows or len(stages) > 1),
            "known pixels that the network sees (--respect=concat, times)",
        ),
        (GUIDANCE, first.pipeline.takes_guidance or GUIDANCE.value == 1, "a model that takes text"),
        (NEGATIVE, last.settings.guidance != 1, "guidance, and --guidance=1 is none"),
    )
    for flag, met, requirement in requirements:
        if flag.value is not None and not met:
            value = ",".join(flag.value) if isinstance(flag.value, list) else flag.value
            raise InputError(f"--{flag.name}={value} needs {requirement}")


# -------------------------------------------------------------------------------------------------- the output


def make_out() -> Path:
    """Makes the output folder."""
    name = RUN.value or PRETRAINED.value or CASCADE.value[-1]
    samples = Path("samples") / Path(name).name if published() else Path(name) / "samples"
    out = Path(OUT.value) if OUT.value else samples / f"seed{SEED.value}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written: {error.strerror}") from error
    return out


def write(videos: list, fps: float, prompts: list[str], stages: list, known: dict[str, Any], out: Path) -> set[Path]:
    """Writes the videos and a sheet of them, with the metadata to draw them again. Returns the videos' paths."""
    from vdm_jax.generation.resume import remove_partial
    from vdm_jax.video import write_video

    used = [{"step": stage.pipeline.model.step, **dataclasses.asdict(stage.settings)} for stage in stages]
    metadata = {"run": RUN.value or PRETRAINED.value or ",".join(CASCADE.value), "seed": SEED.value}
    metadata |= (used[0] if len(used) == 1 else {"stages": used}) | known | values(*OF_PUBLISHED, CONTEXT)
    if NEGATIVE.value is not None:
        metadata["negative"] = NEGATIVE.value
    scale = SCALE.value or max(1, 128 // min(stages[-1].pipeline.model.shape[1:3]))
    written = set()
    for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:40] if prompt else "unconditional"
        name = f"{number:03}-{words}".rstrip("-")
        for file in (out / f"{name}.{suffix}" for suffix in FORMAT.value):
            write_video(file, video, fps, metadata | {"prompt": prompt, "number": number}, scale)
            written.add(file)
    write_sheets(videos, fps, prompts, metadata, max(1, scale // 2), out)
    for partial in out.glob(".stage*.npy"):
        remove_partial(partial)
    return written


def write_sheets(videos: list, fps: float, prompts: list[str], metadata: dict[str, Any], scale: int, out: Path) -> None:
    """Writes sheet.png, a row of frames for each video, and sheet.gif, in which all videos play at once."""
    import numpy as np

    from vdm_jax.video import contact_sheet, write_image, write_video

    sheet = contact_sheet(videos[:40], columns=32, scale=scale)
    write_image(out / "sheet.png", sheet, metadata | {"prompts": prompts[:40]})
    if "gif" in FORMAT.value and len(videos) > 1:
        columns = NUM.value if NUM.value > 1 else min(len(videos), 5)  # the samples of a prompt are in a row
        rows = min(len(videos) // columns, 16)
        grid = np.reshape(videos[: rows * columns], (rows, columns, *videos[0].shape))
        moving = [contact_sheet(grid[:, :, frame], scale=scale) for frame in range(grid.shape[2])]
        write_video(out / "sheet.gif", np.stack(moving), fps, metadata)


if __name__ == "__main__":
    command.run(main)
