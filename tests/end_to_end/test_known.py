"""Networks that are conditioned on known pixels, from training to a cascade, as a user gives the commands."""

from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

from vdm_jax.generation.inputs import read_clip
from vdm_jax.video import read_metadata, read_video, write_image

ROOT = Path(__file__).parents[2]
tiny = run_path(str(ROOT / "tests" / "tiny_config.py"))
CONFIG = f"""
from runpy import run_path

def get_config():
    config = run_path({str(ROOT / "tests" / "tiny_config.py")!r})["get_config"]()
    config.steps, config.optimizer.warmup, config.sample.every, config.sample.prompts = 2, 0, 0, ()
    config.data.height = config.data.width = {{size}}
    config.model.network.patch_time = {{patch_time}}
    config.known.update({{known}})
    return config
"""
RUNS = {
    "channels": {"size": 8, "patch_time": 2, "known": "mixture=dict(first_k=1.0, every_nth=1.0)"},
    "larger": {"size": 16, "patch_time": 2, "known": "mixture=dict(everything=1.0), downsample=2, noise=0.3"},
    "times": {"size": 8, "patch_time": 1, "known": "mixture=dict(nothing=1.0, first=1.0), tell='times', noise=0.3"},
}


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    tiny["write_videos"](folder / "videos")
    for name, values in RUNS.items():
        (folder / f"{name}.py").write_text(CONFIG.format(**values))
        out, _ = run(folder, "train.py", f"--config={name}.py", f"--workdir={name}")
        assert "2 steps done" in out
    return folder


def test_a_network_with_known_channels_draws_new_frames_and_keeps_the_known_ones(run, folder):
    video = folder / "videos" / "0.gif"
    arguments = [f"--video={video}", "--extend=3", "--format=npy", "--out=extended"]
    out, _ = run(folder, "sample.py", "--run=channels", *arguments)
    assert "1 videos in extended" in out
    known, _, _ = read_clip(video, (8, 8), 3)
    drawn = np.load(folder / "extended" / "000-unconditional.npy")
    assert drawn.shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(drawn[:6], known)
    assert not list((folder / "extended").glob(".*"))  # the files of complete windows are gone


def test_later_windows_of_a_long_video_respect_what_earlier_ones_drew(run, folder):
    arguments = ["--prompt=clip 3", "--frames=6", "--respect=replace", "--noexact", "--format=npy"]
    run(folder, "sample.py", "--run=channels", *arguments, "--out=longer")
    assert np.load(folder / "longer" / "000-clip-3.npy").shape == (6, 8, 8, 3)


def test_a_run_for_super_resolution_enlarges_a_video_of_any_length(run, folder):
    arguments = ["--run=larger", f"--video={folder / 'videos' / '0.gif'}", "--scale=1", "--known-noise=0.1"]
    run(folder, "sample.py", *arguments, "--format=gif", "--out=enlarged")
    frames, fps = read_video(folder / "enlarged" / "000-unconditional.gif")
    assert frames.shape == (6, 16, 16, 3)
    assert fps == pytest.approx(10)


def test_a_cascade_refines_what_it_drew(run, folder):
    runs = "--cascade=channels,larger"
    out, err = run(folder, "sample.py", runs, "--prompt=clip 3", "--num=2", "--format=npy", "--out=cascade")
    assert "2 videos in cascade" in out
    assert err.count("2/2") >= 2  # a bar for each stage
    one, two = (np.load(folder / "cascade" / f"00{i}-clip-3.npy") for i in range(2))
    assert one.shape == two.shape == (4, 16, 16, 3)
    assert (one != two).any()
    metadata = read_metadata(folder / "cascade" / "000-clip-3.npy")
    assert metadata["run"] == "channels,larger"
    assert [(stage["respect"], stage["step"]) for stage in metadata["stages"]] == [("concat", 2), ("concat", 2)]
    run(folder, "sample.py", "--cascade=channels,channels", "--prompt=clip 3", "--format=npy", "--out=smoother")
    smooth = np.load(folder / "smoother" / "000-clip-3.npy")
    run(folder, "sample.py", "--run=channels", "--prompt=clip 3", "--format=npy", "--out=base")
    base = np.load(folder / "base" / "000-clip-3.npy")
    assert smooth.shape == (7, 8, 8, 3)
    np.testing.assert_array_equal(smooth[::2], base)


def test_a_network_with_a_time_for_each_frame_sees_known_frames_at_time_0(run, folder):
    picture = np.random.default_rng(0).integers(256, size=(8, 8, 3)).astype(np.uint8)
    write_image(folder / "picture.png", picture)
    arguments = ["--run=times", "--image=picture.png", "--prompt=clip 3", "--format=npy"]
    drawn = {}
    for name, more in {
        "times": ["--respect=times"],
        "default": [],
        "noisy": ["--respect=times", "--known_noise=0.3"],
        "replace": ["--respect=replace"],
        "pyramid": ["--pyramid=1"],
    }.items():
        run(folder, "sample.py", *arguments, *more, f"--out={name}")
        drawn[name] = np.load(folder / name / "000-clip-3.npy")
        assert drawn[name].shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(drawn[name][0], picture.astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(drawn["times"], drawn["default"])
    for name in ("noisy", "replace", "pyramid"):
        assert np.abs(drawn[name] - drawn["times"]).max() > 1e-4, name
    metadata = read_metadata(folder / "pyramid" / "000-clip-3.npy")
    assert (metadata["respect"], metadata["pyramid"], metadata["image"]) == ("times", 1, ["picture.png"])
