"""LoRA: files by all their names against W + strength · α / rank · B A, and what files are refused."""

import functools
import json
import operator

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.pretrained.make_golden_clip import ENCODERS, save
from tests.pretrained.networks import UNETS, numbers
from tests.pretrained.pipelines import trained_changes, write_part
from tests.pretrained.transformers import KINDS, LATTE, WAN
from vdm_jax.errors import InputError
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained import families
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.lora import merge_lora, parse_lora, read_lora, save_lora
from vdm_jax.pretrained.networks import read_network, write_network
from vdm_jax.pretrained.parts import clip
from vdm_jax.pretrained.parts.clip import load_text_encoder
from vdm_jax.split import join

FILE = "diffusion_pytorch_model.safetensors"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
MOTION = "down_blocks.0.motion_modules.0.transformer_blocks.0"
ATTENTION = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_out.0", f"{MOTION}.attn1.to_k", f"{MOTION}.attn2.to_v")
EVERYWHERE = (
    *ATTENTION,
    f"{BLOCK}.ff.net.0.proj",
    "mid_block.motion_modules.0.proj_in",
    "down_blocks.0.attentions.0.proj_in",  # a convolution of one pixel
    "up_blocks.0.resnets.1.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",  # of 3×3
    "conv_in",
    "time_embedding.linear_1",
)


def processors(module):
    """Names of diffusers' attention processors: to_q_lora, and to_out_lora for to_out.0."""
    at, _, projection = module.removesuffix(".0").rpartition(".")
    return f"{at}.processor.{projection}_lora"


def original(module):
    """AnimateDiff's own, and diffusers' of today for the rest."""
    module = module.replace(f"{MOTION}.", f"{MOTION.replace('.transformer', '.temporal_transformer.transformer')}.")
    return processors(module.replace(".attn1.", ".attention_blocks.0.").replace(".attn2.", ".attention_blocks.1."))


# Name → (modules, names of down, up and alpha).
FORMATS = {
    "peft": (EVERYWHERE, lambda m: (f"unet.{m}.lora_A.weight", f"unet.{m}.lora_B.weight", f"unet.{m}.alpha")),
    "no prefix": (EVERYWHERE, lambda m: (f"{m}.lora_A.weight", f"{m}.lora_B.weight", f"{m}.alpha")),
    "diffusers": (EVERYWHERE, lambda m: (f"unet.{m}.lora.down.weight", f"unet.{m}.lora.up.weight", f"unet.{m}.alpha")),
    "processors": (ATTENTION, lambda m: [f"unet.{processors(m)}.{end}.weight" for end in ("down", "up")]),
    "animatediff": (ATTENTION, lambda m: [f"{original(m)}.{end}.weight" for end in ("down", "up")]),
    "kohya": (
        EVERYWHERE,
        lambda m: [f"lora_unet_{m.replace('.', '_')}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")],
    ),
}


def pair(module, shape, rank=2):
    """Random A and B of a weight."""
    down, up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    return numbers(f"{module} A", down), numbers(f"{module} B", up)


def product(module, shape, rank=2):
    """B A in the shape of the weight."""
    down, up = pair(module, shape, rank)
    return np.einsum("or,r...->o...", up.reshape(len(up), rank), down)


def write_lora(file, base, modules, name, alpha=None, rank=2):
    tensors = {}
    for i, module in enumerate(modules):
        names = name(module)
        tensors |= dict(zip(names, pair(module, base[f"{module}.weight"].shape, rank), strict=False))
        if alpha is not None and len(names) == 3:
            tensors[names[2]] = np.asarray(alpha + i, np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def unet_folder(folder, name):
    config = UNETS[name][0]
    return write_part(folder, FILE.removesuffix(".safetensors"), config, UNet, *families.translate(config))


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory):
    return unet_folder(tmp_path_factory.mktemp("unet") / "animatediff", "animatediff")


@pytest.fixture(scope="module")
def base(animatediff):
    return load_file(animatediff / FILE)


def merged(folder, *loras):
    """All tensors of a U-Net's folder as they are read with LoRAs."""
    weights = Weights(folder)
    for lora in loras:
        merge_lora(lora.where, lora.unet, weights)
    return dict(weights)


