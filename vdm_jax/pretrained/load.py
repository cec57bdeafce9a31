"""Loads published folders (diffusers format) as parts of a model, and as whole models."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.model import Model, TextEncoder
from vdm_jax.models.codec import Codec, latent_codec
from vdm_jax.models.text.pair import TextPair
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import FAMILIES
from vdm_jax.pretrained.families.stable_video_diffusion import FirstFrame
from vdm_jax.pretrained.folder import (
    Config,
    check_hash,
    component,
    package_files,
    read_config,
    read_json,
    snapshot,
)
from vdm_jax.pretrained.lora import Lora, read_lora
from vdm_jax.pretrained.networks import read_network
from vdm_jax.pretrained.parts.autoencoders import SCALE, load_autoencoder, translate
from vdm_jax.pretrained.parts.bert import load_bert
from vdm_jax.pretrained.parts.clip import load_image_encoder, load_text_encoder
from vdm_jax.pretrained.parts.t5 import load_t5
from vdm_jax.pretrained.parts.video_autoencoders import load_video_codec, video_config
from vdm_jax.pretrained.schedulers import read_scheduler
from vdm_jax.pretrained.tokenizers import (
    CLEANING,
    PairTokenizer,
    load_bert_tokenizer,
    load_t5_tokenizer,
    load_tokenizer,
)
from vdm_jax.typing import Params

# How a text encoder and its tokenizer are loaded, by its model_type.
TEXTS = {
    "clip_text_model": (load_text_encoder, load_tokenizer),
    "t5": (load_t5, load_t5_tokenizer),
    "umt5": (load_t5, load_t5_tokenizer),
    "bert": (load_bert, load_bert_tokenizer),
}


def load_network(
    folder: str | Path, *, scheduler: str | Path | None = None, **options: Any
) -> tuple[dict[str, Any], Params, tuple[int, int]]:
    """Loads a network and its schedule from its pipeline's folder; `options` are arguments of `networks.read_network`.

    `scheduler` replaces the folder's (`schedulers.read_scheduler`).

    Returns:
        The fields of a `Model` that the network decides, its parameters, and the channels that it draws with the width
        of the texts that it reads.

    Raises:
        InputError: an unknown family, or an argument that `read_network` refuses.
    """
    network = read_network(folder, **options)
    family = FAMILIES[network.config["_class_name"]]
    # A whole pipeline's own scheduler is right; the scheduler of an image model is not made for its motion modules.
    moves = options.get("motion_adapter") is not None or options.get("new_motion") is not None
    schedule = family.schedule
    if schedule is None:
        schedule = read_scheduler(snapshot(folder), scheduler, *([family.scheduler] if moves else []))
    elif scheduler is not None:
        raise InputError(f"scheduler={scheduler} is not for {network.config['_class_name']}, which has one schedule")
    names = ("steps", "guidance", "known_noise", "respect")
    sampling = {name: getattr(family, name) for name in names} | schedule.sampling
    fields = dict(network=network.graphdef, process=schedule.process, prediction=schedule.prediction, sampling=sampling)
    fields |= dict(network_config=network.config, text_per_frame=not family.first_frame and family.kind is UNet)
    fields |= family.model
    keys = ("text_dim", "caption_channels", "cross_attention_dim", "context_in_dim")
    widths = (network.config[key] for key in keys if key in network.config)
    module = nnx.merge(network.graphdef, network.params)
    return fields, network.params, (getattr(module, "channels_out", network.config.get("out_channels")), next(widths))


def at_size(fields: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the fields of `load_network` for videos of a shape, on which a family's schedule may depend."""
    config = fields["network_config"]
    return fields | dict(FAMILIES[config["_class_name"]].at_size(shape)) if config else fields


