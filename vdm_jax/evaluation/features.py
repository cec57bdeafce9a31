"""Features of clips by published networks, for Fréchet video distances and CLIP scores; and LPIPS.

Clips are `B T H W C`, uint8 or float32 in [-1, 1], RGB or grey (the channel is repeated). They lie on the host, as an
array or a memory-mapped file. A batch at a time is read, resized and given to the network, in float32, on the mesh that
the network was loaded on. Results are on the host. Clips of other channels, and clips whose frames are too few or too
small for the network, raise InputError.

I3D: the 400 logits (Unterthiner et al. 2018, arXiv 1812.01717). VideoMAE: the input of its classifier (Ge et al. 2024,
arXiv 2404.12391). CLIP score: the mean cosine of frames and text (Hessel et al. 2021, arXiv 2104.08718).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.models.judges import i3d
from vdm_jax.models.judges.i3d import I3D
from vdm_jax.models.judges.lpips import LPIPS
from vdm_jax.models.judges.videomae import VideoMAE
from vdm_jax.models.text.clip import DEVIATION, MEAN, ClipText, ClipVision
from vdm_jax.parallel.sharding import batch_sharding, full_batches
from vdm_jax.pretrained.names import Part
from vdm_jax.pretrained.parts.clip_pair import PublishedClip
from vdm_jax.typing import Array, Float, Int, UInt8

Videos = Float[np.ndarray, "B T H W C"] | UInt8[np.ndarray, "B T H W C"]
Features = Float[np.ndarray, "B D"]


def i3d_features(network: Part, videos: Videos, *, batch_size: int = 16) -> Features:
    """The logits of the network of `load_i3d`. Clips are resized to 224×224, bilinear without antialiasing."""
    if videos.shape[1] < i3d.FRAMES:
        raise InputError(f"clips of {videos.shape[1]} frames must have at least {i3d.FRAMES} for I3D")
    return _in_batches(_i3d, network, videos, batch_size)


def videomae_features(network: Part, videos: Videos, *, batch_size: int = 4) -> Features:
    """The pooled features of the network of `load_videomae`. Clips are resized, bilinear without antialiasing.

    Pixels are in [0, 1] and not normalised, as in the package cd-fvd of the authors of content-debiased distances.
    VideoMAE was trained on normalised clips.
    """
    frames = network.config["num_frames"]
    if videos.shape[1] != frames:
        raise InputError(f"clips of {videos.shape[1]} frames must have {frames}, as VideoMAE's config says")
    return _in_batches(_videomae, network, videos, batch_size)


def lpips_distances(
    network: Part, videos: Videos, reference: np.ndarray, *, batch_size: int = 16
) -> Float[np.ndarray, "B"]:
    """LPIPS between each frame and the same frame of the reference, at their own size; the mean over frames."""
    if videos.shape != reference.shape:
        raise InputError(f"clips of {videos.shape} and their reference of {reference.shape} must have one shape")
    return _in_batches(_lpips, network, np.stack([videos, reference], 1), batch_size)


def clip_image_features(clip: PublishedClip, videos: Videos, *, batch_size: int = 4) -> Float[np.ndarray, "B T P"]:
    """CLIP's embedding of every frame."""
    return _in_batches(_clip_image, clip.image, videos, batch_size)


def clip_text_features(clip: PublishedClip, texts: Sequence[str], *, batch_size: int = 64) -> Features:
    """CLIP's embedding of every text."""
    return _in_batches(_clip_text, clip.text, np.stack([clip.tokenize(text) for text in texts]), batch_size)


def cosines(frames: Float[np.ndarray, "B T P"], texts: Float[np.ndarray, "B P"]) -> Float[np.ndarray, "B"]:
    """The CLIP score of each clip: the mean cosine of its frames with its text, in [-1, 1]."""
    norms = np.linalg.norm(frames, axis=-1) * np.linalg.norm(texts, axis=-1)[:, None]
    return (np.einsum("btp,bp->bt", frames, texts) / norms).mean(1)


def resized(videos: Float[Array, "B T H W C"], size: int) -> Float[Array, "B T {size} {size} C"]:
    """Resizes to a square as torch.nn.functional.interpolate does: bilinear, corners not aligned."""
    shape = (*videos.shape[:2], size, size, videos.shape[-1])
    return jax.image.resize(videos, shape, "bilinear", antialias=False)


def clip_input(videos: Float[Array, "B T H W 3"], size: int) -> Float[Array, "B T {size} {size} 3"]:
    """Prepares frames as CLIP's image processor does: shorter side to `size`, centre crop, normalisation.

    Resizing is bicubic with antialiasing, along columns and then along rows. Pixels are clipped after each, but not
    rounded to 8 bits.
    """
    b, t, *sides, c = videos.shape
    h, w = (side * size // min(sides) for side in sides)
    for shape in ((b, t, sides[0], w, c), (b, t, h, w, c)):
        videos = jnp.clip(jax.image.resize(videos, shape, "bicubic"), -1, 1)
    top, left = (h - size) // 2, (w - size) // 2
    videos = videos[:, :, top : top + size, left : left + size]
    return ((videos + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)


def _i3d(network: I3D, videos: Array) -> Float[Array, "B D"]:
    return network(resized(_in_colour(videos), i3d.SIZE)).logits


def _videomae(network: VideoMAE, videos: Array) -> Float[Array, "B D"]:
    return network(resized((_in_colour(videos) + 1) / 2, network.shape[1]))


def _lpips(network: LPIPS, pairs: Array) -> Float[Array, "B"]:
    a, b = jnp.moveaxis(_in_colour(pairs), 1, 0)
    distances = network(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))
    return distances.reshape(a.shape[:2]).mean(1)


def _clip_image(network: ClipVision, videos: Array) -> Float[Array, "B T P"]:
    frames = clip_input(_in_colour(videos), network.size)
    return network(frames.reshape(-1, *frames.shape[2:])).reshape(*frames.shape[:2], -1)


def _clip_text(network: ClipText, tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
    return network(tokens).pooled


def _in_colour(videos: Array) -> Float[Array, "*S 3"]:
    """RGB, float32 in [-1, 1]."""
    if videos.shape[-1] not in (1, 3):
        raise InputError(f"clips of {videos.shape[-1]} channels must have 1 or 3")
    x = videos.astype(jnp.float32)
    x = x / 127.5 - 1 if videos.dtype == jnp.uint8 else x
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def _in_batches(function: Callable, network: Part, inputs: np.ndarray, batch_size: int) -> np.ndarray:
    """Applies `function(network, batch)` to all rows of the inputs, in full batches."""
    if batch_size < 1 or len(inputs) < 1:
        raise InputError(f"batch_size={batch_size} and the number of clips, {len(inputs)}, must be at least 1")
    mesh = jax.tree.leaves(network.params)[0].sharding.mesh
    compiled, outputs = _compiled(function, network.graphdef, mesh), []
    for start, rows in full_batches(len(inputs), batch_size, mesh):
        batch = jax.device_put(inputs[rows], batch_sharding(mesh))
        outputs.append(np.asarray(compiled(network.params, batch))[: len(inputs) - start])
    return np.concatenate(outputs)


@functools.lru_cache(maxsize=16)
def _compiled(function: Callable, graphdef: nnx.GraphDef, mesh: Mesh) -> Callable:
    def apply(params, batch):
        with jax.default_matmul_precision("highest"):  # else TPUs and GPUs round to 8 or 10 bits
            return function(nnx.merge(graphdef, params), batch)

    return jax.jit(apply, out_shardings=NamedSharding(mesh, P()))
