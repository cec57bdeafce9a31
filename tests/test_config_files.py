"""The files in configs/: their keys are read, and full sizes have the published numbers of parameters."""

import math
from pathlib import Path

import jax
import pytest
from flax import nnx

from vdm_jax.build import masks_of, objective_of, process_of
from vdm_jax.config import check_keys, check_numbers, read_file
from vdm_jax.models.dit import DiT
from vdm_jax.models.rngs import Keys
from vdm_jax.training.optimizer import optimizer_of

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = {
    "latte.py": ("ucf101", "sky", "moving_digits_class"),
    "open_sora.py": ("stage1",),
    "video_diffusion_models.py": ("ucf101", "bair", "kinetics", "text_small", "text_large"),
    "wan.py": ("1b3", "1b3_lora"),
}
SPECS = [
    f"{path.name}:{argument}" if argument else path.name
    for path in sorted(CONFIGS.glob("*.py"))
    for argument in ARGUMENTS.get(path.name, ("",))
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_has_keys_and_values_that_are_read(spec):
    config = read_file(f"{CONFIGS / spec}")
    check_keys(config)
    check_numbers(config)
    process_of(config), objective_of(config), masks_of(config), optimizer_of(config)


def test_open_sora_of_full_size_has_the_published_number_of_parameters():
    """The original code has 1,207,643,972, of which 36 frequencies are constants here."""
    arguments = read_file(f"{CONFIGS / 'open_sora.py'}:stage1").model.network.to_dict() | dict(channels_in=4)
    del arguments["kind"]
    module = nnx.eval_shape(lambda: DiT(**arguments, text_width=4096, rngs=Keys(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module))) == 1_207_643_972 - 36


def test_the_classes_of_ucf101_are_the_data_sets():
    names = read_file(f"{CONFIGS / 'latte.py'}:ucf101").model.text.names
    assert (len(names), names[0], names[-1]) == (101, "ApplyEyeMakeup", "YoYo")
