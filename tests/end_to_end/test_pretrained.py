"""A published model's folder, from the command line."""

import numpy as np
import pytest

from tests.pretrained.networks import UNETS
from tests.pretrained.pipelines import write_pipeline
from vdm_jax.video import read_metadata, read_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_pipeline(folder / "model")
    return folder


def test_draws_what_is_asked_for(run, folder):
    model = ["--pretrained=model", "--size=16,16", "--steps=2"]
    out, _ = run(folder, "sample.py", *model, "--prompt=the cat", "--negative_prompt=in 12", "--format=gif,npy")
    assert "1 videos in samples/model/seed0" in out
    stem = folder / "samples" / "model" / "seed0" / "000-the-cat"
    assert np.load(stem.with_suffix(".npy")).shape == (16, 16, 16, 3)
    frames, fps = read_video(stem.with_suffix(".gif"))
    assert frames.shape == (16, 128, 128, 3)
    assert fps == pytest.approx(8, rel=0.05)
    about = read_metadata(stem.with_suffix(".gif"))
    assert (about["run"], about["prompt"], about["guidance"]) == ("model", "the cat", 9.0)


def test_more_frames_than_the_motion_modules_know_in_two_rounds_of_a_travelling_prompt(run, folder):
    write_pipeline(folder / "motion", UNETS["animatediff"][0])
    model = ["--pretrained=motion", "--size=16,16", "--steps=1", "--guidance=1", "--format=gif,npy"]
    run(
        folder,
        "sample.py",
        *model,
        "--frames=11",
        "--free_noise=8,4",
        "--free_init=2",
        "--prompt=0: the cat | 6: in 12",
    )
    stem = folder / "samples" / "motion" / "seed0" / "000-0-the-cat-6-in-12"
    assert np.load(stem.with_suffix(".npy")).shape == (11, 16, 16, 3)
    about = read_metadata(stem.with_suffix(".gif"))
    assert (about["free_noise"], about["free_init"]) == (["8", "4"], 2)
