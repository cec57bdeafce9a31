"""The judge of moving digits, centroids and jerk, and the clips of the floors."""

import dataclasses

import jax
import numpy as np
import pytest

from vdm_jax.data import moving_digits as data
from vdm_jax.errors import InputError
from vdm_jax.evaluation import judge as ev

BRIEF = ev.Recipe(steps=120, batch=64)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = dataclasses.replace(data.MovingDigits.BUILDER_CONFIGS[0], name="tiny", train_clips=2, test_clips=1)
    return data.prepare(tmp_path_factory.mktemp("moving_digits"), config)


def clips(builder, split):
    source = builder.as_data_source(split=split)
    rows = [source[i] for i in range(len(source))]
    videos = np.stack([row["video"] for row in rows]).astype(np.float32) / 127.5 - 1
    return videos, *(np.concatenate([row[key] for row in rows]) for key in ("digit", "direction"))


@pytest.fixture(scope="module")
def test_clips(builder):
    return clips(builder, "test")


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    return tmp_path_factory.mktemp("judge") / "judge.npz"


@pytest.fixture(scope="module")
def judge(builder, judge_file):
    return ev.load_or_train_judge(judge_file, builder, recipe=BRIEF)


def accuracy(judge, videos, digits, directions):
    """Shares of clips with the right digit and with the right direction."""
    verdict = judge(videos)
    return float((verdict.digit.argmax(1) == digits).mean()), float((verdict.direction.argmax(1) == directions).mean())


def test_reads_digit_and_direction_of_unseen_handwriting(judge, test_clips):
    digit, direction = accuracy(judge, *test_clips)
    assert digit > 0.7
    assert direction > 0.95
    assert ev.jerk(test_clips[0]).mean() < 0.02


def test_shuffling_frames_loses_the_direction_and_keeps_the_digit(judge, test_clips):
    videos, digits, directions = test_clips
    shuffled = ev.shuffle_frames(videos, jax.random.key(0))
    (real_digit, _), (digit, direction) = (accuracy(judge, x, digits, directions) for x in (videos, shuffled))
    assert digit == pytest.approx(real_digit, abs=0.01)
    assert direction < 0.65
    assert ev.jerk(shuffled).mean() > 2


def test_verdicts_are_probabilities_with_features_whatever_the_batch(judge, test_clips):
    videos = test_clips[0][:130]  # two batches, the second is short
    verdict = judge(videos)
    assert verdict.digit.shape == (130, 10)
    assert verdict.direction.shape == (130, len(data.MOTIONS))
    assert verdict.frames.shape == (130, 8, 64)
    assert verdict.features.shape == (130, 96)
    np.testing.assert_allclose(verdict.digit.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(verdict.direction.sum(1), 1, rtol=1e-5)
    alone = judge(videos[128:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[128:], b, rtol=1e-4, atol=1e-5), verdict, alone)
    stored = judge(((videos + 1) * 127.5).round().astype(np.uint8))
    np.testing.assert_allclose(stored.features, verdict.features, rtol=1e-4, atol=1e-4)


def test_the_file_gives_the_same_judge_without_training(judge, judge_file, builder, monkeypatch):
    monkeypatch.setattr(ev, "train_judge", None)
    again = ev.load_or_train_judge(judge_file, builder, recipe=BRIEF)
    assert again.digest == judge.digest
    assert again.recipe == judge.recipe


@pytest.mark.parametrize("damage", ["truncated", "empty", "other seed"])
def test_a_file_that_is_not_the_judge_asked_for_is_replaced(
    judge, judge_file, builder, tmp_path, damage, caplog, monkeypatch
):
    trained = []
    monkeypatch.setattr(ev, "train_judge", lambda *_, seed, recipe: trained.append(seed) or judge)
    path, seed = tmp_path / "judge.npz", int(damage == "other seed")
    whole = judge_file.read_bytes()
    path.write_bytes({"truncated": whole[:5000], "empty": b"", "other seed": whole}[damage])
    again = ev.load_or_train_judge(path, builder, seed=seed, recipe=BRIEF)
    assert "training it again" in caplog.text
    assert (again.recipe == judge.recipe) == (seed == 0)
    assert ev.load_or_train_judge(path, builder, seed=seed, recipe=BRIEF).digest == judge.digest
    assert trained == [seed]
    assert [file.name for file in tmp_path.iterdir()] == ["judge.npz"]


def test_a_judge_that_cannot_be_kept_is_still_given(judge, builder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(ev, "train_judge", lambda *_, **__: judge)
    (tmp_path / "file").write_text("")
    given = ev.load_or_train_judge(tmp_path / "file" / "judge.npz", builder, recipe=BRIEF)
    assert "not saved" in caplog.text
    assert given.digest == judge.digest


def test_any_size_can_be_judged():
    videos = np.random.default_rng(0).uniform(-1, 1, (20, 5, 32, 24, 3)).astype(np.float32)
    labels = np.arange(20) % 4
    judge = ev.train_judge(videos, labels, labels, recipe=ev.Recipe(steps=2, batch=8))
    assert judge(videos).features.shape == (20, 96)


def test_other_sizes_and_two_digits_are_refused(judge, tmp_path):
    with pytest.raises(InputError, match=r"videos=\(8, 32, 32, 1\) must be \(8, 16, 16, 1\)"):
        judge(np.zeros((2, 8, 32, 32, 1), np.float32))
    two = data.MovingDigits(config="two_digits", data_dir=str(tmp_path))
    with pytest.raises(InputError, match="two digits"):
        ev.load_or_train_judge(tmp_path / "judge.npz", two)


def square(positions, size=16):
    """A clip of a white 2×2 square. `positions`: row and column of its corner in each frame."""
    video = np.full((1, len(positions), size, size, 1), -1, np.float32)
    for frame, (row, column) in zip(video[0], positions, strict=True):
        frame[row : row + 2, column : column + 2] = 1
    return video


def test_centroids_are_rows_and_columns_in_pixels():
    clip = square([(0, 0), (3, 5), (14, 14)])
    np.testing.assert_allclose(ev.centroids(clip)[0], [(0.5, 0.5), (3.5, 5.5), (14.5, 14.5)], atol=1e-4)
    np.testing.assert_allclose(ev.centroids(np.full((1, 2, 16, 12, 1), -1, np.float32)), [[(7.5, 5.5)] * 2])


def test_jerk_is_zero_for_linear_motion_and_its_size_for_a_turn():
    assert ev.jerk(square([(4, i) for i in range(8)]))[0] == pytest.approx(0, abs=1e-4)
    assert ev.jerk(square([(4, 0), (4, 3), (4, 0)]))[0] == pytest.approx(6, abs=1e-4)
    with pytest.raises(InputError, match="frames=2"):
        ev.jerk(square([(0, 0), (1, 1)]))


def test_floors_keep_the_frames_and_change_the_motion(test_clips):
    videos = test_clips[0][:64]
    shuffled = np.asarray(ev.shuffle_frames(videos, jax.random.key(1)))
    np.testing.assert_allclose(np.sort(shuffled.sum((2, 3, 4))), np.sort(videos.sum((2, 3, 4))), rtol=1e-5)
    assert len(np.unique(np.abs(shuffled - videos).sum((1, 2, 3, 4)))) > 32  # each clip has another order
    held = ev.frozen(videos)
    np.testing.assert_array_equal(held, np.repeat(videos[:, :1], 8, axis=1))
    assert float(ev.jerk(held).max()) == 0
    assert float(ev.jerk(videos).mean()) < 0.02
    assert float(ev.jerk(shuffled).mean()) > 2
