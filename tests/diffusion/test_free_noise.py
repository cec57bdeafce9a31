"""FreeNoise repeats the first frames of noise, shuffled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.free_noise import rescheduled

KEYS = jax.random.split(jax.random.key(0), 3)


def order(frames, length, stride, keys=KEYS):
    """Returns which frame of the noise each frame holds."""
    noise = jnp.broadcast_to(jnp.arange(float(frames))[None, :, None], (len(keys), frames, 2))
    result = np.asarray(jax.jit(lambda noise: rescheduled(noise, keys, length, stride))(noise))
    np.testing.assert_array_equal(result[..., 0], result[..., 1])
    return result[..., 0].astype(int)


@pytest.mark.parametrize(("frames", "length", "stride"), [(64, 16, 4), (26, 8, 4), (21, 8, 8), (9, 5, 3), (7, 4, 1)])
def test_every_stride_repeats_the_frames_a_window_before(frames, length, stride):
    result = order(frames, length, stride)
    np.testing.assert_array_equal(result[:, :length], np.tile(np.arange(length), (3, 1)))
    for begin in range(length, frames, stride):
        for row in result:
            new, old = row[begin : begin + stride], row[begin - length : begin - length + stride]
            assert sorted(new) == sorted(old) if len(new) == stride else set(new) <= set(old)


def test_every_video_and_every_stride_has_an_order_of_its_own():
    result = order(64, 16, 8)
    assert len({tuple(row[16:]) for row in result}) == 3
    assert len({tuple(np.argsort(row[begin : begin + 8])) for row in result for begin in range(16, 64, 8)}) > 15
    np.testing.assert_array_equal(order(64, 16, 8, KEYS[1:2])[0], result[1])


def test_a_single_window_keeps_its_noise():
    np.testing.assert_array_equal(order(8, 8, 4), np.tile(np.arange(8), (3, 1)))
