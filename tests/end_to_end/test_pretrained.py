"""A published model's folder, from the command line."""

import json

import jax
import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT
from tests.pretrained.pipelines import write_lora, write_pipeline
from tests.tiny_config import write_videos
from vdm_jax.generation.published import load_published
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.unets import load_unet
from vdm_jax.video import read_metadata, read_video, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_pipeline(folder / "model")
    write_pipeline(folder / "image", "image")
    write_videos(folder / "videos")
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

    run(folder, "sample.py", *model, "--prompt=the cat", "--frames=4", "--out=short", "--format=npy")
    one = make_mesh(devices=jax.devices()[:1])
    short = load_published(folder / "model", frames=4, size=(16, 16), mesh=one)(["the cat"], seed=0, steps=2)[0]
    np.testing.assert_allclose(np.load(folder / "short" / "000-the-cat.npy"), short, atol=1e-4)
    assert np.abs(short - video[:4]).max() > 1e-3  # no part of a longer one


def test_is_measured_beside_a_folder_of_videos(run, folder):
    for number in range(4):
        video = np.random.default_rng(number).integers(256, size=(16, 20, 20, 3)).astype(np.uint8)
        write_video(folder / "real" / f"{number}.gif", video, 8)
        (folder / "real" / f"{number}.txt").write_text("the cat")
    how = ["--metrics=flicker,dynamic", "--num=2", "--steps=2", "--guidance=2"]
    out, _ = run(folder, "evaluate.py", "--pretrained=model", "--real=real", *how)
    assert "data real, train; reference other clips of it: nothing is held out" in out
    assert "written to evaluations/model/evaluation.json" in out
    scores = json.loads((folder / "evaluations" / "model" / "evaluation.json").read_text())
    assert scores["frozen"]["flicker"]["value"] == 0
    assert scores["guidance 2"].keys() == {"flicker", "dynamic"}
    assert scores["model"] == "model"


def test_an_image_model_learns_to_move_from_a_folder_of_videos(run, folder):
    config = [f"--config={ROOT / 'configs' / 'finetune_motion_module.py'}", "--workdir=run", "--config.batch_size=2"]
    config += ["--config.pretrained.folder=image", "--config.model.dtype=float32", "--config.data.frames=4"]
    config += ["--config.data.height=16", "--config.data.width=16", "--config.data.num_workers=0"]
    config += ["--config.optimizer.warmup=0", "--config.log_every=1", "--config.sample.steps=2"]
    small = json.dumps({"motion_num_attention_heads": 2, "motion_max_seq_length": 4})
    (folder / "config.py").write_text(
        f"import runpy\ndef get_config():\n    config = runpy.run_path({config[0].split('=')[1]!r})['get_config']()\n"
        f"    config.pretrained.new_motion = {small}\n    config.sample.prompts = ()\n    return config\n"
    )
    out, _ = run(folder, "train.py", "--config=config.py", *config[1:], "--config.steps=2")
    assert "2 steps done" in out
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    out, _ = run(folder, "sample.py", "--run=run", "--prompt=clip 3", "--format=npy")
    assert "1 videos" in out
    assert np.load(folder / "run" / "samples" / "seed0" / "000-clip-3.npy").shape == (4, 16, 16, 3)

    out, _ = run(folder, "export.py", "--run=run", "--out=exported/unet")
    assert "UNetMotionModel of step 2" in out
    exported, image = load_unet(folder / "exported" / "unet"), load_unet(folder / "image")
    np.testing.assert_array_equal(exported.params["conv_in"]["kernel"], image.params["conv_in"]["kernel"])
    motion = exported.params["middle1"]["time_attention"]["project_out"]["kernel"]
    assert np.abs(motion).max() > 0


def test_more_frames_than_the_motion_modules_know_in_two_rounds_of_a_travelling_prompt(run, folder):
    write_pipeline(folder / "motion", "animatediff")
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
