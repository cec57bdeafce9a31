"""CLIP's encoders as modules: what a token and an image see; tests/pretrained compares them with the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.clip import ClipText, ClipVision

END = 19
COMMON = dict(width=8, middle=16, depth=2, heads=2, activation="gelu", epsilon=1e-5)


def text(**options):
    options = dict(vocabulary=20, length=6, end=END) | options
    return randomised(lambda: ClipText(**COMMON, **options, rngs=Keys(0)))


def tokens(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_a_token_sees_the_tokens_before_it():
    run = jax.jit(text().__call__)
    out = run(tokens([1, 2, 3, END, END, END], [1, 2, 4, END, END, END])).tokens
    np.testing.assert_array_equal(out[0, :2], out[1, :2])
    assert (np.abs(out[0, 2:] - out[1, 2:]).max(-1) > 1e-4).all()
    shorter = run(tokens([1, 2, 3])).tokens
    np.testing.assert_allclose(shorter[0], out[0, :3], atol=1e-5)


@pytest.mark.parametrize("end", [END, None])
@pytest.mark.parametrize("projection", [None, 5])
def test_the_pooled_vector_is_that_of_the_first_end_token(end, projection):
    module = text(end=end, projection=projection)
    out = module(tokens([1, 2, END, 3, END, 4], [END, 0, 1, 2, 3, 4]))
    ends = out.tokens[jnp.arange(2), jnp.array([2, 0])]
    np.testing.assert_allclose(out.pooled, module.projection(ends) if projection else ends, atol=1e-5)
    assert out.mask.all()  # padding counts, as published


def test_texts_may_have_any_leading_axes():
    module, rows = text(), np.random.default_rng(0).integers(0, 20, (2, 3, 6)).astype(np.int32)
    nested, flat = module(jnp.asarray(rows)), module(jnp.asarray(rows.reshape(6, 6)))
    for a, b in zip(nested, flat, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-5)
    with pytest.raises(InputError, match="text of 7 tokens must have at most 6"):
        module(jnp.zeros((1, 7), jnp.int32))


def test_an_image_is_read_by_its_patches():
    sizes = dict(size=9, patch=4, channels=3, projection=5)
    module = randomised(lambda: ClipVision(**COMMON, **sizes, rngs=Keys(0)))
    image = normal(0, 2, 9, 9, 3)
    run = jax.jit(module.__call__)
    out = run(image)
    assert out.shape == (2, 5)
    assert np.abs(run(image.at[0, 7, 7].add(1.0)) - out).max(-1).tolist()[1] == 0
    np.testing.assert_array_equal(run(image.at[:, 8].add(1.0)), out)  # beyond the last whole patch
    with pytest.raises(InputError, match="image of 9×8×3 must be 9×9×3"):
        module(image[:, :, :8])
    with pytest.raises(InputError, match="patch=10 must be at least 1 and at most the image's size=9"):
        nnx.eval_shape(lambda: ClipVision(**COMMON, **sizes | {"patch": 10}, rngs=Keys(0)))
