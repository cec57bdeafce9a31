"""Our parameters by the names, shapes and layouts that a published format has for them, and back.

A parameter's path (`down/0/1/space_conv/conv1/kernel`) becomes a name by a table of patterns: all that match are
applied in order. PyTorch has a matrix as (out, in), a convolution as (out, in, rows, columns) or (out, in, frames,
rows, columns), one over frames as (out, in, 3, 1, 1). A stacked parameter is several tensors there; of a fused tensor
ours is a part.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.parallel.sharding import path_name, shardings
from vdm_jax.pretrained.folder import Weights
from vdm_jax.typing import Params, PyTree

Table = Sequence[tuple[str, str]]


class Naming(NamedTuple):
    """How a module's parameters are called and laid out in a published format.

    Args:
        table: patterns of paths and their replacements.
        pointwise, over_time: find the paths of matrices that are convolutions there: of one pixel, and over three
            frames, which are concatenated along the channels here.
        stacked: finds the start of paths that are stacked here (`models.stack`): there the number of the block follows.
        fused: patterns of paths that are parts of one tensor there, along its first axis: the replacement is the path
            of the tensor; then the number of the part, and how many there are.
    """

    table: Table
    pointwise: str = r"shortcut/kernel$"
    over_time: str = r"time_conv/.*conv(s/\d|1|2)/kernel$"
    stacked: str = r"$^"
    fused: Sequence[tuple[str, str, int, int]] = ()


class Tensor(NamedTuple):
    """A tensor of the published format that a parameter, or a slice of a stacked one, is found in."""

    name: str
    path: str  # of the parameter, with the number of its block
    part: int = 0
    parts: int = 1  # 1: the whole tensor


# What blocks are made of has the same names in all families.
BLOCKS: Table = (
    (r"/embedding/", "/time_emb_proj/"),
    (r"/shortcut/", "/conv_shortcut/"),
    (r"/norms/0/", "/conv1/0/"),
    (r"/convs/0/", "/conv1/2/"),
    (r"/norms/1/", "/conv2/0/"),
    (r"/convs/1/", "/conv2/3/"),
    (r"/norms/2/", "/conv3/0/"),
    (r"/convs/2/", "/conv3/3/"),
    (r"/norms/3/", "/conv4/0/"),
    (r"/convs/3/", "/conv4/3/"),
    (r"/project_(in|out)/", r"/proj_\1/"),
    (r"/time_blocks/", "/temporal_transformer_blocks/"),
    (r"/blocks/", "/transformer_blocks/"),
    (r"/attention(\d)/out/", r"/attn\1/to_out/0/"),
    (r"/attention(\d)/([qkv])/", r"/attn\1/to_\2/"),
    (r"/feed/up/", "/ff/net/0/proj/"),
    (r"/feed/down/", "/ff/net/2/"),
    (r"/feed_in/up/", "/ff_in/net/0/proj/"),
    (r"/feed_in/down/", "/ff_in/net/2/"),
    (r"/frame/first/", "/time_pos_embed/linear_1/"),
    (r"/frame/second/", "/time_pos_embed/linear_2/"),
    (r"/blend/mix$", "/time_mixer/mix_factor"),
    (r"/(kernel|scale)$", "/weight"),
)


def torch_name(path: str, naming: Naming) -> str:
    """Returns the name of a parameter in the published format."""
    for pattern, replacement in naming.table:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def to_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """Brings a parameter into the published layout."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim > 2:
        return np.moveaxis(array, (-1, -2), (0, 1))
    if re.search(naming.over_time, path):
        return array.reshape(3, -1, array.shape[1]).transpose(2, 1, 0)[..., None, None]
    return array.T[..., None, None] if re.search(naming.pointwise, path) else array.T


