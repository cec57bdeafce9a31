"""Tiny CLIP encoders and their inputs; and makes golden_clip.npz: what transformers answers to them.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden_clip
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers

from tests.pretrained.networks import numbers
from vdm_jax.pretrained.folder import write_folder
from vdm_jax.pretrained.names import torch_tensors
from vdm_jax.pretrained.parts.clip import translate

_TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 58,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "projection_dim": 16,
    "attention_dropout": 0.0,
    "dropout": 0.0,
}
_VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 30,
    "patch_size": 7,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 20,
    "attention_dropout": 0.0,
}
ENCODERS = {
    "text, quick": _TEXT,
    "text, exact": _TEXT | {"hidden_act": "gelu", "eos_token_id": 59, "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
    "image, exact": _VISION,
    "image, quick": _VISION | {"hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8, "num_channels": 4},
}
GOLDEN = Path(__file__).parent / "golden_clip.npz"


def tokens(length: int, end: int = 59) -> np.ndarray:
    """Two texts of different lengths between the start and end tokens, padded with zeros."""
    texts = np.abs(1000 * numbers("tokens", (2, length))).astype(np.int32) % 50 + 3
    texts[:, 0] = 58
    for row, last in zip(texts, (length - 1, length // 2), strict=True):
        row[last:] = 0
        row[last] = end
    return texts


def image(config: dict) -> np.ndarray:
    """Two images of an encoder's size, B H W C."""
    return numbers("image", (2, config["image_size"], config["image_size"], config["num_channels"]))


def save(encoder, folder: Path) -> None:
    """Writes an encoder as a folder that transformers loads."""
    write_folder(folder, torch_tensors(encoder.params, translate(encoder.config)[2]), encoder.config, name="model")


def write_vocabulary(folder: Path, pad: str = "<|endoftext|>", **settings) -> Path:
    """A tokenizer of all bytes and few words, in the files of transformers 4; "!" is 0 as in CLIP's own."""
    signs = ["!", *sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"!"})]
    merges = ["c a", "ca t</w>", "t h", "th e</w>", "! !</w>", "Ã ©", "Ã© s</w>", "n g</w>", "i ng</w>"]
    words = [*signs, *(f"{sign}</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": word, **flags} for word in words[-2:])
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    # Stable Diffusion 2 says another padding here than in its map, which counts.
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    from tests.parity.test_clip import answers, encoder, resized

    kept = {name: answers(encoder(config), config) for name, config in ENCODERS.items()}
    kept["resized"] = resized(numbers("photograph", (1, 50, 33, 3)), 16)
    np.savez_compressed(GOLDEN, **kept)
