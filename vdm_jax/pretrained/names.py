"""Translates parameters to the names, shapes and layouts of a published format, and back.

A parameter's path (`down/0/1/space_conv/conv1/kernel`) becomes a name by a table of patterns: all matching patterns are
applied in order. PyTorch stores a matrix as (out, in), a convolution as (out, in, rows, columns) or (out, in, frames,
rows, columns), a convolution over frames as (out, in, 3, 1, 1). A stacked parameter belongs to several published
tensors, one for each block; several parameters can be the parts of one fused tensor.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import path_name, shardings
from vdm_jax.pretrained.folder import Config, Weights
from vdm_jax.typing import Params, PyTree

Table = Sequence[tuple[str, str]]
STEMS, HEAD = r"(stem|known)/project/kernel$", r"head/project/"  # of a transformer


class Naming(NamedTuple):
    """The names and layouts of a module's parameters in a published format. All patterns are regular expressions.

    Args:
        table: patterns of paths and their replacements.
        pointwise: pattern of matrices whose published tensor is a convolution of one pixel.
        over_time: pattern of matrices whose published tensor is a convolution over three frames; the matrix has the
            three frames one after the other along its channels.
        stacked: pattern at the start of the paths of stacked blocks (`models.stack`); in the published path the number
            of the block follows.
        fused: (pattern, replacement, (start, stop), parts) for parameters that are equal parts start … stop of one
            published tensor, along its first axis; the replacement gives the path of the tensor.
        patch: sizes of the patches of a transformer, whose stem is a convolution over them. `packed`: stems and head
            are matrices, in which the pixels of a channel lie together; ours has the channels of a pixel together.
        framed: pattern of parameters whose published tensor has a first axis of length 1.
        ones: (pattern, count) for parameters whose published tensor ends in so many axes of size 1.
    """

    table: Table
    pointwise: str = r"shortcut/kernel$"
    over_time: str = r"time_conv/.*conv(s/\d|1|2)/kernel$"
    stacked: str = r"$^"
    fused: Sequence[tuple[str, str, tuple[int, int], int]] = ()
    patch: tuple[int, ...] = ()
    packed: bool = False
    framed: str = r"$^"
    ones: Sequence[tuple[str, int]] = ()


# The parts of blocks have the same names in all families.
BLOCKS: Table = (
    (r"/embedding/", "/time_emb_proj/"),
    (r"/shortcut/", "/conv_shortcut/"),
    *((rf"/norms/{i}/", f"/conv{i + 1}/0/") for i in range(4)),
    *((rf"/convs/{i}/", f"/conv{i + 1}/{3 if i else 2}/") for i in range(4)),  # a dropout is before the last three
    (r"/project_(in|out)/", r"/proj_\1/"),
    (r"/time_blocks/", "/temporal_transformer_blocks/"),
    (r"/blocks/", "/transformer_blocks/"),
    (r"/attention(\d)/out/", r"/attn\1/to_out/0/"),
    (r"/attention(\d)/([qkv])/", r"/attn\1/to_\2/"),
    (r"/feed(_in)?/up/", r"/ff\1/net/0/proj/"),
    (r"/feed(_in)?/down/", r"/ff\1/net/2/"),
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
    if naming.packed and re.match(HEAD, path):
        channels = array.reshape(-1, *naming.patch, array.shape[-1] // math.prod(naming.patch))
        array = np.moveaxis(channels, -1, 1).reshape(array.shape)
    if count := _ones(path, naming):
        return array.T.reshape(*array.shape[::-1], *[1] * count)
    if not path.endswith("/kernel"):
        return array[None] if re.search(naming.framed, path) else array
    if naming.patch and re.match(STEMS, path):
        array = array.reshape(*naming.patch, -1, array.shape[-1])
        if naming.packed:
            return np.moveaxis(array, (-1, -2), (0, 1)).reshape(array.shape[-1], -1)
    if array.ndim > 2:
        return np.moveaxis(array, (-1, -2), (0, 1))
    if re.search(naming.over_time, path):
        return array.reshape(3, -1, array.shape[1]).transpose(2, 1, 0)[..., None, None]
    return array.T[..., None, None] if re.search(naming.pointwise, path) else array.T


def from_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """Returns a published tensor in the layout of our parameter: the inverse of `to_torch`."""
    if naming.packed and re.match(HEAD, path):
        channels = array.reshape(-1, *naming.patch, *array.shape[1:])
        array = np.moveaxis(channels, 0, len(naming.patch)).reshape(array.shape)
    if count := _ones(path, naming):
        return array.reshape(array.shape[:-count]).T
    if not path.endswith("/kernel"):
        return array[0] if re.search(naming.framed, path) else array
    if naming.patch and re.match(STEMS, path):
        array = array.reshape(len(array), -1, *naming.patch)
        return np.moveaxis(array, (0, 1), (-1, -2)).reshape(-1, len(array))
    if array.ndim == 2:
        return array.T
    if re.search(naming.over_time, path):
        return array[..., 0, 0].transpose(2, 1, 0).reshape(-1, array.shape[0])
    return array[..., 0, 0].T if re.search(naming.pointwise, path) else np.moveaxis(array, (0, 1), (-1, -2))


def tensors_for(path: str, shape: Sequence[int], naming: Naming) -> list[tuple[str, str, tuple[int, int], int]]:
    """Returns (name of the published tensor, path, (start, stop), parts) of a parameter, or of each block of a stack.

    The path has the number of the block; the parameter is parts start … stop of the tensor.
    """
    start = re.match(naming.stacked, path)
    paths = [f"{start[0]}{i}/{path[start.end() :]}" for i in range(shape[0])] if start else [path]
    tensors = []
    for path in paths:
        fused = ((re.sub(old, new, path), *part) for old, new, *part in naming.fused if re.search(old, path))
        whole, *part = next(fused, (path, (0, 1), 1))
        tensors.append((torch_name(whole, naming), path, *part))
    return tensors


def _tensors(tree: PyTree, naming: Naming, skip: str = "$^") -> Iterator[tuple[str, tuple[int, int], int, np.ndarray]]:
    """Yields (name, (start, stop), parts, parameter in the published layout), except of paths that match `skip`."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if re.search(skip, whole := path_name(keys)):
            continue
        shape = isinstance(leaf, jax.ShapeDtypeStruct)
        array = np.broadcast_to(np.int8(0), leaf.shape) if shape else np.asarray(leaf)  # a shape takes one byte
        blocks = array if re.match(naming.stacked, whole) else [array]
        for (name, path, *part), block in zip(tensors_for(whole, leaf.shape, naming), blocks, strict=True):
            yield name, *part, to_torch(path, block, naming)


