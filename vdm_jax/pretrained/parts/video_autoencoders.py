"""Loads published causal autoencoders of videos: from a config to `VideoAutoencoder`, and the names of its parameters.

Wan 2.1 and 2.2 and HunyuanVideo have folders in the diffusers format. Open-Sora 2 has HunyuanVideo's autoencoder as one
file, and Open-Sora 1.2 a folder of its own: an autoencoder of images, and a temporal one on its latents.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.codec import Codec, latent_codec, stacked_codec, video_codec
from vdm_jax.models.rngs import Keys
from vdm_jax.models.video_autoencoder import VideoAutoencoder
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.folder import Config, Weights, check_settings, component
from vdm_jax.pretrained.names import BLOCKS, Naming, Table, load_params
from vdm_jax.pretrained.parts import autoencoders
from vdm_jax.typing import Params

WAN, HUNYUAN, OPEN_SORA = "AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "VideoAutoencoderPipeline"

# Defaults of keys that a config may leave out.
_WAN: Config = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
}
_HUNYUAN: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.476986,
    "spatial_compression_ratio": 8,
}
# Open-Sora 1.2's config does not say the sizes of its two networks.
_TEMPORAL = {"widths": (128, 256, 256, 512), "blocks": (4, 4), "middle": 4, "groups": 32}
_IMAGES: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_CHUNK = 17  # frames
_IMAGE_SCALE = 0.18215  # as published, although it is the autoencoder of SDXL (0.13025)


def video_config(path: str | Path) -> Config | None:
    """Returns the config of an autoencoder of videos with its `_class_name`; None where it is one of images.

    `path` is an autoencoder's or a pipeline's folder, or Open-Sora 2's hunyuan_vae.safetensors, which has no config.
    Raises InputError if it cannot be read.
    """
    if Path(path).suffix == ".safetensors":
        return {"_class_name": HUNYUAN}
    file = component(path, "vae") / "config.json"
    if not file.exists() and (file.parent / "hunyuan_vae.safetensors").exists():
        return {"_class_name": HUNYUAN}
    try:
        config = json.loads(file.read_text())
        name = config.get("_class_name") or config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return config | {"_class_name": name} if name in (WAN, HUNYUAN, OPEN_SORA) else None


def load_module(path: str | Path, **options: Any) -> tuple[nnx.GraphDef, Params]:
    """Loads Wan's or HunyuanVideo's `VideoAutoencoder`; `options` are mesh, dtype and params_dtype.

    Raises:
        InputError: a setting that is not implemented, pickles, or tensors that do not fit the config.
    """
    where = _place(path)
    return _load(Weights(where), where, VideoAutoencoder, *translate(video_config(path)), **options)


def load_video_codec(path: str | Path, config: Config, **options: Any) -> tuple[Codec, Params]:
    """Loads the codec of `video_config(path)`; `options` and errors are those of `load_module`."""
    arguments, _ = translate(config)
    time, side = (math.prod(factors) for factors in zip(*arguments["down"], strict=True))
    if config["_class_name"] == OPEN_SORA:
        return _load_stack(_place(path), config, time, options)
    graphdef, params = load_module(path, **options)
    wan = config["_class_name"] == WAN
    mean, std = _statistics(config, arguments["latent_channels"])
    factors, channels = (time, side * arguments["patch"]), arguments["channels_in"]
    common = dict(factors=factors, mean=mean, std=std, video_channels=channels)
    return video_codec(graphdef, **common, streams=wan, clip=wan), params


def _place(path: str | Path) -> Path:
    return Path(path) if Path(path).is_file() else component(path, "vae")


def _load(weights, where, kind, arguments, naming, *, mesh=None, dtype="float32", params_dtype="float32"):
    module = nnx.eval_shape(lambda: kind(**arguments, dtype=dtype, rngs=Keys(0)))
    mesh = make_mesh() if mesh is None else mesh
    params = load_params(weights, module, naming, mesh=mesh, where=str(where), dtype=params_dtype)
    return nnx.split(module)[0], params


def _load_stack(where: Path, config: Config, factor: int, options: dict[str, Any]) -> tuple[Codec, Params]:
    weights = Weights(where)
    if missing := [name for name in ("shift", "scale") if name not in weights]:
        raise InputError(f"{where} holds no {missing[0]}")
    mean, std = (weights.take(name).ravel().tolist() for name in ("shift", "scale"))
    frames = weights.part("spatial_vae.")
    graphdef, params = _load(weights, where, VideoAutoencoder, *translate(config), **options)
    arguments, _ = autoencoders.translate(_IMAGES)
    naming = autoencoders.naming_of(frames, in_time=False)
    naming = naming._replace(table=(*naming.table, ("^", "spatial_vae/module/")))
    image_graphdef, image_params = _load(frames, where, Autoencoder, arguments, naming, **options)
    sizes = dict(channels=4, factor=2 ** (len(arguments["widths"]) - 1), video_channels=3)
    images = latent_codec(image_graphdef, **sizes, scale=_IMAGE_SCALE)
    codec = stacked_codec(images, graphdef, factor=factor, mean=mean, std=std, chunk=_CHUNK)
    return codec, {"images": image_params, "time": params}


def _statistics(config: Config, channels: int) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel of the latents."""
    if config["_class_name"] == HUNYUAN:
        return [0.0] * channels, [1 / config.get("scaling_factor", _HUNYUAN["scaling_factor"])] * channels
    for name in ("latents_mean", "latents_std"):
        if len(config.get(name, ())) != channels:
            raise InputError(f"{name}={config.get(name)!r} must be {channels} numbers, one for each channel")
    return config["latents_mean"], config["latents_std"]


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `VideoAutoencoder`, names and layouts of its parameters) of a config.

    Raises:
        InputError: a setting that is not implemented.
    """
    return {WAN: _wan, HUNYUAN: _hunyuan, OPEN_SORA: _open_sora}[config["_class_name"]](config)


def _wan(config: Config) -> tuple[dict[str, Any], Naming]:
    settings = _WAN | config
    multipliers, halves = settings["dim_mult"], settings["temperal_downsample"]
    # The published class clips in any case, whatever clip_output says.
    known = {*_WAN, "latents_mean", "latents_std", "dropout", "clip_output"}
    known |= {"scale_factor_temporal", "scale_factor_spatial"}  # follow from the levels
    check_settings(config, known, {"attn_scales": []})
    if multipliers[0] != 1 or len(halves) != len(multipliers) - 1:
        raise InputError(f"{WAN}: dim_mult={multipliers!r} must begin with 1, and have one more than {halves!r}")
    patch, blocks, residual = settings["patch_size"] or 1, settings["num_res_blocks"], settings["is_residual"]
    down = [(2 if half else 1, 2) for half in halves]
    arguments = dict(
        channels_in=settings["in_channels"] // patch**2,
        channels_out=settings["out_channels"] // patch**2,
        latent_channels=settings["z_dim"],
        widths=[settings["base_dim"] * n for n in multipliers],
        decoder_widths=[(settings["decoder_base_dim"] or settings["base_dim"]) * n for n in multipliers],
        blocks=(blocks, blocks + 1),
        down=down,
        up=down[::-1],
        residual=residual,
        patch=patch,
    )
    levels: Table = [(r"/levels/(\d+)/blocks/(\d+)/", r"/up_blocks/\1/resnets/\2/")]
    if residual:
        levels = [
            (r"^encoder/levels/(\d+)/resample/", r"encoder/down_blocks/\1/downsampler/"),
            (r"^decoder/levels/(\d+)/resample/", r"decoder/up_blocks/\1/upsampler/"),
            (r"^encoder/levels/(\d+)/blocks/(\d+)/", r"encoder/down_blocks/\1/resnets/\2/"),
            *levels,
        ]
    else:  # the encoder's blocks and convolutions between levels are numbered together
        parts = [*(f"blocks/{i}" for i in range(blocks)), "resample"]
        levels = [
            *(
                (f"^encoder/levels/{i}/{part}/", f"encoder/down_blocks/{n}/")
                for n, (i, part) in enumerate(itertools.product(range(len(multipliers)), parts))
            ),
            (r"^decoder/levels/(\d+)/resample/", r"decoder/up_blocks/\1/upsamplers/0/"),
            *levels,
        ]
    table = [
        *_attention("to_qkv", "proj", norm="norm"),
        *levels,
        (r"(blocks/\d+|sampler|samplers/0)/space/", r"\1/resample/1/"),
        (r"/time/", "/time_conv/"),
        (r"^(en|de)coder/norm/", r"\1coder/norm_out/"),
        (r"/scale$", "/gamma"),
        *_COMMON,
    ]
    fused = [(rf"attention/{name}/(kernel|bias)$", r"attention/qkv/\1", (i, i + 1), 3) for i, name in enumerate("qkv")]
    ones = [(r"attention/(norm/scale|attention/\w+/kernel)$", 2), (r"(norm\d?/scale|(shortcut|quant)/kernel)$", 3)]
    return arguments, Naming(table, fused=fused, ones=ones)


def _hunyuan(config: Config) -> tuple[dict[str, Any], Naming]:
    settings = _HUNYUAN | config
    widths, blocks = settings["block_out_channels"], settings["layers_per_block"]
    levels = len(widths)
    must = {
        "act_fn": "silu",
        "down_block_types": ["HunyuanVideoDownBlock3D"] * levels,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * levels,
        "mid_block_add_attention": True,
        "temporal_compression_ratio": 4,
    }
    check_settings(config, _HUNYUAN, must)
    halvings = int(math.log2(settings["spatial_compression_ratio"]))
    if halvings > levels - 1 or levels < 3:
        raise InputError(f"{HUNYUAN}: {levels} levels are too few for its compression ratios")
    factors = [(2 if i >= levels - 3 else 1, 2 if i < halvings else 1) for i in range(levels - 1)]
    arguments = dict(
        channels_in=settings["in_channels"],
        channels_out=settings["out_channels"],
        latent_channels=settings["latent_channels"],
        widths=widths,
        blocks=(blocks, blocks + 1),
        down=factors,
        up=factors,
        groups=settings["norm_num_groups"],
        padding="replicate",
        resample="nearest",
        attention="past",
        patch=1,
    )
    table = [
        *_attention("to_qkv", "to_out/0", norm="group_norm"),
        (r"^encoder/levels/(\d+)/blocks/", r"encoder/down_blocks/\1/resnets/"),
        (r"^encoder/levels/(\d+)/resample/conv/", r"encoder/down_blocks/\1/downsamplers/0/conv/"),
        (r"^decoder/levels/(\d+)/blocks/", r"decoder/up_blocks/\1/resnets/"),
        (r"^decoder/levels/(\d+)/resample/conv/", r"decoder/up_blocks/\1/upsamplers/0/conv/"),
        (r"^(en|de)coder/norm/", r"\1coder/conv_norm_out/"),
        (r"/(conv_in|conv_out|conv\d?|shortcut)/(kernel|bias)$", r"/\1/conv/\2"),
        *_COMMON,
    ]
    return arguments, Naming(table, ones=[(r"(shortcut|quant)/kernel$", 3)])


def _open_sora(config: Config) -> tuple[dict[str, Any], Naming]:
    known = {"vae_2d", "from_pretrained", "freeze_vae_2d", "shift", "scale"}
    known |= {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version"}
    kind = config.get("vae_temporal", {}).get("type")
    must = {"cal_loss": False, "vae_temporal": "VAE_Temporal_SD", "micro_frame_size": _CHUNK}
    check_settings(config | {"vae_temporal": kind}, known, must)
    arguments = _TEMPORAL | dict(
        channels_in=4,
        channels_out=4,
        latent_channels=4,
        down=[(1, 1), (2, 1), (2, 1)],
        up=[(2, 1), (2, 1), (1, 1)],
        epsilon=1e-5,
        bias=False,
        resample="shuffle",
        attention=None,
        kernel_out=1,
        patch=1,
    )
    levels = len(arguments["widths"])
    table = [
        (r"/middle/blocks/", "/res_blocks/"),
        *((rf"^decoder/levels/{i}/blocks/", f"decoder/block_res_blocks/{levels - 1 - i}/") for i in range(levels)),
        *((rf"^decoder/levels/{i}/resample/conv/", f"decoder/conv_blocks/{levels - 2 - i}/") for i in range(levels)),
        (r"^encoder/levels/(\d+)/blocks/", r"encoder/block_res_blocks/\1/"),
        (r"^encoder/levels/(\d+)/resample/conv/", r"encoder/conv_blocks/\1/"),
        (r"^(en|de)coder/norm/", r"\1coder/norm1/"),
        (r"^encoder/conv_out/", "encoder/conv2/"),
        (r"^decoder/conv_in/", "decoder/conv1/"),
        (r"/shortcut/", "/conv3/"),
        (r"^(post_)?quant/", r"\1quant_conv/"),
        (r"(conv\w*|conv_blocks/\d+)/(kernel|bias)$", r"\1/conv/\2"),
        ("^", "temporal_vae/"),
        *BLOCKS,
    ]
    return arguments, Naming(table, ones=[(r"(shortcut|quant)/kernel$", 3)])


def _attention(qkv: str, out: str, norm: str) -> Table:
    """Returns the names of the attention in the middle; `qkv` is the name of the fused matrix."""
    attention = "/mid_block/attentions/0"
    return [
        (r"/middle/blocks/", "/mid_block/resnets/"),
        (r"/middle/attention/norm/", f"{attention}/{norm}/"),
        (r"/middle/attention/attention/qkv/", f"{attention}/{qkv}/"),
        (r"/middle/attention/attention/([qkv])/", rf"{attention}/to_\1/"),
        (r"/middle/attention/attention/out/", f"{attention}/{out}/"),
    ]


_COMMON: Table = [(r"^(post_)?quant/", r"\1quant_conv/"), *BLOCKS]
