"""Configs of published models are understood as they are; a value that would change the computation is refused."""

from pathlib import Path

import pytest

from tests.pretrained.pipelines import published
from vdm_jax.errors import InputError
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.families.animatediff import with_motion
from vdm_jax.pretrained.parts import autoencoders, clip

MODELS = sorted(path.stem for path in (Path(__file__).parent / "published_configs").glob("*.json"))
TRANSLATE = {"unet": translate, "vae": autoencoders.translate, "text_encoder": clip.translate}
TRANSLATE |= {"image_encoder": clip.translate}
IMAGE = published("stable-diffusion-v1-5")["unet"]


@pytest.mark.parametrize("model", MODELS)
def test_each_part_is_understood(model):
    parts = published(model)
    assert parts["source"]
    for part, config in parts.items():
        if part in TRANSLATE:
            assert TRANSLATE[part](config)
    if "adapter" in parts and model != "PIA":
        adapter = parts["adapter"]
        arguments, _ = translate(with_motion(IMAGE, adapter))
        assert arguments["max_frames"] == adapter["motion_max_seq_length"]
        assert bool(arguments["time_attention"]["middle"]) == adapter["use_motion_mid_block"]


def test_a_merged_folder_of_older_diffusers_keeps_the_keys_of_the_image_network():
    adapter = published("animatediff-motion-adapter-v1-5-2")["adapter"]
    motion = {key: adapter[key] for key in ("motion_num_attention_heads", "motion_max_seq_length")}
    motion |= {"use_motion_mid_block": True, "num_attention_heads": IMAGE["attention_head_dim"]}
    kinds = {
        key: [name.replace("2D", "Motion") for name in IMAGE[key]] for key in ("down_block_types", "up_block_types")
    }
    merged = IMAGE | motion | kinds | {"_class_name": "UNetMotionModel"}
    assert translate(merged) == translate(with_motion(IMAGE, adapter))
    with pytest.raises(InputError, match="UNetMotionModel: resnet_time_scale_shift='scale_shift' is not implemented"):
        translate(merged | {"resnet_time_scale_shift": "scale_shift"})


@pytest.mark.parametrize(
    ("image", "adapter", "message"),
    [
        ("stable-diffusion-v1-5", {"motion_activation_fn": "gelu"}, "motion_activation_fn='gelu' is not implemented"),
        ("stable-diffusion-v1-5", {"motion_attention_bias": True}, "motion_attention_bias=True is not implemented"),
        ("stable-diffusion-v1-5", {"motion_cross_attention_dim": 768}, "motion_cross_attention_dim=768 is not impl"),
        ("stable-diffusion-v1-5", published("PIA")["adapter"], "conv_in_channels=9 is not implemented"),
        ("stable-diffusion-inpainting", {}, r"in_channels=9 \(inpainting\) must be 4 for a motion adapter"),
    ],
)
def test_an_adapter_that_computes_otherwise_is_refused_by_name(image, adapter, message):
    config = published("animatediff-motion-adapter-v1-5-2")["adapter"] | adapter
    with pytest.raises(InputError, match=message):
        with_motion(published(image)["unet"], config)


def test_neutral_keys_of_newer_and_older_transformers_change_nothing():
    text = published("stable-diffusion-v1-5")["text_encoder"]
    neutral = {"_attn_implementation": "sdpa", "gradient_checkpointing": False, "use_cache": True, "is_decoder": False}
    neutral |= {"dtype": "float32", "tie_word_embeddings": True, "pruned_heads": {}, "add_cross_attention": False}
    assert clip.translate(text | neutral) == clip.translate(text)
    for key, value in (("is_decoder", True), ("add_cross_attention", True), ("quantization_config", {"bits": 4})):
        with pytest.raises(InputError, match=f"{key}=.* is not implemented"):
            clip.translate(text | {key: value})
