"""Blind side-by-side judgement of sets of videos by people: makes the page, and evaluates its answers.

python experiments/human_eval.py make --set ours=runs/x/samples/seed0 --set base=runs/y/samples/seed0 --out study.html
python experiments/human_eval.py aggregate --key study.key.json --answers answers-1.json,answers-2.json
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError
from vdm_jax.pages.human import QUESTION, SCALES

SETS = flags.DEFINE_multi_string("set", [], "make: <name>=<folder> of videos by sample.py; two or more.")
NUM = flags.DEFINE_integer("num", 50, "make: pairs to judge.", lower_bound=1)
QUESTION_FLAG = flags.DEFINE_string("question", QUESTION, "make: the question about each pair.")
SCALE = flags.DEFINE_multi_string(
    "scale",
    [f"{name}: {text}" for name, text in SCALES.items()],
    "make: '<name>: <question>', a rating of each video from 1 to 5; empty for none.",
)
OUT = flags.DEFINE_string("out", "study.html", "make: the page; the key is written next to it, as <name>.key.json.")
ANSWERS = flags.DEFINE_list("answers", [], "aggregate: files saved by the page, one for each rater.")
KEY = flags.DEFINE_string("key", "study.key.json", "aggregate: the key of the study; results are written next to it.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the pairs, their order and sides, or of the bootstrap.", lower_bound=0)


def make() -> None:
    """Writes the page and the key."""
    from tqdm import tqdm

    from vdm_jax.files import write_text
    from vdm_jax.pages.human import make_study

    sets = {}
    for text in SETS.value:
        name, _, folder = text.partition("=")
        if not name or not folder or name in sets:
            raise InputError(f"--set={text} must be <name>=<folder>, each name once")
        sets[name] = folder
    scales = dict(_parse_scale(text) for text in SCALE.value if text)
    page, key_file = Path(OUT.value), Path(OUT.value).with_suffix(".key.json")
    if page.suffix != ".html":
        raise InputError(f"--out={page} must end in .html")
    html, key = make_study(
        sets,
        num=NUM.value,
        seed=SEED.value,
        question=QUESTION_FLAG.value,
        scales=scales,
        progress=lambda pairs: tqdm(pairs, unit="pair", desc="encoding"),
    )
    write_text(key_file, json.dumps(key, indent=2, ensure_ascii=False) + "\n")
    write_text(page, html)
    count = len(key["pairs"])
    note = f" (all that exist: --num={NUM.value})" if count < NUM.value else ""
    print(f"{count} pairs{note} in {page}, {len(html) / 1e6:.1f} MB: send it to the raters, who send answers back.")
    print(f"Do not send {key_file}: it says which set each video is from.")


def _parse_scale(text: str) -> tuple[str, str]:
    name, _, question = text.partition(":")
    if not name.strip() or not question.strip():
        raise InputError(f"--scale={text!r} must be '<name>: <question>'")
    return name.strip(), question.strip()


def aggregate() -> None:
    """Prints and writes the statistics of the answers."""
    from vdm_jax.files import write_text
    from vdm_jax.pages import human

    if not ANSWERS.value:
        raise InputError("--answers=<file>,… is needed: the files saved by the page of the study")
    key = human.read_key(KEY.value)
    results = human.aggregate(human.read_answers(ANSWERS.value, key), key, SEED.value)
    print_results(results)
    out = Path(KEY.value.removesuffix(".json").removesuffix(".key") + ".results.json")
    write_text(out, json.dumps(results, indent=2, ensure_ascii=False, default=dataclasses.asdict) + "\n")
    print(f"\nwritten to {out}")


def print_results(results: dict) -> None:
    """Prints the tables of the statistics."""
    print(
        f"study {results['study']}: raters {results['raters']}, judgements {results['judgements']}, "
        f"pairs {results['pairs']} of {results['pairs_in_study']}\n\n"
        "| A | B | A wins | B wins | no difference | win rate of A (a tie is half a win) | 95 % interval by |\n"
        "|---|---|---|---|---|---|---|"
    )
    for c in results["comparisons"]:
        row = [c["a"], c["b"], c["a_wins"], c["b_wins"], c["ties"], c["win_rate"], c["win_rate_interval"]]
        print(f"| {' | '.join(map(str, row))} |")
    if any(c["scales"] for c in results["comparisons"]):
        print("\n| 1 to 5 | A | B | mean of A | mean of B | difference |\n|---|---|---|---|---|---|")
    for c in results["comparisons"]:
        for question, means in c["scales"].items():
            print(f"| {' | '.join(map(str, [question, c['a'], c['b'], *means.values()]))} |")
    if any(c["pairs"] < 20 for c in results["comparisons"]):
        print("\nA comparison has fewer than 20 pairs: its resampled intervals are too narrow.")
    if agreement := results["agreement"]:
        value = "undefined" if agreement["value"] is None else f"{agreement['value']:.2f}"
        pairs = f"{agreement['pairs']} pairs that all raters judged"
        print(f"\n{agreement['measure']} of the preferences: {value}, on {pairs}")


JOBS = {"make": make, "aggregate": aggregate}


def main() -> None:
    """Runs the command of the first word."""
    if not job:
        raise InputError(f"the first word must be {' or '.join(JOBS)}; see --help")
    JOBS[job]()


if __name__ == "__main__":
    job = sys.argv.pop(1) if sys.argv[1:2] and sys.argv[1] in JOBS else ""
    command.run(main)
