"""Places every array on the mesh: a table from parameter path to mesh axes, and layouts of batch and activations."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.models.layout import Layout
from vdm_jax.typing import Array, Float, Int, PyTree

BATCH = ("data", "fsdp")

# The first pattern found in a parameter's path gives the mesh axes of its dimensions. Tensor parallelism splits the
# heads of an attention and the middle of a block (Shoeybi et al. 2019, section 3): the first matrix is cut by columns,
# the last by rows, so a block needs one sum at its end.
RULES: tuple[tuple[str, P], ...] = (
    (r"(qkv|text_kv|up|modulation|/[qkv])/kernel$", P("fsdp", "tensor")),
    (r"(modulation|up)/bias$", P("tensor")),
    (r"/(out|down)/kernel$", P("tensor", "fsdp")),
    (r"conv1/kernel$", P(None, None, "fsdp", "tensor")),
    (r"space_conv/(conv1/bias|norm2/(scale|bias))$", P("tensor")),
    (r"conv2/kernel$", P(None, None, "tensor", "fsdp")),
    (r"kernel$", P("fsdp", None)),
    (r"", P()),
)


def path_name(path: tuple) -> str:
    """Returns a tree path as `a/b/0/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def shardings(mesh: Mesh, params: PyTree) -> PyTree:
    """Returns a NamedSharding for each parameter (or its shape), from `RULES`.

    A rule names the last dimensions of an array, so it serves a convolution (its window stays whole), a pointwise
    convolution (a matrix) and stacked blocks alike. A dimension that the mesh axis does not divide stays whole.
    """

    def to_sharding(path, leaf):
        name = path_name(path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        missing = len(leaf.shape) - len(spec)
        spec = P(*[None] * missing, *spec) if missing > 0 and any(spec) else spec[-missing:] if missing < 0 else spec
        pairs = zip(spec, leaf.shape, strict=False)  # the last rule is for arrays of any number of dimensions
        fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in pairs]
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(to_sharding, params)


def sharded(params: PyTree, mesh: Mesh) -> PyTree:
    """Returns shapes with the shardings of a mesh."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings(mesh, params)
    )


def like_params(mesh: Mesh, tree: PyTree, params: PyTree, param_shardings: PyTree) -> PyTree:
    """Returns shardings for a tree that holds copies of the parameters (EMA, Adam's moments) and other arrays.

    A leaf is sharded like the parameter whose path ends its own path and whose shape it has; other leaves are
    replicated. Without explicit shardings, `jax.jit(tx.init)(params)` silently replicates the moments.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    pairs = zip(leaves, jax.tree.leaves(param_shardings), strict=True)
    known = {path_name(path): (leaf.shape, sharding) for (path, leaf), sharding in pairs}

    def to_sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(to_sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises InputError if data × fsdp, or its product with `accumulate`, does not divide the batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise InputError(f"batch_size={batch_size} must be a multiple of data × fsdp = {ways}")
    if batch_size % (accumulate * ways):
        raise InputError(
            f"batch_size={batch_size} must be a multiple of accumulate × data × fsdp = {accumulate * ways}"
        )


def share_of_batch(mesh: Mesh) -> tuple[int, int]:
    """Returns the number of this process's share of the batch, and the number of equal shares.

    Processes whose devices hold the same rows, as over `context` or `tensor`, read the same share. The topology of the
    machine may interleave the rows of several processes; `jax.make_array_from_process_local_data` puts the rows of a
    share in their places. Raises InputError if processes hold different numbers of rows, or rows that overlap in part.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    return _share(processes.reshape(ways, -1), jax.process_index())


def _share(processes: Int[np.ndarray, "parts devices"], process: int) -> tuple[int, int]:
    """Implements `share_of_batch`; `processes[i, j]` is the process of the j-th device that holds part i."""
    # The check covers all processes: all must fail together, or some would wait for the rest.
    parts = {int(n): tuple(np.flatnonzero((processes == n).any(1)).tolist()) for n in np.unique(processes)}
    shares = sorted(set(parts.values()))
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) > len(processes):
        listed = "; ".join(f"process {n} holds {', '.join(map(str, held))}" for n, held in list(parts.items())[:3])
        raise InputError(
            f"mesh: the processes do not share the batch evenly: of its {len(processes)} parts, {listed} "
            "(change data × fsdp against context × tensor)"
        )
    return shares.index(parts[process]), len(shares)


def full_batches(count: int, batch_size: int, mesh: Mesh) -> Iterator[tuple[int, Int[np.ndarray, "B"]]]:
    """Yields (first row, rows) for each batch of `count` videos.

    All batches have the same size, so one program serves them: the last batch is filled up with its own first rows.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-min(batch_size, count) // ways) * ways
    for start in range(0, count, size):
        yield start, start + np.arange(size) % min(size, count - start)


@dataclasses.dataclass(frozen=True)
class ActivationLayout(Layout):
    """Places activations on a mesh: the batch over `data` and `fsdp`; frames, rows or heads over `context`.

    Slots that mix pixels ("space") have frames over `context`, slots that mix frames ("time") have rows, and attention
    over all tokens has heads. One all-to-all leads from one state to the next, and no slot gathers an activation.
    cuDNN's kernel is the exception: it merges batch and frames, so a context mesh of GPUs needs `attention="xla"`.
    """

    mesh: Mesh

    def __call__(self, x: Float[Array, "B T H W C"], where: str) -> Float[Array, "B T H W C"]:
        """Returns x, placed for a slot that mixes "space" or "time"."""
        spec = {"space": P(BATCH, "context"), "time": P(BATCH, None, "context")}[where]
        if x.shape[len(spec) - 1] % self.mesh.shape["context"]:
            spec = P(BATCH)  # a coarse level has fewer rows than devices: each device computes all of its batch
        return self._constrain(x, spec)

    def per_position(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C2"]:
        """Applies a function of vectors to each position; axes stay apart, so that each can be sharded."""
        return function(x)

    def per_frame(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        """Applies a function of (B·T) images in the layout of space slots.

        Frames are merged device by device: B and T in plain order would change the devices of the frames.
        """
        i, j = self.mesh.shape["data"] * self.mesh.shape["fsdp"], self.mesh.shape["context"]
        if x.shape[1] % j:
            j = 1
        images = rearrange(x, "(i b) (j t) h w c -> (i j b t) h w c", i=i, j=j)
        free = [P.UNCONSTRAINED] * 3  # on a tensor mesh the middle of a block is cut by channels
        images = function(self._constrain(images, P((*BATCH, "context") if j > 1 else BATCH, *free)))
        return rearrange(images, "(i j b t) h w c -> (i b) (j t) h w c", i=i, j=j, t=x.shape[1] // j)

    def heads(self, x: Float[Array, "B T P N D"], back: bool = False) -> Float[Array, "B T P N D"]:
        """Returns queries, keys or values, placed for attention over all tokens: whole frames, heads over `context`.

        With `back`, returns the result of the attention, placed as the queries were before. This is DeepSpeed-Ulysses
        (Jacobs et al. 2023, arXiv 2309.14509). Heads also lie over `tensor`. Where they do not divide, each device of
        `context` computes all heads.
        """
        size, (frames, heads) = self.mesh.shape, (x.shape[1], x.shape[3])
        tensor = "tensor" if heads % size["tensor"] == 0 else None
        spread = P(BATCH, "context" if frames % size["context"] == 0 else None, None, tensor)
        if heads % (size["tensor"] * size["context"]) == 0:
            whole = P(BATCH, None, None, ("tensor", "context"))
        else:
            whole = P(BATCH, None, None, "context" if heads % size["context"] == 0 else tensor)
        # With the second constraint alone, XLA would gather all tokens before the projection to heads.
        for spec in (whole, spread) if back else (spread, whole):
            x = self._constrain(x, spec)
        return x

    def _constrain(self, x: Array, spec: P) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec)) if self.mesh.size > 1 else x
