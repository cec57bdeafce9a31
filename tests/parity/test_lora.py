"""LoRA files, as they are published or as diffusers writes them, change networks as diffusers and PEFT do."""

import dataclasses
import warnings
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("torch") is None:  # before what imports it
    pytest.skip("needs the parity extra", allow_module_level=True)
from safetensors.numpy import save_file

from tests.parity.test_clip import ours as encoded
from tests.parity.test_pipelines import BETAS, parts
from tests.parity.test_unets import call, ours, theirs
from tests.pretrained.networks import UNETS, inputs, numbers, relative
from tests.pretrained.pipelines import trained_changes
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.lora import merge_lora, read_lora, save_lora
from vdm_jax.pretrained.networks import read_network
from vdm_jax.pretrained.parts.clip import load_text_encoder
from vdm_jax.split import join

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import peft
    import torch
    from diffusers.training_utils import _collate_lora_metadata

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
MOTION = [f"up_blocks.1.motion_modules.0.transformer_blocks.0.attn{n}" for n in (1, 2)]
IMAGE = [f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj", "down_blocks.0.attentions.0.proj_in"]
IMAGE += ["down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.1.mlp.fc1"]
TOKENS = np.arange(77, dtype=np.int32)[None]


@pytest.fixture
def pipe(tmp_path):
    """AnimateDiff, saved in the folder "pipeline"."""
    pipe = diffusers.AnimateDiffPipeline(
        unet=theirs(UNETS["animatediff"][0]),
        motion_adapter=diffusers.MotionAdapter(block_out_channels=(16, 32), motion_norm_num_groups=4),
        scheduler=diffusers.DDIMScheduler(**BETAS),
        **parts(tmp_path),
    )
    pipe.save_pretrained(tmp_path / "pipeline")
    return pipe


@torch.no_grad()
def answers(pipe):
    """Of both networks."""
    out = pipe.text_encoder.eval()(torch.from_numpy(TOKENS))
    text = torch.cat([out.last_hidden_state, out.pooler_output[:, None]], 1)
    return call(pipe.unet.eval(), inputs("animatediff")), text.numpy()


def assert_ours_are(folder, loras, changed, plain):
    """Our networks with LoRAs answer as the changed, which answer something else than the plain."""
    unet, text = read_network(folder, loras=loras), load_text_encoder(folder, loras=loras)
    for found, expected, before in zip(
        (ours(unet, inputs("animatediff")), encoded(text, TOKENS)), changed, plain, strict=True
    ):
        assert relative(found, expected) < 1e-5
        assert relative(before, expected) > 0.01


def matrices(seed, module, names, rank=2):
    """Random A and B by their two names, for modules of a network."""
    tensors = {}
    for name, (down, up) in names.items():
        shape = module.get_submodule(name).weight.shape
        tensors[down] = numbers(f"{seed} {down}", (rank, *shape[1:]))
        tensors[up] = numbers(f"{seed} {up}", (shape[0], rank, *[1] * (len(shape) - 2)))
    return tensors


def kohya(prefix, modules, alpha):
    """module → names of A and B, and all α."""
    stems = {name: f"{prefix}_{name.replace('.', '_')}" for name in modules}
    names = {name: [f"{stem}.lora_{end}.weight" for end in ("down", "up")] for name, stem in stems.items()}
    return names, {f"{stem}.alpha": np.asarray(alpha, np.float32) for stem in stems.values()}


def test_published_files_at_their_strengths(pipe, tmp_path):
    """One as AnimateDiff's motion is published; one of kohya's with convolutions, texts and alpha; one of PEFT's."""
    old = {"to_q": "to_q_lora", "to_out.0": "to_out_lora"}
    motion = {
        f"{at}.{new}": [f"unet.{at}.processor.{name}.{end}.weight" for end in ("down", "up")]
        for at in MOTION
        for new, name in old.items()
    }
    (image, alphas), (text, text_alphas) = kohya("lora_unet", IMAGE, 1), kohya("lora_te", TEXT, 1)
    style = matrices("style", pipe.unet, image) | matrices("style", pipe.text_encoder, text) | alphas | text_alphas
    files = {
        "motion": (1.0, matrices("motion", pipe.unet, motion)),
        "style": (0.7, style),
        "peft": (
            -0.2,
            matrices(
                "peft", pipe.unet, {name: [f"unet.{name}.lora_{end}.weight" for end in "AB"] for name in IMAGE}, 3
            ),
        ),
    }
    plain = answers(pipe)
    for name, (_, tensors) in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata={"format": "pt"})
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(list(files), [strength for strength, _ in files.values()])
    loras = [read_lora(tmp_path / f"{name}.safetensors", strength) for name, (strength, _) in files.items()]
    assert_ours_are(tmp_path / "pipeline", loras, answers(pipe), plain)


def randomise(module):
    """All matrices of PEFT's, of which B begins at zero."""
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.from_numpy(numbers(name, tuple(parameter.shape)))


