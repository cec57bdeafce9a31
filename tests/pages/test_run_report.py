"""The page of a run shows the files of the folder, and names what is missing."""

import base64
import io
import json
import re
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from PIL import Image

from vdm_jax.config import write_config
from vdm_jax.errors import InputError
from vdm_jax.pages.run_report import make_report
from vdm_jax.video import read_video, write_image, write_video

tiny = run_path(str(Path(__file__).parents[1] / "tiny_config.py"))
NOISE = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3)).astype(np.uint8)
SCORES = {
    "num": 4,
    "other": {"cell": [1, 2]},
    "real": {"digit": {"value": 0.995, "low": 0.9, "high": 1.0, "bias": 0.0}, "warping": None},
    "guidance 1": {
        "digit": {"value": 0.72, "low": 0.5, "high": 0.8, "bias": 0.0},
        "warping": {"value": 0.5, "low": 0.25, "high": 0.75, "bias": 0.0},
    },
}
TABLE = """+------+--------+---------+------+
| Name | Shape  | Dtype   | Size |
+------+--------+---------+------+
| a/b  | (3, 4) | float32 | 12   |
[...]
+------+--------+---------+------+
Total: 1,200,012 -- 4,800,048 bytes
"""


def line(step, loss):
    more = {"skipped": 0.0, "learning_rate": 0.1 / step, "videos_per_second": 40.0 + step, "seconds": 30.0}
    return json.dumps({"step": step, "loss": loss, "mse": loss, "grad_norm": None} | more) + "\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "one"
    write_config(run, tiny["get_config"]())
    (run / "metrics.jsonl").write_text(line(5, 0.8) + line(10, None) + line(15, 0.2) + line(20, 0.1)[:30])
    (run / "parameters.txt").write_text(TABLE)
    begun = {"step": 10, "time": "2026-11-21T12:30:00", "mesh": "data 4 × fsdp 2", "machine": "8 × x"}
    (run / "environment.jsonl").write_text(json.dumps(begun) + "\n")
    for step in range(14):
        write_image(run / "samples" / f"{step:07}.png", NOISE[0], {"prompts": ["a <b>", "c"]})
    for number in range(3):
        about = {"prompt": f"clip {number}", "number": number, "guidance": 3.0, "seed": 7}
        write_video(run / "samples" / "seed7" / f"{number}.gif", NOISE, 8, about)
    (run / "samples" / "empty").mkdir()
    (run / "evaluation.json").write_text(json.dumps(SCORES))
    return run


@pytest.fixture(scope="module")
def report(run):
    return make_report(run)


def test_every_video_and_picture_decodes(report, tmp_path):
    videos = re.findall(r'src="data:video/webm;base64,([^"]+)"', report)
    assert len(videos) == 3
    for content in videos:
        (tmp_path / "video.webm").write_bytes(base64.b64decode(content))
        frames, fps = read_video(tmp_path / "video.webm")
        assert abs(frames[:, 8::16, 8::16].astype(float) - NOISE).mean() < 5
        assert fps == pytest.approx(8)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', report)
    assert len(pictures) == 12  # of 14 sheets
    for content in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            np.testing.assert_array_equal(image, NOISE[0])


def test_nothing_is_fetched(report):
    assert not re.search(r"https?:|src=\"(?!data:)|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", report)


def test_what_the_folder_holds_is_on_the_page(report):
    text = re.sub(r'"data:[^"]*"|<[^>]*>', " ", report)
    for words in (
        "Steps of 20 15",
        "Videos seen 120",
        "Training time 0 h 1 min",
        "Parameters 1.20 M",
        "The run is at 75% of its steps",
        "0.2 at step 15",
        "mse is the same as loss",
        "skipped is 0 throughout",
        "Prompts: a &lt;b&gt;; c. 12 of 14 sheets",
        "guidance 3.0, seed 7",
        "clip 2",
        "digit – 0.995 [0.9, 1] 0.72 [0.5, 0.8] warping – – 0.5 [0.25, 0.75]",
        "In brackets, and as bars: 95 % intervals",
        "cell [1, 2]",
        "empty holds no videos",
        "(3, 4)",
        "Rows are left out",
        "2026-11-21T12:30:00 10 data 4 × fsdp 2 8 × x",
    ):
        assert words in " ".join(text.split()), words
    assert re.findall(r'<figure class="chart".*?<b>(\w+)', report) == ["loss", "learning_rate", "videos_per_second"]


def test_intervals_of_a_metric_are_drawn_on_one_scale(report):
    table = report[report.index("evaluation.json") : report.index("<h2>Config")]
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', table)]
    assert centres == pytest.approx([4 + 52 * x for x in (0.99, 0.44, 0.5)], abs=0.06)  # of 0.5 … 1, and 0.25 … 0.75


def test_scores_without_intervals_are_shown_as_they_are(tmp_path):
    write_config(tmp_path, tiny["get_config"]())
    (tmp_path / "evaluation.json").write_text('{"num": 4, "real test clips": {"digit": 0.995}}')
    text = make_report(tmp_path)
    assert "0.995" in text
    assert "real test clips" in text
    assert "In brackets" not in text


def test_scores_of_what_continues_a_video_stand_below_the_others(tmp_path):
    write_config(tmp_path, tiny["get_config"]())
    (tmp_path / "evaluation-extension-half-known.json").write_text('{"known": "extension, half known"}')
    text = make_report(tmp_path)
    assert "No evaluation.json" in text
    (tmp_path / "evaluation.json").write_text('{"num": 4}')
    text = make_report(tmp_path)
    assert "No evaluation.json" not in text
    headings = re.findall(r"<h3>(evaluation.*?)</h3>", text)
    assert headings == ["evaluation.json", "evaluation-extension-half-known.json"]


def test_the_config_is_a_tree_with_what_was_changed_marked(report):
    tree = report[report.index("<h2>Config") : report.index("<h2>Parameters")]
    assert '<dt>batch_size</dt><dd class="changed">8</dd>' in tree
    assert "<dt>accumulate</dt><dd>1</dd>" in tree
    assert re.search(r"<summary>network</summary><dl>.*?<dt>patch_time</dt><dd class=\"changed\">2</dd>", tree)


def test_fewer_videos_may_be_asked_for(run):
    text = make_report(run, num=2)
    assert text.count("<video") == 2
    assert "The first 2 of 3" in text


def test_a_run_that_has_just_begun_says_what_is_missing(tmp_path):
    write_config(tmp_path / "run", tiny["get_config"]())
    text = make_report(tmp_path / "run")
    for words in ("No metrics.jsonl yet", "No sheets", "No videos", "No evaluation.json", "No parameters.txt yet"):
        assert words in text


def test_no_run_and_a_damaged_file_are_one_line(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        make_report(tmp_path)
    write_config(tmp_path, tiny["get_config"]())
    for damaged in ("{", "3"):
        (tmp_path / "evaluation.json").write_text(damaged)
        with pytest.raises(InputError, match=r"evaluation.json cannot be read"):
            make_report(tmp_path)
