"""Diffusion transformers on eight devices compute what they compute on one, and gather no activation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from tests.parallel.hlo import communicated
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.dit import DiT
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.mmdit import MMDiT
from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, shardings

B, T, SIDE, C, L, E, WIDTH = 8, 4, 8, 4, 6, 8, 32
TEXT = dict(channels_in=C, text_width=E, pooled_width=E)
NETWORKS = {
    "space and time": lambda: DiT(**TEXT, width=WIDTH, depth=2, heads=4, cross="each", rngs=Keys(0)),
    "all": lambda: DiT(**TEXT, width=WIDTH, depth=2, heads=4, attend="all", qk_norm="all", rngs=Keys(0)),
    "two streams": lambda: MMDiT(**TEXT, width=WIDTH, heads=4, double=1, single=1, axes=(4, 2, 2), rngs=Keys(0)),
}
MESHES = {
    "data": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "tensor": dict(data=4, tensor=2),
    "context": dict(data=2, fsdp=2, context=2),
}


class Step:
    """Values and gradients on a mesh, and the compiled program."""

    def __init__(self, name, sizes):
        graphdef, params = nnx.split(randomised(NETWORKS[name], scale=0.2))
        params = nnx.to_pure_dict(params)
        mesh = make_mesh(**sizes) if sizes else make_mesh(devices=jax.devices()[:1])
        layout = ActivationLayout(mesh) if sizes else ONE_DEVICE
        tokens, mask = normal(1, B, 1, L, E), np.arange(L) < np.arange(B)[:, None, None] % L + 1
        arrays = normal(0, B, T, SIDE, SIDE, C), jnp.linspace(0, 900, B), tokens, jnp.asarray(mask)

        def loss(params, z, time, tokens, mask):
            text = Text(tokens, mask, tokens[:, :, 0])
            out = nnx.merge(graphdef, params)(z, time, Conditions(text=text), layout=layout)
            return (out**2).mean(), out

        arguments = jax.device_put(params, shardings(mesh, params)), *jax.device_put(arrays, batch_sharding(mesh))
        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
        (_, self.value), self.gradients = compiled(*arguments)
        self.hlo, self.largest = compiled.as_text(), max(x.size for x in jax.tree.leaves(params))


@pytest.fixture(scope="module", params=NETWORKS)
def alone(request):
    return request.param, Step(request.param, None)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_nothing(alone, mesh):
    name, one = alone
    many = Step(name, MESHES[mesh])
    np.testing.assert_allclose(many.value, one.value, atol=1e-5 * np.abs(one.value).max())
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(many.gradients), jax.tree.leaves(one.gradients), strict=True
    ):
        # A bias of keys has no gradient, but for rounding.
        atol = 1e-4 * np.abs(expected).max() + 1e-7
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=jax.tree_util.keystr(path))
    gathered = [shape for shape, _ in communicated(many.hlo, "all-gather") if math.prod(shape) > many.largest]
    assert gathered == []
