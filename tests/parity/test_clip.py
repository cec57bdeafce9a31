"""CLIP's encoders compute what those of transformers do, at full size have their parameters, and read their tokens."""

import json
import math
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.pretrained.make_golden_clip import ENCODERS, image, save, tokens, write_vocabulary
from tests.pretrained.networks import numbers, relative, tensor
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.clip import clip_image_input
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.parts.clip import load_image_encoder, load_text_encoder, translate
from vdm_jax.pretrained.tokenizers import load_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def encoder(config):
    """The module of a config with the weights of its parameters' names in the hub's files."""
    module = made(config)
    prefix = "text_model." if config["model_type"] == "clip_text_model" else ""
    weights = {n: torch.from_numpy(tensor(prefix + n, tuple(p.shape))) for n, p in module.named_parameters()}
    module.load_state_dict(weights)
    return module.eval()


def made(config):
    kind = config["architectures"][0]
    return getattr(transformers, kind)(getattr(transformers, kind.split("Model")[0] + "Config").from_dict(config))


@torch.no_grad()
def answers(module, config, length=None):
    """All that an encoder says of its inputs, as one array: a text's pooled vector comes last."""
    if config["model_type"] == "clip_vision_model":
        return module(torch.from_numpy(image(config)).permute(0, 3, 1, 2)).image_embeds.numpy()
    out = module(torch.from_numpy(tokens(length or config["max_position_embeddings"])))
    return torch.cat([out.last_hidden_state, out.pooler_output[:, None]], 1).numpy()


def ours(loaded, given):
    graphdef = loaded.graphdef
    out = jax.jit(lambda params, given: nnx.merge(graphdef, params)(given))(loaded.params, given)
    return np.concatenate([out.tokens, out.pooled[:, None]], 1) if isinstance(out, tuple) else np.asarray(out)


@pytest.mark.parametrize("length", [12, 7, 3])
@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("text")])
def test_text(name, length, tmp_path):
    config = ENCODERS[name]
    module = encoder(config)
    module.save_pretrained(tmp_path)
    assert relative(ours(load_text_encoder(tmp_path), tokens(length)), answers(module, config, length)) < 1e-5


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("image")])
def test_image(name, tmp_path):
    config = ENCODERS[name]
    module = encoder(config)
    module.save_pretrained(tmp_path)
    assert relative(ours(load_image_encoder(tmp_path), image(config)), answers(module, config)) < 1e-5


def test_the_hubs_names_are_read_and_all_comes_back(tmp_path):
    config = ENCODERS["text, quick"]
    module = encoder(config)
    module.save_pretrained(tmp_path / "new")
    tensors = {f"text_model.{name}": t for name, t in load_file(tmp_path / "new/model.safetensors").items()}
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    positions = {"text_model.embeddings.position_ids": np.arange(12)[None]}
    save_file(tensors | positions, tmp_path / "hub/model.safetensors")
    new, hub = load_text_encoder(tmp_path / "new"), load_text_encoder(tmp_path / "hub")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), new.params, hub.params))
    save(hub, tmp_path / "ours")
    assert load_file(tmp_path / "ours/model.safetensors").keys() == tensors.keys()

    for name, load in (("text, quick", load_text_encoder), ("image, exact", load_image_encoder)):
        theirs = encoder(ENCODERS[name])
        theirs.save_pretrained(tmp_path / "theirs")
        save(load(tmp_path / "theirs"), tmp_path / "again")
        back, info = type(theirs).from_pretrained(tmp_path / "again", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for key, value in theirs.state_dict().items():
            assert (back.state_dict()[key] == value).all(), key


_H = {"hidden_act": "gelu", "num_attention_heads": 16}
FULL = {
    "stable diffusion 1.5": (
        "CLIPTextModel",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 2},
        123_060_480,
    ),
    "modelscope": (
        "CLIPTextModel",
        _H | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "eos_token_id": 2},
        340_387_840,
    ),
    "stable video diffusion": (
        "CLIPVisionModelWithProjection",
        _H
        | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1024}
        | {"patch_size": 14},
        632_076_800,
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_and_shapes_are_theirs(name):
    architecture, config, count = FULL[name]
    with torch.device("meta"):
        module = made(config | {"architectures": [architecture]})
    prefix = "text_model." if architecture == "CLIPTextModel" else ""  # of the hub's files
    expected = {prefix + n: tuple(p.shape) for n, p in module.named_parameters()}
    kind, arguments, naming = translate(json.loads(module.config.to_json_string()))
    params = nnx.split(nnx.eval_shape(lambda: kind(**arguments, rngs=Keys(0))))[1]
    found = torch_shapes(nnx.to_pure_dict(params), naming)
    assert found == expected
    assert sum(map(math.prod, found.values())) == count


TEXTS = (
    "",
    "a cat",
    "The cat's  THE\tcat\nthing!! !",
    "naïve café, Žluťoučký kůň — ÀÉÎÕÜ ǅ İ ﬁ",
    "cafe\u0301 e\u0301s",
    "日本語 のテキスト 한국어 हिन्दी العربية",
    "👩‍👩‍👧 🎬🎥 cat🐈cat",
    "12 123 3.14 1/2 ½ ² x1y2 2,000",
    "don't we'll 'S ''s they'RE I'm'd",
    "<|endoftext|> a <|startoftext|>cat<|EndOfText|> <| endoftext|>",
    "#@$%^&*()_+-=[]{};:'\"\\|,.<>/?`~ a_b",
    "\u00a0\u2003\u200b\ufeff\x00 \x7f end",
    "the cat " * 60,
    "x" * 200 + "!" * 99,
)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens(pad, tmp_path):
    old = write_vocabulary(tmp_path / "old", pad)
    theirs = transformers.CLIPTokenizer.from_pretrained(old)
    theirs.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new/tokenizer.json").exists()
    assert transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "new").pad_token == pad
    for folder in ("old", "new"):
        tokenizer = load_tokenizer(tmp_path / folder)
        for text in TEXTS:
            expected = theirs(text, padding="max_length", truncation=True, max_length=77).input_ids
            assert tokenizer(text).tolist() == expected, (folder, text)


def resized(images, size):
    """The input of the image encoder, as Stable Video Diffusion's pipeline has it."""
    pipeline = "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion"
    resize = pytest.importorskip(pipeline)._resize_with_antialiasing
    images = (resize(torch.from_numpy(images).permute(0, 3, 1, 2), (size, size)) + 1) / 2
    settings = dict(do_resize=False, do_center_crop=False, do_rescale=False, return_tensors="np")
    pixels = transformers.CLIPImageProcessor()(images=images, **settings).pixel_values
    return np.asarray(pixels).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(224, 224), (576, 1024), (300, 500), (1080, 37), (97, 224), (2, 3)])
def test_image_input(shape):
    images = np.clip(numbers("image", (2, *shape, 3)), -1, 1)
    np.testing.assert_allclose(jax.jit(clip_image_input)(images), resized(images, 224), atol=1e-4)
