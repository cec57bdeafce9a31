"""Tiny published pipelines of transformers as folders, all their weights functions of their names."""

import json
from pathlib import Path

import numpy as np

from tests.pretrained import tiny_video_autoencoders
from tests.pretrained.make_golden_text import ENCODERS, GOLDEN
from tests.pretrained.make_golden_text import write as write_text
from tests.pretrained.pipelines import write_part
from tests.pretrained.tiny_autoencoders import AUTOENCODERS
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS
from tests.pretrained.transformers import LATTE, WAN
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.dit import DiT
from vdm_jax.pretrained import families
from vdm_jax.pretrained.folder import NAMES, write_folder
from vdm_jax.pretrained.parts import autoencoders

DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def write_latte(folder: Path) -> Path:
    """Latte: 4 frames of 16×16 pixels from latents of 8×8."""
    config = AUTOENCODERS["image"][0]
    write_part(folder / "vae", NAMES[0], config, Autoencoder, *autoencoders.translate(config))
    return _write(folder, "LattePipeline", LATTE, ENCODERS["t5"] | {"d_model": LATTE["caption_channels"]}, DDIM)


def write_wan(folder: Path) -> Path:
    """Wan 2.1, whose autoencoder halves frames, rows and columns once."""
    config = VIDEO_AUTOENCODERS["wan, half in time"][0]
    write_folder(folder / "vae", tiny_video_autoencoders.tensors_of(config), config)
    return _write(folder, "WanPipeline", WAN, ENCODERS["umt5"] | {"d_model": WAN["text_dim"]}, UNIPC)


def _write(folder: Path, name: str, network: dict, text: dict, scheduler: dict) -> Path:
    write_part(folder / "transformer", NAMES[0], network, DiT, *families.translate(network))
    write_text(folder / "text_encoder", text)
    for part in ("tokenizer", "scheduler"):
        (folder / part).mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(np.load(GOLDEN)["spiece"].tobytes())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return folder
