"""The published transformers: the original code's outputs, the names of all tensors, and refusals."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from tests.pretrained.networks import relative
from tests.pretrained.transformers import (
    FULL_SIZE,
    KINDS,
    LATTE,
    MMDIT,
    MMDIT_FUSED,
    STDIT3,
    WAN,
    abstract,
    fixture,
    module_of,
)
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.pretrained.families import open_sora
from vdm_jax.pretrained.folder import Weights, write_folder
from vdm_jax.pretrained.load import load_published
from vdm_jax.pretrained.lora import merge_lora, read_lora, save_lora
from vdm_jax.pretrained.names import load_part, torch_shapes, torch_tensors
from vdm_jax.split import divide, join, low_rank

TOLERANCE = 5e-6  # relative, float32


def test_open_sora_computes_what_the_original_code_computed():
    tensors, arrays = fixture("stdit3_tiny")
    del tensors[open_sora.FREQUENCIES]
    module, _, _ = module_of(STDIT3, tensors)
    text = Text(jnp.asarray(arrays["y"]), jnp.asarray(arrays["mask"], bool)[:, None], None)
    conditions = Conditions(text=text, scalars=jnp.asarray(arrays["fps"])[:, None])
    z, expected, masked = (rearrange(arrays[name], "b c t h w -> b t h w c") for name in ("x", "out", "out_x_mask"))
    run = jax.jit(lambda z, time: module(z, time, conditions))
    assert relative(run(z, arrays["t"]), expected[..., :4]) < TOLERANCE
    # Frames at time 0 condition the others; the original code computes something else for them, and drops it.
    live = arrays["x_mask"]
    out = run(z, np.where(live, arrays["t"][:, None], 0).astype(np.float32))
    assert relative(np.asarray(out)[live], masked[..., :4][live]) < TOLERANCE
    assert relative(out, expected[..., :4]) > 0.1


@pytest.mark.parametrize(
    ("name", "config"), [("opensora2_mmdit_tiny", MMDIT), ("opensora2_mmdit_tiny_fluxrope", MMDIT_FUSED)]
)
def test_open_sora_2_computes_what_the_original_code_computed(name, config):
    tensors, arrays = fixture(name)
    module, _, _ = module_of(config, tensors)
    frames, rows, columns = arrays["img_ids"][0].astype(int).max(0) + 1

    def unpacked(x):
        sizes = dict(t=frames, h=rows, w=columns, i=2, j=2)
        return rearrange(x, "b (t h w) (c i j) -> b t (h i) (w j) c", **sizes)

    tokens = jnp.asarray(arrays["txt"])[:, None]
    text = Text(tokens, jnp.ones(tokens.shape[:3], bool), jnp.asarray(arrays["y_vec"])[:, None])
    known = np.roll(unpacked(arrays["cond"]), -1, axis=-1)  # here the mask comes last
    out = jax.jit(module)(unpacked(arrays["img"]), 1000 * arrays["timesteps"], Conditions(text=text, known=known))
    assert relative(out, unpacked(arrays["out"])) < TOLERANCE


@pytest.mark.parametrize("name", FULL_SIZE)
def test_names_shapes_and_counts_at_full_size(name):
    config, count, parameters = FULL_SIZE[name]
    module, naming = abstract(config)
    shapes = torch_shapes(nnx.to_pure_dict(nnx.split(module)[1]), naming)
    assert len(shapes) == count
    assert sum(map(math.prod, shapes.values())) == parameters


@pytest.mark.parametrize("config", [LATTE, STDIT3, WAN, MMDIT, MMDIT_FUSED], ids=lambda c: c["_class_name"])
def test_tensors_come_back_as_they_were(config):
    module, naming = abstract(config)
    rng = np.random.default_rng(0)
    shapes = torch_shapes(nnx.to_pure_dict(nnx.split(module)[1]), naming)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    _, params, naming = module_of(config, tensors)
    back = torch_tensors(params, naming)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(
    ("config", "change", "line"),
    [
        (LATTE, {"norm_type": "ada_norm"}, "norm_type='ada_norm' is not implemented; it must be 'ada_norm_single'"),
        (STDIT3, {"qk_norm": False}, "qk_norm=False is not implemented; it must be True"),
        (WAN, {"image_dim": 1280}, "image_dim=1280 is not implemented; it must be None"),
        (WAN, {"blocks": 3}, "blocks=3 is not known"),
        (MMDIT, {"guidance_embed": True}, "guidance_embed=True is not implemented; it must be False"),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused_by_name(config, change, line):
    with pytest.raises(InputError, match=line):
        KINDS[config["_class_name"]][0](config | change)


def test_a_pipeline_of_two_networks_is_refused(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(WAN))
    index = {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has two networks"):
        load_published(tmp_path)


@pytest.mark.parametrize("config", [LATTE, WAN], ids=lambda c: c["_class_name"])
def test_low_rank_changes_are_written_and_read_for_each_block(config, tmp_path):
    module, naming = abstract(config)
    rng = np.random.default_rng(0)
    shapes = torch_shapes(nnx.to_pure_dict(nnx.split(module)[1]), naming)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    _, params, naming = module_of(config, tensors)
    matrices, _ = divide({"network": params}, "lora")
    changes = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), low_rank(matrices, 2, jax.random.key(0))
    )
    save_lora(changes["network"], naming, tmp_path / "lora")
    write_folder(tmp_path / "network", tensors)
    weights = Weights(tmp_path / "network")
    lora = read_lora(tmp_path / "lora", 1.0)
    merge_lora(lora.where, lora.unet, weights)
    kind, arguments = KINDS[config["_class_name"]][1], KINDS[config["_class_name"]][0](config)[0]
    merged = load_part(weights, kind, arguments, naming, config, where="the file").params
    expected = join(changes, {"network": params})["network"]
    for (path, found), value in zip(
        jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    assert len(lora.unet) == config["num_layers"] * (12 if config is LATTE else 8)


@pytest.mark.parametrize(("config", "parts", "share"), [(LATTE, "time", 0.4), (WAN, "lora", 0.5)])
def test_time_blocks_or_attention_are_trained_alone(config, parts, share):
    module, _ = abstract(config)
    params = {"network": nnx.to_pure_dict(nnx.split(module)[1])}
    trained, frozen = divide(params, parts)

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(trained) + count(frozen) == count(params)
    assert share / 2 < count(trained) / count(params) < 2 * share
