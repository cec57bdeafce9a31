"""Published transformers at tiny sizes: configs, and modules made of published tensors."""

import tempfile
from pathlib import Path

import numpy as np
from flax import nnx

from vdm_jax.models.dit import DiT
from vdm_jax.models.mmdit import MMDiT
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.families import latte, open_sora, open_sora_2, wan
from vdm_jax.pretrained.folder import Weights, write_folder
from vdm_jax.pretrained.names import load_part

FIXTURES = Path(__file__).parent / "fixtures"

LATTE = {
    "_class_name": "LatteTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "caption_channels": 12,
    "cross_attention_dim": 16,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "video_length": 4,
}
STDIT3 = {
    "_class_name": "STDiT3",
    "in_channels": 4,
    "caption_channels": 12,
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "model_max_length": 7,
    "pred_sigma": True,
    "qk_norm": True,
    "input_sq_size": 512,
    "patch_size": [1, 2, 2],
}
WAN = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 16,
    "ffn_dim": 20,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 16,
}
MMDIT = open_sora_2.PUBLISHED | {
    "in_channels": 16,
    "vec_in_dim": 6,
    "context_in_dim": 10,
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
}
MMDIT_FUSED = MMDIT | {"fused_qkv": True, "use_liger_rope": False}

LATTE_1 = LATTE | {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "sample_size": 64,
    "video_length": 16,
}
STDIT3_XL = STDIT3 | {"hidden_size": 1152, "depth": 28, "num_heads": 16, "caption_channels": 4096}
STDIT3_XL |= {"model_max_length": 300}
WAN_1B = WAN | {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "rope_max_seq_len": 1024,
}
# config, tensors in the file of the layers, and their parameters (FAMILIES: counted in the original code).
FULL_SIZE = {
    "Latte-1": (LATTE_1, 967, 1_057_246_880),
    # The null text was counted as a buffer there; rope.freqs are constants here.
    "Open-Sora 1.2": (STDIT3_XL, 973 - 1, 1_207_643_972 + 300 * 4096 - 36),
    "Wan 2.1 1.3B": (WAN_1B, 825, 1_418_996_800),
    "Open-Sora 2.0": (open_sora_2.PUBLISHED, 1082, 11_891_390_528),
}
KINDS = {
    "LatteTransformer3DModel": (latte.dit, DiT),
    "STDiT3": (open_sora.dit, DiT),
    "WanTransformer3DModel": (wan.dit, DiT),
    "Open_Sora_v2": (open_sora_2.mmdit, MMDiT),
}


def abstract(config):
    """Returns the module of a config without values, and the names of its parameters."""
    translate, kind = KINDS[config["_class_name"]]
    arguments, naming = translate(config)
    return nnx.eval_shape(lambda: kind(**arguments, rngs=Keys(0))), naming


def module_of(config, tensors):
    """Returns the module of a config and published tensors, each of which must be used; and parameters and names."""
    translate, kind = KINDS[config["_class_name"]]
    arguments, naming = translate(config)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, tensors)
        part = load_part(Weights(Path(folder)), kind, arguments, naming, config, where="the file")
    return nnx.merge(part.graphdef, part.params), part.params, naming


def fixture(name):
    """Returns the published tensors of a fixture, and its inputs and outputs."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = dict(file)
    return {name[2:]: array for name, array in arrays.items() if name.startswith("w/")}, arrays
