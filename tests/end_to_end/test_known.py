"""Networks that are told what is known, from training to a cascade, as a user gives the commands."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.generation.inputs import read_clip
from vdm_jax.video import read_metadata, read_video

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))
CONFIG = f"""
from runpy import run_path

def get_config():
    config = run_path({str(ROOT / "tests" / "tiny_config.py")!r})["get_config"]()
    config.steps, config.optimizer.warmup, config.sample.every, config.sample.prompts = 2, 0, 0, ()
    config.data.height = config.data.width = {{size}}
    config.known.update({{known}})
    return config
"""


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    tiny["write_videos"](folder / "videos")
    runs = {
        "told": {"size": 8, "known": "mixture=dict(first_k=1.0, every_nth=1.0)"},
        "larger": {"size": 16, "known": "mixture=dict(everything=1.0), downsample=2, noise=0.3"},
    }
    for name, about in runs.items():
        (folder / f"{name}.py").write_text(CONFIG.format(**about))
        out, _ = run(folder, "train.py", f"--config={name}.py", f"--workdir={name}")
        assert "2 steps done" in out
    return folder


def test_a_network_that_is_told_draws_what_is_new_and_keeps_the_rest(run, folder):
    video = folder / "videos" / "0.gif"
    out, _ = run(folder, "sample.py", "--run=told", f"--video={video}", "--extend=3", "--format=npy", "--out=extended")
    assert "1 videos in extended" in out
    known, _, _ = read_clip(video, (8, 8), 3)
    drawn = np.load(folder / "extended" / "000-unconditional.npy")
    assert drawn.shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(drawn[:6], known)
    assert not list((folder / "extended").glob(".*"))  # what was kept between windows is gone


def test_later_windows_of_a_long_video_respect_what_earlier_ones_drew(run, folder):
    how = ["--prompt=clip 3", "--frames=6", "--respect=replace", "--noexact", "--format=npy"]
    run(folder, "sample.py", "--run=told", *how, "--out=longer")
    assert np.load(folder / "longer" / "000-clip-3.npy").shape == (6, 8, 8, 3)


def test_a_run_for_super_resolution_enlarges_a_video_of_any_length(run, folder):
    how = ["--run=larger", f"--video={folder / 'videos' / '0.gif'}", "--scale=1", "--known-noise=0.1"]
    run(folder, "sample.py", *how, "--format=gif", "--out=enlarged")
    frames, fps = read_video(folder / "enlarged" / "000-unconditional.gif")
    assert frames.shape == (6, 16, 16, 3)
    assert fps == pytest.approx(10)


def test_a_cascade_makes_finer_what_it_drew(run, folder):
    runs = "--cascade=told,larger"
    out, said = run(folder, "sample.py", runs, "--prompt=clip 3", "--num=2", "--format=npy", "--out=cascade")
    assert "2 videos in cascade" in out
    assert said.count("2/2") >= 2  # a bar for each stage
    one, two = (np.load(folder / "cascade" / f"00{i}-clip-3.npy") for i in range(2))
    assert one.shape == two.shape == (4, 16, 16, 3)
    assert (one != two).any()
    about = read_metadata(folder / "cascade" / "000-clip-3.npy")
    assert [(stage["respect"], stage["step"]) for stage in about["stages"]] == [("concat", 2), ("concat", 2)]
    run(folder, "sample.py", "--cascade=told,told", "--prompt=clip 3", "--format=npy", "--out=smoother")
    smooth = np.load(folder / "smoother" / "000-clip-3.npy")
    run(folder, "sample.py", "--run=told", "--prompt=clip 3", "--format=npy", "--out=base")
    base = np.load(folder / "base" / "000-clip-3.npy")
    assert smooth.shape == (7, 8, 8, 3)
    np.testing.assert_array_equal(smooth[::2], base)
