"""The sampling commands of README.md and docs/published.md, on folders rebuilt small from the published configs."""

import itertools
import json
import re
import shlex
from fnmatch import fnmatch

import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT
from tests.pretrained.pipelines import SCHEDULER, write_adapter, write_image_to_video, write_lora, write_pipeline
from tests.pretrained.tiny_open_sora import temporal_tensors, write_open_sora, write_open_sora_2
from vdm_jax.video import write_image

TEXTS = "".join((ROOT / name).read_text() for name in ("README.md", "docs/published.md"))
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXTS, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted(
    {line for line in BLOCKS.splitlines() if line.startswith("python experiments/sample.py --pretrained")}
)
COMMANDS = [shlex.split(line, comments=True)[2:] for line in COMMANDS if "exported/" not in line]  # a run's own


@pytest.fixture(scope="module")
def monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("published")
    write_pipeline(folder / "text-to-video-ms-1.7b", "modelscope", "text-to-video-ms-1.7b")
    image = write_pipeline(folder / "stable-diffusion-v1-5", "image", "stable-diffusion-v1-5")
    adapter = "animatediff-motion-adapter-v1-5-2"
    for name in (adapter, "animatelcm"):
        write_adapter(folder / name, image, adapter)
    write_open_sora(folder / "open-sora-1.2", temporal_tensors(monkeypatch))
    write_open_sora_2(folder / "open-sora-2", monkeypatch)
    (folder / "my").mkdir()
    (folder / "my" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    video = "stable-video-diffusion-img2vid-xt"
    write_image_to_video(folder / video, video)
    (folder / "animatediff-motion-lora-zoom-out").mkdir()
    write_lora(folder / "animatediff-motion-lora-zoom-out" / "diffusion_pytorch_model.safetensors", text=False)
    write_lora(folder / "style.safetensors")
    write_image(folder / "first.png", np.full((16, 16, 3), 200, np.uint8), {})
    return folder


def test_what_is_downloaded_is_what_is_read(folder):
    downloads = {}
    for words in (shlex.split(line) for line in BLOCKS.splitlines() if line.startswith("hf download")):
        patterns = [word for flag, word in itertools.pairwise(words) if flag == "--include"]
        downloads[folder / words[words.index("--local-dir") + 1]] = patterns
    for where, patterns in downloads.items():
        files = [path for path in where.rglob("*") if path.is_file()]
        assert files
        for file in files:  # the folder of one download may hold those of others
            homes = [home for home in downloads if home in file.parents]
            assert any(fnmatch(str(file.relative_to(home)), pattern) for home in homes for pattern in downloads[home])
        for unread in ("unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "v1-5.ckpt"):
            assert not any(fnmatch(unread, pattern) for pattern in patterns)


def test_the_documents_have_a_command_for_each_kind_of_model():
    assert {words[1] for words in COMMANDS} >= {
        "text-to-video-ms-1.7b",
        "stable-diffusion-v1-5",
        "stable-video-diffusion-img2vid-xt",
        "open-sora-1.2",
        "open-sora-2",
    }
    assert any("--lora" in words for words in COMMANDS)


# Open-Sora's files do not say all sizes, so a command has only the real ones (tests/pretrained/test_open_sora.py).
SMALL = [words for words in COMMANDS if not words[1].startswith("open-sora")]


@pytest.mark.parametrize("words", SMALL, ids=" ".join)
def test_a_command_draws_one_video(words, run, folder):
    small = ["--steps=1", "--size=16,16", "--format=npy", f"--out=out{COMMANDS.index(words)}"]
    out, err = run(folder, "sample.py", *words, *small)
    assert "1 videos in" in out
    assert re.search(r"[\d,]+ parameters, 0\.\d+ GiB in (float32|bfloat16); .* decodes at most \d+ of \d+ frames", err)
    (file,) = (folder / small[-1].removeprefix("--out=")).glob("0*.npy")
    video = np.load(file)
    assert video.shape[1:] == (16, 16, 3)
    assert np.isfinite(video).all()
