"""A blind study, and the statistics of its answers."""

import base64
import json
import re

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import wilson
from vdm_jax.pages import human
from vdm_jax.video import read_metadata, read_video, write_video

SETS = ("aster", "borage", "clover")
LEVEL = {"aster": 40, "borage": 120, "clover": 200}  # brightness, by which the tests recognise the set of a video


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Eight videos in each set, ten in the third, written as sample.py writes them."""
    root = tmp_path_factory.mktemp("sets")
    for name in SETS:
        for number in range(10 if name == "clover" else 8):
            about = {"run": f"runs/{name}", "prompt": f"prompt {number // 2}", "number": number}
            video = np.full((3, 8, 8, 1), LEVEL[name] + 4 * number, np.uint8)
            for suffix in ("gif", "mp4") if name != "clover" else ("gif",):
                write_video(root / name / f"{number}.{suffix}", video, 8, about)
    return {name: root / name for name in SETS}


def two(sets):
    return {name: sets[name] for name in SETS[:2]}


def island(text):
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', text)[1])


def decoded(address, path):
    path.write_bytes(base64.b64decode(address.removeprefix("data:video/webm;base64,")))
    assert read_metadata(path) == {}
    return read_video(path)[0]


def test_every_video_decodes_and_is_of_the_set_that_the_key_says(sets, tmp_path):
    text, key = human.make_study(sets, num=24, seed=3)
    study = island(text)
    assert key["format"] == ".gif"
    assert [pair["id"] for pair in study["pairs"]] == list(key["pairs"])
    assert len(study["pairs"]) == 24
    for pair in study["pairs"]:
        about = key["pairs"][pair["id"]]
        assert pair["prompt"] == about["prompt"] == f"prompt {about['number'] // 2}"
        for side in ("left", "right"):
            video = decoded(pair[side], tmp_path / "video.webm")
            assert abs(video.astype(float) - LEVEL[about[side]] - 4 * about["number"]).max() < 3


def test_the_page_is_blind_and_whole(sets):
    text, key = human.make_study(two(sets), num=8, question="Which <b> is better?")
    for hidden in (*SETS, "runs/", str(sets["aster"]), ".mp4"):
        assert hidden not in text
    assert set(island(text)["pairs"][0]) == {"id", "prompt", "left", "right"}
    assert not re.search(r"https?:|src=\"(?!data:)|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", text)
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text
    assert "Which &lt;b&gt; is better?" in text
    assert key["sets"] == {name: str(sets[name]) for name in SETS[:2]}


def test_the_seed_makes_the_study_and_each_set_is_on_the_left_half_of_the_time(sets):
    key, again, other = (human.make_study(two(sets), num=8, seed=seed)[1] for seed in (1, 1, 2))
    assert again == key
    assert other["pairs"] != key["pairs"]
    left = [pair["left"] for pair in key["pairs"].values()]
    assert left.count("aster") == 4
    numbers = [pair["number"] for pair in key["pairs"].values()]
    assert sorted(numbers) == list(range(8))
    assert numbers != sorted(numbers)


def test_other_videos_in_the_same_folders_are_another_study(tmp_path):
    def study_of(level):
        for name in ("a", "b"):
            about = {"run": name, "prompt": "x", "number": 0}
            write_video(tmp_path / name / "0.gif", np.full((3, 8, 8, 1), level, np.uint8), 8, about)
        return human.make_study({name: tmp_path / name for name in ("a", "b")}, num=1)[1]["study"]

    assert study_of(10) == study_of(10)
    assert study_of(10) != study_of(11)


def test_of_three_sets_each_two_are_compared_in_equal_parts(sets):
    pairs = human.make_study(sets, num=9)[1]["pairs"].values()
    compared = [tuple(sorted((pair["left"], pair["right"]))) for pair in pairs]
    assert {both: compared.count(both) for both in compared} == {
        ("aster", "borage"): 3,
        ("aster", "clover"): 3,
        ("borage", "clover"): 3,
    }
    for a, b in {*compared}:
        left = [pair["left"] for pair in pairs if {a, b} == {pair["left"], pair["right"]}]
        assert abs(left.count(a) - left.count(b)) == 1


def test_sets_that_cannot_be_compared_are_one_line(sets, tmp_path):
    video = np.zeros((2, 8, 8, 1), np.uint8)
    write_video(tmp_path / "encoded" / "0.mp4", video, 8, {"prompt": "prompt 0", "number": 0})
    write_video(tmp_path / "strange" / "0.gif", video, 8, {"prompt": "another", "number": 0})
    cases = {
        "two sets of videos or more, not 1": {"a": sets["aster"]},
        "must have a common format": {"a": sets["clover"], "b": tmp_path / "encoded"},
        "have no videos with the same prompt and number": {"a": sets["aster"], "b": tmp_path / "strange"},
    }
    for message, given in cases.items():
        with pytest.raises(InputError, match=message):
            human.make_study(given, num=4)


def test_a_set_of_several_runs_or_settings_is_refused(tmp_path):
    def draw(folder, number, **settings):
        metadata = {"run": "r1", "step": 9, "steps": 8, "prompt": f"prompt {number}", "number": number} | settings
        write_video(tmp_path / folder / f"{number}.gif", np.zeros((2, 8, 8, 1), np.uint8), 8, metadata)

    for number in range(3):
        draw("good", number, image=[f"{number}.png"], seed=number)  # a command for each picture
        for folder in ("runs", "settings", "more"):
            draw(folder, number)
    draw("runs", 0, run="r2")
    draw("settings", 1, steps=16)
    draw("more", 2, strength=0.5)
    human.make_study({"a": tmp_path / "good", "b": tmp_path / "good"}, num=3)
    cases = {
        "runs mixes videos of several commands: run=r2 in 0.gif, and r1 in 1.gif": "runs",
        "settings mixes videos of several commands: steps=8 in 0.gif, and 16 in 1.gif": "settings",
        "more mixes videos of several commands: strength=None in 0.gif, and 0.5 in 2.gif": "more",
    }
    for message, folder in cases.items():
        with pytest.raises(InputError, match=message):
            human.make_study({"a": tmp_path / "good", "b": tmp_path / folder}, num=3)


# ---------------------------------------------------------------------------------------------- aggregation

KEY = {
    "study": "f00d",
    "sets": {"a": "runs/a", "b": "runs/b"},
    "scales": {"motion": "How natural?"},
    "pairs": {
        f"p{i}": {"prompt": "", "number": i, "left": "ab"[i % 2], "right": "ba"[i % 2]} for i in range(10)
    },  # a is on the left of even pairs
}


def judge(rater, pair, winner, a=3, b=3):
    left, right = KEY["pairs"][pair]["left"], KEY["pairs"][pair]["right"]
    preference = {left: "left", right: "right", None: "none"}[winner]
    scores = {"a": a, "b": b}
    return human.Judgement(rater, pair, preference, {"motion": {"left": scores[left], "right": scores[right]}})


def test_the_sides_are_resolved_and_a_tie_is_half_a_win():
    judgements = [judge("r", f"p{i}", winner, a, b) for i, (winner, a, b) in enumerate(
        [("a", 5, 1), ("a", 4, 2), ("a", 4, 4), ("b", 2, 3), (None, 3, 3)])]  # fmt: skip
    results = human.aggregate(judgements, KEY)
    assert (results["raters"], results["pairs"], results["judgements"], results["agreement"]) == (1, 5, 5, None)
    (compared,) = results["comparisons"]
    assert (compared["a_wins"], compared["b_wins"], compared["ties"]) == (3, 1, 1)
    assert compared["win_rate"] == wilson(np.array([1, 1, 1, 0, 0.5]))
    assert compared["win_rate_interval"] == "Wilson"
    means = {name: interval.value for name, interval in compared["scales"]["motion"].items()}
    assert means == pytest.approx({"a": 18 / 5, "b": 13 / 5, "difference": 1})


def test_several_raters_are_counted_and_their_pairs_resampled():
    judgements = [judge(r, f"p{i}", "a" if i < 7 else "b") for r in "rst" for i in range(10)]
    results = human.aggregate(judgements, KEY)
    assert (results["raters"], results["pairs"], results["judgements"]) == (3, 10, 30)
    (compared,) = results["comparisons"]
    assert compared["win_rate_interval"] == "bootstrap over pairs"
    assert compared["win_rate"].value == pytest.approx(0.7)
    assert compared["win_rate"].high - compared["win_rate"].low > 0.5  # 10 pairs; 30 coins would have 0.33
    assert results["agreement"] == {"measure": "Fleiss' kappa", "value": 1.0, "pairs": 10}


def test_kappa_of_two_raters_is_cohens():
    labels = np.repeat([[0, 0, 1, 1], [0, 1, 0, 1]], [20, 5, 10, 15], axis=1)
    assert human.kappa(labels) == pytest.approx(0.4)  # (.7 − .5) / (1 − .5)
    labels = np.random.default_rng(0).integers(3, size=(2, 60))
    labels[1, :30] = labels[0, :30]
    assert human.kappa(labels) == pytest.approx(cohen_kappa_score(*labels))
    assert np.isnan(human.kappa(np.zeros((2, 5), int)))


def test_kappa_of_more_raters_is_fleiss():
    """14 raters, 10 items, 5 categories: the common textbook example, 0.210."""
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
              [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    labels = np.stack([np.repeat(range(5), row) for row in counts], axis=1)
    assert human.kappa(labels, 5) == pytest.approx(0.210, abs=5e-4)


def test_agreement_is_of_the_pairs_that_all_judged():
    judgements = [judge("r", "p0", "a"), judge("r", "p1", "a"), judge("s", "p1", "a"), judge("s", "p2", None)]
    assert human.aggregate(judgements, KEY)["agreement"] == {"measure": "Cohen's kappa", "value": None, "pairs": 1}


def saved(path, rater="r", study="f00d", **answers):
    path.write_text(json.dumps({"study": study, "rater": rater, "answers": answers}))
    return path


def given(preference="left", left=3, right=4):
    return {"preference": preference, "scales": {"motion": {"left": left, "right": right}}}


def test_answers_are_read_and_pairs_that_are_not_finished_left_out(tmp_path):
    begun = {"preference": "left", "scales": {"motion": {"left": 2}}}
    path = saved(tmp_path / "a.json", p0=given(), p1=begun, p2={"preference": None, "scales": {}})
    assert human.read_answers([path], KEY) == [
        human.Judgement("r", "p0", "left", {"motion": {"left": 3, "right": 4}}),
    ]


def test_damaged_and_foreign_answers_are_one_line(tmp_path):
    good = saved(tmp_path / "good.json", p0=given())
    (tmp_path / "cut.json").write_text(good.read_text()[:-9])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    cases = {
        r"none.json cannot be read \(No such file": [tmp_path / "none.json"],
        r"cut.json cannot be read \(": [tmp_path / "cut.json"],
        r"bytes.json cannot be read \(": [tmp_path / "bytes.json"],
        r"list.json holds no answers": [tmp_path / "list.json"],
        r"beef.json answers study beef, but the key is of study f00d": [saved(tmp_path / "beef.json", study="beef")],
        r"again.json and .*good.json are of the same rater": [good, saved(tmp_path / "again.json", p1=given())],
        r"pair 'q' is not in this study": [saved(tmp_path / "q.json", q=given())],
        r"preference='up' of pair p0 must be one of left": [saved(tmp_path / "up.json", p0=given("up"))],
        r"motion=6 of pair p0, left, must be 1 to 5": [saved(tmp_path / "six.json", p0=given(left=6))],
        r"motion='3' of pair p0, right, must be": [saved(tmp_path / "text.json", p0=given(right="3"))],
        r"no pair is judged yet in .*empty.json": [saved(tmp_path / "empty.json")],
    }
    for message, paths in cases.items():
        with pytest.raises(InputError, match=message) as error:
            human.read_answers(paths, KEY)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"good.json is not the key of a study"):
        human.read_key(good)