def from_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """Brings a tensor into our layout: the inverse of `to_torch`."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 2:
        return array.T
    if re.search(naming.over_time, path):
        return array[..., 0, 0].transpose(2, 1, 0).reshape(-1, array.shape[0])
    return array[..., 0, 0].T if re.search(naming.pointwise, path) else np.moveaxis(array, (0, 1), (-1, -2))


def tensors_for(path: str, shape: Sequence[int], naming: Naming) -> list[Tensor]:
    """Returns where a parameter of a shape is found: one tensor, or one for each block of a stacked parameter."""
    if start := re.match(naming.stacked, path):
        paths = [f"{start[0]}{i}/{path[start.end() :]}" for i in range(shape[0])]
    else:
        paths = [path]
    tensors = []
    for path in paths:
        for pattern, replacement, part, parts in naming.fused:
            if re.search(pattern, path):
                tensors.append(Tensor(torch_name(re.sub(pattern, replacement, path), naming), path, part, parts))
                break
        else:
            tensors.append(Tensor(torch_name(path, naming), path))
    return tensors


def torch_shapes(abstract: PyTree, naming: Naming, skip: str = "$^") -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every tensor that parameters are found in, but for paths found by `skip`."""
    shapes = {}
    for path, leaf in named_leaves(abstract):
        if re.search(skip, path):
            continue
        tensors = tensors_for(path, leaf.shape, naming)
        shape = leaf.shape[1:] if re.match(naming.stacked, path) else leaf.shape
        for tensor in tensors:
            stand_in = np.broadcast_to(np.int8(0), shape)  # one byte, whatever its shape
            first, *rest = to_torch(tensor.path, stand_in, naming).shape
            shapes[tensor.name] = (first * tensor.parts, *rest)
    return shapes


def torch_tensors(params: Params, naming: Naming) -> dict[str, np.ndarray]:
    """Returns all parameters by their names and in the layouts of the published format."""
    tensors, parts = {}, {}
    for path, leaf in named_leaves(params):
        array = np.asarray(leaf)
        blocks = array if re.match(naming.stacked, path) else [array]
        for tensor, block in zip(tensors_for(path, leaf.shape, naming), blocks, strict=True):
            block = np.ascontiguousarray(to_torch(tensor.path, block, naming))
            if tensor.parts == 1:
                tensors[tensor.name] = block
            else:
                parts.setdefault(tensor.name, {})[tensor.part] = block
    return tensors | {
        name: np.concatenate([part for _, part in sorted(found.items())]) for name, found in parts.items()
    }


def from_tensors(path: str, shape: Sequence[int], read: Callable[[str], np.ndarray], naming: Naming) -> np.ndarray:
    """Returns a parameter of a shape from the tensors that `read` finds by name."""
    blocks = []
    for tensor in tensors_for(path, shape, naming):
        array = read(tensor.name)
        if tensor.parts > 1:
            array = np.split(array, tensor.parts)[tensor.part]
        blocks.append(from_torch(tensor.path, array, naming))
    return np.stack(blocks) if re.match(naming.stacked, path) else blocks[0]


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns (path, leaf) of every parameter."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def few(names: Sequence[str]) -> str:
    """Returns the first three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def load_params(
    weights: Weights,
    module: nnx.Module,
    naming: Naming,
    *,
    mesh: Mesh,
    where: str,
    dtype: str = "float32",
    new: str = "$^",
) -> PyTree:
    """Loads the parameters of an abstract module by their names, straight into their shards, one by one.

    Parameters whose path is found by the pattern `new` are not read, and stay shapes.

    Raises:
        InputError: names that are missing or unexpected, or tensors of another shape; the first few of each.
    """
    abstract = nnx.to_pure_dict(nnx.split(module)[1])
    expected = torch_shapes(abstract, naming, skip=new)
    found = {name: weights.shape(name) for name in weights}
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {found[name]}, not {shape}"
            for name, shape in sorted(expected.items())
            if name in found and found[name] != shape
        ],
    }
    lines = [f"{len(names)} {kind} ({few(names)})" for kind, names in problems.items() if names]
    if lines:
        raise InputError(f"{where} does not hold the tensors that its config says: {'; '.join(lines)}")

    def load(path, leaf, sharding):
        path = path_name(path)
        if re.search(new, path):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
        array = from_tensors(path, leaf.shape, weights.__getitem__, naming).astype(dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(load, abstract, shardings(mesh, abstract))
