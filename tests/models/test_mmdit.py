"""The transformer of two streams: what each condition may change, and refusals. Parity is in tests/pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.mmdit import MMDiT
from vdm_jax.models.rngs import Keys

B, T, H, W, C, L, E, P = 2, 2, 4, 6, 3, 5, 7, 4
TINY = dict(channels_in=C, width=16, heads=2, double=1, single=1, axes=(4, 2, 2), text_width=E, pooled_width=P)
Z, TIME = normal(0, B, T, H, W, C), jnp.array([3.0, 700.0])


def make(**arguments):
    return randomised(lambda: MMDiT(**TINY | arguments, rngs=Keys(0)), scale=0.3)


def text(seed=1):
    mask = np.broadcast_to(np.arange(L) < np.array([2, 4])[:, None, None], (B, 1, L))
    return Text(normal(seed, B, 1, L, E), jnp.asarray(mask), normal(seed + 10, B, 1, P))


def run(module, **conditions):
    return np.asarray(jax.jit(module)(Z, TIME, Conditions(**conditions)))


def test_a_new_network_predicts_zero():
    assert not run(MMDiT(**TINY, rngs=Keys(0)), text=text()).any()


def test_tokens_that_do_not_count_change_nothing():
    module, first, other = make(), text(), text(2)
    mixed = first._replace(tokens=jnp.where(first.mask[..., None], first.tokens, other.tokens))
    np.testing.assert_allclose(run(module, text=mixed), run(module, text=first), atol=1e-5)
    assert np.abs(run(module, text=first._replace(tokens=other.tokens)) - run(module, text=first)).max() > 1e-3
    assert np.abs(run(module, text=first._replace(pooled=other.pooled)) - run(module, text=first)).max() > 1e-3


def test_nothing_known_is_zeros():
    module = make(channels_in=2 * C + 1, channels_out=C)
    known = jnp.zeros((B, T, H, W, C + 1))
    np.testing.assert_array_equal(run(module, text=text(), known=known), run(module, text=text()))
    assert np.abs(run(module, text=text(), known=known + 1) - run(module, text=text())).max() > 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"axes=\(4, 4, 4\) must be even and have the sum of width / heads = 16 / 2"):
        make(axes=(4, 4, 4))
    with pytest.raises(InputError, match=r"needs model\.text"):
        make(pooled_width=0)
    with pytest.raises(InputError, match="one text a video"):
        make()(Z, TIME, Conditions())
    with pytest.raises(InputError, match="a time for each frame is not for"):
        make()(Z, jnp.ones((B, T)), Conditions(text=text()))
    with pytest.raises(InputError, match="4 known channels must be 0"):
        make()(Z, TIME, Conditions(text=text(), known=jnp.zeros((B, T, H, W, 4))))
    with pytest.raises(InputError, match="height=5 must be a multiple of 2"):
        make().check(2, 5, 6)
    with pytest.raises(InputError, match="joint_images=1"):
        make().check(2, 4, 6, 1)
