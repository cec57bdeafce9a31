"""Tiny published pipelines as folders, all their weights functions of their names."""

import collections
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.pretrained.make_golden_clip import ENCODERS, write_vocabulary
from tests.pretrained.networks import UNETS, tensor
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS
from tests.pretrained.transformers import KINDS, LATTE, WAN
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.t5 import T5
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_autoencoder import VideoAutoencoder
from vdm_jax.parallel.sharding import path_name
from vdm_jax.pretrained import families
from vdm_jax.pretrained.families import animatediff
from vdm_jax.pretrained.folder import NAMES, read_config
from vdm_jax.pretrained.names import torch_shapes
from vdm_jax.pretrained.networks import read_network
from vdm_jax.pretrained.parts import autoencoders, clip, t5, video_autoencoders
from vdm_jax.split import divide, low_rank

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TEXT = ENCODERS["text, quick"] | {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 77,
}


KARRAS = SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}
LATTE_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "variance_type": "learned_range",
}
WAN_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
T5_CONFIG = {
    "model_type": "t5",
    "architectures": ["T5EncoderModel"],
    "vocab_size": 6,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "d_kv": 6,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
PICTURE = ENCODERS["image, exact"] | {"projection_dim": UNETS["svd"][0]["cross_attention_dim"]}


def published(model: str) -> dict:
    """The configs of a published model's parts."""
    return json.loads((Path(__file__).parent / "published_configs" / f"{model}.json").read_text())


def write_image_to_video(folder: Path, model: str = "") -> Path:
    """Stable Video Diffusion, of videos of any size; with the other settings of a published model."""
    keys = collections.defaultdict(dict, published(model) if model else {"scheduler": KARRAS})
    picture = keys["image_encoder"] | PICTURE
    kind, arguments, naming = clip.translate(picture)
    write_part(folder / "image_encoder", "model", picture, kind, arguments, naming)
    unet, autoencoder = keys["unet"] | UNETS["svd"][0] | one_level("svd"), keys["vae"] | AUTOENCODERS["in time"][0]
    write_part(folder / "unet", NAMES[0], unet, UNet, *families.translate(unet))
    write_part(folder / "vae", NAMES[0], autoencoder, Autoencoder, *autoencoders.translate(autoencoder))
    return _finish(folder, keys["scheduler"], "StableVideoDiffusionPipeline")


def one_level(unet: str) -> dict:
    """What makes a U-Net quick to compile: one level, and attention to the context in the middle alone."""
    kind = {"image": "2D", "modelscope": "3D", "animatediff": "Motion", "svd": "SpatioTemporal"}[unet]
    return {
        "block_out_channels": UNETS[unet][0]["block_out_channels"][:1],
        "down_block_types": [f"DownBlock{kind}"],
        "up_block_types": [f"UpBlock{kind}"],
    }


def write_pipeline(folder: Path, unet: str = "modelscope", model: str = "") -> Path:
    """ModelScope, or another that draws from text: 16×16 pixels from latents of 8×8; settings as for SVD."""
    keys = collections.defaultdict(dict, published(model) if model else {"scheduler": SCHEDULER})
    words = write_vocabulary(folder / "tokenizer")
    count = len(json.loads((words / "vocab.json").read_text()))
    text = keys["text_encoder"] | TEXT | {"vocab_size": count, "eos_token_id": count - 1}
    unet = keys["unet"] | UNETS[unet][0] | one_level(unet) | {"sample_size": 8}
    kind, arguments, naming = clip.translate(text)
    write_part(folder / "text_encoder", "model", text, kind, arguments, naming)
    write_part(folder / "unet", NAMES[0], unet, UNet, *families.translate(unet))
    autoencoder = keys["vae"] | AUTOENCODERS["image"][0]
    write_part(folder / "vae", NAMES[0], autoencoder, Autoencoder, *autoencoders.translate(autoencoder))
    return _finish(folder, keys["scheduler"], "TextToVideoSDPipeline")


def write_adapter(folder: Path, image: Path, model: str) -> Path:
    """A published motion adapter for the image model of `write_pipeline`."""
    network = read_config(image)
    small = {"block_out_channels": network["block_out_channels"], "motion_layers_per_block": 1}
    small |= {"motion_num_attention_heads": 4, "motion_norm_num_groups": 4}
    config = published(model)["adapter"] | small
    merged = animatediff.with_motion(network, config)
    arguments, naming = families.translate(merged)
    write_part(folder, NAMES[0], config, UNet, arguments, naming)
    file = folder / f"{NAMES[0]}.safetensors"
    tensors = {name: x for name, x in load_file(file).items() if "motion_modules" in name}
    animatediff.put_positions(tensors, merged)
    save_file(tensors, file)
    return folder


def write_lora(file: Path, text: bool = True) -> Path:
    """A LoRA of rank 1 for both networks of `write_pipeline`, or for the first alone."""
    out, into = UNETS["modelscope"][0]["block_out_channels"][0], UNETS["modelscope"][0]["in_channels"]
    sizes = {"lora_unet_conv_in": ((1, into, 3, 3), (out, 1, 1, 1))}
    if text:
        width = TEXT["hidden_size"]
        sizes["lora_te_text_model_encoder_layers_0_self_attn_v_proj"] = ((1, width), (width, 1))
    names = {
        f"{module}.lora_{end}.weight": size
        for module, pair in sizes.items()
        for end, size in zip(("down", "up"), pair, strict=True)
    }
    save_file({name: tensor(name, size) for name, size in names.items()}, file)
    return file


def trained_changes(folder: Path) -> dict:
    """Low-rank changes of all attention of a U-Net's folder, random, as a run has them."""
    matrices, _ = divide({"network": read_network(folder).params}, "lora")
    begun = low_rank(matrices, 2, jax.random.key(0))["network"]
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.asarray(tensor(path_name(path), x.shape)), begun)


