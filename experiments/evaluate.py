"""Draws samples from a run on the captions of held-out clips and measures them beside real ones.

python experiments/evaluate.py --run runs/digits --num 256 --guidance 1,3
"""

import json
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder to evaluate; it must be of moving digits.")
NUM = flags.DEFINE_integer("num", 256, "Samples at each guidance weight.", lower_bound=1)
GUIDANCE = flags.DEFINE_list("guidance", ["1", "3"], "Guidance weights.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps (default: the run's config).", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples and of the choice of captions.")
BATCH = flags.DEFINE_integer("batch_size", 64, "Videos drawn at a time.", lower_bound=1)


def main() -> None:
    """Prints digit and direction accuracy and jerk at each weight, with the floors, and writes them."""
    if not RUN.value:
        raise InputError("--run=runs/<name> is needed")

    import jax
    import numpy as np
    from tqdm import tqdm

    from vdm_jax.configuration import read_config
    from vdm_jax.data import moving_digits
    from vdm_jax.evaluation.moving_digits import caption_accuracy, frozen, load_or_train_judge, shuffle_frames
    from vdm_jax.generation.pipeline import load

    run = Path(RUN.value)
    config = read_config(run)
    data, steps = config.data, STEPS.value or config.sample.steps
    if data.name != "moving_digits":
        raise InputError(f"{run} was trained on {data.name}; so far only moving_digits can be judged")
    try:
        weights = [float(w) for w in GUIDANCE.value]
    except ValueError:
        raise InputError(f"--guidance={','.join(GUIDANCE.value)} must be numbers, such as 1,3") from None
    pipeline = load(run)
    builder = moving_digits.prepare(data.data_dir, *([data.builder_config] if data.builder_config else []))
    judge = load_or_train_judge(Path(data.data_dir) / f"judge-{builder.builder_config.name}.npz", builder)

    test = builder.as_data_source(split="test")
    order = np.random.default_rng(SEED.value).permutation(len(test))
    rows = [test[int(i)] for i in order[np.arange(NUM.value) % len(order)]]
    captions = [row["caption"].decode() for row in rows]
    digits, directions = (np.array([row[k][0] for row in rows]) for k in ("digit", "direction"))
    real = np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1
    print(f"{NUM.value} test captions; judge {judge.digest}, trained on real clips of the training split only")

    def measure(name, videos):
        scores = caption_accuracy(judge, videos, digits, directions)
        print(f"{name:<22}" + "".join(f"  {key} {value:.3f}" for key, value in scores.items()), flush=True)
        return scores

    result = {"num": NUM.value, "seed": SEED.value, "step": pipeline.step, "steps": steps, "judge": judge.digest}
    result["real test clips"] = measure("real test clips", real)
    result["shuffled"] = measure("  frames shuffled", np.asarray(shuffle_frames(real, jax.random.key(0))))
    result["frozen"] = measure("  frozen", np.asarray(frozen(real)))
    for weight in weights:
        videos = []
        with tqdm(total=NUM.value, unit="video", desc=f"guidance {weight:g}", leave=False) as bar:
            for batch in pipeline.batches(
                captions, seed=SEED.value, batch_size=BATCH.value, guidance=weight, steps=steps
            ):
                videos.append(batch)
                bar.update(len(batch))
        result[f"guidance {weight:g}"] = measure(f"samples, guidance {weight:g}", np.concatenate(videos))

    path = run / "evaluation.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)
    print(f"written to {path}")


if __name__ == "__main__":
    command.run(main)
