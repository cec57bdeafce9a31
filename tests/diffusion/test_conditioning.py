"""What a network is told in training: masks of every kind, how often, and with which certainty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.conditioning import MASKS, Conditioning, coarsen, draw_mask, draw_told, tell
from vdm_jax.diffusion.known import Known
from vdm_jax.errors import InputError

SHAPE = T, H, W = 8, 6, 4


def draw(mixture, count=200, shape=SHAPE):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_mask(mixture, key, shape)))(keys))[..., 0]


def frames_of(masks):
    """Which frames are known, of masks that are the same in every pixel."""
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :, :1, :1], masks.shape))
    return masks[:, :, 0, 0]


def test_masks_that_leave_nothing_to_chance():
    for kind, known in {"nothing": [], "everything": range(T), "first": [0]}.items():
        np.testing.assert_array_equal(frames_of(draw({kind: 2.0}, 3)), [np.isin(range(T), known)] * 3)


@pytest.mark.parametrize(("kind", "order"), [("first_k", slice(None)), ("last_k", slice(None, None, -1))])
def test_a_run_of_frames_at_one_end_of_every_length(kind, order):
    known = frames_of(draw({kind: 1.0}))[:, order]
    lengths = known.sum(1)
    assert set(lengths) == set(range(1, T))  # never nothing, never all
    np.testing.assert_array_equal(known, np.arange(T) < lengths[:, None])


def test_every_nth_frame_from_the_first_on():
    known = {tuple(row) for row in frames_of(draw({"every_nth": 1.0}))}
    assert known == {tuple(np.arange(T) % n == 0) for n in (2, 3, 4)}


def test_frames_at_random_are_sometimes_few_and_sometimes_many():
    counts = frames_of(draw({"frames": 1.0})).sum(1)
    assert set(counts) == set(range(T + 1))


@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_boxes_are_known_or_all_around_them_in_every_frame(kind):
    masks = draw({kind: 1.0})
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    box = masks[:, 0] if kind == "inside" else ~masks[:, 0]
    rows, columns = box.any(2), box.any(1)
    np.testing.assert_array_equal(box, rows[:, :, None] & columns[:, None])
    for spans, size in ((rows, H), (columns, W)):
        assert (np.abs(np.diff(np.pad(spans, [(0, 0), (1, 1)]).astype(int), axis=1)).sum(1) == 2).all()  # in one piece
        assert spans.sum(1).min() >= size // 4
        assert spans.sum(1).max() <= 3 * size // 4
        assert spans.any(0).all()  # anywhere


def test_kinds_come_as_often_as_the_mixture_says():
    known = draw({"nothing": 3.0, "everything": 1.0, "first": 0.0}, 4000)[:, 1, 0, 0]
    assert known.mean() == pytest.approx(0.25, abs=0.03)


def test_a_single_frame_has_masks_of_every_kind():
    for kind in MASKS:
        assert draw({kind: 1.0}, 100, (1, 4, 4)).shape[:2] == (100, 1)
    assert 0 < draw(dict.fromkeys(MASKS, 1.0), 100, (1, 4, 4)).mean() < 1  # each is drawn, one chosen


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, T, H, W, 2)), jnp.float32)


def test_what_is_told_is_the_known_part_and_its_certainty(x):
    mask = np.random.default_rng(1).random((3, T, H, W, 1)) < 0.5
    told = tell(Known(x, mask), jnp.zeros_like(x))
    np.testing.assert_array_equal(told[..., :2], np.where(mask, x, 0))
    np.testing.assert_array_equal(told[..., 2:], mask)
    everything = tell(Known(x, jnp.ones((1, 1, 1, 1, 1), bool)), jnp.ones_like(x), jnp.array([0.0, 0.6, 0.8]))
    np.testing.assert_allclose(everything[1, ..., :2], 0.8 * x[1] + 0.6, atol=1e-6)
    np.testing.assert_allclose(
        everything[..., 2], np.broadcast_to(np.reshape([1, 0.8, 0.6], (3, 1, 1, 1)), (3, T, H, W))
    )


def test_training_draws_noise_up_to_its_level_and_tells_nothing_of_stills(x):
    conditioning = Conditioning({"everything": 1.0}, noise=0.6)
    told = np.asarray(draw_told(conditioning, x, jax.random.key(1), images=2))
    assert not told[:, -2:].any()
    certainty = told[:, :-2, ..., 2]
    np.testing.assert_array_equal(certainty, np.broadcast_to(certainty[:, :1, :1, :1], certainty.shape))
    alpha = certainty[:, 0, 0, 0]
    assert (alpha >= 0.8).all()
    assert len(set(alpha)) == 3
    noise = told[:, :-2, ..., :2] - alpha[:, None, None, None, None] * x[:, :-2]
    np.testing.assert_allclose(noise.std((1, 2, 3, 4)), np.sqrt(1 - alpha**2), rtol=0.15)


def test_low_resolution_is_the_mean_of_pixels_in_the_size_of_the_video(x):
    small = np.asarray(x).reshape(3, T, H // 2, 2, W // 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(coarsen(x, 2), np.kron(small, np.ones((1, 1, 2, 2, 1))), atol=1e-6)
    told = draw_told(Conditioning({"everything": 1.0}, downsample=2), x, jax.random.key(0))
    np.testing.assert_allclose(told[..., :2], coarsen(x, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixture": {"firsts": 1.0}}, "known.mixture.firsts must be one of nothing, everything, first"),
        ({"mixture": {"first": -1.0}}, "known.mixture.first=-1.0 must not be negative"),
        ({"mixture": {"first": 0.0}}, "must have a positive weight"),
        ({"mixture": {"first": 1.0}, "noise": 1.0}, "known.noise=1.0 must be at least 0 and below 1"),
        ({"mixture": {"first": 1.0}, "downsample": 0}, "known.downsample=0 must be at least 1"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Conditioning(**arguments)
