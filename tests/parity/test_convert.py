"""Pickles of PyTorch become safetensors without running their code."""

import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("torch") is None:
    pytest.skip("needs the parity extra", allow_module_level=True)
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "experiments" / "convert.py"

pytestmark = pytest.mark.parity


def convert(path):
    return subprocess.run([sys.executable, SCRIPT, "--input", path], capture_output=True, text=True)


class Code:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_folders_pickles_become_safetensors_next_to_them(tmp_path):
    tensors = {name: torch.randn(2, 3) for name in "abc"}
    for name in ("unet", "text_encoder"):
        (tmp_path / name).mkdir()
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "unet" / "diffusion_pytorch_model.fp16.bin")
    for number, name in enumerate("abc", 1):
        torch.save({name: tensors[name]}, tmp_path / "text_encoder" / f"pytorch_model-0000{number}-of-00003.bin")
    done = convert(tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"):
        found = load_file(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all((found[key] == tensors[key]).all() for key in tensors)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Code(str(tmp_path / "written"))}, tmp_path / "x.bin")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Code(str(tmp_path / "written"))))
    for name, message in (("x.bin", "cannot be read"), ("y.pt", "cannot be read"), ("z", "is no file of PyTorch")):
        done = convert(tmp_path / name)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "x.bin")
    assert "is not a state dict" in convert(tmp_path / "x.bin").stderr
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", "y.pt"}
