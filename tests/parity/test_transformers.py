"""Latte and Wan compute what diffusers' modules compute, and come back under diffusers' names."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal
from tests.pretrained.networks import relative
from tests.pretrained.transformers import LATTE, WAN, module_of
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.dit import DiT
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.classes import ClassTable
from vdm_jax.pretrained.families.transformers import dit_names
from vdm_jax.pretrained.folder import Weights, write_folder
from vdm_jax.pretrained.names import Naming, load_part, torch_tensors

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


def test_each_frame_of_a_class_conditional_network_is_an_image_of_dit(tmp_path):
    """Blocks along space, adaLN-zero and the table of classes are DiT's if the gates of blocks along time are zero."""
    sizes = dict(num_layers=2, num_embeds_ada_norm=3, sample_size=8, patch_size=2, norm_eps=1e-6)
    config = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, **sizes)
    module = theirs({"_class_name": "DiTTransformer2DModel"} | config)
    first, second = (block.norm1.emb for block in module.transformer_blocks)
    second.load_state_dict(first.state_dict())  # there is one embedding in DiT; diffusers has a copy in each block
    for embedding in (first, second):
        embedding.time_proj.downscale_freq_shift = 0  # as in DiT
    tensors = tensors_of(module)
    table = tensors.pop("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight")
    tensors = {name: tensor for name, tensor in tensors.items() if "blocks.1.norm1.emb" not in name}
    write_folder(tmp_path, tensors)

    names = (
        (r"^layers/(\d+)/space/modulation/", r"transformer_blocks/\1/norm1/linear/"),
        (r"^layers/(\d+)/space/", r"transformer_blocks/\1/"),
        (r"^stem/project/", "pos_embed/proj/"),
        (r"^last/", "proj_out_1/"),
        (r"^head/project/", "proj_out_2/"),
        *dit_names("transformer_blocks/0/norm1/emb/timestep_embedder", "", ""),
    )
    arguments = dict(channels_in=4, width=16, depth=2, heads=2, pooled_width=16, modulation="block", variance=True)
    arguments |= dict(qk_norm=None, time_position="none", cross="none")
    naming = Naming(names, stacked=r"^layers/", patch=(2, 2))
    part = load_part(Weights(tmp_path), DiT, arguments, naming, {}, where="DiT", new="layers/time/|^pooled/")
    params = jax.tree.map(lambda x: jnp.zeros(x.shape) if isinstance(x, jax.ShapeDtypeStruct) else x, part.params)
    params["pooled"]["kernel"] = jnp.eye(16)
    classes = ClassTable(classes=("cat", "dog", "bird"), width=16, rngs=Keys(0))
    classes.embed.embedding[...] = table

    z, time = np.asarray(normal(0, 2, 3, 8, 8, 4)), np.array([3, 700], np.float32)
    tokens = np.stack([classes.tokenize(text) for text in ("a dog", "")])
    out = jax.jit(nnx.merge(part.graphdef, params))(z, time, Conditions(text=classes(jnp.asarray(tokens[:, None]))))
    frames = torch.from_numpy(z.reshape(6, 8, 8, 4).transpose(0, 3, 1, 2))
    with torch.no_grad():
        labels, steps = torch.tensor([1, 3]).repeat_interleave(3), torch.from_numpy(time).repeat_interleave(3)
        expected = module(frames, timestep=steps, class_labels=labels).sample.numpy().transpose(0, 2, 3, 1)
    assert relative(out, expected.reshape(2, 3, 8, 8, 8)[..., :4]) < 5e-6
