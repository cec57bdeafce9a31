"""Published transformers as commands: trained on a folder of videos, drawn from, exported. Weights are random."""

import json

import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT
from tests.pretrained.pipelines import write_latte, write_wan
from tests.tiny_config import write_videos
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.lora import read_lora

TINY = """
from vdm_jax.config import read_file

def get_config():
    config = read_file({config!r})
    config.model.dtype = "float32"
    config.data.update(data_dir="videos", frames={frames}, height=16, width=16, stride=1, fps=0.0, num_workers=0)
    config.steps, config.batch_size, config.log_every, config.optimizer.warmup, config.ema = 2, 2, 1, 0, 0.0
    config.train.rank = 2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    write_latte(folder / "latte")
    write_wan(folder / "wan")
    write_videos(folder / "videos")
    return folder


@pytest.fixture(scope="module")
def train(run, folder):
    """Trains two steps of a config at a tiny size."""

    def train(config, name, frames, *flags):
        (folder / f"{name}.py").write_text(TINY.format(config=str(ROOT / "configs" / config), frames=frames))
        out, _ = run(folder, "train.py", f"--config={name}.py", f"--workdir={name}", *flags)
        assert "2 steps done" in out
        losses = [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert np.isfinite(losses).all()
        assert len(losses) == 2

    return train


DRAW = ["--prompt=the cat", "--steps=2", "--guidance=2", "--format=npy"]


def drawn(run, folder, *arguments):
    run(folder, "sample.py", *arguments, *DRAW, "--out=drawn")
    return np.load(folder / "drawn" / "000-the-cat.npy")


def test_blocks_along_time_of_latte_are_trained_and_all_of_it_is_exported(run, train, folder):
    train("latte.py:latte_1,latte", "tuned", 4, "--config.train.parts=time")
    videos = drawn(run, folder, "--run=tuned")
    assert videos.shape == (4, 16, 16, 3)
    out, _ = run(folder, "export.py", "--run=tuned", "--out=exported")
    assert "LatteTransformer3DModel of step 2, for diffusers to load" in out
    before, after = Weights(folder / "latte" / "transformer"), Weights(folder / "exported")
    assert set(before) == set(after)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert all(name.startswith("temporal_transformer_blocks") for name in changed)


def test_low_rank_changes_of_wan_are_trained_exported_and_read_again(run, train, folder):
    train("wan.py:1b3_lora,wan", "style", 5, "--config.optimizer.learning_rate=0.1")
    out, _ = run(folder, "export.py", "--run=style", "--lora", "--out=lora")
    assert "LoRA for WanTransformer3DModel, of step 2" in out
    assert len(read_lora(folder / "lora").unet) == 2 * 8
    of_run = drawn(run, folder, "--run=style")
    sizes = ["--size=16,16", "--frames=5"]
    np.testing.assert_allclose(drawn(run, folder, "--pretrained=wan", *sizes, "--lora=lora"), of_run, atol=1e-4)
    assert np.abs(drawn(run, folder, "--pretrained=wan", *sizes) - of_run).max() > 1e-2
