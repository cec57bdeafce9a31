"""What is known in training: masks of every kind, their frequency, and how the network sees the known part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.known import (
    MASKS,
    Known,
    MaskMixture,
    coarsen,
    draw_known,
    draw_known_times,
    draw_mask,
    known_channels,
    level_time,
    nearest_known,
    whole_frames,
)
from vdm_jax.diffusion.process import PROCESSES, make_process
from vdm_jax.errors import InputError

SHAPE = T, H, W = 8, 6, 4


def draw(mixture, count=200, shape=SHAPE):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_mask(mixture, key, shape)))(keys))[..., 0]


def frames_of(masks):
    """Returns which frames are known, for masks that are the same in every pixel."""
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :, :1, :1], masks.shape))
    return masks[:, :, 0, 0]


def test_masks_without_chance():
    for kind, known in {"nothing": [], "everything": range(T), "first": [0]}.items():
        np.testing.assert_array_equal(frames_of(draw({kind: 2.0}, 3)), [np.isin(range(T), known)] * 3)


@pytest.mark.parametrize(("kind", "order"), [("first_k", slice(None)), ("last_k", slice(None, None, -1))])
def test_frames_at_one_end_have_every_length(kind, order):
    known = frames_of(draw({kind: 1.0}))[:, order]
    lengths = known.sum(1)
    assert set(lengths) == set(range(1, T))  # never nothing, never all
    np.testing.assert_array_equal(known, np.arange(T) < lengths[:, None])


def test_every_nth_frame_begins_with_the_first():
    known = {tuple(row) for row in frames_of(draw({"every_nth": 1.0}))}
    assert known == {tuple(np.arange(T) % n == 0) for n in (2, 3, 4)}


def test_frames_at_random_have_every_count():
    counts = frames_of(draw({"frames": 1.0})).sum(1)
    assert set(counts) == set(range(T + 1))


@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_boxes_are_the_same_in_every_frame(kind):
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


def test_kinds_have_the_frequency_of_the_mixture():
    known = draw({"nothing": 3.0, "everything": 1.0, "first": 0.0}, 4000)[:, 1, 0, 0]
    assert known.mean() == pytest.approx(0.25, abs=0.03)


def test_a_single_frame_has_masks_of_every_kind():
    for kind in MASKS:
        assert draw({kind: 1.0}, 100, (1, 4, 4)).shape[:2] == (100, 1)
    assert 0 < draw(dict.fromkeys(MASKS, 1.0), 100, (1, 4, 4)).mean() < 1  # a kind is chosen for each video


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, T, H, W, 2)), jnp.float32)


def test_channels_are_the_known_part_and_its_certainty(x):
    mask = np.random.default_rng(1).random((3, T, H, W, 1)) < 0.5
    channels = known_channels(Known(x, mask), jnp.zeros_like(x))
    np.testing.assert_array_equal(channels[..., :2], np.where(mask, x, 0))
    np.testing.assert_array_equal(channels[..., 2:], mask)
    everything = Known(x, jnp.ones((1, 1, 1, 1, 1), bool))
    channels = known_channels(everything, jnp.ones_like(x), jnp.array([0.0, 0.6, 0.8]))
    np.testing.assert_allclose(channels[1, ..., :2], 0.8 * x[1] + 0.6, atol=1e-6)
    certainty = np.broadcast_to(np.reshape([1, 0.8, 0.6], (3, 1, 1, 1)), (3, T, H, W))
    np.testing.assert_allclose(channels[..., 2], certainty)


def test_training_draws_noise_up_to_its_level_and_stills_are_unknown(x):
    channels = np.asarray(draw_known(MaskMixture({"everything": 1.0}, noise=0.6), x, jax.random.key(1), images=2))
    assert not channels[:, -2:].any()
    certainty = channels[:, :-2, ..., 2]
    np.testing.assert_array_equal(certainty, np.broadcast_to(certainty[:, :1, :1, :1], certainty.shape))
    alpha = certainty[:, 0, 0, 0]
    assert (alpha >= 0.8).all()
    assert len(set(alpha)) == 3
    noise = channels[:, :-2, ..., :2] - alpha[:, None, None, None, None] * x[:, :-2]
    np.testing.assert_allclose(noise.std((1, 2, 3, 4)), np.sqrt(1 - alpha**2), rtol=0.15)


def test_low_resolution_is_the_mean_of_pixels_in_the_size_of_the_video(x):
    small = np.asarray(x).reshape(3, T, H // 2, 2, W // 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(coarsen(x, 2), np.kron(small, np.ones((1, 1, 2, 2, 1))), atol=1e-6)
    channels = draw_known(MaskMixture({"everything": 1.0}, downsample=2), x, jax.random.key(0))
    np.testing.assert_allclose(channels[..., :2], coarsen(x, 2), atol=1e-6)


@pytest.mark.parametrize("per_frame", [False, True])
def test_known_frames_are_at_time_0_and_do_not_count(per_frame):
    masks, process = MaskMixture({"first_k": 1.0, "frames": 1.0}, tell="times"), make_process("ddpm")
    time = jax.random.uniform(jax.random.key(1), (100, T) if per_frame else (100,), minval=0.1)
    times, weights = draw_known_times(masks, process, time, T, jax.random.key(0), images=2)
    known = np.asarray(weights) == 0
    np.testing.assert_array_equal(times, np.where(known, 0, time if per_frame else time[:, None]))
    np.testing.assert_array_equal(weights, ~known)
    assert not known[:, -2:].any()
    assert set(known.sum(1)) == set(range(T - 1))
    assert len(np.unique(known, axis=0)) > 20


def test_noise_on_known_frames_is_a_small_time():
    masks, process = MaskMixture({"first_k": 1.0}, noise=0.6, tell="times"), make_process("flow")
    times, weights = draw_known_times(masks, process, jnp.ones(500), T, jax.random.key(0))
    first = np.asarray(times[:, 0])
    np.testing.assert_array_equal(times, np.where(weights == 0, first[:, None], 1))
    alpha, sigma = process.alpha_sigma(times[:, 0])
    level = sigma / jnp.hypot(alpha, sigma)
    assert (float(level.min()), float(level.max())) == pytest.approx((0, 0.6), abs=0.01)
    assert float(level.mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_of_a_noise_level(name):
    process, level = make_process(name), jnp.array([0.0, 0.1, 0.5, 0.9])
    time = level_time(process, level)
    assert time[0] == 0
    alpha, sigma = process.alpha_sigma(time[1:])
    np.testing.assert_allclose(sigma / jnp.hypot(alpha, sigma), level[1:], rtol=1e-3)


def test_unknown_frames_become_the_nearest_known_one():
    video, mask = jnp.arange(12.0).reshape(1, 6, 2, 1, 1), np.zeros((1, 6, 2, 1, 1), bool)
    np.testing.assert_array_equal(nearest_known(video, jnp.asarray(mask)), video)  # nothing is known
    mask[0, [1, 5]], mask[0, 3, 0] = True, True  # two frames, and a part of another
    expected = np.asarray(video)[:, [1, 1, 1, 3, 5, 5]]
    np.testing.assert_array_equal(nearest_known(video, jnp.asarray(mask)), expected)


def test_whole_frames():
    mask = np.zeros((2, 3, 4, 4, 1), bool)
    mask[0, 1] = True
    assert whole_frames(mask)
    assert whole_frames(jnp.ones((1, 3, 1, 1, 1), bool))
    mask[1, 2, 0] = True
    assert not whole_frames(mask)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixture": {"firsts": 1.0}}, "known.mixture.firsts must be one of nothing, everything, first"),
        ({"mixture": {"first": -1.0}}, "known.mixture.first=-1.0 must not be negative"),
        ({"mixture": {"first": 0.0}}, "must have a positive weight"),
        ({"mixture": {"first": 1.0}, "noise": 1.0}, "known.noise=1.0 must be at least 0 and below 1"),
        ({"mixture": {"first": 1.0}, "downsample": 0}, "known.downsample=0 must be at least 1"),
        ({"mixture": {"first": 1.0}, "tell": "time"}, "known.tell='time' must be one of channels, times"),
        ({"mixture": {"first": 1.0}, "tell": "times", "downsample": 2}, "known.downsample=2 must be 1 with known.tell"),
        (
            {"mixture": {"first": 1.0, "inside": 0.5}, "tell": "times"},
            "known.mixture.inside=0.5 must be 0 with known.tell='times': a time belongs to a whole frame",
        ),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(InputError, match=words):
        MaskMixture(**arguments)
