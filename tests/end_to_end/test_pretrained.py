"""A published model's folder, from the command line."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT
from tests.pretrained.pipelines import write_lora, write_pipeline
from tests.tiny_config import write_videos
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.load import load_published
from vdm_jax.pretrained.lora import read_lora
from vdm_jax.pretrained.networks import read_network
from vdm_jax.video import read_metadata, read_video, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_pipeline(folder / "model")
    write_pipeline(folder / "image", "image")
    write_videos(folder / "videos")
    write_lora(folder / "style.safetensors")
    return folder


def test_draws_a_prompt_with_a_lora_and_at_another_length(run, folder):
    model = ["--pretrained=model", "--size=16,16", "--steps=2"]
    out, _ = run(folder, "sample.py", *model, "--prompt=the cat", "--negative_prompt=in 12", "--format=gif,npy")
    assert "1 videos in samples/model/seed0" in out
    stem = folder / "samples" / "model" / "seed0" / "000-the-cat"
    video = np.load(stem.with_suffix(".npy"))
    assert video.shape == (16, 16, 16, 3)
    frames, fps = read_video(stem.with_suffix(".gif"))
    assert frames.shape == (16, 128, 128, 3)
    assert fps == pytest.approx(8, rel=0.05)
    metadata = read_metadata(stem.with_suffix(".gif"))
    assert (metadata["run"], metadata["prompt"], metadata["guidance"]) == ("model", "the cat", 9.0)

    styled = ["--prompt=the cat", "--negative_prompt=in 12", "--lora=style.safetensors:0.5", "--out=styled"]
    run(folder, "sample.py", *model, *styled, "--format=gif,npy")
    assert np.abs(np.load(folder / "styled" / "000-the-cat.npy") - video).max() > 1e-3
    assert read_metadata(folder / "styled" / "000-the-cat.gif")["lora"] == ["style.safetensors:0.5"]

    run(folder, "sample.py", *model, "--prompt=the cat", "--frames=4", "--out=short", "--format=npy")
    one = make_mesh(devices=jax.devices()[:1])
    short = Pipeline(load_published(folder / "model", frames=4, size=(16, 16), mesh=one), one)
    short = short(["the cat"], seed=0, steps=2)[0]
    np.testing.assert_allclose(np.load(folder / "short" / "000-the-cat.npy"), short, atol=1e-4)
    assert np.abs(short - video[:4]).max() > 1e-3  # not a part of the longer video


def test_is_measured_against_a_folder_of_videos(run, folder):
    for number in range(4):
        video = np.random.default_rng(number).integers(256, size=(16, 20, 20, 3)).astype(np.uint8)
        write_video(folder / "real" / f"{number}.gif", video, 8)
        (folder / "real" / f"{number}.txt").write_text("the cat")
    arguments = ["--metrics=flicker,dynamic", "--num=2", "--steps=2", "--guidance=2"]
    out, _ = run(folder, "evaluate.py", "--pretrained=model", "--real=real", *arguments)
    assert "data real, train; reference other clips of it: nothing is held out" in out
    assert "written to evaluations/model/evaluation.json" in out
    scores = json.loads((folder / "evaluations" / "model" / "evaluation.json").read_text())
    assert scores["frozen"]["flicker"]["value"] == 0
    assert scores["guidance 2"].keys() == {"flicker", "dynamic"}
    assert scores["model"] == "model"


FINETUNE = """
from vdm_jax.config import read_file

def get_config():
    config = read_file({config!r})
    config.model.network.{arguments}
    config.model.dtype = "float32"
    config.data.update(data_dir="videos", frames=4, height=16, width=16, num_workers=0)
    config.steps, config.batch_size, config.log_every, config.optimizer.warmup = 2, 2, 1, 0
    config.sample.prompts, config.sample.steps = (), 2
    return config
"""


def finetune(run, folder, base, name, arguments, *flags):
    """Trains two steps of the config of motion modules, with a change of its network."""
    config = f"{ROOT / 'configs' / 'finetune_motion_module.py'}:{base}"
    (folder / f"{name}.py").write_text(FINETUNE.format(config=config, arguments=arguments))
    out, _ = run(folder, "train.py", f"--config={name}.py", f"--workdir={name}", *flags)
    assert "2 steps done" in out


def test_an_image_model_learns_to_move_from_a_folder_of_videos(run, outcome, folder):
    small = {"motion_num_attention_heads": 2, "motion_max_seq_length": 4}
    finetune(run, folder, "image", "run", f"new_motion = {small}")
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    out, _ = run(folder, "sample.py", "--run=run", "--prompt=clip 3", "--format=npy")
    assert "1 videos" in out
    assert np.load(folder / "run" / "samples" / "seed0" / "000-clip-3.npy").shape == (4, 16, 16, 3)

    # The image model may move.
    shutil.move(folder / "image", folder / "elsewhere")
    status, _, err = outcome(folder, ROOT / "experiments" / "export.py", "--run=run", "--out=exported/unet")
    assert status == 2
    assert "error: run needs the folder image, which is not there: --pretrained=<folder> says where" in err
    moved = ["--run=run", "--pretrained=elsewhere"]
    run(folder, "sample.py", *moved, "--prompt=clip 3", "--format=npy", "--out=moved")
    drawn = [np.load(where / "000-clip-3.npy") for where in (folder / "run" / "samples" / "seed0", folder / "moved")]
    np.testing.assert_array_equal(*drawn)
    out, _ = run(folder, "export.py", *moved, "--out=exported/unet")
    shutil.move(folder / "elsewhere", folder / "image")
    assert "UNetMotionModel of step 2" in out
    exported, image = read_network(folder / "exported" / "unet"), read_network(folder / "image")
    np.testing.assert_array_equal(exported.params["stem"]["conv"]["kernel"], image.params["stem"]["conv"]["kernel"])
    motion = exported.params["middle1"]["time_attention"]["project_out"]["kernel"]
    assert np.abs(motion).max() > 0


def test_a_lora_that_a_run_trained_is_exported_alone(run, folder):
    finetune(run, folder, "model", "adapted", "remat = 'none'", "--config.train.parts=lora", "--config.train.rank=1")
    out, _ = run(folder, "export.py", "--run=adapted", "--lora", "--out=exported/lora")
    assert "LoRA for UNet3DConditionModel, of step 2" in out
    lora = read_lora(folder / "exported" / "lora")
    assert lora.unet
    assert not lora.text
    assert all(len(change.down) == 1 and np.abs(change.up).max() > 0 for change in lora.unet)
    arguments = ["--prompt=clip 3", "--steps=2", "--guidance=1", "--format=npy"]
    run(folder, "sample.py", "--run=adapted", *arguments, "--out=of_run")
    model = ["--pretrained=model", "--size=16,16", "--frames=4", "--lora=exported/lora"]
    run(folder, "sample.py", *model, *arguments, "--out=of_lora")
    drawn = [np.load(folder / out / "000-clip-3.npy") for out in ("of_run", "of_lora")]
    np.testing.assert_allclose(*drawn, atol=1e-4)


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
    metadata = read_metadata(stem.with_suffix(".gif"))
    assert (metadata["free_noise"], metadata["free_init"]) == (["8", "4"], 2)
