"""The feature networks compute what those in PyTorch do, from the files that the converters make."""

import json
import runpy
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

if find_spec("torch") is None:  # before what imports it
    pytest.skip("needs the parity extra", allow_module_level=True)
from flax import nnx
from safetensors.numpy import load_file

from tests.parity.i3d_reference import i3d
from tests.pretrained.make_golden_clip import write_vocabulary
from tests.pretrained.make_golden_features import (
    CLIP,
    VIDEOMAES,
    WORDS,
    clips,
    i3d_weights,
    lpips_images,
    lpips_weights,
    named,
    videomae_clips,
)
from tests.pretrained.networks import numbers, relative, tensor
from tests.pretrained.test_clip_pair import abstract_of
from vdm_jax.evaluation.features import clip_image_features, clip_input, clip_text_features, cosines, resized
from vdm_jax.models.judges.lpips import PLANS
from vdm_jax.models.judges.videomae import VideoMAE
from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts import clip_pair
from vdm_jax.pretrained.parts.clip_pair import load_clip
from vdm_jax.pretrained.parts.i3d import KINETICS_I3D_PYTORCH, load_i3d
from vdm_jax.pretrained.parts.lpips import load_lpips
from vdm_jax.pretrained.parts.videomae import load_videomae, translate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
ONE = make_mesh(devices=jax.devices()[:1])
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def answers(network, given):
    graphdef = network.graphdef
    return jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(network.params, given)


def convert(name, *arguments):
    command = [sys.executable, str(EXPERIMENTS / f"convert_{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path):
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "pretraining.pth")
    (tmp_path / "text.pth").write_text("no weights")
    out = tmp_path / "new" / "out"
    for name, arguments, said in (
        ("i3d", ["--input", tmp_path / "none.pt"], "none.pt cannot be read: "),
        ("lpips", ["--network", tmp_path / "text.pth", "--layers", tmp_path / "text.pth"], "text.pth cannot be read: "),
        ("videomae", ["--input", tmp_path / "pretraining.pth"], "is no VideoMAE v2 with a classifier"),
        (
            "i3d",
            ["--input", tmp_path / "pretraining.pth", "--output", tmp_path / "text.pth" / "x"],
            "cannot be written",
        ),
    ):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            convert(name, *([] if "--output" in arguments else ["--output", out]), *arguments)
        assert failed.value.returncode == 2
        assert said in failed.value.stderr.splitlines()[-1]
    assert not out.parent.exists()


# ------------------------------------------------------------------------------------------------------------- I3D


@pytest.mark.parametrize(("width", "frames"), [(64, 10), (8, 9), (8, 16), (8, 23)])
def test_i3d(width, frames, tmp_path):
    weights = i3d_weights(width)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, tmp_path / "i3d.pt")
    convert("i3d", "--input", tmp_path / "i3d.pt", "--output", tmp_path / "i3d.safetensors")
    given = clips(f"i3d {frames}", 1, frames, 224, 224, 3)
    found = answers(load_i3d(tmp_path / "i3d.safetensors", mesh=ONE), given)
    logits, pooled = i3d(weights, given)
    assert relative(found.logits, logits) < 1e-5
    assert relative(found.pooled, pooled) < 1e-5


