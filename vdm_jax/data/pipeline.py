"""One Grain pipeline for every source of videos: shuffle, shard, augment, tokenise, batch, prefetch.

The stream of examples is a pure function of (seed, position). Example `p` is row `p % n` of the shuffle of epoch
`p // n`, and all its draws (clip, crop, flip, joint images) come from a generator seeded with (seed, p). Process `j` of
`P` holds part `j` of batch `i`: `B/P` positions from `i·B + j·B/P` on. So the state of the iterator is a single number,
whatever the number of workers, and the parts of all processes make up the batch that a single process would draw.
"""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags
from grain.sources import RandomAccessDataSource

from vdm_jax.errors import InputError

Batch = dict[str, np.ndarray]


def make_iterator(
    source: RandomAccessDataSource,
    *,
    batch_size: int,
    seed: int,
    tokenize: Callable[[str], np.ndarray],
    shuffle: bool = True,
    repeat: bool = True,
    flip: bool = False,
    joint_images: int = 0,
    num_workers: int = 0,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """Returns an iterator over this process's share of the batches of `source`.

    Yields `{"video": uint8 [b, T, H, W, C], "tokens": int32 [b, L]}` with `b = batch_size / process_count`.
    With `joint_images` K > 0 the videos are `[b, T + K, H, W, C]`: random frames of K other videos
    follow the clip (Ho et al. 2022, section 4.3.1) and `"image_tokens"` are their captions, int32 `[b, K, L]`.

    Args:
        source: gives random access; items have "video", uint8 `[T, H, W, C]`, and "caption". A source that draws (a
            clip, a crop) has the method `sample(index, rng, single_frame)`, which then replaces `[]`.
        batch_size: videos per step over all processes.
        seed: fixes the order and every draw; below 2³².
        tokenize: turns a caption into int32 `[L]`, with the same L for every caption.
        shuffle: draws a new order in each epoch; False keeps the order of the source.
        repeat: goes on for ever; False stops after one epoch, without its incomplete last batch
            (`shuffle=False, repeat=False` to evaluate).
        flip: mirrors half of the clips from left to right. Wrong for captions that say left and right.
        joint_images: K above.
        num_workers: worker processes; 0 reads in threads of this process. A script that starts workers needs the
            `if __name__ == "__main__"` guard, and should `close()` the iterator.
        prefetch: batches made ahead, by each worker; 0 for none.
        process_index, process_count: number of this process among the processes that read different videos.

    Raises:
        InputError: the batch does not divide, the source has too few videos, its `longest_caption` (place and text,
            if the source knows it) is too long, or the batches of the workers do not fit into shared memory.
    """
    count = len(source)
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be a positive multiple of {process_count} processes")
    if count < batch_size:
        raise InputError(f"the data has {count} videos, fewer than one batch (batch_size={batch_size})")
    if not 0 <= joint_images < count:
        raise InputError(f"joint_images={joint_images} must be less than the {count} videos of the data")

    if longest := getattr(source, "longest_caption", None):  # it would stop the training in the middle
        try:
            tokenize(longest[1])
        except InputError as error:
            raise InputError(f"{longest[0]}: {error}") from error
    positions = grain.MapDataset.range(count).seed(seed)
    if shuffle:
        positions = positions.shuffle()
    if repeat:
        positions = positions.repeat()
    else:  # cut before the processes take their shares, so that all have the same number of batches
        positions = positions[: count // batch_size * batch_size]
    examples = positions.random_map(_Example(source, tokenize, flip, joint_images))
    if num_workers:
        _check_shared_memory(examples[0], batch_size // process_count, num_workers, prefetch)
    # Processes take shares in turn: side by side, their shares are the batch of a single process.
    shares = examples.batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
    return BatchIterator(shares[process_index::process_count], num_workers, prefetch)


class BatchIterator(grain.DatasetIterator):
    """Iterates over a map of batches; its state is `{"next_batch": n}` for any number of workers and processes.

    Grain's own iterators keep one state per worker. Slicing the map at `n` gives the same stream without them.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int, prefetch: int):
        super().__init__()
        self._batches, self._num_workers, self._prefetch = batches, num_workers, prefetch
        self._next_batch = 0
        self._inner: grain.DatasetIterator | None = None  # the first `next` opens it and starts the workers

    def __next__(self) -> Batch:
        if self._inner is None:
            self._inner = self._open()
        batch = next(self._inner)
        if self._num_workers:  # the workers use their shared memory again
            batch = {key: np.array(value) for key, value in batch.items()}
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the number of batches drawn, ready for JSON."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the position of `state`; the next batch takes as long as a first batch."""
        self._close_inner()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes and threads."""
        self._close_inner()
        super().close()

    def _open(self) -> grain.DatasetIterator:
        ahead = 0 if self._num_workers else self._prefetch  # workers have their own buffers
        stream = self._batches[self._next_batch :].to_iter_dataset(
            grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        )
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read flags, and outside `app.run` nobody parses them
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=max(self._prefetch, 1)),
                worker_init_fn=_leave_signals_to_the_parent,
            )
        return iter(stream)

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None


def _check_shared_memory(example: Batch, batch_size: int, num_workers: int, prefetch: int) -> None:
    """Raises InputError where the batches that workers hold do not fit into /dev/shm, which would kill the workers.

    Grain has a buffer of `prefetch` batches at both ends of a worker's queue, each with one more that waits for room.
    """
    batches = num_workers * 2 * (max(prefetch, 1) + 1)
    needed = sum(array.nbytes for array in example.values()) * batch_size * batches
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else needed
    if needed > free:
        raise InputError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, and data.num_workers={num_workers} with "
            f"data.prefetch={prefetch} may fill {needed / 2**20:.0f}: "
            "enlarge it (docker run --shm-size), or lower one of the two"
        )


def _leave_signals_to_the_parent(worker: int, workers: int) -> None:
    """Ignores the signals of Ctrl-C and of schedulers in a worker: the training loop still draws a batch and saves."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def end_with_the_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Example:
    """Reads and augments an example, as a function of its row and the generator of its position."""

    source: RandomAccessDataSource
    tokenize: Callable[[str], np.ndarray]
    flip: bool
    joint_images: int

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        video, tokens = self._load(index, rng, single_frame=False)
        if not self.joint_images:
            return {"video": video, "tokens": tokens}
        count = len(self.source)
        steps = 1 + rng.choice(count - 1, self.joint_images, replace=False)  # to K different videos
        loaded = [self._load(int((index + step) % count), rng, single_frame=True) for step in steps]
        frames, image_tokens = zip(*loaded, strict=True)
        return {"video": np.concatenate([video, *frames]), "tokens": tokens, "image_tokens": np.stack(image_tokens)}

    def _load(self, index: int, rng: np.random.Generator, *, single_frame: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns a video `[T, H, W, C]` (or one frame of it, T = 1) and the tokens of its caption."""
        draws = hasattr(self.source, "sample")
        item = self.source.sample(index, rng, single_frame) if draws else self.source[index]
        video = item["video"]
        if single_frame and not draws:
            start = rng.integers(len(video))
            video = video[start : start + 1]
        mirrored = rng.random() < 0.5  # drawn in any case, so that `flip` does not change later draws
        if self.flip and mirrored:
            video = video[:, :, ::-1]
        caption = item["caption"].decode() if isinstance(item["caption"], bytes) else str(item["caption"])
        return video, np.asarray(self.tokenize(caption), np.int32)


def _stack(examples: Sequence[Batch]) -> Batch:
    shapes = sorted({example["video"].shape for example in examples})
    if len(shapes) > 1:
        raise InputError(
            f"videos of one batch differ in shape ({shapes[0]}, {shapes[1]} …): "
            "set frames and size to cut all videos to clips of one shape"
        )
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
