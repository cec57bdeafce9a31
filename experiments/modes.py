"""Measures how well a run keeps to what is known of a video, mode by mode, on held-out moving digits.

python experiments/modes.py --run runs/moving_digits --num 32 --seeds 0,1,2

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

VARIATION = "video to video, strength 0.6"  # nothing is known; it is drawn from the noised video


def main() -> None:
    """Prints a row for each mode and way: mean ± standard deviation (of n) over seeds."""
    if not RUN.value:
        raise InputError("--run=runs/<name> is needed")

    from tqdm import tqdm

    from vdm_jax.configuration import read_config
    from vdm_jax.data import moving_digits
    from vdm_jax.diffusion.known import Known
    from vdm_jax.evaluation.judge import load_or_train_judge
    from vdm_jax.evaluation.known import MODES, digit_kept, mask_of, new_frames, place_kept, without_a_network
    from vdm_jax.generation.pipeline import load

    run = Path(RUN.value)
    data = read_config(run).data
    if data.name != "moving_digits":
        raise InputError(f"{run} was trained on {data.name}; so far only moving_digits can be judged")
    try:
        seeds, weights = [int(s) for s in SEEDS.value], [float(w) for w in WEIGHTS.value]
    except ValueError:
        raise InputError("--seeds and --reconstruction must be numbers with commas between") from None
    if min(seeds, default=-1) < 0:
        raise InputError(f"--seeds={','.join(SEEDS.value)} must be one or more numbers that are not negative")
    pipeline = load(run)
    builder = moving_digits.prepare(data.data_dir, *([data.builder_config] if data.builder_config else []))
    test = builder.as_data_source(split="test")
    if (stored := builder.info.features["video"].shape) != pipeline.shape or data.stride != 1:
        raise InputError(f"{run} draws {pipeline.shape} with stride {data.stride}; the clips are {stored}, stride 1")
    if NUM.value > len(test):
        raise InputError(f"--num={NUM.value} must be at most the {len(test)} held-out clips")
    if pipeline.conditioning is not None and pipeline.conditioning.downsample > 1:
        return _measure_enlarging(run, pipeline, test, seeds)
    judge = load_or_train_judge(Path(data.data_dir) / f"judge-{builder.builder_config.name}.npz", builder)

    def measure(drawn, real, digits, new):
        """Over the frames that were drawn: right digit, distance of the centroid, and clips that keep to a pixel."""
        scores = {"digit": digit_kept(judge, drawn, digits, new)} | place_kept(drawn, real, new)
        digit, distance, near = (float(np.mean(values)) for values in scores.values())
        return {"digit": digit, "distance": distance, "near": near}

    ways = {"replace": {"respect": "replace"}} | {
        f"reconstruct, w = {w:g}": {"respect": "reconstruct", "reconstruction": w} for w in weights
    }
    if pipeline.conditioning is not None:
        ways["concat"] = {"respect": "concat"}
    modes = [mode for mode in (*MODES, VARIATION) if ONLY.value in mode]
    if not modes:
        raise InputError(f"--only={ONLY.value} must be letters of one of: {'; '.join((*MODES, VARIATION))}")
    scores, sheet = {}, []
    rounds = sum(1 if mode == VARIATION else len(ways) for mode in modes)
    with tqdm(total=rounds * len(seeds) * NUM.value, unit="video") as bar:
        for seed in seeds:
            rows = [test[int(i)] for i in np.random.default_rng(seed).permutation(len(test))[: NUM.value]]
            real = np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1
            digits = np.array([row["digit"][0] for row in rows])
            for mode in modes:
                tried, start, captioned = ways, {}, mode in MODES and MODES[mode].captioned
                if mode == VARIATION:
                    mask = np.zeros((1, *real.shape[1:4], 1), bool)
                    tried, start = {"from the noised video": {"respect": "replace"}}, {"strength": 0.6}
                else:
                    mask = mask_of(mode, real.shape[1:])
                captioned = captioned and pipeline.takes_text
                captions = [row["caption"].decode() if captioned else "" for row in rows]
                new = new_frames(mask)
                if mode != VARIATION:
                    way = "nearest known frame again" if len(new) < len(mask[0]) else "black"
                    scores.setdefault((mode, way), []).append(measure(without_a_network(real, mask), real, digits, new))
                if seed == seeds[0]:
                    sheet.append(real[0] if mode == VARIATION else np.where(mask[0], real[0], -1))
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
    from vdm_jax.files import write_text
    from vdm_jax.video import contact_sheet, write_image

    write_text(run / "modes.json", json.dumps(result, indent=2) + "\n")
    write_image(run / "modes.png", contact_sheet(sheet, scale=3), {"run": str(run), "rows": "as printed"})
    print(
        f"written to {run / 'modes.json'}; the first clip, what is known or true and then each row: {run / 'modes.png'}"
    )


if __name__ == "__main__":
    command.run(main)
