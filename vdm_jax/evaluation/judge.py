"""The judge of moving digits: a classifier that reads the digit and the direction of a clip.

It has 73,000 parameters and is trained in seconds, on real clips of the train split only. Its features serve Fréchet
distances. This file also has the metrics of moving digits (identity and position of the digit, jerk, distance from the
training clips), and the clips that give a score its floors (shuffled, frozen).
"""

import dataclasses
import functools
import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange, reduce
from flax import nnx
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from vdm_jax.errors import InputError
from vdm_jax.files import whole_file
from vdm_jax.typing import Array, Float, Int, Key, Params, PyTree, Scalar, UInt8

log = logging.getLogger(__name__)

Clips = Float[Array | np.ndarray, "B T H W C"]  # in [-1, 1]
Videos = Clips | UInt8[Array | np.ndarray, "B T H W C"]  # bytes, as in the data set
Rows = Float[Array | np.ndarray, "_ ..."]
Labels = Int[Array | np.ndarray, "B"]
MOTIONS = 6  # as many as data.moving_digits.MOTIONS: that module imports TFDS, which takes a second


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the judge is trained. Clips are made noisy, blurred and dim at random, as generated clips may be."""

    steps: int = 350
    batch: int = 128
    clips: int = 6000  # number read from the train split
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    noise: float = 0.15  # largest standard deviation; black is 0 and white 1
    gain: float = 0.2  # largest relative change of brightness
    blur: float = 0.5  # largest share of a pixel that comes from its four neighbours
    version: int = 1  # of the network and the loss below


class Verdict(NamedTuple):
    """The output of the judge for each clip."""

    digit: Float[Array, "B 10"]  # probabilities
    direction: Float[Array, "B 6"]  # probabilities, in the order of data.moving_digits.MOTIONS
    frame_digit: Float[Array, "B T 10"]  # probabilities from single frames
    frames: Float[Array, "B T 64"]  # features of single frames: blind to motion
    features: Float[Array, "B 96"]  # features of the clip: the mean over frames, then the features of motion


class Network(nnx.Module):
    """A branch for the digit sees single frames; a branch for the direction sees all frames in order."""

    def __init__(self, frames: int, channels: int, *, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.look = nnx.List([conv(channels, 16), conv(16, 32, strides=2), conv(32, 64, strides=2), conv(64, 64)])
        self.track = nnx.List([conv(frames * channels, 32), conv(32, 32, strides=2)])
        self.digit = nnx.Linear(64, 10, rngs=rngs)
        self.direction = nnx.Linear(32, MOTIONS, rngs=rngs)

    def appearance(self, videos: Float[Array, "B T H W C"]) -> Float[Array, "B T 64"]:
        """The maximum over the pixels of each frame."""
        x = rearrange(_shrink(videos, 16), "b t h w c -> (b t) h w c")
        for layer in self.look:
            x = nnx.relu(layer(x))
        return x.max((1, 2)).reshape(*videos.shape[:2], -1)

    def motion(self, videos: Float[Array, "B T H W C"]) -> Float[Array, "B 32"]:
        """The mean over pixels. Frames are channels, so that their order counts."""
        x = rearrange(_shrink(videos, 8), "b t h w c -> b h w (t c)")
        for layer in self.track:
            x = nnx.relu(layer(x))
        return x.mean((1, 2))


def _shrink(videos: Float[Array, "B T H W C"], size: int) -> Float[Array, "B T h w C"]:
    """Average pooling by the largest whole factor that leaves the smaller side at least `size` pixels."""
    h, w = videos.shape[2:4]
    f = max(1, min(h, w) // size)
    return reduce(videos[:, :, : h // f * f, : w // f * f], "b t (h i) (w j) c -> b t h w c", "mean", i=f, j=f)


@functools.cache
def _structure(shape: tuple[int, ...]) -> tuple[nnx.GraphDef, PyTree]:
    """The graph of the network for clips of a shape (T, H, W, C), and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Network(shape[0], shape[-1], rngs=nnx.Rngs(0))), nnx.Param)


def _brightness(videos: Videos) -> Float[Array, "B T H W C"]:
    """Pixels from 0 (black) to 1 (white)."""
    scale, shift = (255, 0) if videos.dtype == np.uint8 else (2, 1)
    return ((jnp.asarray(videos, jnp.float32) + shift) / scale).clip(0, 1)


