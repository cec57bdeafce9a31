"""Translates parameters to the names, shapes and layouts of a published format, and back.

A parameter's path (`down/0/1/space_conv/conv1/kernel`) becomes a name by a table of patterns: all matching patterns are
applied in order. PyTorch stores a matrix as (out, in), a convolution as (out, in, rows, columns) or (out, in, frames,
rows, columns), a convolution over frames as (out, in, 3, 1, 1). A stacked parameter belongs to several published
tensors, one for each block; several parameters can be the parts of one fused tensor.
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
    """The names and layouts of a module's parameters in a published format. All patterns are regular expressions.

    Args:
        table: patterns of paths and their replacements.
        pointwise: pattern of matrices whose published tensor is a convolution of one pixel.
        over_time: pattern of matrices whose published tensor is a convolution over three frames; the matrix has the
            three frames one after the other along its channels.
        stacked: pattern at the start of the paths of stacked blocks (`models.stack`); in the published path the number
            of the block follows.
        fused: (pattern, replacement, part, parts) for parameters that are parts of one published tensor, along its
            first axis; the replacement gives the path of the tensor.
        ones: (pattern, count) for parameters whose published tensor ends in so many axes of size 1.
    """

    table: Table
    pointwise: str = r"shortcut/kernel$"
    over_time: str = r"time_conv/.*conv(s/\d|1|2)/kernel$"
    stacked: str = r"$^"
    fused: Sequence[tuple[str, str, int, int]] = ()
    ones: Sequence[tuple[str, int]] = ()


class Tensor(NamedTuple):
    """The published tensor of a parameter, or of one block of a stacked parameter."""

    name: str
    path: str  # of the parameter, with the number of its block
    part: int = 0
    parts: int = 1  # how many parameters share the tensor


# The parts of blocks have the same names in all families.
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


def _ones(path: str, naming: Naming) -> int:
    return next((count for pattern, count in naming.ones if re.search(pattern, path)), 0)


def to_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """Returns a parameter in the published layout."""
    if count := _ones(path, naming):
        return array.T.reshape(*array.shape[::-1], *[1] * count)
    if not path.endswith("/kernel"):
        return array
    if array.ndim > 2:
        return np.moveaxis(array, (-1, -2), (0, 1))
    if re.search(naming.over_time, path):
        return array.reshape(3, -1, array.shape[1]).transpose(2, 1, 0)[..., None, None]
    return array.T[..., None, None] if re.search(naming.pointwise, path) else array.T


def from_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """Returns a published tensor in the layout of our parameter: the inverse of `to_torch`."""
    if count := _ones(path, naming):
        return array.reshape(array.shape[:-count]).T
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 2:
        return array.T
    if re.search(naming.over_time, path):
        return array[..., 0, 0].transpose(2, 1, 0).reshape(-1, array.shape[0])
    return array[..., 0, 0].T if re.search(naming.pointwise, path) else np.moveaxis(array, (0, 1), (-1, -2))


def tensors_for(path: str, shape: Sequence[int], naming: Naming) -> list[Tensor]:
    """Returns the published tensor of a parameter of a shape, or one tensor for each block of a stacked parameter."""
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
    """Returns the name and shape of every published tensor of the parameters, except paths that match `skip`."""
    shapes = {}
    for path, leaf in named_leaves(abstract):
        if re.search(skip, path):
            continue
        tensors = tensors_for(path, leaf.shape, naming)
        shape = leaf.shape[1:] if re.match(naming.stacked, path) else leaf.shape
        for tensor in tensors:
            stand_in = np.broadcast_to(np.int8(0), shape)  # one byte of memory, whatever the shape
            first, *rest = to_torch(tensor.path, stand_in, naming).shape
            shapes[tensor.name] = (first * tensor.parts, *rest)
    return shapes


def torch_tensors(params: Params, naming: Naming) -> dict[str, np.ndarray]:
    """Returns the published tensors of all parameters by name."""
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
        name: np.concatenate([part for _, part in sorted(numbered.items())]) for name, numbered in parts.items()
    }


def from_tensors(path: str, shape: Sequence[int], read: Callable[[str], np.ndarray], naming: Naming) -> np.ndarray:
    """Returns a parameter of a shape, made of the published tensors that `read(name)` returns."""
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


def first_three(names: Sequence[str]) -> str:
    """Returns the first three names for an error line."""
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
    """Loads the parameters of an abstract module by their names, one by one, straight into their shards.

    Parameters whose path matches the pattern `new` are not read, and stay shapes.

    Raises:
        InputError: names that are missing or unexpected, or tensors of another shape.
    """
    abstract = nnx.to_pure_dict(nnx.split(module)[1])
    expected = torch_shapes(abstract, naming, skip=new)
    shapes = {name: weights.shape(name) for name in weights}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "misshapen": [
            f"{name} {shapes[name]}, not {shape}"
            for name, shape in sorted(expected.items())
            if name in shapes and shapes[name] != shape
        ],
    }
    lines = [f"{len(names)} {kind} ({first_three(names)})" for kind, names in problems.items() if names]
    if lines:
        raise InputError(f"{where} does not hold the tensors of its config: {'; '.join(lines)}")

    def load(path, leaf, sharding):
        path = path_name(path)
        if re.search(new, path):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
        array = from_tensors(path, leaf.shape, weights.__getitem__, naming).astype(dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(load, abstract, shardings(mesh, abstract))
