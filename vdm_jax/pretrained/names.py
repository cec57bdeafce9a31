"""Our parameters by the names, shapes and layouts that diffusers has for them, and back.

A parameter's path (`down/0/1/space_conv/conv1/kernel`) becomes a name by a table of patterns, tried in order, all that
fit applied. PyTorch has a matrix as (out, in), a convolution as (out, in, rows, columns) or (out, in, frames, rows,
columns), one over frames as (out, in, 3, 1, 1).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

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
    """How a module's parameters are called and laid out there.

    `pointwise` and `over_time` find the paths of matrices that are convolutions there: of one pixel, and over three
    frames, which lie side by side in the channels here.
    """

    table: Table
    pointwise: str = r"shortcut/kernel$"
    over_time: str = r"time_conv/.*conv(s/\d|1|2)/kernel$"


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


def unet_names(**slots: str) -> Table:
    """The table of a U-Net: for each slot the name of the list that its blocks are in."""
    table = [
        (r"^time/first/", "time_embedding/linear_1/"),
        (r"^time/second/", "time_embedding/linear_2/"),
        (r"^added_mlp/first/", "add_embedding/linear_1/"),
        (r"^added_mlp/second/", "add_embedding/linear_2/"),
        (r"^stem_time/", "transformer_in/"),
        (r"^norm/", "conv_norm_out/"),
        (r"^downsample/(\d+)/", r"down_blocks/\1/downsamplers/0/"),
        (r"^upsample/(\d+)/", r"up_blocks/\1/upsamplers/0/"),
    ]
    for slot, name in slots.items():
        table += [
            (rf"^(down|up)/(\d+)/(\d+)/{slot}/", rf"\1_blocks/\2/{name}/\3/"),
            (rf"^middle1/{slot}/", f"mid_block/{name}/0/"),
            (rf"^middle2/{slot}/", f"mid_block/{name}/1/"),
        ]
    return (*table, *BLOCKS)


def torch_name(path: str, naming: Naming) -> str:
    """The name of a parameter in the other format."""
    for pattern, replacement in naming.table:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def to_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """A parameter in the other layout."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim > 2:
        return np.moveaxis(array, (-1, -2), (0, 1))
    if re.search(naming.over_time, path):
        return array.reshape(3, -1, array.shape[1]).transpose(2, 1, 0)[..., None, None]
    return array.T[..., None, None] if re.search(naming.pointwise, path) else array.T


def from_torch(path: str, array: np.ndarray, naming: Naming) -> np.ndarray:
    """The inverse of `to_torch`."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 2:
        return array.T
    if re.search(naming.over_time, path):
        return array[..., 0, 0].transpose(2, 1, 0).reshape(-1, array.shape[0])
    return array[..., 0, 0].T if re.search(naming.pointwise, path) else np.moveaxis(array, (0, 1), (-1, -2))


def torch_shapes(abstract: PyTree, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Name → shape in the other format, of parameters given as shapes."""
    return _torch_shapes(jax.tree_util.tree_leaves_with_path(abstract), naming)


def _torch_shapes(leaves, naming):
    shapes = {}
    for path, leaf in leaves:
        name = path_name(path)
        stand_in = np.broadcast_to(np.int8(0), leaf.shape)  # one byte, whatever its shape
        shapes[torch_name(name, naming)] = to_torch(name, stand_in, naming).shape
    return shapes


def torch_tensors(params: Params, naming: Naming) -> dict[str, np.ndarray]:
    """All parameters by their names and in the layouts of the other format."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        tensors[torch_name(name, naming)] = np.ascontiguousarray(to_torch(name, np.asarray(leaf), naming))
    return tensors


def few(names: Sequence[str]) -> str:
    """The first three of names, for a message."""
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
    """The parameters of an abstract module from weights by their names, straight into their shards, one by one.

    Those whose path is found by the pattern `new` are not looked for, and stay shapes.

    Raises:
        InputError: names that are missing, that nobody asked for, or tensors of another shape; the first few of each.
    """
    abstract = nnx.to_pure_dict(nnx.split(module)[1])
    known = [leaf for leaf in jax.tree_util.tree_leaves_with_path(abstract) if not re.search(new, path_name(leaf[0]))]
    expected = _torch_shapes(known, naming)
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
    said = [f"{len(names)} {kind} ({few(names)})" for kind, names in problems.items() if names]
    if said:
        raise InputError(f"{where} does not hold the tensors that its config says: {'; '.join(said)}")

    def one(path, leaf, sharding):
        name = path_name(path)
        if re.search(new, name):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
        array = from_torch(name, weights[torch_name(name, naming)], naming).astype(dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(one, abstract, shardings(mesh, abstract))
