"""Blind judgement by people: a page with pairs of videos side by side, and the statistics of its answers.

Only the key file says which set a video is from. The page identifies pairs by random numbers. All videos are encoded
again in the same way, so that neither metadata nor the codec reveals the set.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import bootstrap_mean, wilson
from vdm_jax.pages.page import embed_video, render
from vdm_jax.pages.samples import Sample, check_alike, find_samples
from vdm_jax.typing import Int
from vdm_jax.video import FilePath

QUESTION = "Which video do you prefer?"
SCALES = {
    "quality": "How good does the picture look?",
    "alignment": "How well does it show the text?",
    "motion": "How natural is the motion?",
}
SIDES = ("left", "right")
PREFERENCES = (*SIDES, "none")
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
    """Makes the page of a study, and its key.

    `sets` are folders of samples, by name. A pair is two videos with the same prompt and number; there are `num` pairs,
    or all that exist. With more than two sets, every two sets are compared, with equal numbers of pairs. In each
    comparison both sets are on the left equally often. `seed` chooses the pairs, their order and their sides. Raises
    InputError for fewer than two sets, for a set that mixes runs or settings, and for sets without common prompts and
    numbers in a common format.
    """
    if len(sets) < 2:
        raise InputError(f"a study needs two sets of videos or more, not {len(sets)}")
    formats = {name: find_samples(folder) for name, folder in sets.items()}
    common = [suffix for suffix in next(iter(formats.values())) if all(suffix in x for x in formats.values())]
    if not common:
        listing = "; ".join(f"{sets[name]}: {', '.join(x)}" for name, x in formats.items())
        raise InputError(f"the sets must have a common format, or the codec reveals the set ({listing})")
    for name, folder in sets.items():
        check_alike(folder, formats[name][common[0]])
    samples = {name: {(s.prompt, s.number): s for s in x[common[0]]} for name, x in formats.items()}

    rng = np.random.default_rng(seed)
    chosen = _choose_pairs(sets, samples, rng)[:num]
    pairs, shown, digest = {}, [], hashlib.sha256()
    for i in progress(rng.permutation(len(chosen))):
        *sides, prompt, number = chosen[i]
        name = rng.bytes(6).hex()
        pairs[name] = {"prompt": prompt, "number": number, **dict(zip(SIDES, sides, strict=True))}
        shown.append({"id": name, "prompt": prompt})
        for side in SIDES:
            video, fps = samples[pairs[name][side]][prompt, number].read()
            digest.update(np.ascontiguousarray(video))
            shown[-1][side] = embed_video(video, fps)
    key = {"sets": {name: str(folder) for name, folder in sets.items()}, "format": common[0], "seed": seed}
    key |= {"question": question, "scales": dict(scales), "pairs": pairs}
    digest.update(json.dumps(key).encode())  # answers belong to these videos, not to later videos in the same folders
    key = {"study": digest.hexdigest()[:12], **key}
    study = {"id": key["study"], "scales": key["scales"], "pairs": shown}
    return render("study.html", title=question, question=question, study=study), key


def _choose_pairs(
    sets: Mapping[str, FilePath], samples: Mapping[str, Mapping[tuple[str, int], Sample]], rng: np.random.Generator
) -> list[tuple[str, str, str, int]]:
    """Pairs as (left set, right set, prompt, number), with all comparisons in turn."""
    comparisons = []
    for a, b in itertools.combinations(sets, 2):
        both = [pair for pair in samples[a] if pair in samples[b]]
        if not both:
            raise InputError(f"{sets[a]} and {sets[b]} have no videos with the same prompt and number")
        sides = [(a, b), (b, a)] if rng.integers(2) else [(b, a), (a, b)]
        order = rng.permutation(len(both))
        comparisons.append([(*sides[place % 2], *both[i]) for place, i in enumerate(order)])
    return [pair for round in itertools.zip_longest(*comparisons) for pair in round if pair]


# --------------------------------------------------------------------------------------------- the answers


class Judgement(NamedTuple):
    """The answers of a rater for a pair."""

    rater: str
    pair: str
    preference: str  # one of PREFERENCES
    scales: Mapping[str, Mapping[str, int]]  # 1 … 5, by question and side


def read_key(path: FilePath) -> dict[str, Any]:
    """Reads the key of a study. Raises InputError for any other file."""
    key = _read_json(path)
    if not isinstance(key, dict) or not {"study", "sets", "scales", "pairs"} <= key.keys():
        raise InputError(f"{path} is not the key of a study (the key is written next to the page, as *.key.json)")
    return key


def read_answers(paths: Sequence[FilePath], key: Mapping[str, Any]) -> list[Judgement]:
    """Reads the files that the page of a study saved, one for each rater. Unfinished pairs are left out."""
    judgements, files = [], {}
    for path in paths:
        saved = _read_json(path)
        if not isinstance(saved, dict) or not isinstance(saved.get("answers"), dict) or "rater" not in saved:
            raise InputError(f"{path} holds no answers (the page of a study saves them)")
        if saved.get("study") != key["study"]:
            raise InputError(f"{path} answers study {saved.get('study')}, but the key is of study {key['study']}")
        rater = str(saved["rater"])
        if rater in files:
            raise InputError(f"{path} and {files[rater]} are of the same rater: give only the later file")
        files[rater] = path
        judgements += [_judgement(path, rater, pair, answer, key) for pair, answer in saved["answers"].items()]
    judgements = [judgement for judgement in judgements if judgement]
    if not judgements:
        raise InputError(f"no pair is judged yet in {', '.join(map(str, paths))}")
    return judgements


def _judgement(path: FilePath, rater: str, pair: str, answer: Any, key: Mapping[str, Any]) -> Judgement | None:
    if pair not in key["pairs"] or not isinstance(answer, dict):
        raise InputError(f"{path}: pair {pair!r} is not in this study")
    preference, scales = answer.get("preference"), answer.get("scales", {})
    if preference is None:
        return None
    if preference not in PREFERENCES:
        raise InputError(f"{path}: preference={preference!r} of pair {pair} must be one of {', '.join(PREFERENCES)}")
    for question in key["scales"]:
        for side in SIDES:
            try:
                value = scales[question][side]
            except (KeyError, TypeError):
                return None  # the rater left the page before the end of this pair
            if type(value) is not int or not 1 <= value <= 5:
                raise InputError(f"{path}: {question}={value!r} of pair {pair}, {side}, must be 1 to 5")
    return Judgement(rater, pair, preference, scales)


def _read_json(path: FilePath) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


# ---------------------------------------------------------------------------------------------- statistics


def aggregate(judgements: Sequence[Judgement], key: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Win rates and mean scores of every two sets with 95 % intervals, and the agreement of the raters.

    A tie is half a win for each set. If every pair has a single judgement, the interval of a win rate is Wilson's.
    Several judgements of a pair depend on each other: then, and for scores, pairs are resampled (bootstrap).
    """
    comparisons = []
    for a, b in itertools.combinations(key["sets"], 2):
        of_both = [j for j in judgements if {key["pairs"][j.pair][side] for side in SIDES} == {a, b}]
        if of_both:
            comparisons.append(_compare(a, b, of_both, key, seed))
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
    """The statistics of judgements of pairs of sets `a` and `b`."""
    names, pair = np.unique([j.pair for j in judgements], return_inverse=True)
    mean = functools.partial(bootstrap_mean, groups=pair, seed=seed, resamples=RESAMPLES)
    sides = [SIDES if key["pairs"][j.pair]["left"] == a else SIDES[::-1] for j in judgements]  # of a and of b
    wins, losses = np.array([[j.preference == s for s in both] for j, both in zip(judgements, sides, strict=True)]).T
    several = len(judgements) > len(names)
    won = wins + (1 - wins - losses) / 2
    scales = {}
    for question in key["scales"]:
        ratings = [[j.scales[question][side] for side in both] for j, both in zip(judgements, sides, strict=True)]
        of_a, of_b = np.array(ratings, float).T
        scales[question] = {"a": mean(of_a), "b": mean(of_b), "difference": mean(of_a - of_b)}
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
    """Agreement of R raters on P items beyond chance: Cohen's kappa (1960) for two raters, Fleiss' (1971) for more.

    NaN if all labels are equal: then raters agree by chance.
    """
    raters, one_hot = len(labels), np.stack([labels == category for category in range(categories)], axis=-1)
    counts = one_hot.sum(0)
    observed = ((counts**2).sum(-1) - raters).mean() / (raters * (raters - 1))
    shares = one_hot.mean(1)  # of each rater
    chance = float(shares.prod(0).sum() if raters == 2 else np.square(shares.mean(0)).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")


def _agreement(judgements: Sequence[Judgement], raters: Sequence[str]) -> dict[str, Any] | None:
    """Kappa of the preferred sides, on the pairs that all raters judged; None for a single rater."""
    if len(raters) < 2:
        return None
    choices = {(j.rater, j.pair): PREFERENCES.index(j.preference) for j in judgements}
    shared = [pair for pair in sorted({j.pair for j in judgements}) if all((r, pair) in choices for r in raters)]
    value = kappa(np.array([[choices[rater, pair] for pair in shared] for rater in raters])) if shared else np.nan
    name = "Cohen's kappa" if len(raters) == 2 else "Fleiss' kappa"
    return {"measure": name, "value": value if np.isfinite(value) else None, "pairs": len(shared)}
