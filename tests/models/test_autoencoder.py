"""The autoencoder's shapes, and which frames see each other; tests/pretrained compares it with the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.rngs import Keys

T = 3
TINY = dict(widths=(4, 8), blocks=1, groups=2)


def make(**options):
    return randomised(lambda: Autoencoder(**TINY | options, rngs=Keys(0)), scale=0.3)


def touched(function, x):
    """Returns which frames of the result a change of the second frame reaches."""
    run = jax.jit(function)
    return np.abs(run(x.at[:, 1].multiply(-1)) - run(x)).max((0, 2, 3, 4)) > 1e-4


@pytest.mark.parametrize("in_time", [False, True])
def test_the_encoder_takes_frames_apart_and_a_decoder_in_time_mixes_them(in_time):
    module = make(in_time=in_time)
    alone = [False, True, False]
    video, latents = normal(0, 1, T, 6, 8, 3), normal(1, 1, T, 3, 4, 4)
    np.testing.assert_array_equal(touched(lambda video: module.encode(video)[0], video), alone)
    np.testing.assert_array_equal(touched(module.decode, latents), [True] * T if in_time else alone)


def test_sizes_are_halved_between_levels_and_odd_ones_rounded_down():
    module = make(widths=(4, 4, 8), channels_in=1, channels_out=2, latent_channels=5)
    mean, log_variance = jax.eval_shape(module.encode, jnp.zeros((2, T, 13, 8, 1)))
    assert mean.shape == log_variance.shape == (2, T, 3, 2, 5)
    assert jax.eval_shape(module.decode, mean).shape == (2, T, 12, 8, 2)


def test_a_program_in_bfloat16_has_float32_at_both_ends():
    module = make(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    mean, log_variance = jax.eval_shape(module.encode, jnp.zeros((1, 1, 6, 8, 3)))
    assert {mean.dtype, log_variance.dtype} == {jnp.dtype("float32")}
    assert jax.eval_shape(module.decode, mean).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(groups=3), "groups=3 must divide every width, not 4"),
        (dict(blocks=3, in_time=True), "blocks=3 must be 1 or 2 with a decoder in time"),
    ],
)
def test_shapes_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: Autoencoder(**TINY | options, rngs=Keys(0)))
