"""The stream is a function of (seed, position): resuming, sharing and workers do not change it."""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from vdm_jax.data.pipeline import make_iterator
from vdm_jax.errors import InputError


class Numbered:
    """Video i has pixels of value i, plus 50·t in the first column of frame t; its caption is "i"."""

    def __init__(self, count, frames=4):
        self.count, self.frames = count, frames

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        video = np.full((self.frames, 2, 3, 1), index, np.uint8)
        video[:, :, 0] += 50 * np.arange(self.frames, dtype=np.uint8)[:, None, None]
        return {"video": video, "caption": str(index).encode()}


class Drawing(Numbered):
    """Returns videos that depend on the generator, as a folder does."""

    def sample(self, index, rng, single_frame):
        video = np.full((1 if single_frame else 4, 2, 3, 1), rng.integers(256), np.uint8)
        return {"video": video, "caption": str(index)}


def tokenize(caption):
    return np.array([int(caption), len(caption)])


OPTIONS = {"seed": 5, "tokenize": tokenize}
EVERYTHING = dict(batch_size=4, flip=True, joint_images=2, **OPTIONS)


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def videos_of(batches):
    return [int(number) for batch in batches for number in batch["tokens"][:, 0]]


def test_shapes_types_and_content():
    (batch,) = take(make_iterator(Numbered(10), batch_size=4, shuffle=False, **OPTIONS), 1)
    assert batch["video"].shape == (4, 4, 2, 3, 1)
    assert batch["video"].dtype == np.uint8
    assert batch["tokens"].dtype == np.int32
    np.testing.assert_array_equal(batch["video"][:, 0, 0, 1, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(batch["tokens"], [[0, 1], [1, 1], [2, 1], [3, 1]])


def test_every_epoch_has_a_new_order_of_all_videos():
    batches = take(make_iterator(Numbered(12), batch_size=4, **OPTIONS), 9)
    epochs = [videos_of(batches[i : i + 3]) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(order) for order in [*epochs, range(12)]}) == 4
    again = take(make_iterator(Numbered(12), batch_size=4, **OPTIONS), 9)
    assert_equal(batches, again)
    other = take(make_iterator(Numbered(12), batch_size=4, **(OPTIONS | {"seed": 6})), 9)
    assert videos_of(other) != videos_of(batches)


def test_one_epoch_in_order_drops_the_remainder():
    with contextlib.closing(make_iterator(Numbered(11), batch_size=4, shuffle=False, repeat=False, **OPTIONS)) as made:
        batches = list(made)
    assert videos_of(batches) == list(range(8))


@pytest.mark.parametrize("source", [Numbered(11), Drawing(11)], ids=["stored", "drawn"])
@pytest.mark.parametrize("workers", [0, 1])
def test_resume_is_bit_exact(source, workers):
    """Resumes in the middle of an epoch; the state passes through JSON, as in a checkpoint."""
    reference = take(make_iterator(source, **EVERYTHING), 8)
    iterator = make_iterator(source, num_workers=workers, **EVERYTHING)
    head = [next(iterator) for _ in range(4)]
    state = json.loads(json.dumps(iterator.get_state()))
    next(iterator)  # drawn and lost: a crash
    iterator.set_state(state)
    assert iterator.get_state() == state
    assert_equal([*head, *take(iterator, 2)], reference[:6])
    if not workers:
        resumed = make_iterator(source, **EVERYTHING)
        resumed.set_state(state)
        assert_equal(take(resumed, 4), reference[4:])


def test_the_number_of_workers_and_the_prefetch_change_nothing():
    reference = take(make_iterator(Drawing(11), **EVERYTHING), 5)
    assert_equal(take(make_iterator(Drawing(11), prefetch=0, **EVERYTHING), 5), reference)
    assert_equal(take(make_iterator(Drawing(11), num_workers=2, **EVERYTHING), 5), reference)


@pytest.mark.parametrize("repeat", [True, False])
def test_processes_share_the_batches(repeat):
    """Side by side, the shares equal the batches of one process, also if the batches do not divide the data."""
    options = EVERYTHING | {"repeat": repeat}

    def first_batches(**part):
        with contextlib.closing(make_iterator(Numbered(13), **options, **part)) as made:
            return list(itertools.islice(made, 8))

    whole, shares = first_batches(), [first_batches(process_index=i, process_count=2) for i in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(whole) == (8 if repeat else 3)
    for batch, *parts in zip(whole, *shares, strict=True):
        for key, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), rows)


