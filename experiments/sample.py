"""Draws videos from a trained run or a published model: from prompts alone, or with a part of the video known.

python experiments/sample.py --run runs/digits --prompt "the digit 3 moves left" --num 4 --format gif,mp4,png
python experiments/sample.py --run runs/digits --video in.mp4 --extend 24
python experiments/sample.py --pretrained text-to-video-ms-1.7b --prompt "a panda on a surfboard" --dtype bfloat16
"""

import contextlib
import dataclasses
import re
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder to sample from.")
CASCADE = flags.DEFINE_list("cascade", None, "In place of --run several: each makes finer what the one before it drew.")
PRETRAINED = flags.DEFINE_string(
    "pretrained", None, "In place of --run: a published model's folder (diffusers format)."
)
ADAPTER = flags.DEFINE_string("motion_adapter", None, "Folder of AnimateDiff's motion modules, for an image model.")
LORA = flags.DEFINE_multi_string(
    "lora", None, "path or path:strength of a LoRA for --pretrained; may be given several times."
)
FREE_NOISE = flags.DEFINE_list("free_noise", None, "Draw AnimateDiff's --frames at once in windows: length,stride.")
SIZE = flags.DEFINE_list("size", None, "Rows,columns of a published model's videos (default: as published).")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of a published model's computation (default: float32)."
)
MOTION = flags.DEFINE_float("motion", None, "Stable Video Diffusion's motion bucket (default: 127).")
CHUNK = flags.DEFINE_integer(
    "chunk", None, "Frames that Stable Video Diffusion decodes at a time (default: all).", lower_bound=1
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "A prompt; may be given several times. '0: one | 8: another' changes at frame 8."
)
PROMPTS = flags.DEFINE_string("prompts", None, "A text file with one prompt a line.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What guidance leads away from (default: the empty prompt).")
NUM = flags.DEFINE_integer("num", 1, "Videos for each prompt.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same videos.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps (default: the run's config).")
SOLVER = flags.DEFINE_string("solver", None, "ddim, heun or dpmpp (default: the run's config, or as published).")
ETA = flags.DEFINE_float("eta", None, "Noise of ddim, from 0 (none) to 1 (ancestral sampling).")
GRID = flags.DEFINE_string("grid", None, "Spacing of the steps: uniform, log_snr, karras …")
FREE_INIT = flags.DEFINE_integer("free_init", None, "Rounds of sampling, each on what the last drew (FreeInit: 3).")
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1 is none.")
IMAGE = flags.DEFINE_multi_string("image", [], "A picture that is known; several with --image_at.")
IMAGE_AT = flags.DEFINE_list("image_at", None, "The frames that the pictures are (default: 0).")
VIDEO = flags.DEFINE_string(
    "video", None, "A video, with --extend, --interpolate, --mask, --outpaint, --enlarge or --strength."
)
EXTEND = flags.DEFINE_integer("extend", None, "Frames to draw after the video; negative: before it.")
INTERPOLATE = flags.DEFINE_integer("interpolate", None, "Frame rate times so much, by frames between the known ones.")
MASK = flags.DEFINE_string("mask", None, "Draw anew where this picture or video is white.")
OUTPAINT = flags.DEFINE_list("outpaint", None, "Draw a border of left,right,top,bottom pixels around the video.")
ENLARGE = flags.DEFINE_integer("enlarge", None, "Draw the video at so many times its rows and columns.")
STRENGTH = flags.DEFINE_float("strength", None, "Draw from the video noised to this time: 1 keeps nothing of it.")
FRAMES = flags.DEFINE_integer(
    "frames", None, "Length where no video gives it (default: the run's clips).", lower_bound=1
)
CONTEXT = flags.DEFINE_integer("context", None, "Frames that a window sees of the one before (default: half).")
RESPECT = flags.DEFINE_string("respect", None, "How what is known is kept: replace, reconstruct, concat.")
RECONSTRUCTION = flags.DEFINE_float("reconstruction", None, "Weight of reconstruct (default: 10).")
KNOWN_NOISE = flags.DEFINE_float("known_noise", None, "Noise on what concat tells (default: none; for SVD 0.02).")
EXACT = flags.DEFINE_bool(
    "exact", None, "--noexact: the network draws what is known, too, and blends it into the rest."
)
BATCH = flags.DEFINE_integer("batch_size", 16, "Videos drawn at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Output folder (default: <run>/samples/seed<seed>, or samples/<model>/…).")
FORMAT = flags.DEFINE_list("format", ["gif", "mp4", "png"], "Any of gif, mp4, webm, png (frames in a row), npy.")
SCALE = flags.DEFINE_integer("scale", 0, "Enlargement of every pixel; 0: to about 128 pixels.", lower_bound=0)


