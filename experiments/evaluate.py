"""Draws samples on the captions of held-out clips, and prints their metrics next to the metrics of real clips.

python experiments/evaluate.py --run runs/digits --num 200 --guidance 1,3
python experiments/evaluate.py --run runs/x --metrics fvd,smoothness --num 2048 --i3d i3d.safetensors --real my/videos
python experiments/evaluate.py --pretrained text-to-video-ms-1.7b --real my/videos --num 64
python experiments/evaluate.py --run runs/x --known "extension, half known" --lpips lpips-vgg.safetensors

docs/evaluation.md explains each metric, and what it does not see.
"""

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder to evaluate.")
PRETRAINED = flags.DEFINE_string(
    "pretrained",
    None,
    "Folder of a published model, instead of --run (needs --real); with --run: where its model has moved.",
)
ADAPTER = flags.DEFINE_string("motion_adapter", None, "Folder of AnimateDiff's motion modules, for an image model.")
SCHEDULER = flags.DEFINE_string("scheduler", None, "Another scheduler for --pretrained: dpmpp, unipc … or a JSON file.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Type in which a published model computes (default: bfloat16; float32 on CPUs).",
)
REAL = flags.DEFINE_string("real", None, "Real clips: a folder of videos, or a TFDS name (default: the run's data).")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets (default: the run's, or datasets).")
METRICS = flags.DEFINE_list("metrics", None, "Names of metrics (default: all that fit the data and the weights).")
NUM = flags.DEFINE_integer("num", 256, "Samples for each guidance scale.", lower_bound=2)
GUIDANCE = flags.DEFINE_list(
    "guidance", None, "Guidance scales (default: 1,3 for moving digits, else the run's config; 1 with --known)."
)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps (default: the run's config).")
SOLVER = flags.DEFINE_string("solver", None, "ddim, heun, dpmpp, unipc … (default: the run's config, or as published).")
ETA = flags.DEFINE_float("eta", None, "Noise of ddim, dpmpp or tcd, from 0 (none) to 1 (ancestral sampling).")
GRID = flags.DEFINE_string("grid", None, "Spacing of the steps: uniform, log_snr, karras …")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples and of the choice of real clips.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch_size", 64, "Videos drawn at a time.", lower_bound=1)
I3D = flags.DEFINE_string("i3d", None, "Weights for fvd (docs/features.md).")
VIDEOMAE = flags.DEFINE_string("videomae", None, "Weights for videomae.")
CLIP = flags.DEFINE_string("clip", None, "Weights for clip, clip_fid and consistency.")
LPIPS = flags.DEFINE_string("lpips", None, "Weights for lpips.")
KNOWN = flags.DEFINE_string("known", "", "The part of each held-out clip that is known: a mode in docs/evaluation.md.")
RESPECT = flags.DEFINE_string(
    "respect", None, "With --known: replace, reconstruct or concat (default: the run's config)."
)
STRENGTH = flags.DEFINE_float("strength", None, "With --known='video to video': the time to noise the clips to.")
OUT = flags.DEFINE_string(
    "out", None, "Folder of evaluation.json (default: the run, or evaluations/<model>-<adapter>)."
)

FLOORS = {"real": "real clips", "shuffled": "frames shuffled"}  # titles; all other columns have their names


def check_flags() -> list[float]:
    """Checks flags that do not fit together. Returns the guidance scales; empty for the default."""
    if not RUN.value and not PRETRAINED.value:
        raise InputError("--run=runs/<name> is needed, or --pretrained=<folder> instead")
    if RUN.value and DTYPE.value:
        raise InputError(f"--dtype={DTYPE.value} is for a published model; a run has a dtype of its own")
    if not RUN.value and not REAL.value:
        raise InputError("--pretrained needs --real=<folder of videos, or TFDS name>: the clips to compare with")
    pairs = [(flag, PRETRAINED) for flag in (DTYPE, SCHEDULER)]
    for flag, other in (*pairs, (RESPECT, KNOWN), (STRENGTH, KNOWN)):
        if flag.value and not other.value:
            raise InputError(f"--{flag.name}={flag.value} needs --{other.name}")
    from vdm_jax.evaluation.known import check_mode, check_strength
    from vdm_jax.evaluation.metrics import check_metrics

    if KNOWN.value:
        check_mode(KNOWN.value)
        check_strength(KNOWN.value, 1.0 if STRENGTH.value is None else STRENGTH.value)
    if METRICS.value is not None:
        check_metrics(METRICS.value, KNOWN.value)
    try:
        return [float(w) for w in GUIDANCE.value or ()]
    except ValueError:
        raise InputError(f"--guidance={','.join(GUIDANCE.value)} must be numbers, such as 1,3") from None


def resolve_settings(pipeline, data, weights: list[float]):
    """Returns the guidance scales, the flags that change settings, and the settings. Checks that they fit the model."""
    import numpy as np

    from vdm_jax.evaluation.known import MODES, mask_of

    shape = pipeline.model.shape
    pipeline.model.check_known(mask_of(KNOWN.value, shape)[0] if KNOWN.value else np.zeros((*shape[:3], 1), bool))
    if not weights:
        weights = [1.0, 3.0] if data.judge else [float(pipeline.settings.guidance)]
        weights = weights if pipeline.takes_guidance and not KNOWN.value else [1.0]
    if weights != [1.0] and not pipeline.takes_guidance:
        raise InputError(f"--guidance={','.join(GUIDANCE.value)} needs a model that takes text")
    changes = {"steps": STEPS, "solver": SOLVER, "eta": ETA, "grid": GRID, "respect": RESPECT, "strength": STRENGTH}
    changes = {name: flag.value for name, flag in changes.items() if flag.value is not None}
    factor = MODES[KNOWN.value].factor if KNOWN.value else 1
    for weight in weights:
        settings, _ = pipeline.check([""], seed=SEED.value, coarse=factor, guidance=weight, **changes)
    return weights, changes, settings


def main() -> None:
    """Prints and writes the metrics of samples for each guidance scale, of real clips and of the floors."""
    weights = check_flags()

    from tqdm import tqdm

    from vdm_jax.evaluation import metrics as table
    from vdm_jax.evaluation.score import floors, score
    from vdm_jax.files import write_text

    pipeline, data = load()
    files = {"i3d": I3D, "videomae": VIDEOMAE, "clip": CLIP, "lpips": LPIPS}
    files = {name: flag.value for name, flag in files.items() if flag.value}
    names = table.check_metrics(METRICS.value or table.default_metrics(data, files, KNOWN.value), KNOWN.value)
    networks = table.load_networks(names, data, files)
    weights, changes, settings = resolve_settings(pipeline, data, weights)
    published = "-".join(Path(part).name for part in (PRETRAINED.value, ADAPTER.value) if part)
    out = Path(OUT.value or RUN.value or Path("evaluations") / published)
    metadata = {"protocol": table.PROTOCOL, "data": data.name, "num": NUM.value, "seed": SEED.value}
    metadata |= metadata_of(pipeline, settings) | {name: network.digest for name, network in networks.items()}
    kwargs = {"num": NUM.value, "seed": SEED.value, "batch_size": BATCH.value, "networks": networks}
    kwargs |= {"known": KNOWN.value, "folder": out / "evaluation"}
    with contextlib.ExitStack() as bars:  # closes the bars before an error is printed
        kwargs["progress"] = lambda batches, text: bars.enter_context(tqdm(batches, desc=text, leave=False))
        real = floors(data, names, **kwargs)  # first: an error in the data is reported before anything is drawn
        drawn = {f"guidance {w:g}": score(pipeline, data, names, guidance=w, **kwargs, **changes) for w in weights}

    print(", ".join(f"{name} {value}" for name, value in metadata.items()))
    print("in brackets: 95 % intervals over the clips, without the variation between training seeds\n")
    print_table(drawn | real, {name: f"{name} {table.METRICS[name].better}" for name in names})
    numbers = {row: {k: as_numbers(figure) for k, figure in figures.items()} for row, figures in (drawn | real).items()}
    file = out / ("-".join(["evaluation", *re.findall(r"\w+", KNOWN.value)]) + ".json")
    write_text(file, json.dumps(metadata | numbers, indent=2, allow_nan=False) + "\n")
    print(f"\nwritten to {file}")


def metadata_of(pipeline, settings) -> dict:
    """What identifies the model and its settings, for the printed line and for evaluation.json."""
    from vdm_jax.pretrained.load import default_dtype

    metadata = {"model": RUN.value or PRETRAINED.value, "step": pipeline.model.step}
    metadata |= {"motion_adapter": ADAPTER.value} if ADAPTER.value else {}
    metadata |= {"scheduler": SCHEDULER.value} if SCHEDULER.value else {}
    metadata |= {} if RUN.value else {"dtype": DTYPE.value or default_dtype()}
    metadata |= {name: getattr(settings, name) for name in ("steps", "solver", "eta", "grid")}
    metadata |= {"known": KNOWN.value, "respect": settings.respect} if KNOWN.value else {}
    return metadata | ({"strength": settings.strength} if settings.strength < 1 else {})


def load():
    """Loads the pipeline and the real clips."""
    from vdm_jax import Pipeline, build
    from vdm_jax.config import read_config
    from vdm_jax.evaluation.reference import other_data, real_data
    from vdm_jax.pretrained.load import load_published

    if not RUN.value:
        options = dict(motion_adapter=ADAPTER.value, scheduler=SCHEDULER.value, dtype=DTYPE.value)
        model = load_published(PRETRAINED.value, **options)
        return Pipeline(model), other_data(
            REAL.value, model.shape, data_dir=DATA_DIR.value or "datasets", fps=model.fps
        )
    config = read_config(RUN.value)
    data = config.data
    data.data_dir = DATA_DIR.value or data.data_dir
    moved = {"folder": PRETRAINED.value or "", "motion_adapter": ADAPTER.value or ""}
    if not REAL.value:
        return Pipeline(build.load(RUN.value, **moved)), real_data(config)
    shape = (data.frames, data.height, data.width, data.channels)
    real = other_data(REAL.value, shape, data_dir=data.data_dir, stride=data.stride, fps=data.fps or None)
    return Pipeline(build.load(RUN.value, **moved)), real


def print_table(result: dict, labels: dict[str, str]) -> None:
    """Prints a row for each metric, with its scores and its floors."""
    rows = [["", *(FLOORS.get(name, name) for name in result)]]
    for name, label in labels.items():
        figures = [figures[name] for figures in result.values()]
        rows.append([label, *("–" if math.isnan(figure.value) else str(figure) for figure in figures)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def as_numbers(figure) -> dict[str, float] | None:
    """Converts an interval for JSON, which has no NaN."""
    return None if math.isnan(figure.value) else dataclasses.asdict(figure)


if __name__ == "__main__":
    command.run(main)
