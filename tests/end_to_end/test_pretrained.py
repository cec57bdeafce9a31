"""A published model's folder, from the command line."""

import numpy as np
import pytest

from tests.pretrained.pipelines import write_lora, write_pipeline
from vdm_jax.video import read_metadata, read_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_pipeline(folder / "model")
    write_lora(folder / "style.safetensors")
    return folder


def test_draws_what_is_asked_for(run, folder):
    model = ["--pretrained=model", "--size=16,16", "--steps=2"]
    out, _ = run(folder, "sample.py", *model, "--prompt=the cat", "--negative_prompt=in 12", "--format=gif,npy")
    assert "1 videos in samples/model/seed0" in out
    stem = folder / "samples" / "model" / "seed0" / "000-the-cat"
    video = np.load(stem.with_suffix(".npy"))
    assert video.shape == (16, 16, 16, 3)
    frames, fps = read_video(stem.with_suffix(".gif"))
    assert frames.shape == (16, 128, 128, 3)
    assert fps == pytest.approx(8, rel=0.05)
    about = read_metadata(stem.with_suffix(".gif"))
    assert (about["run"], about["prompt"], about["guidance"]) == ("model", "the cat", 9.0)

    more = ["--prompt=the cat", "--negative_prompt=in 12", "--lora=style.safetensors:0.5", "--out=styled"]
    run(folder, "sample.py", *model, *more, "--format=gif,npy")
    assert np.abs(np.load(folder / "styled" / "000-the-cat.npy") - video).max() > 1e-3
    assert read_metadata(folder / "styled" / "000-the-cat.gif")["lora"] == ["style.safetensors:0.5"]