def torch_shapes(abstract: PyTree, naming: Naming, skip: str = "$^") -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every published tensor of the parameters, except paths that match `skip`."""
    tensors = _tensors(abstract, naming, skip)
    return {
        name: (parts * len(tensor) // (stop - start), *tensor.shape[1:])
        for name, (start, stop), parts, tensor in tensors
    }


def torch_tensors(params: Params, naming: Naming) -> dict[str, np.ndarray]:
    """Returns the published tensors of all parameters by name."""
    tensors: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for name, part, _, tensor in _tensors(params, naming):
        tensors.setdefault(name, {})[part] = np.ascontiguousarray(tensor)
    return {
        name: np.concatenate([parts[i] for i in sorted(parts)]) if len(parts) > 1 else next(iter(parts.values()))
        for name, parts in tensors.items()
    }


def first_three(names: Sequence[str]) -> str:
    """Returns the first three names for an error line."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A loaded network: `nnx.merge(graphdef, params)` is the module; `config` is its config.json, or stands for one."""

    graphdef: nnx.GraphDef | None  # not needed to save it
    params: PyTree  # arrays, or shapes of parameters that are new
    config: Config


def load_part(
    weights: Weights, kind: Callable, arguments: dict[str, Any], naming: Naming, config: Config, **options: Any
) -> Part:
    """Loads the module `kind(**arguments)`; `options` are of `load_params`, which says what is refused."""
    module = nnx.eval_shape(lambda: kind(**arguments, rngs=Keys(0)))
    return Part(nnx.split(module)[0], load_params(weights, module, naming, **options), config)


def load_params(
    weights: Weights, module: nnx.Module, naming: Naming, *, where: str, mesh=None, dtype="float32", new="$^"
) -> PyTree:
    """Loads the parameters of an abstract module by their names, one by one, straight into their shards.

    Args:
        where: the weights lie, for errors.
        mesh: default: all devices along data.
        new: pattern of paths whose parameters are not read, and stay shapes.

    Raises:
        InputError: names that are missing or unexpected, or tensors of another shape.
    """
    abstract = nnx.to_pure_dict(nnx.split(module)[1])
    expected = torch_shapes(abstract, naming, skip=new)
    shapes = {name: weights.shape(name) for name in weights}
    other = sorted(name for name in expected.keys() & shapes.keys() if shapes[name] != expected[name])
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "misshapen": [f"{name} {shapes[name]}, not {expected[name]}" for name in other],
    }
    lines = [f"{len(names)} {kind} ({first_three(names)})" for kind, names in problems.items() if names]
    if lines:
        raise InputError(f"{where} does not hold the tensors of its config: {'; '.join(lines)}")

    def load(keys, leaf, sharding):
        if re.search(new, path_name(keys)):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
        blocks = [
            from_torch(path, _rows(weights[name], *part), naming)
            for name, path, *part in tensors_for(path_name(keys), leaf.shape, naming)
        ]
        array = (np.stack(blocks) if re.match(naming.stacked, path_name(keys)) else blocks[0]).astype(dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(load, abstract, shardings(mesh or make_mesh(), abstract))


def _rows(array: np.ndarray, part: tuple[int, int], parts: int) -> np.ndarray:
    if parts == 1:
        return array
    start, stop = (len(array) * end // parts for end in part)
    return array[start:stop]
