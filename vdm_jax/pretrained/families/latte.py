"""Latte (LatteTransformer3DModel; Ma et al. 2024, arXiv 2401.03048): blocks along space and time in turns."""

from typing import Any

from vdm_jax.models.dit import DiT
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.families.transformers import COMMON, common, dit_names
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming


def dit(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `DiT` and the names of its parameters."""
    known = {"out_channels", "num_layers", "caption_channels", "patch_size", "video_length", "num_embeds_ada_norm"}
    fixed = {
        "cross_attention_dim": config["num_attention_heads"] * config["attention_head_dim"],
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "dropout": 0.0,
    }
    shared = common(config)
    check_settings(config, {*COMMON, *known}, fixed)
    side, patch = config["sample_size"], config["patch_size"]
    arguments = shared | dict(
        channels_out=config["in_channels"],
        depth=config["num_layers"],
        text_width=config["caption_channels"],
        patch=patch,
        # Positions are counted at 512 pixels, and stretched to as many at all sizes.
        plane=side // patch / max(side // 64, 1),
        time_position="code",
        qk_norm=None,
        variance=config["out_channels"] == 2 * config["in_channels"],
        max_frames=config["video_length"],
    )
    table = (
        (r"^layers/(\d+)/space/", r"transformer_blocks/\1/"),
        (r"^layers/(\d+)/time/", r"temporal_transformer_blocks/\1/"),
        (r"^stem/project/", "pos_embed/proj/"),
        (r"^head/project/", "proj_out/"),
        *dit_names("adaln_single/emb/timestep_embedder", "adaln_single/linear", "caption_projection"),
    )
    return arguments, Naming(table, stacked=r"^layers/", patch=(patch, patch))


# T5 reads 120 tokens. The published pipeline cuts the text of a single prompt after its last token, and the null text
# after as many; with several prompts it lets the network see zeros instead. Here every prompt is cut.
LATTE = Family(dit, DiT, frames=16, side=64, text=dict(length=120, clean="lower"), model=dict(null_mask=True))
