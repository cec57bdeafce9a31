"""Open-Sora 1.2 (STDiT3; Zheng et al. 2024, arXiv 2412.20404): blocks along space and time in turns, both with text."""

from typing import Any

from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming

# Tensors of the file that belong to no layer: the null text, and the frequencies of the rotary positions.
NULL_TEXT, FREQUENCIES = "y_embedder.y_embedding", "rope.freqs"


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