def main() -> None:
    """Checks the input, loads, draws with progress, writes, and says where."""
    if [bool(flag.value) for flag in (RUN, CASCADE, PRETRAINED)].count(True) != 1:
        raise InputError(
            "--run=runs/<name> is needed, or in its place --cascade=<run>,<run>,… or --pretrained=<folder>"
        )
    published = {"motion_adapter": ADAPTER, "lora": LORA, "free_noise": FREE_NOISE}
    published |= {"size": SIZE, "motion": MOTION, "chunk": CHUNK, "dtype": DTYPE}
    if not PRETRAINED.value:
        for name in _given(published):
            raise InputError(f"--{name} needs --pretrained=<model>")
    prompts = _prompts()

    from vdm_jax.files import alone_in
    from vdm_jax.generation.image_to_video import ImageToVideo
    from vdm_jax.generation.modes import changes_at, finer, windows_of
    from vdm_jax.generation.partial import remove_partial
    from vdm_jax.generation.pipeline import load
    from vdm_jax.generation.travel import check_travel, read_travel
    from vdm_jax.video import WRITABLE, contact_sheet, write_image, write_video

    for suffix in FORMAT.value:
        if f".{suffix}" not in WRITABLE:
            raise InputError(f"--format={suffix} must be of {', '.join(s.lstrip('.') for s in WRITABLE)}")
    runs = CASCADE.value or [RUN.value or PRETRAINED.value]
    pipeline, *later = map(load, runs) if not PRETRAINED.value else [_published()]
    for name in _given({"motion": MOTION, "chunk": CHUNK}):
        if not isinstance(pipeline, ImageToVideo):
            raise InputError(f"--{name} is for Stable Video Diffusion")
    task, known = _task(pipeline)
    changes = _given({"steps": STEPS, "solver": SOLVER, "eta": ETA, "grid": GRID, "guidance": GUIDANCE})
    noise = _given({"known_noise": KNOWN_NOISE})
    first_changes = (
        changes
        | _given({"free_init": FREE_INIT, "respect": RESPECT, "reconstruction": RECONSTRUCTION, "exact": EXACT})
        | ({} if later else noise)
    )
    travels = [read_travel(prompt) for prompt in prompts]
    if later and any(len(travel) > 1 for travel in travels):
        raise InputError("--cascade takes prompts that hold for the whole video")
    asked = [text for travel in travels for text in travel.values()]
    about_task = {"strength": task.strength, "coarse": task.coarse}
    led = {"seed": SEED.value, "negative": NEGATIVE.value or ""}
    settings, _ = pipeline.check(asked, **led, **about_task, **first_changes)
    check_travel(prompts, changes_at(pipeline, task, windows_of(pipeline, task, CONTEXT.value)))
    stages, planned = [{"step": pipeline.step, **dataclasses.asdict(settings)}], task
    for stage in later:  # before anything is drawn
        planned = finer(stage, planned.video, planned.fps)
        last, _ = stage.check(asked, coarse=planned.coarse, **led, **changes, **noise)
        windows_of(stage, planned, CONTEXT.value)
        stages.append({"step": stage.step, **dataclasses.asdict(last)})
    several = len(windows_of(pipeline, task, CONTEXT.value)) > 1
    _check_use(task, several, settings, stages[-1], pipeline)

    here = Path("samples") / Path(runs[-1]).name if PRETRAINED.value else Path(runs[-1]) / "samples"
    out = Path(OUT.value) if OUT.value else here / f"seed{SEED.value}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={out} cannot be written: {error.strerror}") from error
    held = contextlib.ExitStack()
    held.enter_context(alone_in(out))  # two commands would take each other's windows for their own

    everything = [prompt for prompt in prompts for _ in range(NUM.value)]
    parts = [(first, everything[first : first + BATCH.value], task) for first in range(0, len(everything), BATCH.value)]
    drawn, fps = _draw(pipeline, parts, first_changes, out / ".stage0"), task.fps
    for stage, pipeline in enumerate(later, 1):
        tasks = [finer(pipeline, video, fps) for video in drawn]
        parts = [(i, [everything[i]], task) for i, task in enumerate(tasks)]
        drawn, fps = _draw(pipeline, parts, changes | noise | {"stage": stage}, out / f".stage{stage}"), tasks[0].fps

    scale = SCALE.value or max(1, 128 // min(pipeline.shape[1:3]))
    about = {"run": ",".join(runs), "seed": SEED.value, **(stages[0] if not later else {"stages": stages}), **known}
    about |= _given(published | {"negative": NEGATIVE, "context": CONTEXT})
    for number, (prompt, video) in enumerate(zip(everything, drawn, strict=True)):
        stem = out / f"{number:03}-{_slug(prompt)}".rstrip("-")
        for suffix in FORMAT.value:
            file = stem.with_name(f"{stem.name}.{suffix}")
            write_video(file, video, fps, about | {"prompt": prompt, "number": number}, scale)
    sheet = contact_sheet(drawn[:40], columns=32, scale=max(1, scale // 2))
    write_image(out / "sheet.png", sheet, about | {"prompts": everything[:40]})
    for partial in out.glob(".stage*.npy"):
        remove_partial(partial)
    held.close()
    print(f"{len(drawn)} videos in {out} ({', '.join(FORMAT.value)}); side by side in {out / 'sheet.png'}")


def _published():
    """The pipeline of --pretrained."""
    from vdm_jax.generation.published import load_published
    from vdm_jax.pretrained.lora import parse_lora

    options = {"motion_adapter": ADAPTER, "dtype": DTYPE, "motion": MOTION, "chunk": CHUNK, "at_most": FRAMES}
    options = _given(options)
    options["loras"] = [parse_lora(text) for text in LORA.value or []]
    if FREE_NOISE.value:  # else a longer video is drawn in windows
        options |= {"free_noise": _pair("free_noise", FREE_NOISE, "length,stride"), "frames": FRAMES.value}
    if SIZE.value:
        options["size"] = _pair("size", SIZE, "rows,columns")
    return load_published(PRETRAINED.value, **options)


def _check_use(task, several: bool, settings, last: dict, pipeline) -> None:
    """Raises InputError for a flag that would change nothing.

    `several` says that there are several windows, of which the later ones know what the earlier drew; `last` are the
    settings of the last stage.
    """
    from vdm_jax.generation.image_to_video import ImageToVideo

    knows = several or task.mask.any() or task.strength < 1 or task.coarse > 1
    told = last["respect"] == "concat" or isinstance(pipeline, ImageToVideo)
    needs = (
        (IMAGE_AT, IMAGE.value, "--image=<file>"),
        (FRAMES, PRETRAINED.value or not VIDEO.value, "a video of no length yet, and --video gives one"),
        (CONTEXT, task.coarse == 1, "windows that see each other; those of an enlarged video do not"),
        (RESPECT, knows, "something that is known (--image, --video)"),
        (EXACT, knows, "something that is known (--image, --video)"),
        (RECONSTRUCTION, settings.respect == "reconstruct" and knows, "--respect=reconstruct"),
        (KNOWN_NOISE, told, "a network that is told what is known, and --respect=concat"),
        (GUIDANCE, pipeline.takes_guidance or GUIDANCE.value == 1, "a model that takes text"),
        (NEGATIVE, last["guidance"] != 1, "guidance, and --guidance=1 is none"),
    )
    for flag, met, what in needs:
        if flag.value is not None and not met:
            value = ",".join(flag.value) if isinstance(flag.value, list) else flag.value
            raise InputError(f"--{flag.name}={value} needs {what}")


def _pair(name: str, flag: flags.FlagHolder, meaning: str) -> tuple[int, ...]:
    numbers = _whole_numbers(name, flag.value)
    if len(numbers) != 2:
        raise InputError(f"--{name}={','.join(flag.value)} must be {meaning}")
    return tuple(numbers)


def _given(chosen: dict[str, flags.FlagHolder]) -> dict:
    return {name: flag.value for name, flag in chosen.items() if flag.value is not None}


def _draw(pipeline, parts, changes, partial: Path) -> list:
    """The videos of all parts (number of the first, prompts, task); an interrupted command goes on where it was."""
    from tqdm import tqdm

    from vdm_jax.generation.modes import generate, windows_of

    drawn, count = [], len(windows_of(pipeline, parts[0][2], CONTEXT.value))
    total = count * sum(len(prompts) for _, prompts, _ in parts)
    with tqdm(total=total, unit="window" if count > 1 else "video", desc="sampling") as bar:
        for first, prompts, task in parts:
            where = {"first": first, "partial": partial.with_name(f"{partial.name}-{first}.npy")}
            more = {"seed": SEED.value, "batch_size": BATCH.value, "context": CONTEXT.value}
            more |= _given({"negative": NEGATIVE})
            for videos in generate(pipeline, prompts, task, **where, **more, **changes):
                bar.update(len(videos))
            drawn += list(videos)
    return drawn


def _task(pipeline):
    """What the flags say is known: the task, and its words for a file's metadata."""
    from vdm_jax.generation import modes
    from vdm_jax.generation.inputs import read_clip, read_image, read_mask

    frames, *size, channels = pipeline.shape
    ways = {"extend": EXTEND, "interpolate": INTERPOLATE, "mask": MASK, "outpaint": OUTPAINT, "enlarge": ENLARGE}
    ways = _given(ways)
    if IMAGE.value and VIDEO.value:
        raise InputError("--image and --video: one of them at a time")
    if not VIDEO.value:
        for name in [*ways, *(["strength"] if STRENGTH.value is not None else [])]:
            raise InputError(f"--{name} needs --video=<file>")
        frames = FRAMES.value or frames
        if not IMAGE.value:
            return modes.text_to_video((frames, *size, channels), pipeline.fps), {}
        frames_at = IMAGE_AT.value or ["0"]
        at = _whole_numbers("image_at", frames_at)
        if len(set(at)) != len(IMAGE.value) or len(at) != len(IMAGE.value):
            count = len(IMAGE.value)
            raise InputError(f"--image_at={','.join(frames_at)} must be {count} different frames, one per --image")
        images = {k: read_image(path, tuple(size), channels) for k, path in zip(at, IMAGE.value, strict=True)}
        return modes.keyframes(images, frames, pipeline.fps), {"image": IMAGE.value, "image_at": at}

    trained = pipeline.conditioning.downsample if pipeline.conditioning else 1
    if trained > 1:
        ways.setdefault("enlarge", trained)
    if len(ways) > 1 or not (ways or STRENGTH.value):
        raise InputError("--video needs one of --extend, --interpolate, --mask, --outpaint, --enlarge, or --strength")
    if STRENGTH.value is not None and (unknown := {"extend", "interpolate", "outpaint"} & ways.keys()):
        raise InputError(f"--strength begins with the video, of which --{unknown.pop()} has nothing for new pixels")
    factor = ways.get("enlarge", 1)
    if factor < 1 or any(n % factor for n in size):
        raise InputError(f"--enlarge={factor} must divide the {size[0]}×{size[1]} pixels that the run draws")
    borders = _whole_numbers("outpaint", OUTPAINT.value) if OUTPAINT.value else [0, 0, 0, 0]
    inner = (size[0] // factor - sum(borders[2:]), size[1] // factor - sum(borders[:2]))
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
    elif "enlarge" in ways:
        task = modes.enlarge(video, factor, fps)
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
            lines = Path(PROMPTS.value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise InputError(f"--prompts={PROMPTS.value} cannot be read: {why}") from error
        prompts += [line.strip() for line in lines if line.strip()]
    return prompts or [""]


def _slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:40] if prompt else "unconditional"


if __name__ == "__main__":
    command.run(main)
