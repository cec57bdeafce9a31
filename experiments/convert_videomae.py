"""Converts a published file of VideoMAE v2 to a folder in the format of transformers. Needs torch.

python experiments/convert_videomae.py --input vit_g_hybrid_pt_1200e_ssv2_ft.pth --output videomae-giant

The file is read by torch.load(weights_only=True), which runs no code of it. Its tensors do not say the numbers of heads
and frames, nor the size: the defaults are the giant's, the model of content-debiased Fréchet video distances.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from convert import read, write

NAMES = (
    (r"^patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "videomae.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.([qv])_bias$", r".attention.attention.\1_bias"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^head\.", "classifier."),
)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors under the names of transformers; queries, keys and values are separate there."""
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        parts = {name: tensor}
        if name.endswith(".attn.qkv.weight"):
            stem = name.removesuffix("attn.qkv.weight") + "attention.attention."
            split = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            parts = {f"{stem}{part}.weight": x for part, x in split}
        tensors |= {name: part.float() for name, part in parts.items()}
    return tensors


def config_of(tensors: dict[str, torch.Tensor], heads: int, frames: int, size: int) -> dict:
    """Returns the config of the tensors. All norms of version 2 have an epsilon of 1e-6."""
    kernel = tensors["videomae.embeddings.patch_embeddings.projection.weight"]
    middle = tensors["videomae.encoder.layer.0.intermediate.dense.weight"]
    layers = {name.split(".")[3] for name in tensors if name.startswith("videomae.encoder.layer.")}
    return {
        "architectures": ["VideoMAEForVideoClassification"],
        "model_type": "videomae",
        "num_frames": frames,
        "image_size": size,
        "num_channels": kernel.shape[1],
        "tubelet_size": kernel.shape[2],
        "patch_size": kernel.shape[3],
        "hidden_size": kernel.shape[0],
        "intermediate_size": middle.shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "fc_norm_eps": 1e-6,
        "qv_bias": "videomae.encoder.layer.0.attention.attention.q_bias" in tensors,
        "use_mean_pooling": "fc_norm.weight" in tensors,
        "num_labels": tensors["classifier.weight"].shape[0],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="the published .pth file")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    torch.serialization.add_safe_globals([argparse.Namespace])  # the flags of the training, which the file may hold
    state = read(parser, arguments.input)
    state = next((state[key] for key in ("model", "module") if key in state), state)
    tensors = renamed(state)
    try:
        config = config_of(tensors, arguments.heads, arguments.frames, arguments.size)
    except KeyError as missing:
        parser.error(f"{arguments.input} is no VideoMAE v2 with a classifier: it has no {missing}")
    write(parser, arguments.output / "model.safetensors", tensors)
    (arguments.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