@functools.partial(jax.jit, static_argnums=0)
def _classify(graph: nnx.GraphDef, params: Params, videos: Float[Array, "B T H W C"]) -> Verdict:
    network = nnx.merge(graph, params)
    with jax.default_matmul_precision("highest"):  # else TPUs and GPUs round to 8 or 10 bits
        frames, motion = network.appearance(videos), network.motion(videos)
        logits = network.digit(frames.mean(1)), network.direction(motion), network.digit(frames)
    features = jnp.concatenate([frames.mean(1), motion], axis=-1)
    return Verdict(*map(jax.nn.softmax, logits), frames, features)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained judge for clips of one shape."""

    params: Params
    shape: tuple[int, ...]  # T H W C
    recipe: str  # hash of the recipe, the seed and the data

    def __call__(self, videos: Videos) -> Verdict:
        """Digit, direction and features of every clip. Raises InputError for clips of another shape."""
        if videos.shape[1:] != self.shape:
            raise InputError(f"videos={videos.shape[1:]} must be {self.shape}, the judge's T H W C")
        graph, _ = _structure(self.shape)
        batch, count = 128, len(videos)  # all batches have one shape and type: a single compilation
        videos = np.pad(np.asarray(_brightness(videos)), [(0, -count % batch)] + [(0, 0)] * 4)
        parts = [_classify(graph, self.params, videos[i : i + batch]) for i in range(0, count, batch)]
        return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)

    @property
    def digest(self) -> str:
        """A hash of the parameters, to publish with every score."""
        leaves = [np.asarray(x, np.float32).tobytes() for x in jax.tree.leaves(self.params)]
        return hashlib.sha256(b"".join(leaves)).hexdigest()[:12]


def train_judge(
    videos: Videos, digits: Labels, directions: Labels, *, seed: int = 0, recipe: Recipe = Recipe()
) -> Judge:
    """Trains a judge on real clips; the labels are digits 0..9 and indices into `MOTIONS`.

    All random numbers come from NumPy: compiling JAX's generators would take longer than the training.
    """
    videos, digits, directions = (np.asarray(x) for x in (videos, digits, directions))
    rng = np.random.default_rng(seed)
    graph, shapes = _structure(videos.shape[1:])

    def initial(leaf):  # He's normal initialisation; zero for biases
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0
        return jnp.asarray(deviation * rng.standard_normal(leaf.shape), jnp.float32)

    schedule = optax.cosine_onecycle_schedule(recipe.steps, recipe.learning_rate, pct_start=0.15)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)

    def cost(logits, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    def loss(params: Params, batch: dict) -> Scalar:
        network, clips = nnx.merge(graph, params), _augmented(batch)
        # One frame of each clip: a batch of many handwritings teaches more than many frames of few handwritings.
        single = jnp.take_along_axis(clips, batch["frame"], axis=1)
        digit = network.digit(network.appearance(single)[:, 0])
        direction = network.direction(network.motion(clips))
        return cost(digit, batch["digit"]) + cost(direction, batch["direction"])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(initial, shapes)
    state = optimizer.init(params)
    for batch in _batches(videos, digits, directions, recipe, rng):
        params, state = step(params, state, batch)
    return Judge(params, videos.shape[1:], _hash(recipe, seed, videos.shape[1:]))


def _batches(videos, digits, directions, recipe: Recipe, rng: np.random.Generator) -> Iterator[dict]:
    """Yields random clips with the random numbers that `_augmented` needs."""
    size = recipe.batch
    bank = rng.standard_normal((4 * size, *videos.shape[1:]), np.float32)  # noise is reused: drawing is slow
    epochs = size * recipe.steps // len(videos) + 1
    order = rng.permuted(np.tile(np.arange(len(videos)), (epochs, 1)), axis=1).ravel()

    def uniform(low, high):
        return rng.uniform(low, high, (size, 1, 1, 1, 1)).astype(np.float32)

    for chosen in order[: size * recipe.steps].reshape(recipe.steps, size):
        yield {
            "clips": videos[chosen],
            "digit": digits[chosen].astype(np.int32),
            "direction": directions[chosen].astype(np.int32),
            "frame": rng.integers(videos.shape[1], size=(size, 1, 1, 1, 1)),
            "gain": uniform(1 - recipe.gain, 1 + recipe.gain),
            "blur": uniform(0, recipe.blur),
            "noise": bank[rng.integers(len(bank), size=size)],
            "noise_level": uniform(0, recipe.noise),
        }


def _augmented(batch: dict) -> Float[Array, "B T H W C"]:
    """The clips with changed brightness, blur and noise."""
    x = _brightness(batch["clips"]) * batch["gain"]
    neighbours = sum(jnp.roll(x, by, axis) for by in (-1, 1) for axis in (2, 3)) / 4
    x = x + batch["blur"] * (neighbours - x)
    return (x + batch["noise_level"] * batch["noise"]).clip(0, 1)


def _hash(recipe: Recipe, *origin) -> str:
    return hashlib.sha256(json.dumps([dataclasses.asdict(recipe), *origin]).encode()).hexdigest()[:12]


def load_or_train_judge(path: str | Path, builder: Any, *, seed: int = 0, recipe: Recipe = Recipe()) -> Judge:
    """The judge of a prepared `MovingDigits`: read from the file at `path`, or trained and saved there.

    A file that is damaged, or of another recipe, seed or data set, is replaced with a warning.
    Raises InputError for the data set with two digits in a clip: the judge reads one digit.
    """
    path, name = Path(path), builder.info.full_name
    if builder.builder_config.digits != 1:
        raise InputError(f"builder={name} has clips of two digits; the judge must have one digit per clip")
    shape = builder.info.features["video"].shape
    origin = _hash(recipe, seed, name, shape)
    if path.exists():
        try:
            return Judge(_load(path, origin, shape), shape, origin)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s does not hold the wanted judge (%s): training it again", path, error)
    start, source = time.perf_counter(), builder.as_data_source(split="train")
    rows = [source[i] for i in range(min(recipe.clips, len(source)))]  # TFDS has shuffled them
    labels = [np.concatenate([row[key] for row in rows]) for key in ("digit", "direction")]
    judge = train_judge(np.stack([row["video"] for row in rows]), *labels, seed=seed, recipe=recipe)
    judge = dataclasses.replace(judge, recipe=origin)
    log.info("trained the judge of %s in %.0f s", name, time.perf_counter() - start)
    arrays = {keystr(key): np.asarray(leaf) for key, leaf in tree_leaves_with_path(judge.params)}
    try:
        with whole_file(path) as part:
            np.savez(part, recipe=np.array(origin), **arrays)
    except InputError as error:  # the judge can be used without its file
        log.warning("%s: the judge is not saved", error)
    return judge


def _load(path: Path, origin: str, shape: tuple[int, ...]) -> Params:
    """The parameters in a file. Raises ValueError or KeyError for a file of another recipe or network."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        if str(file["recipe"]) != origin:
            raise ValueError(f"recipe {file['recipe']}, not {origin}")
        return tree_map_with_path(lambda key, _: jnp.asarray(file[keystr(key)]), _structure(shape)[1])