def load_text(
    folder: str | Path,
    *,
    package: str = "",
    sha256: Sequence[tuple[str, str]] = (),
    length: int | None = None,
    pooled: str = "",
    clean: str | None = None,
    loras: Sequence[Lora] = (),
    **options: Any,
) -> tuple[TextEncoder, Params]:
    """Loads a text encoder and its tokenizer: CLIP, T5 v1.1, UMT5 or BERT by the model_type in its config.

    Args:
        folder: of a pipeline, or of the encoder.
        package: a Python package of pip, as "name==version", in whose files `folder` is.
        sha256: pairs of a file in `folder` and its hash.
        length: tokens of a text, with padding (default: all positions of CLIP and BERT, 512 of T5).
        pooled: another encoder, in `folder`, whose pooled vector takes the place of the encoder's own.
        clean: how prompts are cleaned (`tokenizers.CLEANING`: "html" for Wan, "lower" for Latte).
        options: mesh, dtype, params_dtype; padding of T5 and BERT; masked of T5.

    Raises:
        InputError: another model, another hash, a LoRA for another encoder than CLIP, or what a part refuses.
    """
    folder = (package_files(package) if package else Path()) / folder
    for name, digest in sha256:
        check_hash(folder / name, digest)
    config = read_json(component(folder, "text_encoder") / "config.json")
    kind = config.get("model_type")
    if kind not in TEXTS:
        raise InputError(f"{folder}: model_type={kind!r} must be one of {', '.join(TEXTS)}")
    load, load_words = TEXTS[kind]
    if kind == "clip_text_model":
        options["loras"] = loras
    elif any(lora.text for lora in loras):
        raise InputError(f"{folder}: a LoRA of a text encoder is for CLIP, not for {kind}")
    positions = config.get("max_position_embeddings")
    if positions and length and length > positions:
        raise InputError(f"{folder}: length={length} must be at most {positions}")
    if clean not in CLEANING:
        raise InputError(f"text clean={clean!r} must be one of {', '.join(map(str, CLEANING))}")
    encoder, tokenize = load(folder, **options), load_words(folder, length=length or positions or 512)
    tokenize = dataclasses.replace(tokenize, clean=CLEANING[clean])
    width = nnx.merge(encoder.graphdef, encoder.params).width
    text = TextEncoder(encoder.graphdef, tokenize, width, width)
    if not pooled:
        return text, encoder.params
    common = {key: value for key, value in options.items() if key in ("mesh", "dtype", "params_dtype")}
    return paired(text, encoder.params, *load_text(snapshot(folder) / pooled, **common))


def paired(text: TextEncoder, params: Params, other: TextEncoder, other_params: Params) -> tuple[TextEncoder, Params]:
    """Returns the text encoder that has its tokens from one encoder, and its pooled vector from another."""
    length = len(text.tokenize(""))
    pair = TextPair(nnx.merge(text.graphdef, params), nnx.merge(other.graphdef, other_params), length)
    graphdef, state = nnx.split(pair)
    tokenize = PairTokenizer(text.tokenize, other.tokenize)
    return TextEncoder(graphdef, tokenize, text.width, other.pooled_width), nnx.to_pure_dict(state)


def load_codec(folder: str | Path, *, chunk: int | None = None, **options: Any) -> tuple[Codec, Params]:
    """Loads the autoencoder of a pipeline's folder, or a causal one of videos from what Open-Sora publishes.

    `chunk` is how many frames a decoder in time takes at once (default: all, as published); it changes the result.
    `options`: mesh, dtype, params_dtype.
    """
    config = video_config(folder)
    if config is not None:
        if chunk is not None:
            raise InputError(f"chunk={chunk} is for Stable Video Diffusion's decoder, not for {config['_class_name']}")
        return load_video_codec(folder, config, **options)
    autoencoder = load_autoencoder(folder, **options)
    arguments, _ = translate(autoencoder.config)
    sizes = dict(channels=arguments["latent_channels"], video_channels=arguments["channels_in"])
    sizes["factor"] = 2 ** (len(arguments["widths"]) - 1)
    scale, in_time = float(autoencoder.config.get("scaling_factor", SCALE)), arguments["in_time"]
    codec = latent_codec(autoencoder.graphdef, **sizes, scale=scale, chunk=chunk, in_time=in_time)
    return codec, autoencoder.params


