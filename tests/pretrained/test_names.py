"""Parameters by their published names and layouts, and back; blocks may be stacked here, or tensors fused there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.stack import Stack
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.names import Naming, from_torch, load_params, to_torch, torch_shapes, torch_tensors

DEPTH, WIDTH = 3, 8


class Block(nnx.Module):
    """Queries, keys, values and an output, as matrices of their own; `up` is a convolution of one pixel there."""

    def __init__(self, rngs):
        for name in ("q", "k", "v", "out"):
            setattr(self, name, nnx.Linear(WIDTH, WIDTH, use_bias=name != "k", rngs=rngs))
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(4, WIDTH, rngs=rngs)
        self.blocks = Stack(Block, DEPTH, rngs=rngs)
        self.last = Block(rngs)


NAMING = Naming(
    table=((r"^blocks/", "layers/"), (r"^last/", "head/"), (r"/kernel$", "/weight")),
    pointwise=r"/up/kernel$",
    stacked=r"^blocks/",
    fused=tuple((rf"/{name}/kernel$", "/in_proj/kernel", (part, part + 1), 3) for part, name in enumerate("qkv")),
)
MATRIX, VECTOR = (WIDTH, WIDTH), (WIDTH,)
BLOCK = {
    "in_proj.weight": (3 * WIDTH, WIDTH),
    "q.bias": VECTOR,
    "v.bias": VECTOR,
    "out.weight": MATRIX,
    "out.bias": VECTOR,
    "up.weight": (2 * WIDTH, WIDTH, 1, 1),
    "up.bias": (2 * WIDTH,),
}
SHAPES = {"stem.weight": (WIDTH, 4), "stem.bias": VECTOR}
SHAPES |= {f"layers.{i}.{name}": shape for i in range(DEPTH) for name, shape in BLOCK.items()}
SHAPES |= {f"head.{name}": shape for name, shape in BLOCK.items()}


@pytest.fixture(scope="module")
def params():
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Network(Keys(0))))[1])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


@pytest.fixture
def load(tmp_path):
    """Returns the network's parameters that are loaded from tensors."""

    def load(tensors, mesh=None):
        save_file(tensors, tmp_path / "x.safetensors")
        module = nnx.eval_shape(lambda: Network(Keys(0)))
        return load_params(Weights(tmp_path / "x.safetensors"), module, NAMING, mesh=mesh or make_mesh(), where="x")

    return load


def test_layouts_come_back():
    rng = np.random.default_rng(0)
    naming = Naming((), pointwise=r"shortcut|space_attention/project")
    for path, shape in {
        "down/0/0/space_conv/conv1/kernel": (3, 3, 4, 8),
        "down/0/0/space_conv/shortcut/kernel": (4, 8),
        "down/0/0/time_conv/convs/2/kernel": (12, 8),
        "down/0/0/time_conv/block/conv1/kernel": (12, 8),
        "down/0/0/space_attention/project_in/kernel": (4, 8),
        "down/0/0/space_attention/blocks/0/feed/up/kernel": (4, 8),
        "norm/scale": (8,),
    }.items():
        ours = rng.normal(size=shape)
        np.testing.assert_array_equal(from_torch(path, to_torch(path, ours, naming), naming), ours)
    assert to_torch("down/0/0/time_conv/convs/2/kernel", np.ones((12, 8)), naming).shape == (8, 4, 3, 1, 1)


def test_a_block_of_a_stack_and_parts_of_a_fused_tensor_have_their_names_and_shapes(params):
    assert torch_shapes(params, NAMING) == SHAPES
    tensors = torch_tensors(params, NAMING)
    assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES
    blocks, last = params["blocks"], params["last"]
    for i in range(DEPTH):
        fused = np.concatenate([blocks[name]["kernel"][i].T for name in "qkv"])
        np.testing.assert_array_equal(tensors[f"layers.{i}.in_proj.weight"], fused)
        np.testing.assert_array_equal(tensors[f"layers.{i}.up.weight"][..., 0, 0], blocks["up"]["kernel"][i].T)
        np.testing.assert_array_equal(tensors[f"layers.{i}.v.bias"], blocks["v"]["bias"][i])
    np.testing.assert_array_equal(
        tensors["head.in_proj.weight"], np.concatenate([last[name]["kernel"].T for name in "qkv"])
    )


def test_they_come_back_on_any_mesh(params, load):
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(data=2, fsdp=2, tensor=2)):
        loaded = load(torch_tensors(params, NAMING), mesh)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert loaded["blocks"]["q"]["kernel"].sharding.shard_shape((DEPTH, *MATRIX)) == (DEPTH, WIDTH // 2, WIDTH // 2)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("layers.1.in_proj.weight", None, r"1 missing \(layers\.1\.in_proj\.weight\)"),
        ("layers.3.out.bias", VECTOR, r"1 unexpected \(layers\.3\.out\.bias\)"),
        (
            "head.in_proj.weight",
            MATRIX,
            r"1 misshapen \(head\.in_proj\.weight \(8, 8\), not \(24, 8\)\)",
        ),
        (
            "layers.2.up.weight",
            (2 * WIDTH, WIDTH),
            r"1 misshapen \(layers\.2\.up\.weight \(16, 8\), not \(16, 8, 1, 1\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(params, load, name, shape, message):
    tensors = torch_tensors(params, NAMING)
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=rf"^x does not hold the tensors of its config: {message}"):
        load(tensors)
