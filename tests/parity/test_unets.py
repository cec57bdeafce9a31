"""The published U-Nets compute what diffusers' modules compute, and have the same parameters at full size."""

import inspect
import json
import math
import warnings

import jax
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.networks import UNETS, inputs, inputs_of, module_of, relative, tensor
from vdm_jax.models.rngs import Keys
from vdm_jax.models.unet import UNet
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.families.animatediff import with_motion
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.networks import read_network, write_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def theirs(config):
    """The module of a config with the weights of its parameters' names."""
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    return with_weights(module)


def with_weights(module):
    weights = {name: torch.from_numpy(tensor(name, tuple(p.shape))) for name, p in module.named_parameters()}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("pos_embed.pe") for name in missing)  # a constant
    return module.eval()


@torch.no_grad()
def call(module, given):
    """Their answer to our inputs, B T H W C."""
    text, scalars = given["conditions"].text, given["conditions"].scalars
    z, time, context = (torch.from_numpy(array) for array in (given["z"], given["time"], text.tokens))
    frames, kind = z.shape[1], type(module).__name__
    if kind == "UNetSpatioTemporalConditionModel":
        z = z.permute(0, 1, 4, 2, 3)
        return module(z, time, context[:, 0], torch.from_numpy(scalars)).sample.permute(0, 1, 3, 4, 2).numpy()
    if kind == "UNet2DConditionModel":
        images = z.flatten(0, 1).permute(0, 3, 1, 2)
        out = module(images, time.repeat_interleave(frames), context[:, 0].repeat_interleave(frames, 0)).sample
        return out.permute(0, 2, 3, 1).unflatten(0, z.shape[:2]).numpy()
    z, context = z.permute(0, 4, 1, 2, 3), context[:, 0]
    if kind == "UNetMotionModel":
        context = context.repeat_interleave(frames, 0)
    return module(z, time, context).sample.permute(0, 2, 3, 4, 1).numpy()


def ours(unet, given):
    module = nnx.merge(unet.graphdef, unet.params)
    return np.asarray(jax.jit(lambda given: module(**given))(given))


@pytest.mark.parametrize("name", UNETS)
def test_the_same_weights_give_the_same_answer_and_come_back(name, tmp_path):
    module, given = theirs(UNETS[name][0]), inputs(name)
    module.save_pretrained(tmp_path / "theirs")
    unet = read_network(tmp_path / "theirs")
    assert relative(ours(unet, given), call(module, given)) < 1e-5

    write_network(unet, tmp_path / "ours")
    back, info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, value in module.state_dict().items():
        np.testing.assert_allclose(back.state_dict()[key].numpy(), value.numpy(), atol=1e-6, err_msg=key)
    np.testing.assert_allclose(call(back.eval(), given), call(module, given), rtol=1e-4, atol=1e-4)


def test_a_motion_adapter_in_an_image_network_is_the_merged_network(tmp_path):
    image = with_weights(diffusers.UNet2DConditionModel.from_config(UNETS["image"][0]))
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=8,
    )
    adapter = with_weights(adapter)
    merged = diffusers.UNetMotionModel.from_unet2d(image, adapter).eval()
    image.save_pretrained(tmp_path / "image")
    adapter.save_pretrained(tmp_path / "adapter")
    unet, given = read_network(tmp_path / "image", motion_adapter=tmp_path / "adapter"), inputs("animatediff")
    assert relative(ours(unet, given), call(merged, given)) < 1e-5


def test_stills_pass_the_blended_slots_by():
    config, batch, frames, *_ = UNETS["svd"]
    module, given = theirs(config), inputs("svd")
    answers = call(module, given)
    for block in module.modules():
        if type(block).__name__ == "AlphaBlender":
            block.get_alpha = lambda indicator, ndims: torch.ones((1,) * ndims)
    stills = call(module, given)
    assert relative(answers, stills) > 0.1
    mine = module_of(config)
    given |= {"conditions": given["conditions"]._replace(is_still=np.ones((batch, frames), bool))}
    assert relative(np.asarray(jax.jit(lambda given: mine(**given))(given)), stills) < 1e-5


FULL = {
    "stable diffusion 1.5": (
        {"cross_attention_dim": 768, "_class_name": "UNet2DConditionModel"},
        859_520_964,
    ),
    "modelscope": ({"_class_name": "UNet3DConditionModel"}, 1_411_233_860),
    "stable video diffusion": ({"_class_name": "UNetSpatioTemporalConditionModel"}, 1_524_623_082),
}


def shapes(config):
    arguments, naming = translate(config)
    module = nnx.eval_shape(lambda: UNet(**arguments, rngs=Keys(0)))
    return torch_shapes(nnx.to_pure_dict(nnx.split(module)[1]), naming)


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_and_shapes_are_theirs(name):
    config, count = FULL[name]
    module = on_meta(lambda: getattr(diffusers, config["_class_name"]).from_config(config))
    expected = {name: tuple(p.shape) for name, p in module.named_parameters()}
    found = shapes(json.loads(module.to_json_string()))
    assert found == expected
    assert sum(map(math.prod, found.values())) == count


@pytest.mark.parametrize(
    ("version", "count"),
    [
        ({"motion_max_seq_length": 24, "use_motion_mid_block": False}, 417_137_600),
        ({"motion_max_seq_length": 32, "use_motion_mid_block": True}, 453_209_280),
    ],
)
def test_full_size_motion_modules_are_theirs(version, count):
    image = on_meta(lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768))
    adapter = on_meta(lambda: diffusers.MotionAdapter(**version))
    config = with_motion(json.loads(image.to_json_string()), json.loads(adapter.to_json_string()))
    found = shapes(config)
    expected = {n: tuple(p.shape) for module in (image, adapter) for n, p in module.named_parameters()}
    assert found == expected
    assert sum(math.prod(shape) for name, shape in found.items() if "motion_modules" in name) == count


# The depth of the published networks: all levels and blocks, at small widths. Groups of one or two channels, and one
# pixel at the lowest level, ask the most of a variance.
_LEVELS = {"norm_num_groups": 16, "block_out_channels": [16, 32, 32, 32], "attention_head_dim": 4, "norm_eps": 1e-5}
_MOTION = {"num_attention_heads": 4, "motion_num_attention_heads": 4, "motion_max_seq_length": 8}
DEEP = {
    "UNet2DConditionModel": _LEVELS | {"cross_attention_dim": 8},
    "UNet3DConditionModel": _LEVELS | {"cross_attention_dim": 8},
    "UNetMotionModel": {**_LEVELS, **_MOTION, "cross_attention_dim": 8, "use_motion_mid_block": True},
    "UNetSpatioTemporalConditionModel": {
        "block_out_channels": [32, 64, 64, 64],
        "num_attention_heads": [2, 4, 4, 4],
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48,
    },
}


@pytest.mark.parametrize("kind", DEEP)
def test_networks_as_deep_as_published_agree_with_diffusers_in_float64(kind, tmp_path):
    known = inspect.signature(getattr(diffusers, kind).__init__).parameters
    module = theirs({"_class_name": kind} | {key: value for key, value in DEEP[kind].items() if key in known})
    module.save_pretrained(tmp_path)
    unet = read_network(tmp_path)
    given = inputs_of(kind, unet.config, 1, 3, 8, 8)
    wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, given)
    assert relative(ours(unet, given), call(module.double(), wide)) < 1e-5
