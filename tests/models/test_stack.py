"""Stacked blocks: equal to blocks in a row, in a program that does not grow with their number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.stack import REMAT, Stack
from vdm_jax.models.transformer import EncoderBlock
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import batch_sharding, path_name, shardings

DEPTH, WIDTH = 3, 16
MASK = jnp.arange(5) < jnp.arange(2, 10)[:, None] % 5 + 1


def make_block(rngs):
    return EncoderBlock(WIDTH, 32, heads=2, activation="gelu", epsilon=1e-5, biased="qkv", rngs=rngs)


class InARow(nnx.Module):
    """Applies blocks made one after the other."""

    def __init__(self, depth, rngs):
        self.blocks = nnx.List([make_block(rngs) for _ in range(depth)])

    def __call__(self, x, **kwargs):
        for block in self.blocks:
            x = block(x, **kwargs)
        return x


class Residual(nnx.Module):
    """Takes a condition, the same for each block, and a dropout key of its own."""

    def __init__(self, rngs):
        del rngs
        self.scale = nnx.Param(jnp.full(WIDTH, 0.5))
        self.inner = nnx.Dict(bias=nnx.Param(jnp.ones(WIDTH)))

    def __call__(self, x, condition, *, key=None, subtract=False):
        kept = 1.0 if key is None else jax.random.bernoulli(key, 0.5, x.shape)
        change = kept * (x * self.scale + self.inner.bias + condition)
        return x - change if subtract else x + change


def params_of(module):
    return nnx.to_pure_dict(nnx.state(module))


def stack_of(modules):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(params_of, modules))


def inputs(batch=2):
    return jax.random.normal(jax.random.key(3), (batch, 5, WIDTH))


def loss(graphdef, params, x):
    return (nnx.merge(graphdef, params)(x, mask=MASK[: len(x)]) ** 2).mean()


@pytest.mark.parametrize("make_rngs", [Keys, nnx.Rngs])
def test_parameters_equal_blocks_made_one_after_the_other(make_rngs):
    rngs, other = make_rngs(5), make_rngs(5)
    stack, row = Stack(make_block, DEPTH, rngs=rngs), InARow(DEPTH, other)
    jax.tree.map(np.testing.assert_array_equal, params_of(stack), stack_of(row.blocks))
    after = (jax.random.key_data(keys.params()) for keys in (rngs, other))
    np.testing.assert_array_equal(*after)  # the next module gets the same keys, too


@pytest.mark.parametrize("make_rngs", [Keys, nnx.Rngs])
def test_it_can_be_made_in_a_trace(make_rngs):
    def make():
        return Stack(make_block, DEPTH, rngs=make_rngs(5))

    expected = params_of(make())
    shapes = params_of(nnx.eval_shape(make))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda: params_of(make()))(), expected)


def test_paths_and_attributes_are_those_of_a_single_block():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.blocks = Stack(make_block, DEPTH, rngs=rngs)

    network = Network(Keys(0))
    leaves = jax.tree_util.tree_leaves_with_path(params_of(network))
    names = {path_name(path): leaf.shape for path, leaf in leaves}
    assert names["blocks/attention/q/kernel"] == (DEPTH, WIDTH, WIDTH)
    assert {name.removeprefix("blocks/") for name in names} == {
        path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params_of(make_block(Keys(0))))
    }
    assert network.blocks.attention.heads == 2
    assert all(isinstance(leaf, nnx.Param) for _, leaf in nnx.iter_graph(network) if isinstance(leaf, nnx.Variable))


@pytest.mark.parametrize("remat", REMAT)
def test_values_and_gradients_equal_blocks_in_a_row(remat):
    stack, row = Stack(make_block, DEPTH, remat=remat, rngs=Keys(5)), InARow(DEPTH, Keys(5))
    x = inputs()
    for kwargs in ({}, {"mask": MASK[: len(x)]}):
        np.testing.assert_allclose(stack(x, **kwargs), row(x, **kwargs), atol=1e-5)
    actual = jax.grad(functools.partial(loss, nnx.split(stack)[0]))(params_of(stack), x)
    gradients = jax.grad(functools.partial(loss, nnx.split(row)[0]))(params_of(row), x)["blocks"]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(gradients[i] for i in range(DEPTH)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), actual, expected)


def test_remat_keeps_less_for_the_backward_pass():
    def kept(remat):
        stack = Stack(make_block, DEPTH, remat=remat, rngs=Keys(5))
        function = functools.partial(loss, nnx.split(stack)[0])
        residuals = jax.vjp(function, params_of(stack), inputs())[1]
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_programs_do_not_grow_with_the_number_of_blocks(remat):
    def equations(depth):
        def make():
            return Stack(make_block, depth, remat=remat, rngs=Keys(5))

        graphdef, params = nnx.split(nnx.eval_shape(make))
        step = jax.make_jaxpr(jax.grad(functools.partial(loss, graphdef)))(nnx.to_pure_dict(params), inputs())
        return [str(jaxpr).count(" = ") for jaxpr in (step, jax.make_jaxpr(lambda: params_of(make()))())]

    assert equations(2) == equations(9)
    assert min(equations(2)) > 20


def test_each_block_has_its_own_arguments():
    stack = Stack(Residual, DEPTH, remat="full", rngs=Keys(0))
    block, x, condition = Residual(Keys(0)), inputs(), jnp.arange(WIDTH, dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(1), DEPTH)
    expected = x
    for key in keys:
        expected = block(expected, condition, key=key)
    np.testing.assert_allclose(stack(x, condition, each={"key": keys}), expected, rtol=1e-6)
    expected = x
    for _ in range(DEPTH):
        expected = block(expected, condition)
    np.testing.assert_allclose(stack(x, condition, each={"key": None}), expected, rtol=1e-6)
    np.testing.assert_allclose(stack(x, condition), expected, rtol=1e-6)
    expected = x
    for _ in range(DEPTH):
        expected = block(expected, condition, subtract=True)
    np.testing.assert_allclose(stack(x, condition, subtract=True), expected, rtol=1e-6)  # an argument may be static


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_blocks_equal_one_device(sizes):
    mesh, x = make_mesh(**sizes), inputs(batch=8)
    graphdef, params = nnx.split(Stack(make_block, DEPTH, remat="full", rngs=Keys(5)))
    params = nnx.to_pure_dict(params)
    places = shardings(mesh, {"blocks": params})["blocks"]
    assert places["attention"]["q"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert places["down"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert places["up"]["bias"].spec == P(None, "tensor")
    step = jax.jit(jax.value_and_grad(functools.partial(loss, graphdef)))
    expected = step(params, x)
    actual = step(jax.device_put(params, places), jax.device_put(x, batch_sharding(mesh)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), actual, expected)


def test_bad_input():
    with pytest.raises(InputError, match="depth=0 must be at least 1"):
        Stack(make_block, 0, rngs=Keys(0))
    with pytest.raises(InputError, match="remat='all' must be one of none, full, dots"):
        Stack(make_block, 2, remat="all", rngs=Keys(0))
