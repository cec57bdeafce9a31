"""What a run made of a published transformer is loaded by diffusers, strictly, and computes the same there."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.models.randomised import normal
from tests.parity.test_transformers import CONSTANTS, call
from tests.pretrained.networks import numbers, relative
from tests.pretrained.pipelines import write_latte, write_wan
from tests.tiny_config import write_videos
from vdm_jax.build import load, load_trained
from vdm_jax.config import read_file
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.lora import FILE, read_lora, save_lora
from vdm_jax.pretrained.names import Part
from vdm_jax.pretrained.networks import read_network, write_network
from vdm_jax.training.loop import train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import peft
    import torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
ONE = make_mesh(devices=jax.devices()[:1])
# Config, what writes the folder, frames of a video, latents, width of texts.
RUNS = {
    "latte": ("latte.py:latte_1", write_latte, 4, (4, 8, 8, 4), 12),
    "wan": ("wan.py:1b3_full", write_wan, 5, (2, 2, 4, 4), 10),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of two training steps of a published network."""

    @functools.cache
    def run(name, parts):
        config, write, frames, *_ = RUNS[name]
        folder = tmp_path_factory.mktemp(name)
        config = read_file(f"configs/{config},{write(folder / 'model')}")
        config.model.dtype = "float32"
        data = dict(
            data_dir=str(write_videos(folder / "videos")), frames=frames, height=16, width=16, stride=1, fps=0.0
        )
        config.data.update(data | dict(num_workers=0))
        config.steps, config.batch_size, config.log_every, config.ema = 2, 8, 1, 0.0
        config.train.update(dict(parts=parts, rank=2))
        config.optimizer.update(dict(warmup=0, learning_rate=0.1 if parts == "lora" else 0.01))
        train(config, folder / "run")
        return folder

    return run


def given(name):
    *_, shape, width = RUNS[name]
    tokens = np.asarray(normal(1, 2, 5, width))
    return np.asarray(normal(0, 2, *shape)), np.array([3, 700], np.float32), tokens


def ours(graphdef, params, name):
    z, time, tokens = given(name)
    text = Text(jnp.asarray(tokens)[:, None], jnp.ones((2, 1, 5), bool), None)
    return jax.jit(nnx.merge(graphdef, params))(z, time, Conditions(text=text))


def drawn_by(model, name):
    return ours(model.network, model.params["network"], name)


@pytest.mark.parametrize(("name", "parts"), [("latte", "all"), ("latte", "time"), ("wan", "attention")])
def test_a_tuned_network_is_loaded_strictly(name, parts, run, tmp_path):
    folder = run(name, parts)
    model = load(folder / "run", mesh=ONE)
    write_network(Part(None, model.params["network"], model.network_config), tmp_path / "exported")
    kind = getattr(diffusers, model.network_config["_class_name"])
    theirs, info = kind.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert set(info["missing_keys"]) <= set(CONSTANTS)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    found = drawn_by(model, name)
    before = drawn_by(load(folder / "model", frames=model.shape[0], size=(16, 16), mesh=ONE), name)
    expected = call(theirs.eval(), *given(name))[..., : found.shape[-1]]
    assert relative(found, expected) < 1e-5
    assert relative(before, expected) > 1e-3


@pytest.mark.parametrize("name", ["latte", "wan"])
def test_low_rank_changes_that_a_run_trained_are_loaded(name, run, tmp_path):
    """Wan's pipeline loads the folder; of Latte, for which diffusers has no loader of LoRA, PEFT loads it."""
    folder = run(name, "lora")
    model, changes, _ = load_trained(folder / "run", ONE)
    save_lora(changes["network"], translate(model.network_config)[1], tmp_path)
    kind = getattr(diffusers, model.network_config["_class_name"])
    module = kind.from_pretrained(folder / "model" / "transformer")
    plain = call(module.eval(), *given(name))
    if name == "wan":
        parts = dict(vae=None, text_encoder=None, tokenizer=None, scheduler=None)
        diffusers.WanPipeline(transformer=module, **parts).load_lora_weights(tmp_path)
    else:
        tensors = load_file(tmp_path / FILE)
        config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        peft.inject_adapter_in_model(config, module)
        state = {name.removeprefix("transformer."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
        result = peft.set_peft_model_state_dict(module, state)
        assert not result.unexpected_keys
        assert not [key for key in result.missing_keys if "lora_" in key]
    found = drawn_by(load(folder / "run", mesh=ONE), name)
    expected = call(module.eval(), *given(name))[..., : found.shape[-1]]
    assert relative(found, expected) < 1e-5
    assert relative(plain[..., : found.shape[-1]], expected) > 1e-3


# What Wan's original code calls the modules of an attention and of a feed-forward.
OWN = {"attn1.": "self_attn.", "attn2.": "cross_attn.", "to_out.0": "o", "to_": "", "ffn.net.0.proj": "ffn.0"}
OWN |= {"ffn.net.2": "ffn.2"}
MODULES = [f"{block}.{part}" for block in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
MODULES += ["ffn.net.0.proj", "ffn.net.2"]


@pytest.mark.parametrize("dialect", ["diffusers", "original", "kohya"])
def test_a_lora_of_wan_changes_what_diffusers_changes(dialect, tmp_path):
    write_wan(tmp_path / "model")
    module = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "model" / "transformer").eval()
    plain, tensors = call(module, *given("wan")), {}
    for name in (f"blocks.{i}.{module}" for i in range(2) for module in MODULES):
        own = functools.reduce(lambda text, pair: text.replace(*pair), OWN.items(), name)
        stem, ends = {
            "diffusers": (f"transformer.{name}", ("lora_A", "lora_B")),
            "original": (f"diffusion_model.{own}", ("lora_A", "lora_B")),
            "kohya": (f"lora_unet_{own.replace('.', '_')}", ("lora_down", "lora_up")),
        }[dialect]
        rows, columns = module.get_submodule(name).weight.shape
        for end, shape in zip(ends, ((2, columns), (rows, 2)), strict=True):
            tensors[f"{stem}.{end}.weight"] = 0.3 * numbers(f"{name} {end[-1]}", shape)
        if dialect == "kohya":
            tensors[f"{stem}.alpha"] = np.asarray(3.0, np.float32)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    parts = dict(vae=None, text_encoder=None, tokenizer=None, scheduler=None)
    diffusers.WanPipeline(transformer=module, **parts).load_lora_weights(tmp_path / "x.safetensors")
    expected = call(module.eval(), *given("wan"))
    unet = read_network(tmp_path / "model", loras=[read_lora(tmp_path / "x.safetensors")], mesh=ONE)
    assert relative(ours(unet.graphdef, unet.params, "wan"), expected) < 1e-5
    assert relative(plain, expected) > 0.01