def centroids(videos: Videos) -> Float[Array, "B T 2"]:
    """Row and column of the centre of brightness of every frame, in pixels; the middle for a black frame."""
    weight = _brightness(videos).sum(-1)
    (h, w), total = weight.shape[-2:], weight.sum((2, 3))
    moments = jnp.stack([(weight.sum(axis) * jnp.arange(n)).sum(-1) for axis, n in ((3, h), (2, w))], axis=-1)
    middle = jnp.array([(h - 1) / 2, (w - 1) / 2])
    return jnp.where(total[..., None] > 0, moments / jnp.maximum(total, 1e-9)[..., None], middle)


def jerk(videos: Videos) -> Float[Array, "B"]:
    """Mean length of the second difference of the centroid, px/frame²."""
    if videos.shape[1] < 3:
        raise InputError(f"frames={videos.shape[1]} must be at least 3 to have a second difference")
    return jnp.linalg.norm(jnp.diff(centroids(videos), n=2, axis=1), axis=-1).mean(1)


def identity_consistency(verdict: Verdict) -> Float[np.ndarray, "B"]:
    """The share of pairs of frames of a clip in which the judge reads the same digit; higher is better."""
    frames = verdict.frame_digit.shape[1]
    if frames < 2:
        raise InputError(f"frames={frames} must be at least 2 to have a pair")
    counts = np.eye(10)[np.argmax(verdict.frame_digit, axis=-1)].sum(1)  # frames that show each digit
    return (np.square(counts).sum(1) - frames) / (frames * (frames - 1))


def position_error(videos: Videos, real: Videos, new: Sequence[int] | None = None) -> Float[np.ndarray, "B"]:
    """Mean distance of the centroid from the centroid of the real clip, in pixels, over the frames `new` (or all)."""
    if videos.shape != real.shape:
        raise InputError(f"videos={videos.shape} and real={real.shape} must have one shape")
    distance = np.linalg.norm(np.asarray(centroids(videos)) - np.asarray(centroids(real)), axis=-1)
    return distance[:, slice(None) if new is None else list(new)].mean(1)


def shuffle_frames(videos: Videos, key: Key[Array, ""]) -> Array:
    """Puts the frames of each clip in a random order: content without motion, a floor for scores."""
    order = jnp.argsort(jax.random.uniform(key, videos.shape[:2]), axis=1)
    return jnp.take_along_axis(jnp.asarray(videos), order[..., None, None, None], axis=1)


def frozen(videos: Videos) -> Array:
    """Repeats the first frame of each clip: a floor for scores."""
    return jnp.broadcast_to(jnp.asarray(videos)[:, :1], videos.shape)


def nearest(rows: Rows, training: Rows) -> tuple[Float[np.ndarray, "_"], Int[np.ndarray, "_"]]:
    """The root mean square difference of each row (clip or feature) from the nearest training row, and its index."""
    from sklearn.metrics import pairwise_distances_argmin

    if rows.shape[1:] != training.shape[1:]:
        raise InputError(f"rows={rows.shape} and training={training.shape} must differ in their number alone")
    flat, flat_training = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (rows, training))
    index = pairwise_distances_argmin(flat, flat_training)
    return np.sqrt(np.square(flat - flat_training[index]).mean(1)), index  # exactly 0 for a copy


def rank(values: Float[np.ndarray, "B"], among: Float[np.ndarray, "_"]) -> Float[np.ndarray, "B"]:
    """The share of `among` below each value; ties count half.

    For distances from the nearest training clip, of generated clips among held-out clips, the mean is the statistic of
    Meehan et al. 2020. It is 0.5 where generated clips are as near to training clips as held-out clips are. It falls
    towards 0 for copies, and rises towards 1 for clips far from any data.
    """
    counts = [np.searchsorted(np.sort(among), values, side) for side in ("left", "right")]
    return np.mean(counts, axis=0) / len(among)