def assert_merged(found, base, deltas):
    """The weights of modules are changed by their deltas, and no other tensors are."""
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        if name.removesuffix(".weight") in deltas:
            expected = tensor + deltas[name.removesuffix(".weight")]
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
            assert np.abs(found[name] - tensor).max() > 0.01, name
        else:
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_all_formats_are_merged(format, animatediff, base, tmp_path):
    modules, name = FORMATS[format]
    file = write_lora(tmp_path / "x.safetensors", base, modules, name, alpha=3.0)
    alphas = {module: 3.0 + i if len(name(module)) == 3 else 2.0 for i, module in enumerate(modules)}
    deltas = {m: 0.7 * alphas[m] / 2 * product(m, base[f"{m}.weight"].shape) for m in modules}
    assert_merged(merged(animatediff, read_lora(file, 0.7)), base, deltas)


@pytest.mark.parametrize("name", ["image, linear", "modelscope, deeper", "animatediff, deeper", "svd, deeper"])
def test_each_module_of_a_family_is_found_by_kohyas_names(name, tmp_path):
    folder = unet_folder(tmp_path / "unet", name)
    base = load_file(folder / FILE)
    modules = [name.removesuffix(".weight") for name, t in base.items() if name.endswith(".weight") and t.ndim > 1]
    file = write_lora(tmp_path / "x.safetensors", base, modules, FORMATS["kohya"][1], rank=1)
    deltas = {m: product(m, base[f"{m}.weight"].shape, rank=1) for m in modules}
    assert_merged(merged(folder, read_lora(file)), base, deltas)