class Tree(torch.nn.Module):
    """Tensors by their dotted names, in a module that can be scripted."""

    def __init__(self, tensors):
        super().__init__()
        below = {}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                below.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(first, torch.as_tensor(value))
        for name, values in below.items():
            self.add_module(name, Tree(values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_torchscript_archive_is_converted(tmp_path):
    weights = i3d_weights(8, KINETICS_I3D_PYTORCH)
    counted = {"mixed_3b.branch_0.batch3d.num_batches_tracked": np.int64(3)}
    torch.jit.save(torch.jit.script(Tree(weights | counted)), tmp_path / "i3d_torchscript.pt")
    said = convert("i3d", "--input", tmp_path / "i3d_torchscript.pt", "--output", tmp_path / "i3d.safetensors")
    assert said == f"{tmp_path}/i3d.safetensors: 288 tensors, 254,205 numbers\n"
    saved = load_file(tmp_path / "i3d.safetensors")
    assert saved.keys() == (weights | counted).keys()
    assert all((saved[name] == weights[name]).all() for name in weights)
    load_i3d(tmp_path / "i3d.safetensors")


# ----------------------------------------------------------------------------------------------------------- LPIPS


@torch.no_grad()
def lpips_answers(kind, weights, *images):
    """The authors' definition (equation 1), with torchvision's lists of layers written out."""
    if kind == "alex":  # (strides, paddings) other than 1; windows of the maxima; what is compared
        shapes, maxima, compared = {0: (4, 2), 3: (1, 2)}, {0: 3, 3: 3}, (0, 3, 6, 8, 10)
    else:
        shapes, maxima, compared = {}, dict.fromkeys((2, 7, 14, 21), 2), (2, 7, 14, 21, 28)
    places = sorted(int(name.split(".")[1]) for name in weights if name.startswith("features") and "weight" in name)
    weights = {name: torch.from_numpy(array) for name, array in weights.items()}

    def features(x):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((torch.from_numpy(x) - shift) / scale).permute(0, 3, 1, 2)
        for place in places:
            stride, padding = shapes.get(place, (1, 1))
            weight, bias = (weights[f"features.{place}.{end}"] for end in ("weight", "bias"))
            x = torch.conv2d(x, weight, bias, stride, padding).relu()
            if place in compared:
                yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            if place in maxima:
                x = torch.max_pool2d(x, maxima[place], 2)

    total = 0
    for layer, (a, b) in enumerate(zip(*map(features, images), strict=True)):
        total += torch.conv2d((a - b) ** 2, weights[f"lin{layer}.model.1.weight"]).mean((1, 2, 3))
    return total.numpy()


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("width", [8, 64])
def test_lpips(kind, width, tmp_path):
    weights = lpips_weights(kind, width)
    parts = [{name: x for name, x in weights.items() if name.startswith(start)} for start in ("features", "lin")]
    parts[0]["classifier.1.weight"] = np.ones((2, 2), np.float32)
    for name, part in zip(("network", "layers"), parts, strict=True):
        torch.save({key: torch.from_numpy(array) for key, array in part.items()}, tmp_path / f"{name}.pth")
    files = [tmp_path / name for name in ("network.pth", "layers.pth", "lpips.safetensors")]
    convert("lpips", "--network", files[0], "--layers", files[1], "--output", files[2])
    network, images = load_lpips(files[2], mesh=ONE), lpips_images()
    distance = jax.jit(lambda params, a, b: nnx.merge(network.graphdef, params)(a, b))
    assert relative(distance(network.params, *images), lpips_answers(kind, weights, *images)) < 1e-5


# --------------------------------------------------------------------------------------------------------- VideoMAE


def hub_name(name):
    """A parameter's name in a file."""
    return name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")


def videomae(config):
    """The module of a config, with the weights of its parameters' names in the hub's files."""
    module = getattr(transformers, config["architectures"][0])(transformers.VideoMAEConfig.from_dict(config))
    weights = {n: torch.from_numpy(tensor(hub_name(n), tuple(p.shape))) for n, p in module.named_parameters()}
    module.load_state_dict(weights)
    return module.eval()


@torch.no_grad()
def videomae_answers(module, given):
    """What a classifier sees; without one, what it would see but for a norm."""
    given = torch.from_numpy(given).permute(0, 1, 4, 2, 3)
    if hasattr(module, "classifier"):
        seen = []
        module.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        module(given)
        return seen[-1].numpy()
    hidden = module(given).last_hidden_state
    return (hidden.mean(1) if module.config.use_mean_pooling else hidden[:, 0]).numpy()


@pytest.mark.parametrize("name", VIDEOMAES)
def test_videomae(name, tmp_path):
    config = VIDEOMAES[name]
    module = videomae(config)
    module.save_pretrained(tmp_path)
    given = videomae_clips(config)
    assert relative(answers(load_videomae(tmp_path, mesh=ONE), given), videomae_answers(module, given)) < 1e-5


@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForVideoClassification"])
def test_full_size_names_and_shapes_of_videomae(kind):
    with torch.device("meta"):
        module = getattr(transformers, kind)(transformers.VideoMAEConfig(num_labels=174, architectures=[kind]))
    expected = {hub_name(n): tuple(p.shape) for n, p in module.named_parameters() if not n.startswith("classifier")}
    arguments, naming = translate(json.loads(module.config.to_json_string()))
    params = nnx.split(nnx.eval_shape(lambda: VideoMAE(**arguments, rngs=Keys(0))))[1]
    assert torch_shapes(nnx.to_pure_dict(params), naming) == expected


def test_a_file_of_version_2_is_converted(tmp_path):
    """Its names are those of the published code; what it computes is transformers', but for the last norm's epsilon."""
    width, middle, depth = 24, 52, 2
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 7, 7), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = {"attn.qkv.weight": (3 * width, width), "attn.q_bias": (width,), "attn.v_bias": (width,)}
        block |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        block |= {f"norm{k}.{part}": (width,) for k in (1, 2) for part in ("weight", "bias")}
        block |= {"mlp.fc1.weight": (middle, width), "mlp.fc1.bias": (middle,)}
        block |= {"mlp.fc2.weight": (width, middle), "mlp.fc2.bias": (width,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (9, width), "head.bias": (9,)}
    state = {name: torch.from_numpy(array) for name, array in named(shapes).items()}
    torch.save({"module": state}, tmp_path / "v2.pth")
    sizes = ("--heads", 3, "--frames", 4, "--size", 28)
    convert("videomae", "--input", tmp_path / "v2.pth", "--output", tmp_path / "folder", *sizes)

    module, info = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    module.fc_norm.eps = 1e-6
    query, key, value = np.split(state["blocks.1.attn.qkv.weight"].numpy(), 3)
    attention = module.videomae.encoder.layer[1].attention.attention
    for part, kept in ((attention.query, query), (attention.key, key), (attention.value, value)):
        assert (part.weight.detach().numpy() == kept).all()
    given = clips("version 2", 2, 4, 28, 28, 3)
    found = answers(load_videomae(tmp_path / "folder", mesh=ONE), given)
    assert relative(found, videomae_answers(module.eval(), given)) < 1e-5


def test_the_giants_file_has_the_giants_config(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    convert = runpy.run_path(str(EXPERIMENTS / "convert_videomae.py"))
    with torch.device("meta"):
        state = {
            "patch_embed.proj.weight": torch.empty(1408, 3, 2, 14, 14),
            **{f"blocks.{i}.mlp.fc1.weight": torch.empty(6144, 1408) for i in range(40)},
            "head.weight": torch.empty(174, 1408),
            "fc_norm.weight": torch.empty(1408),
            "blocks.0.attn.q_bias": torch.empty(1408),
        }
    arguments, _ = translate(convert["config_of"](convert["renamed"](state), 16, 16, 224))
    assert arguments == {
        **dict(frames=16, size=224, channels=3, tubelet=2, patch=14, width=1408, middle=6144, depth=40, heads=16),
        **dict(activation="gelu", epsilon=1e-6, biased=True, mean=True, final=1e-6),
    }


# ------------------------------------------------------------------------------------------------------------- CLIP


def clip():
    """The pair, with the weights of its parameters' names."""
    module = transformers.CLIPModel(transformers.CLIPConfig.from_dict(CLIP))
    module.load_state_dict({n: torch.as_tensor(tensor(n, tuple(p.shape))) for n, p in module.named_parameters()})
    return module.eval()


@torch.no_grad()
def clip_answers(module, given, ids):
    """Embeddings of frames that need no resizing, and of tokens; neither normalised."""
    given = (given + 1) / 2
    b, t, *image = given.shape
    settings = transformers.CLIPImageProcessor()
    given = (given - np.float32(settings.image_mean)) / np.float32(settings.image_std)
    frames = torch.from_numpy(given.reshape(b * t, *image)).permute(0, 3, 1, 2)
    images = module.visual_projection(module.vision_model(frames).pooler_output)
    texts = module.text_projection(module.text_model(torch.from_numpy(ids)).pooler_output)
    return images.numpy().reshape(b, t, -1), texts.numpy()


def test_clip(tmp_path):
    module = clip()
    module.save_pretrained(tmp_path)
    write_vocabulary(tmp_path, model_max_length=12)
    pair = load_clip(tmp_path, mesh=ONE)
    given, ids = clips("clip", 2, 3, 32, 32, 3), np.stack([pair.tokenize(text) for text in WORDS])
    images, texts = clip_answers(module, given, ids)
    assert relative(clip_image_features(pair, given), images) < 1e-5
    assert relative(clip_text_features(pair, WORDS), texts) < 1e-5

    pixels = torch.from_numpy((given[:, 0] + 1) / 2).permute(0, 3, 1, 2)
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    inputs = processor(images=pixels, return_tensors="pt", input_data_format="channels_first")
    with torch.no_grad():
        expected = module(input_ids=torch.from_numpy(ids), **inputs).logits_per_image / module.logit_scale.exp()
    scores = cosines(clip_image_features(pair, given[:, :1]), clip_text_features(pair, WORDS))
    np.testing.assert_allclose(scores, np.diag(expected), atol=1e-5)


def test_clip_defaults_are_theirs():
    for part, config in (("text", transformers.CLIPTextConfig()), ("vision", transformers.CLIPVisionConfig())):
        for key, value in clip_pair.DEFAULTS[part].items():
            assert getattr(config, key) == value, key
    assert transformers.CLIPConfig().projection_dim == 512


def test_a_published_pairs_names_and_shapes(tmp_path):
    """ViT-L/14, from a config that says only what is not default, and one of old with every setting of every model."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "model_type": "clip_text_model"}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    vision |= {"patch_size": 14, "bad_words_ids": None, "chunk_size_feed_forward": 0, "top_k": 50}
    config = {"model_type": "clip", "projection_dim": 768, "text_config": text, "vision_config": vision}
    with torch.device("meta"):
        module = transformers.CLIPModel(transformers.CLIPConfig.from_dict(config))
    expected = {n: tuple(p.shape) for n, p in module.named_parameters() if n != "logit_scale"}
    found = {}
    for part in clip_pair.PREFIXES:
        network, naming = abstract_of(part, config)
        found |= torch_shapes(nnx.to_pure_dict(nnx.split(network)[1]), naming)
    assert found == expected


# ---------------------------------------------------------------------------------------------------- preprocessing


def interpolated(videos, size):
    """The resize of the protocols."""
    b, t, *_ = videos.shape
    frames = torch.from_numpy(videos.reshape(b * t, *videos.shape[2:])).permute(0, 3, 1, 2)
    frames = torch.nn.functional.interpolate(frames, (size, size), mode="bilinear", align_corners=False)
    return frames.permute(0, 2, 3, 1).reshape(b, t, size, size, -1).numpy()


@pytest.mark.parametrize("shape", [(64, 64), (224, 224), (256, 256), (240, 320), (37, 500), (1, 3)])
def test_resize(shape):
    videos = clips("resize", 1, 2, *shape, 3)
    np.testing.assert_allclose(jax.jit(resized, static_argnums=1)(videos, 224), interpolated(videos, 224), atol=2e-5)


@pytest.mark.parametrize("shape", [(224, 224), (64, 64), (256, 256), (240, 427), (427, 240)])
def test_clip_input(shape):
    """But for theirs being rounded to 8 bits, after the rows and after the columns."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, *shape, 3)).astype(np.uint8)
    pixels = pixels // 4 + np.uint8(96) * (numbers("steps", (1, 2, *shape, 1)) > 1)
    theirs = transformers.CLIPImageProcessor()(images=list(pixels[0]), return_tensors="np").pixel_values
    ours = jax.jit(clip_input, static_argnums=1)(pixels / np.float32(127.5) - 1, 224)[0]
    difference = np.abs(np.transpose(theirs, (0, 2, 3, 1)) - ours) * 0.27  # in units of white
    assert difference.max() < 1.5 / 255
    assert difference.mean() < 0.5 / 255
