"""Where every array lives: one table from parameter path to mesh axes, and the layouts of batch and activations."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Int, PyTree

BATCH = ("data", "fsdp")

# The first pattern that is found in a parameter's path gives the axes of its dimensions. Tensor parallelism
# splits the heads of an attention and the middle of a block (Shoeybi et al. 2019, section 3): what enters is cut
# by columns, what leaves by rows, so that a block needs one sum at its end.
RULES: tuple[tuple[str, P], ...] = (
    (r"(qkv|context_kv|cross_q|up|modulation|/[qkv])/kernel$", P("fsdp", "tensor")),
    (r"(modulation|up)/bias$", P("tensor")),
    (r"/(out|cross_out|down)/kernel$", P("tensor", "fsdp")),
    (r"conv1/kernel$", P(None, None, "fsdp", "tensor")),
    (r"space_conv/(conv1/bias|norm2/(scale|bias))$", P("tensor")),
    (r"conv2/kernel$", P(None, None, "tensor", "fsdp")),
    (r"kernel$", P("fsdp", None)),
    (r"", P()),
)


def path_name(path: tuple) -> str:
    """A tree path as `a/b/0/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def shardings(mesh: Mesh, params: PyTree) -> PyTree:
    """A NamedSharding for each parameter (or its shape), from `RULES`.

    A dimension that the mesh axis does not divide stays whole. The last dimensions of an array are those of its rule: a
    pointwise convolution is a matrix, and the window of any other stays whole.
    """

    def one(path, leaf):
        name = path_name(path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        missing = len(leaf.shape) - len(spec)
        spec = P(*[None] * missing, *spec) if missing > 0 and any(spec) else spec[-missing:] if missing < 0 else spec
        fits = [
            axis if axis is not None and leaf.shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(spec)
        ]
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(one, params)


def like_params(mesh: Mesh, tree: PyTree, params: PyTree, param_shardings: PyTree) -> PyTree:
    """Shardings for a tree that holds copies of the parameter tree (EMA, Adam's moments) and other arrays.

    A leaf whose path ends in a parameter's path, with its shape, is sharded like it; all else is replicated.
    Under automatic shardings `jax.jit(tx.init)(params)` would silently replicate the moments.
    """
    known = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
        )
    }

    def one(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises InputError where the batch does not divide over `data` × `fsdp`."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise InputError(f"batch_size={batch_size} must be a multiple of data × fsdp = {ways}")


def share_of_batch(mesh: Mesh) -> tuple[int, int]:
    """Returns the number of this process's share of the batch, and the number of equal shares.

    Processes whose devices hold the same rows, as over `context` or `tensor`, read the same share. The topology of the
    machine may interleave the rows of several processes; `jax.make_array_from_process_local_data` puts the rows of a
    share in their places.

    Raises:
        InputError: processes hold different numbers of rows, or rows that overlap in part.
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
        listed = "; ".join(f"process {n}: {', '.join(map(str, held))}" for n, held in list(parts.items())[:3])
        raise InputError(
            f"mesh: two processes must hold the same parts of the batch, or as many different ones, but of "
            f"{len(processes)} parts they hold: {listed} (change data × fsdp against context × tensor)"
        )
    return shares.index(parts[process]), len(shares)


def full_batches(count: int, batch_size: int, mesh: Mesh) -> Iterator[tuple[int, Int[np.ndarray, "B"]]]:
    """(number of the first, rows) of every batch of `count` videos. All are full: one compilation.

    The rows that fill up the last batch repeat its first.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-min(batch_size, count) // ways) * ways
    for start in range(0, count, size):
        yield start, start + np.arange(size) % min(size, count - start)


@dataclasses.dataclass(frozen=True)
class ActivationLayout:
    """The trunk's `layout`: the batch over data and fsdp; over `context`, frames in space slots and rows in time slots.

    Between the two lies one all-to-all, and no slot gathers an activation but attention over all frames at once, and
    cuDNN's kernel, which merges batch and frames: a context mesh of GPUs wants `attention="xla"`.
    """

    mesh: Mesh

    def __call__(self, x: Float[Array, "B T H W C"], where: str) -> Float[Array, "B T H W C"]:
        """x as it should lie before a slot that mixes "space" or "time"."""
        spec = {"space": P(BATCH, "context"), "time": P(BATCH, None, "context")}[where]
        if x.shape[len(spec) - 1] % self.mesh.shape["context"]:
            spec = P(BATCH)  # a coarse level with fewer rows than devices: each computes all of its batch
        return self._constrain(x, spec)

    def per_frame(self, function: Callable, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        """Applies a function of (B·T) images in the layout of space slots.

        Frames are merged device by device, for B and T in plain order are no longer spread as they were.
        """
        i, j = self.mesh.shape["data"] * self.mesh.shape["fsdp"], self.mesh.shape["context"]
        if x.shape[1] % j:
            j = 1
        images = rearrange(x, "(i b) (j t) h w c -> (i j b t) h w c", i=i, j=j)
        free = [P.UNCONSTRAINED] * 3  # the middle of a block is cut by channels on a tensor mesh
        images = function(self._constrain(images, P((*BATCH, "context") if j > 1 else BATCH, *free)))
        return rearrange(images, "(i j b t) h w c -> (i b) (j t) h w c", i=i, j=j, t=x.shape[1] // j)

    def _constrain(self, x: Array, spec: P) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec)) if self.mesh.size > 1 else x
