"""Latte and Wan compute what diffusers' modules compute, and come back under diffusers' names."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal
from tests.pretrained.networks import relative
from tests.pretrained.transformers import LATTE, WAN, module_of
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.pretrained.names import torch_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
CONSTANTS = ("pos_embed.pos_embed", "temp_pos_embed")  # in the state, not in published files

LATTES = {
    "two layers": (LATTE, (4, 8, 8)),
    "one frame": (LATTE, (1, 8, 8)),
    "odd": (LATTE | {"num_layers": 3, "num_attention_heads": 3, "cross_attention_dim": 24}, (4, 6, 10)),
    "without variance": (LATTE | {"out_channels": 4, "sample_size": 128}, (4, 10, 6)),
}
WANS = {
    "two layers": (WAN, (3, 4, 6)),
    "one frame": (WAN, (1, 8, 8)),
    "odd": (WAN | {"num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 16}, (5, 6, 2)),
    "2.2": (WAN | {"in_channels": 6, "out_channels": 6}, (2, 4, 4)),
}


def theirs(config):
    """Returns their module with all parameters drawn anew."""
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tensors_of(module):
    return {name: value.numpy() for name, value in module.state_dict().items() if name not in CONSTANTS}


@torch.no_grad()
def call(module, z, time, tokens):
    """Returns their answer to our inputs, B T H W C."""
    arguments = torch.from_numpy(np.moveaxis(z, -1, 1)), torch.from_numpy(time), torch.from_numpy(tokens)
    return np.moveaxis(module(*arguments).sample.numpy(), 1, -1)


def compare(config, shape, time):
    module = theirs(config)
    ours, params, naming = module_of(config, tensors_of(module))
    z = np.asarray(normal(0, 2, *shape, config["in_channels"]))
    tokens = np.asarray(normal(1, 2, 5, config.get("caption_channels") or config["text_dim"]))
    text = Text(jnp.asarray(tokens)[:, None], jnp.ones((2, 1, 5), bool), None)
    out = jax.jit(ours)(z, time, Conditions(text=text))
    patch = 4  # tokens are 2 × 2 latents
    per_token = time if time.ndim == 1 else np.repeat(time, shape[1] * shape[2] // patch, axis=1)
    assert relative(out, call(module, z, per_token, tokens)[..., : out.shape[-1]]) < 5e-6
    back = torch_tensors(params, naming)
    missing, unexpected = module.load_state_dict({n: torch.from_numpy(t) for n, t in back.items()}, strict=False)
    assert not unexpected
    assert set(missing) <= set(CONSTANTS)


@pytest.mark.parametrize("name", LATTES)
def test_latte(name):
    compare(*LATTES[name], np.array([3, 700], np.float32))


@pytest.mark.parametrize("name", WANS)
def test_wan(name):
    compare(*WANS[name], np.array([3, 700], np.float32))


@pytest.mark.parametrize("name", WANS)
def test_wan_with_a_time_for_each_frame(name):
    config, shape = WANS[name]
    time = np.random.default_rng(0).uniform(0, 1000, (2, shape[0])).astype(np.float32)
    time[0, 0] = 0  # known
    compare(config, shape, time)