def _finish(folder, scheduler, name):
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return folder


def write_part(folder, name, config, kind, arguments, naming):
    """The folder of one network."""
    folder.mkdir(parents=True)
    abstract = nnx.split(nnx.eval_shape(lambda: kind(**arguments, rngs=Keys(0))))[1]
    shapes = torch_shapes(nnx.to_pure_dict(abstract), naming)
    save_file({name: tensor(name, shape) for name, shape in shapes.items()}, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_parts(folder: Path, autoencoder: dict, text: dict, scheduler: dict = SCHEDULER, name: str = "Parts") -> Path:
    """A pipeline without a network: an autoencoder, and a T5 with a tokenizer of three words."""
    write_part(folder / "text_encoder", "model", text, T5, *t5.translate(text))
    in_time = autoencoder["_class_name"] != "AutoencoderKL"
    kind, module = (VideoAutoencoder, video_autoencoders) if in_time else (Autoencoder, autoencoders)
    write_part(folder / "vae", NAMES[0], autoencoder, kind, *module.translate(autoencoder))
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in ("the", "cat", "clip"))]
    backend = Tokenizer(models.Unigram(words, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    (folder / "tokenizer").mkdir()
    backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    return _finish(folder, scheduler, name)


def write_transformer(folder: Path, config: dict, autoencoder: dict, scheduler: dict, text: dict) -> Path:
    """A pipeline of a published transformer."""
    translate, kind = KINDS[config["_class_name"]]
    write_part(folder / "transformer", NAMES[0], config, kind, *translate(config))
    name = config["_class_name"].replace("Transformer3DModel", "Pipeline")
    return write_parts(folder, autoencoder, text, scheduler, name)


def write_latte(folder: Path) -> Path:
    """Latte: 4 frames of 16×16 pixels from latents of 8×8."""
    return write_transformer(folder, LATTE, AUTOENCODERS["image"][0], LATTE_SCHEDULER, T5_CONFIG | {"d_model": 12})


def write_wan(folder: Path) -> Path:
    """Wan 2.1: 5 frames of 16×16 pixels from 2 latents of 2×2."""
    autoencoder, umt5 = VIDEO_AUTOENCODERS["wan"][0], {"model_type": "umt5", "architectures": ["UMT5EncoderModel"]}
    return write_transformer(folder, WAN, autoencoder, WAN_SCHEDULER, T5_CONFIG | umt5 | {"d_model": 10})