def test_loras_add_up_in_float32_and_in_shards_and_are_saved(tmp_path):
    folder, module = unet_folder(tmp_path / "unet", "svd"), "conv_in"
    base = load_file(folder / FILE)
    shape = base["conv_in.weight"].shape
    save_file({name: tensor.astype(np.float16) for name, tensor in base.items()}, folder / FILE)
    one = write_lora(tmp_path / "one.safetensors", base, [module], FORMATS["peft"][1], rank=1)
    halved = [array.astype(ml_dtypes.bfloat16) for array in (*pair(module, shape, rank=3), np.ones(1))]
    save_file(dict(zip(FORMATS["diffusers"][1](module), halved, strict=True)), tmp_path / "two.safetensors")
    loras = [read_lora(one, 0.001), read_lora(tmp_path / "two.safetensors", -2)]
    write_network(read_network(folder, loras=loras, mesh=make_mesh(data=2, fsdp=2, tensor=2)), tmp_path / "merged")
    down, up, _ = (array.astype(np.float64) for array in halved)
    expected = base["conv_in.weight"].astype(np.float16).astype(np.float64)
    expected += 0.001 * product(module, shape, 1) - 2 / 3 * np.einsum("or,r...->o...", up[..., 0, 0], down)
    found = load_file(tmp_path / "merged" / FILE)["conv_in.weight"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_matrix_stands_for_a_convolution_of_one_pixel_and_one_for_it(animatediff, base, tmp_path):
    convolution, linear = "down_blocks.0.attentions.0.proj_in", f"{BLOCK}.attn1.to_q"
    tensors, deltas = {}, {}
    for module, extra in ((convolution, ()), (linear, (1, 1))):
        out, into, *_ = base[f"{module}.weight"].shape
        name = FORMATS["peft"][1](module)
        down, up = pair(module, (out, into))
        tensors |= {name[0]: down.reshape(*down.shape, *extra), name[1]: up.reshape(*up.shape, *extra)}
        deltas[module] = (up @ down).reshape(base[f"{module}.weight"].shape)
    save_file(tensors, tmp_path / "x.safetensors")
    assert_merged(merged(animatediff, read_lora(tmp_path / "x.safetensors")), base, deltas)


def test_pefts_settings_say_alpha(animatediff, base, tmp_path):
    q, k, out = ATTENTION[0], f"{BLOCK}.attn1.to_k", ATTENTION[1]
    names = FORMATS["peft"][1]
    tensors = {n: t for m in (q, k, out) for n, t in zip(names(m), pair(m, base[f"{m}.weight"].shape, 4), strict=False)}
    settings = {"lora_alpha": 8, "alpha_pattern": {"to_k": 2, r"^down_blocks.*to_out\.0": 6}, "peft_type": "LORA"}
    for more, divisor in (({"use_rslora": False}, 4), ({"use_rslora": True}, 2)):
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{n}": s for n, s in (settings | more).items()})}
        save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
        alphas = {q: 8, k: 2, out: 6}
        deltas = {m: a / divisor * product(m, base[f"{m}.weight"].shape, 4) for m, a in alphas.items()}
        assert_merged(merged(animatediff, read_lora(tmp_path / "x.safetensors")), base, deltas)


@pytest.mark.parametrize("stabilised", [False, True])
def test_pefts_own_folder_has_alpha_beside(stabilised, animatediff, base, tmp_path):
    """As `PeftModel.save_pretrained` writes it."""
    q, k = ATTENTION[0], f"{BLOCK}.attn1.to_k"
    tensors = {
        f"base_model.model.{m}.lora_{end}.weight": matrix
        for m in (q, k)
        for end, matrix in zip("AB", pair(m, base[f"{m}.weight"].shape, 4), strict=True)
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "rank_pattern": {"to_q": 4, "to_k": 4}}
    settings |= {"alpha_pattern": {"attn1.to_k": 2}, "use_rslora": stabilised, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    divisor = 2 if stabilised else 4
    deltas = {m: alpha / divisor * product(m, base[f"{m}.weight"].shape, 4) for m, alpha in ((q, 8), (k, 2))}
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert_merged(merged(animatediff, read_lora(path)), base, deltas)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa"}))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: init_lora_weights='pissa' is not implemented"):
        read_lora(tmp_path)


MATRIX, CONVOLUTION = ATTENTION[0], "down_blocks.0.downsamplers.0.conv"


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("peft", [False, True])
def test_dora_sets_the_norms_of_the_changed_weight(peft, columns, animatediff, base, tmp_path):
    """PEFT has magnitudes of rows; LyCORIS of rows or of columns."""
    tensors, expected = {}, dict(base)
    for m in (MATRIX, CONVOLUTION):
        weight = base[f"{m}.weight"].astype(np.float64)
        down, up = pair(m, weight.shape)
        axis = int(columns and not peft)
        others = tuple(i for i in range(weight.ndim) if i != axis)
        magnitude = 1 + np.abs(numbers(f"{m} m", (weight.shape[axis],)))
        broadcast = np.expand_dims(magnitude, others)
        stem = f"base_model.model.{m}" if peft else f"lora_unet_{m.replace('.', '_')}"
        ends = ("lora_A", "lora_B") if peft else ("lora_down", "lora_up")
        tensors |= {f"{stem}.{ends[0]}.weight": down, f"{stem}.{ends[1]}.weight": up}
        if peft:  # of convolutions 1, out, 1, 1
            kept = magnitude if weight.ndim == 2 else magnitude[None, :, None, None]
            tensors[f"{stem}.lora_magnitude_vector"] = kept
        else:
            tensors[f"{stem}.dora_scale"] = broadcast
        changed = weight + 0.7 * product(m, weight.shape)
        expected[f"{m}.weight"] = broadcast * changed / np.sqrt((changed**2).sum(others, keepdims=True))
    save_file(tensors, tmp_path / "x.safetensors")
    found = merged(animatediff, read_lora(tmp_path / "x.safetensors", 0.7))
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)
    scale = next(name for name in tensors if name.endswith(("dora_scale", "vector")))
    save_file(tensors | {scale: np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="1 modules are misshapen"):
        merged(animatediff, read_lora(tmp_path / "x.safetensors"))


def test_loha_multiplies_two_products_element_by_element(animatediff, base, tmp_path):
    tensors, deltas = {}, {}
    for m in (MATRIX, CONVOLUTION):
        shape = base[f"{m}.weight"].shape
        stem, flat = f"lora_unet_{m.replace('.', '_')}", (shape[0], int(np.prod(shape[1:])))
        (b1, a1), (b2, a2) = pair(f"{m} 1", flat), pair(f"{m} 2", flat)
        ends = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        tensors |= {f"{stem}.{end}": x for end, x in zip(ends, (a1, b1, a2, b2), strict=True)}
        tensors[f"{stem}.alpha"] = np.asarray(3, np.float32)
        deltas[m] = 0.7 * 3 / 2 * ((a1 @ b1) * (a2 @ b2)).reshape(shape)
    save_file(tensors, tmp_path / "x.safetensors")
    assert_merged(merged(animatediff, read_lora(tmp_path / "x.safetensors", 0.7)), base, deltas)


TEXT = "encoder.layers.1."
TEXT_FORMATS = {
    "peft": lambda m: [f"text_encoder.text_model.{TEXT}{m}.{end}.weight" for end in ("lora_A", "lora_B")],
    "transformers 5": lambda m: [f"text_encoder.{TEXT}{m}.{end}.weight" for end in ("lora_A", "lora_B")],
    "diffusers": lambda m: [
        f"text_encoder.text_model.{TEXT}{m}.lora_linear_layer.{end}.weight" for end in ("down", "up")
    ],
    "processors": lambda m: [
        f"text_encoder.text_model.{TEXT}{m.replace('.', '.to_').replace('_proj', '_lora')}.{end}.weight"
        for end in ("down", "up")
    ],
    "peft's own": lambda m: [f"base_model.model.{TEXT}{m}.{end}.weight" for end in ("lora_A", "lora_B")],
    "kohya": lambda m: [
        f"lora_te_text_model_{TEXT}{m}".replace(".", "_") + f".{end}.weight" for end in ("lora_down", "lora_up")
    ],
    "diffusers' kohya": lambda m: [
        f"lora_te1_{TEXT}{m}".replace(".", "_") + f".{end}.weight" for end in ("lora_down", "lora_up")
    ],
}


@pytest.mark.parametrize("format", TEXT_FORMATS)
def test_a_text_encoder_has_its_part_by_all_its_names(format, tmp_path):
    modules = ["self_attn.q_proj", "self_attn.out_proj", *([] if format == "processors" else ["mlp.fc1"])]
    config = ENCODERS["text, quick"]
    folder = write_part(tmp_path / "text", "model", config, *clip.translate(config))
    base = load_file(folder / "model.safetensors")
    shapes = {m: base[f"text_model.{TEXT}{m}.weight"].shape for m in modules}
    tensors = {n: t for m in modules for n, t in zip(TEXT_FORMATS[format](m), pair(m, shapes[m]), strict=True)}
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors", 0.5)
    assert not lora.unet
    deltas = {f"text_model.{TEXT}{m}": 0.5 * product(m, shapes[m]) for m in modules}
    for names in ("hub", "transformers 5"):
        if names != "hub":
            renamed = {name.removeprefix("text_model."): tensor for name, tensor in base.items()}
            save_file(renamed, folder / "model.safetensors")
        save(load_text_encoder(folder, loras=[lora]), tmp_path / "again")
        assert_merged(load_file(tmp_path / "again/model.safetensors"), base, deltas)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.7", ("a.safetensors", 0.7)),
        ("a:-1e-1", ("a", -0.1)),
        ("c:/a", ("c:/a", 1.0)),
        ("c:/a:2", ("c:/a", 2.0)),
        ("a:1:2", ("a:1", 2.0)),
    ],
)
def test_a_strength_follows_the_last_colon(text, expected):
    assert parse_lora(text) == expected


