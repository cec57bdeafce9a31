"""The common parts of the published transformers: keys of their configs, and names of their parameters."""

from typing import Any

from vdm_jax.pretrained.folder import Config
from vdm_jax.pretrained.names import Table

COMMON = ("in_channels", "num_attention_heads", "attention_head_dim")


def common(config: Config) -> dict[str, Any]:
    """Returns the arguments of `DiT` that all families in the diffusers format have."""
    heads = config["num_attention_heads"]
    return dict(
        channels_in=config["in_channels"],
        width=heads * config["attention_head_dim"],
        heads=heads,
        pooled=False,
        interleaved=True,
    )


def dit_names(time: str, modulation: str, text: str) -> Table:
    """Returns the names of a block in the diffusers format, and of the embeddings of time and text."""
    return (
        (r"^time/first/", f"{time}/linear_1/"),
        (r"^time/second/", f"{time}/linear_2/"),
        (r"^modulation/", f"{modulation}/"),
        (r"^text/first/", f"{text}/linear_1/"),
        (r"^text/second/", f"{text}/linear_2/"),
        (r"/(attention|cross)/([qk])_norm/", r"/\1/norm_\2/"),
        (r"/(attention|cross)/([qkv])/", r"/\1/to_\2/"),
        (r"/(attention|cross)/out/", r"/\1/to_out/0/"),
        (r"/attention/", "/attn1/"),
        (r"/cross/", "/attn2/"),
        (r"/up/", "/ff/net/0/proj/"),
        (r"/down/", "/ff/net/2/"),
        (r"(^|/)table$", r"\1scale_shift_table"),
        (r"/(kernel|scale)$", "/weight"),
    )
