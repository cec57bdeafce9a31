"""The diffusion transformer: what each condition may change, sizes, refusals. Parity is in tests/pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.models.dit import DiT
from vdm_jax.models.rngs import Keys

B, T, H, W, C, L, E = 2, 3, 4, 6, 3, 5, 7
TINY = dict(channels_in=C, width=16, depth=2, heads=2, frequencies=8)
TEXT = dict(text_width=E, pooled_width=E)


def make(**arguments):
    return randomised(lambda: DiT(**TINY | arguments, rngs=Keys(0)), scale=0.3)


def run(module, z, time, **conditions):
    return np.asarray(jax.jit(module)(z, time, Conditions(**conditions)))


def text(seed=1, groups=1):
    tokens = normal(seed, B, groups, L, E)
    mask = np.broadcast_to(np.arange(L) < np.array([2, 4])[:, None, None], (B, groups, L))
    return Text(tokens, jnp.asarray(mask), tokens[:, :, 0])


Z, TIME = normal(0, B, T, H, W, C), jnp.array([3.0, 700.0])
KINDS = {
    "space and time": dict(),
    "all": dict(attend="all"),
    "a matrix of each block": dict(modulation="block"),
    "a code of frames": dict(time_position="code", qk_norm=None),
}


def test_a_new_network_predicts_zero():
    assert not run(DiT(**TINY, rngs=Keys(0)), Z, TIME).any()


@pytest.mark.parametrize("name", KINDS)
def test_equal_times_of_all_frames_are_the_time_of_the_video(name):
    module = make(**KINDS[name])
    whole, per_frame = run(module, Z, TIME), run(module, Z, jnp.repeat(TIME[:, None], T, 1))
    np.testing.assert_allclose(per_frame, whole, atol=1e-5)
    other = run(module, Z, jnp.repeat(TIME[:, None], T, 1).at[:, 0].set(0.0))
    assert np.abs(other - whole).max() > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_frames_and_pixels_matters(name):
    module, out = make(**KINDS[name]), run(make(**KINDS[name]), Z, TIME)
    for axis in (1, 2, 3):
        flipped = run(module, jnp.flip(Z, axis), TIME)
        assert np.abs(np.flip(flipped, axis) - out).max() > 1e-2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cross", ["space", "each"])
def test_tokens_that_do_not_count_change_nothing(name, cross):
    module = make(**KINDS[name], **TEXT, cross=cross)
    first, other = text(), text(2)
    mixed = first._replace(tokens=jnp.where(first.mask[..., None], first.tokens, other.tokens))
    np.testing.assert_allclose(run(module, Z, TIME, text=mixed), run(module, Z, TIME, text=first), atol=1e-6)
    other = other._replace(pooled=first.pooled)
    assert np.abs(run(module, Z, TIME, text=other) - run(module, Z, TIME, text=first)).max() > 1e-3


def test_the_pooled_text_alone_conditions_where_no_block_reads_tokens():
    module = make(**TEXT, cross="none")
    first = text()
    np.testing.assert_array_equal(
        run(module, Z, TIME, text=text(2)._replace(pooled=first.pooled)), run(module, Z, TIME, text=first)
    )
    assert np.abs(run(module, Z, TIME, text=text(2)) - run(module, Z, TIME, text=first)).max() > 1e-3


def test_stills_see_no_frame_and_no_frame_sees_them():
    module = make()
    is_still = jnp.array([[False, False, True]] * B)
    out = run(module, Z, TIME, is_still=is_still)
    changed = run(module, Z.at[:, 2].add(1.0), TIME, is_still=is_still)
    np.testing.assert_allclose(changed[:, :2], out[:, :2], atol=1e-6)
    changed = run(module, Z.at[:, :2].add(1.0), TIME, is_still=is_still)
    np.testing.assert_allclose(changed[:, 2], out[:, 2], atol=1e-6)


def test_scalars_and_known_channels_are_conditions():
    module = make(scalars=(8, 1), channels_in=2 * C + 1, channels_out=C)
    known = normal(3, B, T, H, W, C + 1)
    out = run(module, Z, TIME, scalars=jnp.array([[24.0], [24.0]]), known=known)
    assert out.shape == Z.shape
    assert np.abs(run(module, Z, TIME, scalars=jnp.array([[24.0], [8.0]]), known=known) - out)[1].max() > 1e-3
    assert np.abs(run(module, Z, TIME, scalars=jnp.array([[24.0], [24.0]]), known=0 * known) - out).max() > 1e-3


def test_a_predicted_variance_is_dropped():
    module = make(variance=True)
    assert module.head.project.out_features == 2 * 2 * 2 * C
    assert run(module, Z, TIME).shape == Z.shape


def test_sizes_that_patches_do_not_divide_are_padded_with_zeros():
    module, z = make(pad=True, plane=8), normal(0, B, T, 3, 5, C)
    padded = jnp.pad(z, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(run(module, z, TIME), run(module, padded, TIME)[:, :, :3, :5], atol=1e-6)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_computing_again_in_the_backward_pass_gives_the_same_gradients(remat):
    module, other = make(), make(remat=remat)

    def gradient(module):
        return jax.jit(jax.grad(lambda z: (module(z, TIME, Conditions()) ** 2).sum()))(Z)

    np.testing.assert_allclose(gradient(other), gradient(module), rtol=1e-4, atol=1e-4)


REFUSED = {
    "attend='rows' must be one of space_time, all": dict(attend="rows"),
    "width=15 must be a multiple of heads=2": dict(width=15),
    "width=18 must be a multiple of 4 for a code of row and column": dict(width=18, heads=1),
    "width / heads = 3 must be even for rotary positions": dict(width=12, heads=4),
    "patch=0 and patch_time=1 must be at least 1": dict(patch=0),
    "frequencies=7 must be even": dict(frequencies=7),
    "plane='rows' must be 'count', 'area', a number or None": dict(plane="rows"),
    "remat='some' must be one of none, full, dots": dict(remat="some"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_arguments_that_do_not_fit_are_refused(line):
    with pytest.raises(InputError, match=line):
        make(**REFUSED[line])


@pytest.mark.parametrize(
    ("arguments", "sizes", "line"),
    [
        ({}, (3, 5, 6), "height=5 must be a multiple of 2"),
        ({"patch_time": 2}, (3, 4, 6), "frames=3 must be a multiple of 2"),
        ({"max_frames": 2}, (3, 4, 6), "frames=3 must be at most 2"),
        ({"attend": "all"}, (3, 4, 6, 1), "joint_images=1 needs attend='space_time'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, sizes, line):
    with pytest.raises(InputError, match=line):
        make(**arguments).check(*sizes)


def test_conditions_that_are_missing_are_refused():
    with pytest.raises(InputError, match=r"conditions\.text=None"):
        make(**TEXT)(Z, TIME, Conditions())
    with pytest.raises(InputError, match=r"conditions\.scalars=None, but the network takes 1"):
        make(scalars=(8, 1))(Z, TIME, Conditions())
    with pytest.raises(InputError, match="a time for each frame needs patch_time=1"):
        make(patch_time=2)(Z[:, :2], jnp.ones((B, 2)), Conditions())
    with pytest.raises(InputError, match="7 channels of z and of what is known must be 3"):
        make()(Z, TIME, Conditions(known=normal(0, B, T, H, W, 4)))
