"""Blind judgement by people: a page that shows pairs of videos side by side, and what its answers say.

Which set a video is from stands in a key file only. The page knows pairs by opaque numbers; its videos are encoded
anew, all in the same way, so that neither metadata nor the codec tells the sets apart.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval, bootstrap_mean, wilson
from vdm_jax.pages.page import document, embed_video, json_island
from vdm_jax.pages.samples import find_samples
from vdm_jax.typing import Float, Int
from vdm_jax.video import FilePath

QUESTION = "Which video do you prefer?"
SCALES = {
    "quality": "How good does the picture look?",
    "alignment": "How well does it show the text?",
    "motion": "How natural is the motion?",
}
PREFERENCES = ("left", "right", "none")
RESAMPLES = 10_000

# ------------------------------------------------------------------------------------------------ the page


def make_study(
    sets: Mapping[str, FilePath],
    *,
    num: int,
    seed: int = 0,
    question: str = QUESTION,
    scales: Mapping[str, str] = SCALES,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[str, dict[str, Any]]:
    """The page of a study, and its key; `sets` are folders of samples by name.

    A pair is two videos of one prompt and number. Of more than two sets each two are compared, in equal parts of
    `num` pairs, or of all there are. `seed` draws the pairs, their order and their sides; in each comparison both
    sets are as often on the left.

    Raises:
        InputError: fewer than two sets, or none with common prompts and numbers in a common format.
    """
    if len(sets) < 2:
        raise InputError(f"a study needs two sets of videos or more, not {len(sets)}")
    found = {name: find_samples(folder) for name, folder in sets.items()}
    common = [suffix for suffix in next(iter(found.values())) if all(suffix in kinds for kinds in found.values())]
    if not common:
        formats = "; ".join(f"{sets[name]}: {', '.join(kinds)}" for name, kinds in found.items())
        raise InputError(f"the sets have no format in common, and a codec must not tell them apart ({formats})")
    samples = {name: {(s.prompt, s.number): s for s in kinds[common[0]]} for name, kinds in found.items()}

    rng = np.random.default_rng(seed)
    candidates = []
    for a, b in itertools.combinations(sets, 2):
        both = [pair for pair in samples[a] if pair in samples[b]]
        if not both:
            raise InputError(f"{sets[a]} and {sets[b]} have no prompt with the same number in common")
        sides = [(a, b), (b, a)] if rng.integers(2) else [(b, a), (a, b)]
        order = rng.permutation(len(both))
        candidates.append([(*sides[place % 2], *both[i]) for place, i in enumerate(order)])
    in_turn = [pair for round in itertools.zip_longest(*candidates) for pair in round if pair][:num]

    pairs, shown, digest = {}, [], hashlib.sha256()
    for i in progress(rng.permutation(len(in_turn))):
        left, right, prompt, number = in_turn[i]
        name = rng.bytes(6).hex()
        sides = {"left": left, "right": right}
        pairs[name] = {"prompt": prompt, "number": number, **sides}
        videos = {}
        for side, of in sides.items():
            video, fps = samples[of][prompt, number].read()
            digest.update(np.ascontiguousarray(video))
            videos[side] = embed_video(video, fps)
        shown.append({"id": name, "prompt": prompt, **videos})
    key = {
        "sets": {name: str(folder) for name, folder in sets.items()},
        "format": common[0],
        "seed": seed,
        "question": question,
        "scales": dict(scales),
        "pairs": pairs,
    }
    digest.update(json.dumps(key).encode())  # answers are of these videos, and of no later ones in the same folders
    key = {"study": digest.hexdigest()[:12], **key}
    study = {"id": key["study"], "scales": key["scales"], "pairs": shown}
    body = (resources.files(__package__) / "web" / "study.html").read_text()
    body = body.replace("{question}", escape(question)) + json_island("study", study)
    return document(question, body, ("page.css", "study.css", "study.js")), key


# --------------------------------------------------------------------------------------------- the answers


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one rater says of one pair: `preference` is a side, `scales` has 1 … 5 by question and side."""

    rater: str
    pair: str
    preference: str
    scales: Mapping[str, Mapping[str, int]]


def read_key(path: FilePath) -> dict[str, Any]:
    """The key of a study. Raises InputError for another file."""
    key = _read_json(path)
    if not isinstance(key, dict) or not {"study", "sets", "scales", "pairs"} <= key.keys():
        raise InputError(f"{path} is not the key of a study (it is written beside the page, as *.key.json)")
    return key


def read_answers(paths: Sequence[FilePath], key: Mapping[str, Any]) -> list[Judgement]:
    """The judgements in files that a study's page has saved, one file a rater; pairs not judged yet are left out.

    Raises:
        InputError: a file that is damaged, or of another study, or of a rater that an earlier file is of.
    """
    judgements, files = [], {}
    for path in paths:
        saved = _read_json(path)
        if not isinstance(saved, dict) or not isinstance(saved.get("answers"), dict) or "rater" not in saved:
            raise InputError(f"{path} holds no answers (the page of a study saves them)")
        if saved.get("study") != key["study"]:
            raise InputError(f"{path} answers study {saved.get('study')}, and the key is of {key['study']}")
        rater = str(saved["rater"])
        if rater in files:
            raise InputError(f"{path} and {files[rater]} are of the same rater: give the later one only")
        files[rater] = path
        for pair, answer in saved["answers"].items():
            judgement = _judgement(path, rater, pair, answer, key)
            if judgement:
                judgements.append(judgement)
    if not judgements:
        raise InputError(f"no pair is judged yet in {', '.join(map(str, paths))}")
    return judgements