def load_published(
    folder: str | Path,
    *,
    motion_adapter: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float | int]] = (),
    frames: int | None = None,
    at_most: int | None = None,
    free_noise: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    dtype: str | None = None,
    params_dtype: str | None = None,
    chunk: int | None = None,
    motion: float | int | None = None,
    scheduler: str | Path | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Model:
    """Loads the model of a pipeline's folder: ModelScope, AnimateDiff, Stable Diffusion with a motion adapter, Stable
    Video Diffusion, Latte, Open-Sora or Wan.

    Args:
        folder: in the diffusers format.
        loras: pairs (file or folder, strength), merged into the U-Net and the text encoder.
        frames, size: of a video, (rows, columns) in pixels (default: as published).
        at_most: upper bound on the published default number of frames.
        free_noise: (context length, stride) of FreeNoise, with which AnimateDiff draws more frames than its motion
            modules have positions for ((16, 4) as published).
        dtype: of the computation (default: `default_dtype`).
        params_dtype: of the parameters (default: the same).
        chunk: frames that Stable Video Diffusion decodes at a time (`load_codec`).
        motion: Stable Video Diffusion's motion bucket (default: 127).
        scheduler: replaces the folder's: a name ("dpmpp", "DPMSolverMultistepScheduler"), or a scheduler_config.json
            (`schedulers.read_scheduler`).
        options: of `read_network`: attention, remat, per_frame_norm.

    Raises:
        InputError: a family that is not implemented, or an argument that one of its parts refuses.
    """
    kind, index = _read_kind(folder, motion_adapter)
    family = FAMILIES[kind]
    for name, value in (("chunk", chunk), ("motion", motion)):
        if value is not None and not family.first_frame:
            raise InputError(f"{name}={value} is for Stable Video Diffusion, not for {kind}")
    changes = [read_lora(path, strength) for path, strength in loras]
    for lora in changes:
        if family.first_frame and lora.text:
            raise InputError(f"{lora.where} changes a text encoder ({len(lora.text)} modules), and {kind} has none")
    mesh = mesh or make_mesh()
    dtype = dtype or default_dtype(mesh)
    common = dict(mesh=mesh, dtype=dtype, params_dtype=params_dtype or dtype)
    loading = (dtype, params_dtype, chunk, motion, free_noise, str(scheduler), sorted(options.items()))
    options |= dict(motion_adapter=motion_adapter, window=free_noise, scheduler=scheduler)
    fields, network, (channels, _) = load_network(folder, loras=changes, **common, **options)
    codec, autoencoder = load_codec(folder, chunk=chunk, **common)
    params, config = {"network": network, "codec": autoencoder}, fields["network_config"]
    published_frames = config.get("num_frames") or family.frames
    frames = min(published_frames, at_most or published_frames) if frames is None else frames
    # In Stable Video Diffusion's config sample_size is from its first training.
    side, factor = (not family.first_frame and config.get("sample_size")) or family.side, codec.factors[1]
    rows, columns = [side] * 2 if isinstance(side, int) else side
    shape = (frames, *(size or (factor * rows, factor * columns)), 3)
    latents, fields = codec.shape(shape), at_size(fields, shape)
    if latents[3] != channels:
        raise InputError(f"{folder}: latents of {latents[3]} channels do not fit a network of {channels}")
    nnx.merge(fields["network"], network).check(*latents[:3])

    text = first_frame = None
    if family.first_frame:
        image = load_image_encoder(folder, **common)
        params["image"] = image.params
        motion = 127 if motion is None else motion
        first_frame = FirstFrame(image.graphdef, image.config["image_size"], codec, family.fps, motion)
    else:
        length = {"length": config["model_max_length"]} if "model_max_length" in config else {}
        text, params["text"] = load_text(folder, loras=changes, **family.text | length, **common)
    if index.get("expand_timesteps"):  # Wan 2.2 5B: known frames are at time 0
        fields["time_per_frame"] = True
    _log_sizes(params, dtype, min(codec.decoded or frames, frames), frames)
    return Model(
        text=text,
        codec=codec,
        shape=shape,
        fps=family.fps,
        params=params,
        first_frame=first_frame,
        noise_window=free_noise,
        loaded=frozenset(params),
        origin=repr((str(folder), str(motion_adapter), [(str(f), s) for f, s in loras], loading)),
        **fields,
    )


def _read_kind(folder: str | Path, motion_adapter: str | Path | None) -> tuple[str, Config]:
    """Returns the class of a folder's network, and its model_index.json, which Open-Sora's folders do not have."""
    kind = "UNetMotionModel" if motion_adapter else read_config(folder)["_class_name"]
    if kind == "UNet2DConditionModel":
        raise InputError(f"{folder} draws images; a motion adapter makes them move (motion_adapter)")
    if kind not in FAMILIES:
        raise InputError(f"{kind} is not implemented; {', '.join(FAMILIES)} are")
    file = snapshot(folder) / "model_index.json"
    index = {} if FAMILIES[kind].schedule is not None and not file.exists() else read_json(file)
    if any(index.get("transformer_2") or ()):
        raise InputError(f"{folder} has two networks, one for each part of the times, which is not implemented")
    return kind, index


def default_dtype(mesh: Mesh | None = None) -> str:
    """Returns the type in which published models compute: float32 on CPUs, bfloat16 on other devices of a mesh."""
    mesh = make_mesh() if mesh is None else mesh
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def _log_sizes(params: Params, dtype: str, decoded: int, frames: int) -> None:
    leaves = jax.tree.leaves(params)
    count, size, kind = sum(x.size for x in leaves), sum(x.nbytes for x in leaves) / 2**30, leaves[0].dtype
    line = "%s parameters, %.2f GiB in %s; computes in %s; decodes at most %d of %d frames at a time"
    logging.info(line, f"{count:,}", size, kind, dtype, decoded, frames)
