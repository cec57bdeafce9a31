"""Tiny published networks: their configs, and weights and inputs that are functions of a name.

Every parameter is random, for what starts at zero or one hides bugs. The same numbers are made wherever they are asked
for, so that a golden file holds outputs alone.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.rngs import Keys
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.sharding import path_name
from vdm_jax.pretrained.families import translate
from vdm_jax.pretrained.names import from_torch, torch_name, torch_shapes

_TWO = {"layers_per_block": 2}
_IMAGE = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32],
    "norm_num_groups": 4,
    "norm_eps": 1e-5,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "layers_per_block": 1,
}
_MODELSCOPE = _IMAGE | {
    "_class_name": "UNet3DConditionModel",
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "attention_head_dim": 8,
}
_MOTION = {key: value for key, value in _IMAGE.items() if key != "attention_head_dim"} | {
    "_class_name": "UNetMotionModel",
    "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
    "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"],
    "num_attention_heads": 2,
    "motion_num_attention_heads": 4,
    "motion_max_seq_length": 8,
    "use_motion_mid_block": True,
}
_SVD = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [32, 64],  # the reference fixes 32 groups
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "cross_attention_dim": 16,
    "num_attention_heads": 4,
    "layers_per_block": 1,
    "projection_class_embeddings_input_dim": 48,
    "addition_time_embed_dim": 16,
}

# Name → (config, batch, frames, rows, columns).
UNETS = {
    "image": (_IMAGE, 2, 1, 8, 8),
    "image, deeper": (_IMAGE | _TWO | {"attention_head_dim": [1, 4], "transformer_layers_per_block": 2}, 2, 1, 8, 12),
    "image, linear": (_IMAGE | {"use_linear_projection": True}, 2, 2, 8, 8),
    "modelscope": (_MODELSCOPE, 2, 4, 8, 8),
    "modelscope, odd sizes": (_MODELSCOPE, 1, 3, 7, 10),
    "modelscope, deeper": (_MODELSCOPE | _TWO | {"attention_head_dim": 4}, 2, 5, 6, 6),
    "animatediff": (_MOTION, 2, 4, 8, 8),
    "animatediff, no middle": (_MOTION | {"use_motion_mid_block": False}, 2, 8, 8, 6),
    "animatediff, deeper": (
        _MOTION | _TWO | {"num_attention_heads": [1, 4], "motion_num_attention_heads": [2, 8]},
        2,
        3,
        6,
        6,
    ),
    "svd": (_SVD, 2, 3, 8, 8),
    "svd, deeper": (_SVD | _TWO | {"num_attention_heads": [2, 8], "transformer_layers_per_block": 2}, 2, 2, 8, 6),
    "svd, three levels": (
        _SVD
        | {
            "block_out_channels": [32, 32, 64],
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 2 + ["DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 2,
        },
        2,
        4,
        8,
        8,
    ),
}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that belong to a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of a name: sizes stay about one through matrices, and norms scale by about one."""
    if len(shape) > 1:
        return numbers(name, shape) / np.sqrt(np.prod(shape[1:])).astype(np.float32)
    scale = name.endswith("weight")  # of a norm
    return 0.2 * numbers(name, shape) + np.float32(scale)


def inputs(name: str) -> dict[str, np.ndarray]:
    """What a U-Net of the table is called with: latents B T H W C, times, context, and where it takes them the rest."""
    return inputs_of(name, *UNETS[name])


def inputs_of(name: str, config: dict, batch: int, frames: int, rows: int, columns: int) -> dict[str, np.ndarray]:
    """The same for any config; a name decides the numbers."""
    tokens = numbers(f"{name} context", (batch, 1, 5, config["cross_attention_dim"]))
    text = Text(tokens, np.ones(tokens.shape[:3], bool), tokens[:, :, 0])
    scalars = np.float32([[5, 127, 0.02], [7, 30, 0.1]][:batch]) if "addition_time_embed_dim" in config else None
    return {
        "z": numbers(f"{name} z", (batch, frames, rows, columns, config["in_channels"])),
        "time": np.float32([500.25, 20.0][:batch]),
        "conditions": Conditions(text, scalars=scalars),
    }


def module_of(config, **options):
    """The network of a config, each parameter with the weight of its name in the other format."""
    motion = {name: options.pop(name) for name in ("window", "per_frame_norm") if name in options}
    arguments, naming = translate(config, **motion)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: UNet(**arguments, **options, rngs=Keys(0))))
    abstract = nnx.to_pure_dict(abstract)
    shapes = torch_shapes(abstract, naming)

    def one(path, leaf):
        name = torch_name(path_name(path), naming)
        return jnp.asarray(from_torch(path_name(path), tensor(name, shapes[name]), naming))

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(one, abstract))


def relative(found: np.ndarray, kept: np.ndarray) -> float:
    """The L2 error of an answer, relative to the right one."""
    return float(np.linalg.norm(found - kept) / np.linalg.norm(kept))
