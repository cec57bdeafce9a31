"""Folders as they lie on a disk: a hub's cache, files that are not there, and files that are something else."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import NAMES, Weights, component, read_config, snapshot

FILE = f"{NAMES[0]}.safetensors"
TENSORS = {"a": np.ones(2, np.float32)}


def test_a_hubs_cache_stands_for_its_main_snapshot(tmp_path):
    cache = tmp_path / "models--owner--name"
    for commit, classes in (("old", "A"), ("new", "B")):
        part = cache / "snapshots" / commit / "unet"
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps({"_class_name": classes}))
        (part.parent / "model_index.json").write_text("{}")
        save_file(TENSORS, part / FILE)
    (cache / "refs").mkdir()
    with pytest.raises(InputError, match=r"models--owner--name is a hub cache .* it holds new, old"):
        snapshot(cache)
    (cache / "refs" / "main").write_text("new\n")
    assert read_config(cache)["_class_name"] == "B"
    assert component(cache, "unet") == cache / "snapshots" / "new" / "unet"
    assert component(cache / "snapshots" / "old", "unet").parent.name == "old"
    assert [*Weights(component(cache, "unet"))] == ["a"]
    (cache / "refs" / "main").write_text("other")
    with pytest.raises(InputError, match="refs/main names no snapshot"):
        read_config(cache)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model-00001-of-00002.safetensors",
            r"holds shards .* without model\.safetensors\.index\.json, which lists them",
        ),
        (f"{NAMES[0]}.non_ema.safetensors", r"non_ema\.safetensors alone, weights of training without their average"),
        (f"{NAMES[0]}.bin", r"\.bin is a pickle, .*: python experiments/convert\.py --input .*\.bin$"),
        ("sd.ckpt", r"\.ckpt is a pickle, .*: python experiments/convert\.py --input .*sd\.ckpt$"),
        ("model.pth", r"\.pth is a pickle, .*: python experiments/convert\.py --input .*model\.pth$"),
    ],
)
def test_what_lies_there_instead_is_named(name, message, tmp_path):
    save_file(TENSORS, tmp_path / name)
    with pytest.raises(InputError, match=message):
        Weights(tmp_path)


def test_a_pointer_of_git_lfs_is_no_file(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n"
    (tmp_path / FILE).write_text(pointer)
    with pytest.raises(InputError, match=rf"{FILE} is a git-lfs pointer, not the file itself: `git lfs pull`"):
        Weights(tmp_path)