def test_flip_mirrors_half_of_the_clips_left_to_right():
    options = dict(batch_size=100, shuffle=False, **OPTIONS)
    (plain,) = take(make_iterator(Numbered(200), **options), 1)
    (mixed,) = take(make_iterator(Numbered(200), flip=True, **options), 1)
    mirrored = (mixed["video"] == plain["video"][:, :, :, ::-1]).all(axis=(1, 2, 3, 4))
    same = (mixed["video"] == plain["video"]).all(axis=(1, 2, 3, 4))
    assert (mirrored ^ same).all()
    assert 30 < mirrored.sum() < 70


def test_joint_images_come_from_other_videos_with_their_captions():
    batches = take(make_iterator(Numbered(6), batch_size=6, joint_images=3, **OPTIONS), 40)
    frames = set()
    for batch in batches:
        assert batch["video"].shape == (6, 4 + 3, 2, 3, 1)
        assert batch["image_tokens"].shape == (6, 3, 2)
        pictured = batch["video"][:, 4:, 0, 1, 0]
        np.testing.assert_array_equal(pictured, batch["image_tokens"][..., 0])
        for clip, images in zip(batch["tokens"][:, 0], pictured, strict=True):
            assert clip not in images
            assert len(set(images)) == 3
        frames |= set(((batch["video"][:, 4:, 0, 0, 0] - pictured) // 50).ravel())
    assert frames == {0, 1, 2, 3}  # any frame of them


def test_bad_input():
    cases = [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 must be a positive multiple of 4 processes"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 11}, "10 videos, fewer than one batch"),
        ({"batch_size": 2, "joint_images": 10}, "joint_images=10 must be less than the 10"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            make_iterator(Numbered(10), **OPTIONS, **options)


def test_the_longest_caption_is_tokenised_before_a_video_is_read():
    class Folder(Numbered):
        longest_caption = ("b.mp4", "much too long")

    def tokenize(caption):
        if len(caption) > 5:
            raise InputError("text of 13 bytes must have at most 5")
        return np.zeros(5)

    with pytest.raises(InputError, match=r"b\.mp4: text of 13 bytes must have at most 5"):
        make_iterator(Folder(4), batch_size=2, seed=0, tokenize=tokenize)


def test_workers_whose_batches_do_not_fit_into_shared_memory_are_not_started(monkeypatch):
    class Huge(Numbered):
        def __getitem__(self, index):
            return {"video": np.broadcast_to(np.uint8(0), (2**16, 2**10, 2**10, 3)), "caption": "0"}  # 192 GiB

    message = r"/dev/shm has \d+ MiB free, and data.num_workers=3 with data.prefetch=4 may fill 11796480: .*shm-size"
    with pytest.raises(InputError, match=message):
        make_iterator(Huge(8), batch_size=4, process_count=2, num_workers=3, prefetch=4, **OPTIONS)
    make_iterator(Huge(8), batch_size=2, **OPTIONS).close()  # without workers there is no limit


def test_signals_do_not_stop_the_workers():
    iterator = make_iterator(Numbered(11), num_workers=2, prefetch=1, **EVERYTHING)
    for _ in range(2):  # one batch of each worker: both have started
        next(iterator)
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len(take(iterator, 8)) == 8


def test_videos_of_different_shapes_in_a_batch_are_named():
    class Mixed(Numbered):
        def __getitem__(self, index):
            return {"video": np.zeros((2 + index, 2, 2, 1), np.uint8), "caption": "0"}

    mixed = make_iterator(Mixed(4), batch_size=2, **OPTIONS)
    with contextlib.closing(mixed), pytest.raises(InputError, match="differ in shape"):
        next(mixed)
