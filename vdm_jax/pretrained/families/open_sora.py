"""Open-Sora 1.2 (STDiT3; Zheng et al. 2024, arXiv 2412.20404): blocks along space and time in turns, both with text.

Nobody publishes a pipeline's folder: it is put together of the published parts (docs/published.md).
"""

from typing import Any

import numpy as np

from vdm_jax.diffusion.process import Flow
from vdm_jax.errors import InputError
from vdm_jax.models.dit import DiT
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.folder import Config, Weights, check_settings
from vdm_jax.pretrained.names import Naming
from vdm_jax.pretrained.schedulers import Schedule

FREQUENCIES = "rope.freqs"  # of the rotary positions, a constant in the file
FPS = 24.0


def dit(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `DiT` and the names of its parameters."""
    known = {"in_channels", "caption_channels", "depth", "hidden_size", "num_heads", "mlp_ratio", "model_max_length"}
    ignored = {
        "model_type", "input_size", "class_dropout_prob", "drop_path", "freeze_y_embedder", "skip_y_embedder",
        "enable_flash_attn", "enable_layernorm_kernel", "enable_sequence_parallelism", "only_train_temporal",
        "architectures", "torch_dtype", "transformers_version", "force_huggingface", "init_std", "from_pretrained",
    }  # fmt: skip
    fixed = {"pred_sigma": (True, False), "qk_norm": True, "input_sq_size": 512, "patch_size": [1, 2, 2]}
    check_settings(config, known | ignored, fixed)
    heads, width = config["num_heads"], config["hidden_size"]
    arguments = dict(
        channels_in=config["in_channels"],
        channels_out=config["in_channels"],
        width=width,
        depth=config["depth"],
        heads=heads,
        hidden=int(width * config["mlp_ratio"]),
        text_width=config["caption_channels"],
        pad=True,
        plane="area",
        cross="each",
        interleaved=True,
        pooled=False,
        scalars=(256, 1),  # frame rate
        variance=config["pred_sigma"],
        null_text=config["model_max_length"],
    )
    table = (
        (r"^layers/(\d+)/space/", r"spatial_blocks/\1/"),
        (r"^layers/(\d+)/time/", r"temporal_blocks/\1/"),
        (r"^stem/project/", "x_embedder/proj/"),
        (r"^time/first/", "t_embedder/mlp/0/"),
        (r"^time/second/", "t_embedder/mlp/2/"),
        (r"^scalars/first/", "fps_embedder/mlp/0/"),
        (r"^scalars/second/", "fps_embedder/mlp/2/"),
        (r"^modulation/", "t_block/1/"),
        (r"^null_text$", "y_embedder/y_embedding"),
        (r"^text/first/", "y_embedder/y_proj/fc1/"),
        (r"^text/second/", "y_embedder/y_proj/fc2/"),
        (r"^head/project/", "final_layer/linear/"),
        (r"/attention/", "/attn/"),
        (r"/cross/", "/cross_attn/"),
        (r"/cross_attn/q/", "/cross_attn/q_linear/"),
        (r"/out/", "/proj/"),
        (r"/up/", "/mlp/fc1/"),
        (r"/down/", "/mlp/fc2/"),
        (r"^table$", "final_layer/scale_shift_table"),
        (r"/table$", "/scale_shift_table"),
        (r"/(kernel|scale)$", "/weight"),
    )
    fused = [(f"/attention/{part}/", "/attention/qkv/", (i, i + 1), 3) for i, part in enumerate("qkv")]
    fused += [(f"/cross/{part}/", "/cross/kv_linear/", (i, i + 1), 2) for i, part in enumerate("kv")]
    return arguments, Naming(table, stacked=r"^layers/", fused=fused, patch=(1, 2, 2))


def _frequencies(config: Config) -> np.ndarray:
    size = config["hidden_size"] // config["num_heads"]
    return (10_000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)


def take_frequencies(weights: Weights, config: Config) -> None:
    """Removes the rotary frequencies from the weights. Raises InputError for other frequencies than the common ones."""
    if FREQUENCIES in weights and not np.allclose(weights.take(FREQUENCIES), _frequencies(config), rtol=1e-2):
        raise InputError(f"{FREQUENCIES} are not 10000^(-2i/size); other positions are not implemented")


def put_frequencies(tensors: dict[str, np.ndarray], config: Config) -> None:
    """Adds the rotary frequencies that the published file has."""
    tensors[FREQUENCIES] = _frequencies(config)


def _at_size(shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the schedule and the frame rate of a video: more pixels and frames are seen through more noise.

    The shift is √(rows · columns / 512²) · √(latent frames), where 17 frames are 5 latent frames, and a picture is one.
    """
    frames, rows, columns, _ = shape
    latents = max(frames // 17 * 5, 1)
    shift = (rows * columns / 512**2 * latents) ** 0.5
    return dict(process=Flow(shift), scalars=(FPS if frames > 1 else 120.0,))


OPEN_SORA = Family(
    dit,
    DiT,
    frames=51,
    side=(30, 53),
    fps=FPS,
    steps=30,
    guidance=7.0,
    model=dict(time_per_frame=True),
    at_size=_at_size,
    schedule=Schedule(Flow(), "reverse_flow", "ddim", "uniform", {}, {}),
)
