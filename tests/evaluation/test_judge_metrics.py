"""Metrics of moving digits: distances of the judge's features, identity, position, and nearness to training clips."""

import dataclasses

import jax
import numpy as np
import pytest

from vdm_jax.data import moving_digits as data
from vdm_jax.errors import InputError
from vdm_jax.evaluation import judge as metrics
from vdm_jax.evaluation.frechet import frechet_distance
from vdm_jax.evaluation.judge import Recipe, Verdict, frozen, shuffle_frames, train_judge


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    config = dataclasses.replace(data.MovingDigits.BUILDER_CONFIGS[0], name="tiny", train_clips=1, test_clips=1)
    builder = data.prepare(tmp_path_factory.mktemp("moving_digits"), config)
    sources = [builder.as_data_source(split=split) for split in ("train", "test")]
    return [[source[i] for i in range(len(source))] for source in sources]


def videos_of(rows):
    return np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def training(clips):
    return videos_of(clips[0])


@pytest.fixture(scope="module")
def test_clips(clips):
    return videos_of(clips[1])


@pytest.fixture(scope="module")
def judge(clips, training):
    labels = [np.concatenate([row[key] for row in clips[0]]) for key in ("digit", "direction")]
    return train_judge(training, *labels, recipe=Recipe(steps=60, batch=64))


@pytest.fixture(scope="module")
def real(judge, training):
    return judge(training[:400])


@pytest.fixture(scope="module")
def seen(judge, test_clips):
    shuffled = shuffle_frames(test_clips, jax.random.key(0))
    return {"real": judge(test_clips), "shuffled": judge(shuffled), "frozen": judge(frozen(test_clips))}


def test_distances_of_sets_rise_where_they_can_see(judge, real, seen, test_clips):
    fvd = {name: frechet_distance(real.features, verdict.features) for name, verdict in seen.items()}
    fid = {name: frechet_distance(real.frames, verdict.frames) for name, verdict in seen.items()}
    assert fvd["shuffled"] > 2 * fvd["real"]
    assert fvd["frozen"] > 2 * fvd["real"]
    assert fid["shuffled"] == pytest.approx(fid["real"], rel=1e-3)  # blind to the order of frames
    noise = np.random.default_rng(0).normal(0, 0.3, test_clips.shape).astype(np.float32)
    noisy = judge((test_clips + noise).clip(-1, 1))
    assert frechet_distance(real.features, noisy.features) > fvd["real"]
    assert frechet_distance(real.frames, noisy.frames) > fid["real"]


def test_the_judge_reads_single_frames(judge, test_clips):
    verdict = judge(test_clips[:5])
    frame = judge(np.repeat(test_clips[:5, 3:4], 8, axis=1))
    np.testing.assert_allclose(verdict.frame_digit[:, 3], frame.digit, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(verdict.frame_digit.sum(-1), 1, rtol=1e-5)


def test_identity_consistency_is_the_share_of_pairs_that_agree():
    seen = np.array([[3, 3, 3, 3], [3, 3, 3, 5], [3, 3, 5, 5], [0, 1, 2, 3]])
    verdict = Verdict(None, None, np.eye(10, dtype=np.float32)[seen], None, None)
    np.testing.assert_allclose(metrics.identity_consistency(verdict), [1, 3 / 6, 2 / 6, 0])
    with pytest.raises(InputError, match="frames=1"):
        metrics.identity_consistency(verdict._replace(frame_digit=verdict.frame_digit[:, :1]))


def test_identity_is_lost_where_digits_change(judge, seen, test_clips):
    found = {name: metrics.identity_consistency(verdict).mean() for name, verdict in seen.items()}
    assert 0.5 < found["real"] < found["frozen"] == 1  # more training gives larger values
    assert found["shuffled"] == pytest.approx(found["real"])
    changing = np.concatenate([test_clips[:100, :4], test_clips[100:200, 4:]], axis=1)  # two clips
    assert metrics.identity_consistency(judge(changing)).mean() < 0.8 * found["real"]


def test_position_error_is_in_pixels_over_the_frames_asked_for(test_clips):
    away = (test_clips[:, :, -1].max((1, 2, 3)) == -1) & (test_clips[:, :, :, -2:].max((1, 2, 3, 4)) == -1)
    clips = test_clips[away]  # rolling brings nothing in from the other side
    assert len(clips) > 10
    moved = np.roll(clips, (1, 2), axis=(2, 3))
    np.testing.assert_allclose(metrics.position_error(moved, clips), np.sqrt(5), rtol=1e-3)
    late = np.concatenate([clips[:, :4], moved[:, 4:]], axis=1)
    np.testing.assert_allclose(metrics.position_error(late, clips), np.sqrt(5) / 2, rtol=1e-3)
    np.testing.assert_allclose(metrics.position_error(late, clips, new=range(4, 8)), np.sqrt(5), rtol=1e-3)
    # A digit moves by a pixel a frame: a frozen digit is 0, 1, … 7 pixels behind.
    np.testing.assert_allclose(metrics.position_error(frozen(test_clips), test_clips).mean(), 3.5, atol=0.05)


def novelty(generated, training, real):
    return metrics.rank(metrics.nearest(generated, training)[0], metrics.nearest(real, training)[0])


def test_novelty_knows_copies_from_new_clips(training, test_clips):
    copies, fresh = training[::10], np.random.default_rng(1).uniform(-1, 1, (20, *training.shape[1:]))
    np.testing.assert_array_equal(novelty(copies, training, test_clips), 0)
    np.testing.assert_array_equal(novelty(fresh.astype(np.float32), training, test_clips), 1)
    assert novelty(test_clips, training, test_clips).mean() == pytest.approx(0.5)
    first, second = test_clips[::2], test_clips[1::2]
    assert novelty(first, training, second).mean() == pytest.approx(0.5, abs=0.1)
    nearly = (copies + np.random.default_rng(2).normal(0, 0.02, copies.shape)).clip(-1, 1).astype(np.float32)
    assert novelty(nearly, training, test_clips).mean() < 0.05


def test_the_nearest_is_found_with_its_distance():
    known = np.random.default_rng(3).standard_normal((30, 2, 5))
    distance, index = metrics.nearest(known[[4, 9]] + 0.1 * np.array([0, 1]).reshape(2, 1, 1), known)
    assert index.tolist() == [4, 9]
    np.testing.assert_allclose(distance, [0, 0.1], atol=1e-12)
    with pytest.raises(InputError, match="must differ in their number alone"):
        metrics.nearest(known[:, :1], known)
