"""Open-Sora in the published files, tiny: networks of the original code, and other parts random."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.pretrained import tiny_autoencoders, tiny_video_autoencoders
from tests.pretrained.make_golden_clip import write_vocabulary
from tests.pretrained.make_golden_text import ENCODERS, GOLDEN
from tests.pretrained.make_golden_text import write as write_text
from tests.pretrained.pipelines import TEXT, write_part
from tests.pretrained.tiny_video_autoencoders import VIDEO_AUTOENCODERS
from tests.pretrained.transformers import MMDIT, STDIT3, fixture
from vdm_jax.pretrained.families import open_sora_2
from vdm_jax.pretrained.folder import write_folder
from vdm_jax.pretrained.parts import clip
from vdm_jax.pretrained.parts import video_autoencoders as parts

# Weights, inputs and results of Open-Sora 1.2's own temporal network (v1.2.0, commit 17cce908), with few channels.
TEMPORAL = Path(__file__).parent / "open_sora_temporal.npz"
OPEN_SORA = {
    "model_type": "VideoAutoencoderPipeline",
    "architectures": ["VideoAutoencoderPipeline"],
    "cal_loss": False,
    "freeze_vae_2d": False,
    "from_pretrained": None,
    "micro_frame_size": 17,
    "scale": [3.85, 2.32, 2.33, 3.06],
    "shift": [-0.1, 0.34, 0.27, 0.98],
    "torch_dtype": "float32",
    "transformers_version": "4.36.2",
    "vae_2d": {"type": "VideoAutoencoderKL", "from_pretrained": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"},
    "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None},
}


def temporal_tensors(monkeypatch):
    """Sets few channels for both networks of the autoencoder; returns the tensors of the temporal one."""
    monkeypatch.setattr(parts, "_TEMPORAL", dict(widths=(4, 8, 8, 16), blocks=(1, 1), middle=1, groups=2))
    monkeypatch.setattr(parts, "_IMAGES", tiny_autoencoders.AUTOENCODERS["image"][0])
    arrays = np.load(TEMPORAL)
    return {f"temporal_vae.{name[2:]}": arrays[name] for name in arrays if name.startswith("w/")}


def autoencoder_tensors(temporal):
    """All tensors of the autoencoder's file."""
    images = tiny_autoencoders.tensors_of(parts._IMAGES)
    buffers = {name: np.float32(OPEN_SORA[name]).reshape(1, 4, 1, 1, 1) for name in ("shift", "scale")}
    return temporal | buffers | {f"spatial_vae.module.{name}": array for name, array in images.items()}


def write_open_sora(folder: Path, temporal) -> Path:
    """The folder that docs/published.md puts together."""
    network = {key: value for key, value in STDIT3.items() if key != "_class_name"} | {"model_type": "STDiT3"}
    write_folder(folder / "transformer", fixture("stdit3_tiny")[0], network, "model")
    write_folder(folder / "vae", autoencoder_tensors(temporal), OPEN_SORA, "model")
    write_text(folder / "text_encoder", ENCODERS["t5"] | {"d_model": network["caption_channels"]})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(np.load(GOLDEN)["spiece"].tobytes())
    return folder


def write_open_sora_2(folder: Path, monkeypatch) -> Path:
    """The folder of Open-Sora 2.0 that docs/published.md puts together; the published files have no configs."""
    autoencoder = VIDEO_AUTOENCODERS["hunyuan"][0]
    for published, tiny in ((open_sora_2.PUBLISHED, MMDIT), (parts._HUNYUAN, autoencoder)):
        for key in published.keys() & tiny.keys():
            monkeypatch.setitem(published, key, tiny[key])
    network = fixture("opensora2_mmdit_tiny")[0]
    network["cond_in.weight"] *= 10  # so that it matters how known frames guide
    for part, name, tensors in (
        ("transformer", "Open_Sora_v2", network),
        ("vae", "hunyuan_vae", tiny_video_autoencoders.tensors_of(autoencoder)),
    ):
        (folder / part).mkdir(parents=True)
        save_file(tensors, folder / part / f"{name}.safetensors")
    write_text(folder / "text_encoder", ENCODERS["t5"] | {"d_model": MMDIT["context_in_dim"]})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(np.load(GOLDEN)["spiece"].tobytes())
    words = write_vocabulary(folder / "clip" / "tokenizer")
    count = len(json.loads((words / "vocab.json").read_text()))
    text = TEXT | {"hidden_size": MMDIT["vec_in_dim"], "vocab_size": count, "eos_token_id": count - 1}
    kind, arguments, naming = clip.translate(text)
    write_part(folder / "clip" / "text_encoder", "model", text, kind, arguments, naming)
    return folder