def test_a_folder_holds_one_file(base, tmp_path):
    name = FORMATS["peft"][1]
    with pytest.raises(InputError, match="folder is neither a safetensors file nor a folder of one"):
        read_lora(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder must hold pytorch_lora.* or one .safetensors file, not 0"):
        read_lora(tmp_path / "folder")
    (tmp_path / "folder" / "a.ckpt").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "folder" / "a.ckpt"):
        with pytest.raises(InputError, match=r"a\.ckpt is a pickle, which can run any code"):
            read_lora(path)
    write_lora(tmp_path / "folder/a.safetensors", base, ATTENTION[:1], name)
    assert read_lora(tmp_path / "folder").where.endswith("folder/a.safetensors")
    write_lora(tmp_path / "folder/b.safetensors", base, ATTENTION, name)
    with pytest.raises(InputError, match=r"not 2: a\.safetensors, b\.safetensors"):
        read_lora(tmp_path / "folder")
    write_lora(tmp_path / "folder/pytorch_lora_weights.safetensors", base, ATTENTION, name)
    assert len(read_lora(tmp_path / "folder").unet) == len(ATTENTION)
    (tmp_path / "folder/a.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_lora(tmp_path / "folder/a.safetensors")


A, B = "unet.x.lora_A.weight", "unet.x.lora_B.weight"
PAIR = {A: np.ones((2, 3), np.float32), B: np.ones((4, 2), np.float32)}
ALPHA = {"unet.x.alpha": np.ones((), np.float32)}


def settings(**changes):
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in ({"lora_alpha": 4} | changes).items()})}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, None, "holds no tensors"),
        (
            {f"x.{i}.lokr_w1": np.ones(3) for i in range(5)},
            None,
            r"5 tensors are of no known form; .* \(x.0.lokr_w1, .*w1, …\)",
        ),
        (PAIR | {"x.hada_t1": np.ones((2, 2))}, None, r"1 tensors are of no known form; .* \(x.hada_t1\)"),
        ({f"x.hada_w{n}": np.ones((2, 2)) for n in ("1_a", "1_b", "2_b")}, None, "x has no hada_w: up2"),
        (PAIR | {"unet.x.lora_B.bias": np.ones(3)}, None, r"1 tensors are of no known form; .* \(unet.x.lora_B.bias\)"),
        (PAIR | {A: np.ones((2, 3), np.int8)}, None, r"1 tensors must be of dtype F64, .* \(unet.x.lora_A.weight\)"),
        (PAIR | {"lora_unet_x.lora_up.weight": PAIR[B]}, None, "unet.x.lora_B.weight is there twice, by two names"),
        ({A: PAIR[A]}, None, r"x has no up \(B\)"),
        ({B: PAIR[B]} | ALPHA, None, r"x has no down \(A\)"),
        (PAIR | {B: PAIR[A]}, None, r"x has shapes \(2, 3\) and \(2, 3\), not \(rank, in\) and \(out, rank\)"),
        (PAIR | {A: np.ones(2)}, None, r"x has shapes \(2,\) and \(4, 2\), not"),
        ({A: np.ones((0, 3)), B: np.ones((4, 0))}, None, r"x has shapes \(0, 3\) and \(4, 0\), not"),
        (PAIR | {"unet.x.alpha": np.ones(2)}, None, "alpha of x must be one number, in a tensor or"),
        (PAIR | ALPHA, settings(), "alpha of x must be one number, in a tensor or in settings, not in both"),
        (PAIR, {"lora_adapter_metadata": "[]"}, "lora_adapter_metadata cannot be read"),
        (PAIR, settings(lora_alpha=None), "PEFT's settings have no valid alpha for x"),
        (PAIR, settings(use_dora=True), "use_dora=True, but x has no lora_magnitude_vector"),
        (PAIR, settings(init_lora_weights="pissa"), "init_lora_weights='pissa' is not implemented"),
    ],
)
def test_a_file_that_is_no_lora_is_refused(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=rf"x\.safetensors\b.*{message}"):
        read_lora(tmp_path / "x.safetensors")


