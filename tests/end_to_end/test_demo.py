"""`make demo` with a tiny network that is trained for three steps: all its commands run, and print their results."""

import json
from pathlib import Path

import numpy as np
import pytest

from vdm_jax.data.moving_digits import prepare
from vdm_jax.evaluation import judge as judges
from vdm_jax.video import read_video

ROOT = Path(__file__).parents[2]
CONFIG = f"""
from vdm_jax.config import read_file

def get_config():
    config = read_file({str(ROOT / "configs" / "moving_digits.py")!r})
    config.steps, config.optimizer.warmup, config.sample.every, config.sample.steps = 3, 0, 0, 2
    config.model.network.update(channels=8, multipliers=(1,), blocks=0, head_size=8)
    config.model.network.update(space_attention=(True,), time_attention=(True,))
    config.model.text.update(width=16, depth=0, head_size=8)
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes a folder with the config, and a briefly trained judge under the name of the judge that commands load."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "config.py").write_text(CONFIG)
    builder = prepare(folder / "elsewhere")
    brief = judges.Recipe(steps=80, batch=64, clips=2000)
    judges.load_or_train_judge(folder / "brief.npz", builder, recipe=brief)
    recipe = judges._hash(judges.Recipe(), 0, builder.info.full_name, builder.info.features["video"].shape)
    (folder / "datasets").mkdir()
    with np.load(folder / "brief.npz") as file:
        np.savez(folder / "datasets" / "judge-16x8.npz", **dict(file) | {"recipe": np.array(recipe)})
    return folder


DEMO = ["demo.py", "--run=run", "--config=config.py", "--num=4"]


def test_trains_samples_measures_and_prints_a_summary_and_a_second_call_only_samples(run, folder):
    out, _ = run(folder, *DEMO)
    scores = json.loads((folder / "run" / "evaluation.json").read_text())
    assert (scores["num"], scores["step"], scores["steps"]) == (4, 3, 8)
    assert scores["real"]["direction"]["value"] == 1
    assert scores.keys() >= {"guidance 1", "guidance 3", "shuffled", "frozen"}
    for words in ("steps      3, loss", "of training", "accuracy   guidance 3: digit", "samples    run/samples/demo"):
        assert words in out
    drawn = folder / "run" / "samples" / "demo"
    assert {len(list(drawn.glob(f"0*.{suffix}"))) for suffix in ("gif", "mp4")} == {10}
    sheet, _ = read_video(drawn / "sheet.gif")  # two rows of five videos, each pixel four times as large
    assert sheet.shape == (8, 2 * 65 - 1, 5 * 65 - 1, 3)
    before = (folder / "run" / "metrics.jsonl").read_text()
    _, err = run(folder, *DEMO)
    assert "finished: it is at step 3" in err
    assert (folder / "run" / "metrics.jsonl").read_text() == before


MORE = ["--steps=8", "--metrics=warping,digits_fid"]


def test_a_second_evaluation_draws_no_video_again(run, folder):
    kept = folder / "run" / "evaluation"
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("videos-*")}
    out, _ = run(folder, "evaluate.py", "--run=run", "--num=4", "--guidance=3,1", *MORE)
    assert {path.name: path.stat().st_mtime_ns for path in kept.glob("videos-*")} == before
    assert len(before) == 2
    scores = json.loads((folder / "run" / "evaluation.json").read_text())
    metadata = {"protocol": 2, "num": 4, "seed": 0, "step": 3, "steps": 8, "solver": "ddim", "model": "run"}
    assert scores.items() >= metadata.items()
    assert scores["data"] == "moving_digits, test; reference train"
    rows = ["guidance 3", "guidance 1", "real", "shuffled", "frozen"]
    assert [name for name, value in scores.items() if isinstance(value, dict)] == rows
    for row in rows:
        assert scores[row].keys() == {"warping", "occluded", "digits_fid"}
        assert scores[row]["digits_fid"].keys() == {"value", "low", "high", "bias"}
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert table[0] == ["", "guidance 3", "guidance 1", "real clips", "frames shuffled", "frozen"]
    assert [row[0] for row in table[2:]] == ["warping ↓", "occluded ↓", "digits_fid ↓"]
    assert table[4][3].startswith(f"{scores['real']['digits_fid']['value']:.3g} [")
    assert f"judge {scores['judge']}" in out


def test_clips_with_known_frames_are_compared_with_true_clips(run, folder):
    mode = "image to video, with the caption"
    out, _ = run(folder, "evaluate.py", "--run=run", "--num=4", f"--known={mode}", "--metrics=psnr,ssim")
    assert "written to run/evaluation-image-to-video-with-the-caption.json" in out
    scores = json.loads((folder / "run" / "evaluation-image-to-video-with-the-caption.json").read_text())
    assert (scores["known"], scores["respect"]) == (mode, "replace")
    assert [name for name, value in scores.items() if isinstance(value, dict)] == ["guidance 1", "real", "no network"]
    assert scores["real"]["psnr"]["value"] == pytest.approx(100)
    assert scores["no network"]["ssim"]["value"] < scores["real"]["ssim"]["value"] == 1
