"""Loads published folders (diffusers format) as parts of a model, and as whole models."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.model import Model, TextEncoder
from vdm_jax.models.codec import Codec, latent_codec
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import FAMILIES
from vdm_jax.pretrained.families.stable_video_diffusion import FirstFrame
from vdm_jax.pretrained.families.unets import Family
from vdm_jax.pretrained.folder import Config, read_config
from vdm_jax.pretrained.lora import Lora, read_lora
from vdm_jax.pretrained.parts.autoencoders import load_autoencoder, translate
from vdm_jax.pretrained.parts.clip import load_image_encoder, load_text_encoder
from vdm_jax.pretrained.parts.video_autoencoders import load_video_codec, video_config
from vdm_jax.pretrained.schedulers import Schedule, read_scheduler
from vdm_jax.pretrained.tokenizers import load_tokenizer
from vdm_jax.pretrained.unets import load_unet
from vdm_jax.typing import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A published network with its config.json, its family and its schedule."""

    graphdef: nnx.GraphDef
    params: Params
    config: Config
    family: Family
    schedule: Schedule

    @property
    def sampling(self) -> dict[str, Any]:
        """Defaults of `generation.settings.Settings`."""
        return dict(
            steps=self.family.steps,
            guidance=self.family.guidance,
            known_noise=self.family.known_noise,
            solver=self.schedule.solver,
            grid=self.schedule.grid,
            grid_options=self.schedule.grid_options,
            clip=None,
        )


def load_network(
    folder: str | Path,
    *,
    motion_adapter: str | Path | None = None,
    new_motion: Mapping[str, Any] | None = None,
    loras: Sequence[Lora] = (),
    **options: Any,
) -> Network:
    """Loads a network from its pipeline's folder; `options` are arguments of `unets.load_unet`.

    An image network without a motion adapter gets new motion modules where `new_motion` is given.

    Raises:
        InputError: an unknown family, or an argument that `load_unet` refuses.
    """
    unet = load_unet(folder, motion_adapter=motion_adapter, new_motion=new_motion, loras=loras, **options)
    family = FAMILIES[unet.config["_class_name"]]
    schedule = read_scheduler(folder, family.scheduler)
    return Network(unet.graphdef, unet.params, unet.config, family, schedule)


def load_text(folder: str | Path, *, loras: Sequence[Lora] = (), **options: Any) -> tuple[TextEncoder, Params]:
    """Loads the text encoder and the tokenizer of a pipeline's folder; `options`: mesh, dtype, params_dtype."""
    encoder = load_text_encoder(folder, loras=loras, **options)
    width = encoder.config["hidden_size"]
    return TextEncoder(encoder.graphdef, load_tokenizer(folder), width, width), encoder.params


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
    codec = latent_codec(
        autoencoder.graphdef,
        channels=arguments["latent_channels"],
        factor=2 ** (len(arguments["widths"]) - 1),
        scale=autoencoder.scaling_factor,
        video_channels=arguments["channels_in"],
        chunk=chunk,
        in_time=arguments["in_time"],
    )
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
    dtype: str = "float32",
    params_dtype: str | None = None,
    chunk: int | None = None,
    motion: float | int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Model:
    """Loads the model of a pipeline's folder: ModelScope, AnimateDiff, Stable Diffusion with a motion adapter, or
    Stable Video Diffusion.

    Args:
        folder: in the diffusers format.
        loras: pairs (file or folder, strength), merged into the U-Net and the text encoder.
        frames, size: of a video, (rows, columns) in pixels (default: as published).
        at_most: upper bound on the published default number of frames.
        free_noise: (context length, stride) of FreeNoise, with which AnimateDiff draws more frames than its motion
            modules have positions for ((16, 4) as published).
        dtype, params_dtype: of the computation, and of the parameters (default: the same).
        chunk: frames that Stable Video Diffusion decodes at a time (`load_codec`).
        motion: Stable Video Diffusion's motion bucket (default: 127).
        mesh: default: all devices along data.
        options: of `load_unet`: attention, remat, per_frame_norm.

    Raises:
        InputError: a family that is not implemented, or an argument that one of its parts refuses.
    """
    kind = "UNetMotionModel" if motion_adapter else read_config(folder)["_class_name"]
    if kind == "UNet2DConditionModel":
        raise InputError(f"{folder} draws images; a motion adapter makes them move (motion_adapter)")
    if kind not in FAMILIES:
        raise InputError(f"{kind} is not implemented; {', '.join(FAMILIES)} are")
    family = FAMILIES[kind]
    for name, value in (("chunk", chunk), ("motion", motion)):
        if value is not None and not family.first_frame:
            raise InputError(f"{name}={value} is for Stable Video Diffusion, not for {kind}")
    changes = [read_lora(path, strength) for path, strength in loras]
    for lora in changes:
        if family.first_frame and lora.text:
            raise InputError(f"{lora.where} changes a text encoder ({len(lora.text)} modules), and {kind} has none")
    common = dict(mesh=make_mesh() if mesh is None else mesh, dtype=dtype, params_dtype=params_dtype or dtype)
    network = load_network(folder, motion_adapter=motion_adapter, loras=changes, window=free_noise, **common, **options)
    codec, autoencoder = load_codec(folder, chunk=chunk, **common)
    params = {"network": network.params, "codec": autoencoder}
    published_frames = network.config.get("num_frames") or family.frames
    frames = min(published_frames, at_most or published_frames) if frames is None else frames
    shape = (frames, *(size or _size(network, codec)), 3)
    latents = codec.shape(shape)
    if latents[3] != network.config["out_channels"]:
        raise InputError(
            f"{folder}: latents of {latents[3]} channels do not fit a network of {network.config['out_channels']}"
        )
    nnx.merge(network.graphdef, network.params).check(*latents[:3])

    text = first_frame = None
    if family.first_frame:
        image = load_image_encoder(folder, **common)
        params["image"] = image.params
        first_frame = FirstFrame(
            image.graphdef,
            image.config["image_size"],
            codec,
            codec.scale,
            family.fps,
            127 if motion is None else motion,
        )
    else:
        text, params["text"] = load_text(folder, loras=changes, **common)
    loading = (dtype, params_dtype, chunk, motion, free_noise, sorted(options.items()))
    return Model(
        network=network.graphdef,
        text=text,
        codec=codec,
        process=network.schedule.process,
        prediction=network.schedule.prediction,
        shape=shape,
        fps=family.fps,
        params=params,
        first_frame=first_frame,
        text_per_frame=text is not None,
        noise_window=free_noise,
        sampling=network.sampling,
        unet_config=network.config,
        loaded=frozenset(params),
        origin=repr((str(folder), str(motion_adapter), [(str(f), s) for f, s in loras], loading)),
    )


def _size(network: Network, codec: Codec) -> tuple[int, int]:
    """Returns the published rows and columns in pixels."""
    side = network.family.side
    if not network.family.first_frame:  # in Stable Video Diffusion's config sample_size is from its first training
        side = network.config.get("sample_size") or side
    rows, columns = [side] * 2 if isinstance(side, int) else side
    return codec.factors[1] * rows, codec.factors[1] * columns