def test_a_strength_is_finite(base, tmp_path):
    file = write_lora(tmp_path / "x.safetensors", base, ATTENTION, FORMATS["peft"][1])
    with pytest.raises(InputError, match=r"x\.safetensors: strength=nan must be a finite number"):
        read_lora(*parse_lora(f"{file}:nan"))


def test_a_lora_must_fit_the_network(animatediff, base, tmp_path):
    save_file(PAIR, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors: 1 modules are not in the network \(x\)"):
        merged(animatediff, read_lora(tmp_path / "x.safetensors"))
    q, norm, conv = f"{BLOCK}.attn1.to_q", "conv_norm_out", "conv_in"
    for module, into, out, kernel in ((q, 3, 16, ()), (q, 16, 3, ()), (norm, 16, 16, ()), (conv, 4, 16, (3, 1))):
        down, up = np.ones((2, into, *kernel), np.float32), np.ones((out, 2, *[1] * len(kernel)), np.float32)
        save_file(dict(zip(FORMATS["peft"][1](module), (down, up), strict=False)), tmp_path / "x.safetensors")
        message = rf"x\.safetensors: 1 modules are misshapen \({module} .* times .*, not \(16"
        with pytest.raises(InputError, match=message):
            merged(animatediff, read_lora(tmp_path / "x.safetensors"))


def test_what_is_written_of_trained_changes_adds_as_much_as_they_do(animatediff, tmp_path):
    changes = trained_changes(animatediff)
    save_lora(changes, families.translate(UNETS["animatediff"][0])[1], tmp_path)
    lora = read_lora(tmp_path)
    assert set(ATTENTION) < {change.module for change in lora.unet}
    assert not lora.text
    plain = read_network(animatediff).params
    expected, found = join(changes, plain), read_network(animatediff, loras=[lora]).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    kernel = ["down", 0, 0, "space_attention", "blocks", 0, "attention1", "q", "kernel"]
    before, after = (functools.reduce(operator.getitem, kernel, tree) for tree in (plain, found))
    assert np.abs(after - before).max() > 0.01


def test_a_folder_that_cannot_be_written(animatediff, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/lora/.*safetensors cannot be written: "):
        save_lora(trained_changes(animatediff), families.translate(UNETS["animatediff"][0])[1], tmp_path / "file/lora")


# ------------------------------------------------------------------------------------------- transformers

# A module of Latte's or of Wan's network → what Wan's original code calls it.
WANS_OWN = {
    "blocks.1.attn1.to_q": "blocks.1.self_attn.q",
    "blocks.0.attn1.to_out.0": "blocks.0.self_attn.o",
    "blocks.1.attn2.to_k": "blocks.1.cross_attn.k",
    "blocks.0.attn2.to_v": "blocks.0.cross_attn.v",
    "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    "blocks.1.ffn.net.2": "blocks.1.ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
LATTES = (
    "transformer_blocks.1.attn1.to_q",
    "transformer_blocks.0.attn2.to_out.0",
    "temporal_transformer_blocks.1.attn1.to_v",
    "temporal_transformer_blocks.0.ff.net.0.proj",
    "adaln_single.linear",
    "proj_out",
)


def peft(prefix):
    return lambda m: (f"{prefix}{m}.lora_A.weight", f"{prefix}{m}.lora_B.weight")


def original_peft(m):
    return peft("diffusion_model.")(WANS_OWN[m])


def original_kohya(m):
    return FORMATS["kohya"][1](WANS_OWN[m])


DIALECTS = {
    "Latte, diffusers": (LATTE, LATTES, peft("transformer.")),
    "Latte, PEFT": (LATTE, LATTES, peft("base_model.model.")),
    "Latte, kohya": (LATTE, LATTES, FORMATS["kohya"][1]),
    "Wan, diffusers": (WAN, WANS_OWN, peft("transformer.")),
    "Wan, PEFT": (WAN, WANS_OWN, peft("base_model.model.")),
    "Wan, kohya": (WAN, WANS_OWN, FORMATS["kohya"][1]),
    "Wan's own names, PEFT": (WAN, WANS_OWN, original_peft),
    "Wan's own names, kohya": (WAN, WANS_OWN, original_kohya),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_changes_the_modules_of_a_transformer(name, tmp_path):
    config, modules, spell = DIALECTS[name]
    translate, kind = KINDS[config["_class_name"]]
    folder = write_part(tmp_path / "network", FILE.removesuffix(".safetensors"), config, kind, *translate(config))
    base, alphas = load_file(folder / FILE), "kohya" in name
    file = write_lora(tmp_path / "lora.safetensors", base, modules, spell, alpha=3 if alphas else None)
    lora = read_lora(file, 0.5)
    assert not lora.text
    deltas = {
        module: 0.5 * ((3 + i) / 2 if alphas else 1) * product(module, base[f"{module}.weight"].shape)
        for i, module in enumerate(modules)
    }
    assert_merged(merged(folder, lora), base, deltas)
