"""I3D: its size, what clips it takes, and the sizes that padding leaves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.judges.i3d import I3D
from vdm_jax.models.rngs import Keys

TINY = nnx.eval_shape(lambda: I3D(classes=7, width=8, epsilon=0.5, rngs=Keys(0)))


def seen(frames, size=224):
    """The shapes of the answer."""
    graphdef, params = nnx.split(TINY)
    clip = jax.ShapeDtypeStruct((2, frames, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda params, clip: nnx.merge(graphdef, params)(clip), params, clip)


def test_it_has_as_many_parameters_as_the_published_one():
    module = nnx.eval_shape(lambda: I3D(rngs=Keys(0)))
    for kind, count in ((nnx.Param, 12_697_264), (nnx.BatchStat, 2 * 7_280)):
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(module, kind))) == count


@pytest.mark.parametrize("frames", [9, 16, 33])
def test_clips_of_any_length_give_one_vector(frames):
    answer = seen(frames)
    assert (answer.logits.shape, answer.pooled.shape) == ((2, 7), (2, 128))


def test_other_clips_are_refused():
    with pytest.raises(InputError, match="clips of 8×224×224×3 must be 224×224×3, and have at least 9 frames"):
        seen(8)
    with pytest.raises(InputError, match="clips of 16×256×256×3 must be 224×224×3"):
        seen(16, size=256)
    with pytest.raises(InputError, match="width=12 must be a multiple of 8"):
        I3D(width=12, rngs=Keys(0))


def test_batch_norm_is_a_scale_and_a_shift():
    rng = np.random.default_rng(0)
    graphdef, abstract = nnx.split(TINY.conv2b)
    params = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape), x.dtype), abstract)
    unit = nnx.merge(graphdef, params)
    kernel, mean, variance, scale, shift = (
        np.asarray(x[...]) for x in (unit.conv.kernel, unit.norm.mean, unit.norm.var, unit.norm.scale, unit.norm.bias)
    )
    x = rng.normal(size=(1, 2, 3, 3, 8)).astype(np.float32)
    scale = scale / np.sqrt(variance + 0.5)
    expected = np.maximum(x @ (kernel[0, 0, 0] * scale) + shift - mean * scale, 0)
    assert 0 < np.mean(expected == 0) < 1
    np.testing.assert_allclose(unit(jnp.asarray(x)), expected, atol=1e-5)