def _judgement(path: FilePath, rater: str, pair: str, answer: Any, key: Mapping[str, Any]) -> Judgement | None:
    if pair not in key["pairs"] or not isinstance(answer, dict):
        raise InputError(f"{path}: pair {pair!r} is not of this study")
    preference, scales = answer.get("preference"), answer.get("scales", {})
    if preference is None:
        return None
    if preference not in PREFERENCES:
        raise InputError(f"{path}: preference={preference!r} of pair {pair} must be of {', '.join(PREFERENCES)}")
    for question in key["scales"]:
        for side in ("left", "right"):
            try:
                value = scales[question][side]
            except (KeyError, TypeError):
                return None  # the page was left amid this pair
            if type(value) is not int or not 1 <= value <= 5:
                raise InputError(f"{path}: {question}={value!r} of pair {pair}, {side}, must be 1 to 5")
    return Judgement(rater, pair, preference, scales)


def _read_json(path: FilePath) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


# ------------------------------------------------------------------------------------------ what they say


def aggregate(judgements: Sequence[Judgement], key: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Win rates and mean scores with 95 % intervals for each two sets, and how far the raters agree.

    A tie is half a win for each. The interval of a win rate is Wilson's where each pair has one judgement. Where
    pairs have several these depend on each other: then, and for scores, pairs are resampled (bootstrap, seed).
    """
    comparisons = []
    for a, b in itertools.combinations(key["sets"], 2):
        here = [j for j in judgements if {key["pairs"][j.pair][side] for side in ("left", "right")} == {a, b}]
        if here:
            comparisons.append(_compare(a, b, here, key, seed))
    raters = sorted({j.rater for j in judgements})
    return {
        "study": key["study"],
        "raters": len(raters),
        "pairs": len({j.pair for j in judgements}),
        "pairs_in_study": len(key["pairs"]),
        "judgements": len(judgements),
        "comparisons": comparisons,
        "agreement": _agreement(judgements, raters),
    }


def _compare(a: str, b: str, judgements: Sequence[Judgement], key: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The judgements of pairs of sets `a` and `b`."""
    names = sorted({j.pair for j in judgements})
    pair = np.array([names.index(j.pair) for j in judgements])
    side_a = ["left" if key["pairs"][j.pair]["left"] == a else "right" for j in judgements]
    side_b = ["right" if side == "left" else "left" for side in side_a]
    chosen = [j.preference for j in judgements]
    wins, losses = (np.array([c == s for c, s in zip(chosen, sides, strict=True)]) for sides in (side_a, side_b))
    several = len(judgements) > len(names)
    won = wins + (1 - wins - losses) / 2

    def mean(values: Float[np.ndarray, "J"]) -> Interval:
        return bootstrap_mean(values, pair, seed=seed, resamples=RESAMPLES)

    scales = {}
    for question in key["scales"]:
        of_a, of_b = (
            np.array([j.scales[question][side] for j, side in zip(judgements, sides, strict=True)], float)
            for sides in (side_a, side_b)
        )
        scores = {"a": of_a, "b": of_b, "difference": of_a - of_b}
        scales[question] = {name: mean(values) for name, values in scores.items()}
    return {
        "a": a,
        "b": b,
        "pairs": len(names),
        "judgements": len(judgements),
        "a_wins": int(wins.sum()),
        "b_wins": int(losses.sum()),
        "ties": int((~wins & ~losses).sum()),
        "win_rate": mean(won) if several else wilson(won),
        "win_rate_interval": "bootstrap over pairs" if several else "Wilson",
        "scales": scales,
    }


def kappa(labels: Int[np.ndarray, "R P"], categories: int = 3) -> float:
    """Agreement of R raters on P items beyond chance: Cohen's kappa (1960) of two raters, Fleiss' (1971) of more.

    NaN where chance alone would make them agree: all gave one label.
    """
    raters = len(labels)
    given = np.stack([labels == category for category in range(categories)], axis=-1)
    counts = given.sum(0)
    observed = ((counts**2).sum(-1) - raters).mean() / (raters * (raters - 1))
    shares = given.mean(1)  # of each rater
    chance = float(shares.prod(0).sum() if raters == 2 else np.square(shares.mean(0)).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")


def _agreement(judgements: Sequence[Judgement], raters: Sequence[str]) -> dict[str, Any] | None:
    """Kappa of the preferences, as sides, on the pairs that all raters judged; None of one rater."""
    if len(raters) < 2:
        return None
    given = {(j.rater, j.pair): PREFERENCES.index(j.preference) for j in judgements}
    shared = [pair for pair in sorted({j.pair for j in judgements}) if all((r, pair) in given for r in raters)]
    labels = np.array([[given[rater, pair] for pair in shared] for rater in raters])
    value = kappa(labels) if shared else float("nan")
    name = "Cohen's kappa" if len(raters) == 2 else "Fleiss' kappa"
    return {"measure": name, "value": value if np.isfinite(value) else None, "pairs": len(shared)}


def print_results(results: Mapping[str, Any]) -> None:
    """The tables of `aggregate`."""
    print(
        f"study {results['study']}: raters {results['raters']}, judgements {results['judgements']}, "
        f"pairs {results['pairs']} of {results['pairs_in_study']}\n\n"
        "| A | B | A wins | B wins | no difference | win rate of A, ties half | 95 % interval by |\n"
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
    if any(compared["pairs"] < 20 for compared in results["comparisons"]):
        print("\nFewer than 20 pairs in a comparison: resampled intervals are narrower than they should be.")
    agreement = results["agreement"]
    if agreement:
        value = "undefined" if agreement["value"] is None else f"{agreement['value']:.2f}"
        print(f"\n{agreement['measure']} of the preferences: {value}, on {agreement['pairs']} pairs that all judged")
