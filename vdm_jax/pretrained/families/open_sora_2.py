"""Open-Sora 2.0 (MMDiT; Peng et al. 2025, arXiv 2503.09642): two streams, video and text.

Nobody publishes a pipeline's folder: it is put together of the published parts (docs/published.md).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.process import Flow
from vdm_jax.models.mmdit import MMDiT
from vdm_jax.pretrained.families.family import Family
from vdm_jax.pretrained.folder import Config, check_settings
from vdm_jax.pretrained.names import Naming
from vdm_jax.pretrained.schedulers import Schedule
from vdm_jax.typing import Array

PUBLISHED = {  # the published file has no config
    "_class_name": "Open_Sora_v2",
    "in_channels": 64,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "cond_embed": True,
    "fused_qkv": False,
    "use_liger_rope": True,
}


def mmdit(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns the arguments of `MMDiT` and the names of its parameters."""
    fixed = {"mlp_ratio": 4.0, "theta": 10_000, "qkv_bias": True, "guidance_embed": False, "patch_size": 2}
    check_settings(config, PUBLISHED, fixed)
    patch, channels = 2, config["in_channels"] // 4
    arguments = dict(
        channels_in=channels + (channels + 1 if config["cond_embed"] else 0),
        channels_out=channels,
        width=config["hidden_size"],
        heads=config["num_heads"],
        double=config["depth"],
        single=config["depth_single_blocks"],
        patch=patch,
        axes=tuple(config["axes_dim"]),
        # The two forms differ in which channels turn together, and in how matrices are fused.
        interleaved=not config["use_liger_rope"],
        text_width=config["context_in_dim"],
        pooled_width=config["vec_in_dim"],
    )
    streams = (("video", "img"), ("text", "txt"))
    table = [
        (r"^(double|single)/(\d+)/", r"\1_blocks/\2/"),
        (r"^stem/project/", "img_in/"),
        (r"^known/project/", "cond_in/"),
        (r"^text/", "txt_in/"),
        (r"^time/first/", "time_in/in_layer/"),
        (r"^time/second/", "time_in/out_layer/"),
        (r"^pooled/first/", "vector_in/in_layer/"),
        (r"^pooled/second/", "vector_in/out_layer/"),
        (r"^last/", "final_layer/adaLN_modulation/1/"),
        (r"^head/project/", "final_layer/linear/"),
        (r"/both/modulation/", "/modulation/lin/"),
        (r"/both/q_norm/", "/norm/query_norm/"),
        (r"/both/k_norm/", "/norm/key_norm/"),
        (r"^(single_blocks/\d+)/out/", r"\1/linear2/"),
        (r"/both/([qk])/", r"/\1_proj/"),
        (r"/kernel$", "/weight"),
    ]
    for ours, theirs in streams:
        table += [
            (rf"/{ours}/modulation/", f"/{theirs}_mod/lin/"),
            (rf"/{ours}/q_norm/", f"/{theirs}_attn/norm/query_norm/"),
            (rf"/{ours}/k_norm/", f"/{theirs}_attn/norm/key_norm/"),
            (rf"/{ours}/([qkv])/", rf"/{theirs}_attn/\1_proj/"),
            (rf"/{ours}_out/", f"/{theirs}_attn/proj/"),
            (rf"/{ours}_up/", f"/{theirs}_mlp/0/"),
            (rf"/{ours}_down/", f"/{theirs}_mlp/2/"),
        ]
    single, part = r"^(single/\d+)/", {"q": (0, 1), "k": (1, 2), "v": (2, 3)}
    if config["fused_qkv"]:
        fused = [(f"{single}both/{name}/", r"\1/linear1/", place, 7) for name, place in part.items()]
        fused.append((f"{single}up/", r"\1/linear1/", (3, 7), 7))
        for ours, theirs in streams:
            fused += [(f"/{ours}/{name}/", f"/{theirs}_attn/qkv/", place, 3) for name, place in part.items()]
    else:
        fused = [(f"{single}both/v/", r"\1/v_mlp/", (0, 1), 5), (f"{single}up/", r"\1/v_mlp/", (1, 5), 5)]
    return arguments, Naming(tuple(table), stacked=r"^(double|single)/", fused=fused, patch=(1, 2, 2), packed=True)


IMAGE_GUIDANCE = 3.0
STEADY = 10  # steps after which guidance rests in every second one


def _at_size(shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the schedule of a video: the shift is (1 + 2 (tokens of a frame − 256) / 3840) · √(latent frames)."""
    frames, rows, columns, _ = shape
    tokens, latents = (rows // 16) * (columns // 16), (frames - 1) // 4 + 1
    return dict(process=Flow((1 + 2 * (tokens - 256) / 3840) * latents**0.5))


def oscillating_weights(guidance: Array | float, steps: int, frames: int) -> list[Callable[[Array], Array]]:
    """Returns the weights of what is known and of the text, as functions of the time before its shift.

    The weight of what is known grows over the frames, to a value that falls from `IMAGE_GUIDANCE` to 1 over the steps.
    """

    def now(weight: Array | float, t: Array) -> Array:
        step = jnp.round(steps * (1 - t)).astype(jnp.int32)
        return jnp.where((step < STEADY) | (step % 2 == 0), weight, 1.0)

    def known(t: Array) -> Array:
        return now(jnp.linspace(1.0, 1 + (IMAGE_GUIDANCE - 1) * t, frames), t)

    return [known, lambda t: now(guidance, t)]


OPEN_SORA_2 = Family(
    mmdit,
    MMDiT,
    config=PUBLISHED,
    frames=129,
    side=(24, 42),
    fps=24.0,
    steps=50,
    guidance=7.5,
    text=dict(length=512, masked=False, padding="kept", pooled="clip/text_encoder"),
    # It was also trained on last frames and on first and last ones, with the weight 1 each.
    model=dict(weights=oscillating_weights, guides_known=True, masks=MaskMixture({"nothing": 1.0, "first": 5.0})),
    respect="concat",
    at_size=_at_size,
    schedule=Schedule(Flow(), "flow", "ddim", "uniform", {}, {}),
)
