"""The layout of one device: it changes nothing."""

import jax.numpy as jnp
import numpy as np

from tests.models.randomised import normal
from vdm_jax.models.layout import ONE_DEVICE


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
