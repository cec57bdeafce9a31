"""Layouts: one device changes nothing, and on a mesh every block has the gradients of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.models.autoencoder import Decoder
from vdm_jax.models.conditions import Text
from vdm_jax.models.convolution import Inputs
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.models.rngs import Keys
from vdm_jax.models.slots import make_layer
from vdm_jax.models.transformer import SpaceTimeTransformer
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding


def test_one_device_leaves_activations_as_they_are():
    x = normal(0, 2, 3, 4, 5, 6)
    assert ONE_DEVICE(x, "space") is x
    assert ONE_DEVICE(x, "time") is x
    assert ONE_DEVICE.heads(x) is x
    assert ONE_DEVICE.heads(x, back=True) is x


def test_a_function_of_images_sees_every_frame_as_an_image():
    x = normal(0, 2, 3, 4, 6, 5)
    shapes = []

    def function(images):
        shapes.append(images.shape)
        return images[:, ::2, ::3].sum(-1, keepdims=True) + jnp.arange(6.0)[:, None, None, None]

    out = ONE_DEVICE.per_frame(function, x)
    assert shapes == [(6, 4, 6, 5)]
    expected = x[:, :, ::2, ::3].sum(-1, keepdims=True) + np.arange(6.0).reshape(2, 3, 1, 1, 1)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def layer():
    fillings = {
        "space_conv": dict(kind="modulated"),
        "time_conv": dict(kind="three"),
        "space_attention": dict(kind="attention", head_size=4, context="joint", all_frames=False),
        "time_attention": dict(kind="attention", head_size=4, position="relative", max_distance=3),
    }
    options = dict(embedding=6, text_width=6, attention="xla", dtype="float32", rngs=Keys(0))
    return make_layer(fillings, 8, 8, **options)


BLOCKS = {
    "layer": layer,
    "space-time transformer": lambda: SpaceTimeTransformer(8, 6, heads=2, groups=2, dtype="float32", rngs=Keys(0)),
    "decoder in time": lambda: Decoder(
        8, 3, widths=(8,), blocks=1, in_time=True, groups=2, dtype="float32", rngs=Keys(0)
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_on_a_context_mesh_are_those_of_one_device(name):
    graphdef, params = nnx.split(randomised(BLOCKS[name], scale=0.3))
    x, tokens = normal(0, 4, 2, 4, 4, 8), normal(1, 4, 1, 5, 6)
    embedding = normal(2, 4, 2, 6)  # one for each frame
    mesh = make_mesh(data=4, context=2)

    def gradients(layout, *arrays):
        def loss(params, x, tokens, embedding):
            text = Text(tokens, jnp.ones(tokens.shape[:3], bool), tokens[:, :, 0])
            block = nnx.merge(graphdef, params)
            out = block(x, layout) if isinstance(block, Decoder) else block(x, Inputs(embedding, text), layout)
            return (out**2).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params, *arrays))

    one = gradients(ONE_DEVICE, x, tokens, embedding)
    many = gradients(ActivationLayout(mesh), *jax.device_put((x, tokens, embedding), batch_sharding(mesh)))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-3 * max(1e-2, float(jnp.abs(a).max())))
