"""Wan 2.1 and 2.2 (WanTransformer3DModel; Wan team 2025, arXiv 2503.20314): attention to all positions of a video."""

from typing import Any

from vdm_jax.models.dit import DiT
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.families.transformers import COMMON, common, dit_names
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming


def dit(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `DiT` and the names of its parameters."""
    known = {"out_channels", "patch_size", "text_dim", "freq_dim", "ffn_dim", "num_layers", "rope_max_seq_len"}
    fixed = {
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
    }
    check_settings(config, {*COMMON, *known}, fixed)
    patch_time, patch, _ = config["patch_size"]
    arguments = common(config) | dict(
        channels_out=config["out_channels"],
        depth=config["num_layers"],
        hidden=config["ffn_dim"],
        text_width=config["text_dim"],
        frequencies=config["freq_dim"],
        patch=patch,
        patch_time=patch_time,
        attend="all",
        plane=None,
        qk_norm="all",
        cross="each",
        cross_norm=True,
        max_frames=patch_time * config["rope_max_seq_len"],
    )
    table = (
        (r"^layers/(\d+)/all/cross_norm/", r"blocks/\1/norm2/"),
        (r"^layers/(\d+)/all/up/", r"blocks/\1/ffn/net/0/proj/"),
        (r"^layers/(\d+)/all/down/", r"blocks/\1/ffn/net/2/"),
        (r"^layers/(\d+)/all/", r"blocks/\1/"),
        (r"^stem/project/", "patch_embedding/"),
        (r"^head/project/", "proj_out/"),
        *(
            dit_names(
                "condition_embedder/time_embedder", "condition_embedder/time_proj", "condition_embedder/text_embedder"
            )
        ),
    )
    return arguments, Naming(table, stacked=r"^layers/", patch=(patch_time, patch, patch), framed=r"table$")


TEXT = dict(length=512, padding="zeros", clean="html")
WAN = Family(dit, DiT, frames=81, side=(60, 104), fps=16.0, guidance=5.0, text=TEXT)
