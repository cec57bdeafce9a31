"""Published models as a `Pipeline`: ModelScope, AnimateDiff in Stable Diffusion, and Stable Video Diffusion."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.generation import pipeline
from vdm_jax.generation.image_to_video import ImageToVideo, no_words
from vdm_jax.generation.pipeline import Codec, Pipeline
from vdm_jax.generation.settings import Settings
from vdm_jax.models.autoencoder import decode_in_chunks
from vdm_jax.models.clip import clip_image_input
from vdm_jax.models.latent_denoiser import LatentDenoiser
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.autoencoders import PublishedAutoencoder, load_autoencoder, translate
from vdm_jax.pretrained.clip import PublishedEncoder, load_image_encoder, load_text_encoder
from vdm_jax.pretrained.folder import read_config
from vdm_jax.pretrained.lora import read_lora
from vdm_jax.pretrained.scheduler import read_scheduler
from vdm_jax.pretrained.tokenizer import load_tokenizer
from vdm_jax.pretrained.unets import load_unet

SVD = "UNetSpatioTemporalConditionModel"
# As published: (frames, latent rows and columns, steps, guidance, frames a second).
DEFAULTS = {
    "UNet3DConditionModel": (16, 32, 50, 9.0, 8.0),
    "UNetMotionModel": (16, 64, 50, 7.5, 8.0),
    SVD: (14, (72, 128), 25, 3.0, 7.0),
}
CHUNK = 4  # frames that the autoencoder works on at a time, at most


def load(path: str | Path, **options) -> Pipeline:
    """The pipeline of a run's folder (`pipeline.load`), or of a published model's (`load_published`)."""
    published = (Path(path) / "model_index.json").exists()
    return load_published(path, **options) if published else pipeline.load(path, **options)


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
    motion: float | int = 127,
    new_motion: Mapping[str, Any] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    **options,
) -> Pipeline:
    """Loads a pipeline's folder in the diffusers format: `load_published("ms-1.7b")(["a panda"], seed=0)`.

    Args:
        folder: of ModelScope, of AnimateDiff as a pipeline, of Stable Diffusion with a `motion_adapter`, or of Stable
            Video Diffusion.
        loras: pairs (file or folder, strength), merged into the U-Net and the text encoder.
        frames, size: of a video, (rows, columns) in pixels (default: as published).
        at_most: no more frames than these, where as many as published would be.
        free_noise: (context length, stride) of FreeNoise, which takes AnimateDiff more frames than its motion modules
            know ((16, 4) as published).
        dtype, params_dtype: of the computation, and of the parameters (default: the same).
        chunk: frames that Stable Video Diffusion decodes at a time, which changes them (default: all, as published).
        motion: Stable Video Diffusion's motion bucket.
        new_motion, seed, options: of `load_unet`, to train with.
        mesh: default: all devices along data.

    Raises:
        InputError: a family that has no pipeline here, or what the parts of it refuse.
    """
    mesh = make_mesh() if mesh is None else mesh
    moves = motion_adapter is not None or new_motion is not None
    kind = "UNetMotionModel" if moves else read_config(folder)["_class_name"]
    if kind == "UNet2DConditionModel":
        raise InputError(f"{folder} draws images; a motion adapter makes them move (motion_adapter)")
    if kind not in DEFAULTS:
        raise InputError(f"{kind} has no pipeline here; {', '.join(DEFAULTS)} have")
    loading = (dtype, params_dtype, chunk, motion, free_noise, new_motion, seed, sorted(options.items()))
    changes = [read_lora(path, strength) for path, strength in loras]
    for lora in changes:
        if kind == SVD and lora.text:
            raise InputError(f"{lora.where} changes a text encoder ({len(lora.text)} modules), and {kind} has none")
    how = dict(mesh=mesh, dtype=dtype, params_dtype=params_dtype or dtype)
    motion_modules = dict(motion_adapter=motion_adapter, new_motion=new_motion, seed=seed, window=free_noise)
    unet = load_unet(folder, **motion_modules, loras=changes, **how, **options)
    network = nnx.merge(unet.graphdef, unet.params)
    schedule = read_scheduler(folder, motion_modules=moves)
    autoencoder = load_autoencoder(folder, **how)
    usual, side, steps, guidance, fps = DEFAULTS[kind]
    usual = unet.config.get("num_frames") or usual
    frames = min(usual, at_most or usual) if frames is None else frames
    network.check_frames(frames)
    images, _ = translate(autoencoder.config)
    factor = 2 ** (len(images["widths"]) - 1)
    if kind != SVD:  # whose config says the size of its first training
        side = unet.config.get("sample_size") or side
    rows, columns = size or [factor * n for n in ([side] * 2 if isinstance(side, int) else side)]
    if rows % factor or columns % factor or min(rows, columns) < factor:
        raise InputError(f"size={rows},{columns} must be multiples of {factor}")

    in_time = kind == SVD
    latents = (frames, rows // factor, columns // factor, unet.config["out_channels"])
    common = dict(
        process=schedule.process,
        prediction=schedule.prediction,
        shape=(frames, rows, columns, images["channels_out"]),
        mesh=mesh,
        fps=fps,
        settings=Settings(
            steps=steps,
            solver=schedule.solver,
            grid=schedule.grid,
            grid_options=schedule.grid_options,
            guidance=guidance,
            clip=None,
            known_noise=0.02 if in_time else 0.0,
        ),
        step=0,
        unet_config=unet.config,
        codec=make_codec(autoencoder, latents, chunk or frames if in_time else None),
        origin=repr((str(folder), str(motion_adapter), [(str(f), s) for f, s in loras], loading)),
    )
    if in_time:
        look = make_look(load_image_encoder(folder, **how), autoencoder)
        common |= dict(graphdef=unet.graphdef, params=unet.params, tokenize=no_words)
        return ImageToVideo(**common, look=look, motion=motion)
    text = load_text_encoder(folder, loras=changes, **how)
    graphdef, params = nnx.split(LatentDenoiser(nnx.merge(text.graphdef, text.params), network))
    common |= dict(graphdef=graphdef, params=nnx.to_pure_dict(params), tokenize=load_tokenizer(folder))
    return Pipeline(**common, text_per_frame=True)


def make_look(encoder: PublishedEncoder, autoencoder: PublishedAutoencoder) -> Callable:
    """What `ImageToVideo` sees of pictures: CLIP embeddings, and latents that are not scaled."""
    size = encoder.config["image_size"]

    @jax.jit
    def look(encoder_params, params, pictures, noisy):
        embedding = nnx.merge(encoder.graphdef, encoder_params)(clip_image_input(pictures, size))
        mean, _ = nnx.merge(autoencoder.graphdef, params).encode(noisy[:, None])
        return embedding, mean[:, 0]

    return functools.partial(look, encoder.params, autoencoder.params)


def make_codec(autoencoder: PublishedAutoencoder, shape: tuple[int, int, int, int], chunk: int | None = None) -> Codec:
    """An autoencoder on the frames of a video, a few at a time; latents are scaled for the network.

    `chunk` is how many frames a decoder in time takes at a time, None for an autoencoder of images.
    """
    scale = autoencoder.scaling_factor
    frames = max(n for n in range(1, CHUNK + 1) if shape[0] % n == 0)  # one shape for all chunks

    @jax.jit
    def encode(params, video):
        def one(part):
            mean, _ = nnx.merge(autoencoder.graphdef, params).encode(part)
            return scale * mean

        latents = jax.lax.map(one, rearrange(video, "b (n t) h w c -> n b t h w c", t=frames))
        return rearrange(latents, "n b t h w c -> b (n t) h w c")

    @jax.jit
    def decode(params, latents):
        return nnx.merge(autoencoder.graphdef, params).decode(latents / scale)

    return Codec(
        shape,
        autoencoder.params,
        encode,
        lambda params, latents: decode_in_chunks(lambda part: decode(params, part), latents, chunk or frames),
    )
