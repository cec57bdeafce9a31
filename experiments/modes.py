"""Measures how well a run keeps to what is known of a video, mode by mode, on held-out moving digits.

python experiments/modes.py --run runs/moving_digits --num 64 --seeds 0,1,2

Prints the tables of docs/modes.md, and writes modes.json and modes.png into the run folder. Of a run for
super-resolution it measures how well held-out clips are enlarged.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder; it must be of moving digits.")
NUM = flags.DEFINE_integer("num", 64, "Clips for each row and seed.", lower_bound=2)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the samples and of the choice of clips.")
WEIGHTS = flags.DEFINE_list("reconstruction", ["1", "3", "10"], "Weights of reconstruction guidance; empty for none.")
ONLY = flags.DEFINE_string("only", "", "Measure only modes with these letters in their name.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Videos drawn at a time.", lower_bound=1)


# What a mode knows, of frame t of so many, row y and column x of so many.
MODES = {
    "extension, half known": lambda t, y, x, frames, size: t < frames // 2,
    "extension backward, half known": lambda t, y, x, frames, size: t >= frames - frames // 2,
    "image to video, with the caption": lambda t, y, x, frames, size: t == 0,
    "first and last frame": lambda t, y, x, frames, size: t % (frames - 1) == 0,
    "every second frame": lambda t, y, x, frames, size: t % 2 == 0,
    "inpainting, left half": lambda t, y, x, frames, size: x >= size // 2,
    "outpainting, a border of an eighth": lambda t, y, x, frames, size: (
        np.maximum(abs(y + 0.5 - size / 2), abs(x + 0.5 - size / 2)) < size * 3 / 8
    ),
    "video to video, strength 0.6": None,  # nothing; it is drawn from the noised video
}


def main() -> None:
    """Prints a row for each mode and way: mean and spread over seeds."""
    if not RUN.value:
        raise InputError("--run=runs/<name> is needed")

    from tqdm import tqdm

    from vdm_jax.configuration import read_config
    from vdm_jax.data import moving_digits
    from vdm_jax.diffusion.known import Known
    from vdm_jax.evaluation.moving_digits import centroids, load_or_train_judge
    from vdm_jax.generation.pipeline import load

    run = Path(RUN.value)
    data = read_config(run).data
    if data.name != "moving_digits":
        raise InputError(f"{run} was trained on {data.name}; so far only moving_digits can be judged")
    try:
        seeds, weights = [int(s) for s in SEEDS.value], [float(w) for w in WEIGHTS.value]
    except ValueError:
        raise InputError("--seeds and --reconstruction must be numbers with commas between") from None
    pipeline = load(run)
    builder = moving_digits.prepare(data.data_dir, *([data.builder_config] if data.builder_config else []))
    test = builder.as_data_source(split="test")
    if pipeline.conditioning is not None and pipeline.conditioning.downsample > 1:
        return _measure_enlarging(run, pipeline, test, seeds)
    judge = load_or_train_judge(Path(data.data_dir) / f"judge-{builder.builder_config.name}.npz", builder)
    frames = pipeline.shape[0]

    def measure(drawn, real, digits, new):
        """Over the frames that were drawn: right digit, distance of the centroid, and clips that keep to a pixel."""
        # The judge's look at the digit is blind to the order of frames: those drawn, again and again, fill its clip.
        seen = drawn[:, np.resize(new, frames)]
        far = np.linalg.norm(np.asarray(centroids(drawn) - centroids(real))[:, new], axis=-1)
        return {
            "digit": float((np.asarray(judge(seen).digit).argmax(-1) == digits).mean()),
            "distance": float(far.mean()),
            "near": float((far.mean(-1) <= 1).mean()),
        }

    ways = {"replace": {"respect": "replace"}} | {
        f"reconstruct, w = {w:g}": {"respect": "reconstruct", "reconstruction": w} for w in weights
    }
    if pipeline.conditioning is not None:
        ways["concat"] = {"respect": "concat"}
    modes = {mode: known_of for mode, known_of in MODES.items() if ONLY.value in mode}
    if not modes:
        raise InputError(f"--only={ONLY.value} must be letters of one of: {'; '.join(MODES)}")
    t, y, x = np.ogrid[:frames, : data.height, : data.width]
    scores, sheet = {}, []
    rounds = sum(len(ways) if known_of else 1 for known_of in modes.values())
    with tqdm(total=rounds * len(seeds) * NUM.value, unit="video") as bar:
        for seed in seeds:
            rows = [test[int(i)] for i in np.random.default_rng(seed).permutation(len(test))[: NUM.value]]
            real = np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1
            digits = np.array([row["digit"][0] for row in rows])
            for mode, known_of in modes.items():
                if known_of:
                    mask = np.broadcast_to(known_of(t, y, x, frames, data.width), real.shape[1:4])[None, ..., None]
                    tried, start = ways, {}
                else:
                    mask = np.zeros((1, *real.shape[1:4], 1), bool)
                    tried, start = {"from the noised video": {"respect": "replace"}}, {"strength": 0.6}
                whole = mask[0].all((1, 2, 3))
                captions = [row["caption"].decode() if "caption" in mode else "" for row in rows]
                copied = np.where(mask, real, -1)
                if whole.any():
                    at = np.flatnonzero(whole)
                    copied = real[:, at[np.abs(np.subtract.outer(np.arange(frames), at)).argmin(-1)]]
                new = np.flatnonzero(~whole)
                if known_of:
                    way = "nearest known frame again" if whole.any() else "black"
                    scores.setdefault((mode, way), []).append(measure(copied, real, digits, new))
                if seed == seeds[0]:
                    sheet.append(np.where(mask[0], real[0], -1) if known_of else real[0])
                for way, settings in tried.items():
                    drawn = []
                    for batch in pipeline.batches(
                        captions,
                        seed=seed,
                        batch_size=BATCH.value,
                        known=Known(real, mask),
                        guidance=1.0,
                        **start,
                        **settings,
                    ):
                        drawn.append(batch)
                        bar.update(len(batch))
                    drawn = np.concatenate(drawn)
                    kept = np.broadcast_to(mask, real.shape)
                    np.testing.assert_array_equal(drawn[kept], real[kept])  # what is known is as it was
                    scores.setdefault((mode, way), []).append(measure(drawn, real, digits, new))
                    if seed == seeds[0]:
                        sheet.append(drawn[0])

    print("| known | way | digit kept | distance, pixels | clips within 1 pixel |\n|---|---|---|---|---|")
    for (mode, way), values in scores.items():
        mean, spread = ({key: f([v[key] for v in values]) for key in values[0]} for f in (np.mean, np.std))
        print(
            f"| {mode} | {way} | {mean['digit']:.1%} ± {spread['digit']:.1%} "
            f"| {mean['distance']:.2f} ± {spread['distance']:.2f} | {mean['near']:.1%} ± {spread['near']:.1%} |"
        )
    result = {"step": pipeline.step, "num": NUM.value, "seeds": seeds, "judge": judge.digest}
    result["scores"] = [{"known": mode, "way": way, "seeds": values} for (mode, way), values in scores.items()]
    _write(run, result, sheet)


def _measure_enlarging(run, pipeline, test, seeds) -> None:
    """Prints the PSNR of clips that are made small and drawn at their size again, beside two ways without a network."""
    import jax
    from tqdm import tqdm

    from vdm_jax.diffusion.conditioning import coarsen
    from vdm_jax.diffusion.known import Known

    factor, scores, sheet = pipeline.conditioning.downsample, {}, []
    for seed in tqdm(seeds, unit="seed"):
        rows = [test[int(i)] for i in np.random.default_rng(seed).permutation(len(test))[: NUM.value]]
        real = np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1
        repeated = np.asarray(coarsen(jax.numpy.asarray(real), factor))
        known = Known(repeated, np.ones((1, 1, 1, 1, 1), bool))
        drawn = {"pixels repeated": repeated}
        small = repeated[:, :, ::factor, ::factor]
        drawn["cubic"] = np.clip(jax.image.resize(small, real.shape, "cubic"), -1, 1)
        batches = pipeline.batches(
            [""] * len(real), seed=seed, batch_size=BATCH.value, known=known, coarse=factor, guidance=1.0
        )
        drawn["concat"] = np.concatenate(list(batches))
        for way, videos in drawn.items():
            error = np.square(videos - real).mean((1, 2, 3, 4))
            scores.setdefault(way, []).append(float(np.mean(10 * np.log10(4 / error))))  # the range is 2
        if seed == seeds[0]:
            sheet = [real[0], *(videos[0] for videos in drawn.values())]
    print("| way | PSNR, dB |\n|---|---|")
    for way, values in scores.items():
        print(f"| {way} | {np.mean(values):.2f} ± {np.std(values):.2f} |")
    _write(run, {"step": pipeline.step, "num": NUM.value, "seeds": seeds, "psnr": scores}, sheet)


def _write(run: Path, result: dict, sheet: list) -> None:
    from vdm_jax.video import contact_sheet, write_image

    temporary = run / "modes.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(run / "modes.json")
    write_image(run / "modes.png", contact_sheet(sheet, scale=3), {"run": str(run), "rows": "as printed"})
    print(
        f"written to {run / 'modes.json'}; the first clip, what is known or true and then each row: {run / 'modes.png'}"
    )


if __name__ == "__main__":
    command.run(main)