@pytest.mark.parametrize("stabilised", [False, True])
def test_what_diffusers_saves(stabilised, pipe, tmp_path):
    """With ranks and alphas that differ by module, and PEFT's settings in the file."""
    plain = answers(pipe)
    settings = {"r": 2, "lora_alpha": 6, "use_rslora": stabilised, "init_lora_weights": "gaussian"}
    more = {"rank_pattern": {"conv1": 3}, "alpha_pattern": {"to_k": 1, "attn2.to_q": 4}}
    modules = ["to_q", "to_k", "to_out.0", "conv1", "attentions.0.proj_in"]
    pipe.unet.add_adapter(peft.LoraConfig(**settings, **more, target_modules=modules))
    pipe.text_encoder.add_adapter(peft.LoraConfig(**settings, target_modules=["q_proj", "fc1"]))
    both = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    for module in both.values():
        randomise(module)
    layers = {f"{part}_lora_layers": peft.get_peft_model_state_dict(module) for part, module in both.items()}
    pipe.save_lora_weights(tmp_path / "lora", **layers, **_collate_lora_metadata(both))
    assert_ours_are(tmp_path / "pipeline", [read_lora(tmp_path / "lora")], answers(pipe), plain)


@pytest.mark.parametrize("kind", ["dora", "loha"])
def test_dora_and_loha_as_peft_saves_them(kind, tmp_path):
    """`PeftModel.save_pretrained` writes adapter_config.json and the prefix base_model.model."""
    module, given = theirs(UNETS["animatediff"][0]), inputs("animatediff")
    module.save_pretrained(tmp_path / "unet")
    plain = call(module, given)
    common = {"r": 2, "target_modules": ["attn1.to_q", "ff.net.2", "resnets.0.conv1"]}
    config = peft.LoraConfig(**common, lora_alpha=3, use_dora=True) if kind == "dora" else None
    tuned = peft.get_peft_model(module, config or peft.LoHaConfig(**common, alpha=3))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "hada_" in name:
            random = torch.from_numpy(numbers(name, tuple(parameter.shape)))
            parameter.data = parameter.data * (1 + 0.2 * random) if "magnitude" in name else 0.3 * random
    tuned.save_pretrained(tmp_path / "adapter")
    expected = call(tuned.base_model.model.eval(), given)
    found = ours(read_network(tmp_path / "unet", loras=[read_lora(tmp_path / "adapter")]), given)
    assert relative(found, expected) < 1e-5
    assert relative(plain, expected) > 0.01


def test_an_alpha_for_each_module_of_kohyas_is_the_formulas_not_diffusers(pipe, tmp_path):
    """W + α / rank · B A holds here for every module. diffusers 0.42 gives all projections of attention one α, the α of
    another module: it looks up their own by names that its translation of kohya's names does not make.
    """
    ends = ("to_q", "to_k", "proj_in", "conv1")
    modules = [name for name, _ in pipe.unet.named_modules() if name.endswith(ends) and "motion" not in name]
    before = {name: pipe.unet.get_submodule(name).weight.detach().numpy().copy() for name in modules}
    names, _ = kohya("lora_unet", modules, 1)
    tensors = matrices("alpha", pipe.unet, names)
    alphas = {name: np.float32(1 + 0.25 * i) for i, name in enumerate(modules)}
    delta = {}
    for name, (down, up) in names.items():
        a, b = (tensors[key].reshape(len(tensors[key]), -1) for key in (down, up))
        delta[name] = alphas[name] / 2 * (b @ a).reshape(before[name].shape)
    tensors |= {f"lora_unet_{name.replace('.', '_')}.alpha": np.asarray(alpha) for name, alpha in alphas.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    weights = Weights(tmp_path / "pipeline" / "unet")
    lora = read_lora(tmp_path / "x.safetensors")
    merge_lora(lora.where, lora.unet, weights)
    found = {name: weights[f"{name}.weight"] - before[name] for name in modules}
    assert max(relative(found[name], delta[name]) for name in modules) < 1e-5
    pipe.load_lora_weights(tmp_path / "x.safetensors")
    pipe.fuse_lora()
    fused = {name: pipe.unet.get_submodule(name).weight.detach().numpy() - before[name] for name in modules}
    wrong = {name for name in modules if relative(fused[name], delta[name]) > 1e-3}
    assert wrong == {name for name in modules if ".attn" in name}


def test_convolutions_over_frames_as_peft_has_them(tmp_path):
    """diffusers reads no LoRA into ModelScope's network."""
    module, given = theirs(UNETS["modelscope"][0]), inputs("modelscope")
    module.save_pretrained(tmp_path / "unet")
    plain = call(module, given)
    targets = ["to_q", "proj_out", *[f"temp_convs.0.conv{n}.{at}" for n, at in ((1, 2), (2, 3))], "conv_in"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets), module)
    randomise(module)
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    assert {layer.lora_A["default"].weight.ndim for layer in layers.values()} == {2, 4, 5}
    names, tensors = kohya("lora_unet", layers, 3)
    for name, both in names.items():
        pair = (getattr(layers[name], f"lora_{end}")["default"].weight.detach().numpy() for end in "AB")
        tensors |= dict(zip(both, pair, strict=True))
    save_file(tensors, tmp_path / "x.safetensors")
    expected = call(module, given)
    assert (
        relative(ours(read_network(tmp_path / "unet", loras=[read_lora(tmp_path / "x.safetensors")]), given), expected)
        < 1e-5
    )
    assert relative(plain, expected) > 0.01


def test_what_a_run_trained_is_loaded_by_diffusers(pipe, tmp_path):
    unet, given, plain = read_network(tmp_path / "pipeline"), inputs("animatediff"), answers(pipe)[0]
    changes = trained_changes(tmp_path / "pipeline")
    save_lora(changes, translate(unet.config)[1], tmp_path / "lora")
    pipe.load_lora_weights(tmp_path / "lora")
    found = ours(dataclasses.replace(unet, params=join(changes, unet.params)), given)
    assert relative(found, answers(pipe)[0]) < 1e-5
    assert relative(plain, found) > 0.01
