"""One Grain pipeline for every source of videos: shuffle, shard, augment, tokenise, batch, prefetch.

The stream of examples is a pure function of (seed, position): example `p` is row `p % n` of the shuffle of
epoch `p // n`, and every draw made for it (clip, crop, flip, caption dropout, joint images) comes from a
generator seeded with (seed, p). Of batch `i` process `j` of `P` holds the `j`-th part, `B/P` positions from
`i·B + j·B/P` on. So the iterator's whole state is one number, the same for any number of worker processes, and
the batches of all processes together are the batch that a single process would have drawn.
"""

import dataclasses
import multiprocessing
import os
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
    caption_dropout: float | int = 0.0,
    flip: bool = False,
    joint_images: int = 0,
    num_workers: int = 0,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """Iterates over this process's share of the batches of `source`.

    Yields `{"video": uint8 [b, T, H, W, C], "tokens": int32 [b, L]}` with `b = batch_size / process_count`.
    With `joint_images` K > 0 the videos are `[b, T + K, H, W, C]`: random frames of K other videos
    follow the clip (Ho et al. 2022, section 4.3.1) and `"image_tokens"` are their captions, int32 `[b, K, L]`.

    Args:
        source: random access; items have "video", uint8 `[T, H, W, C]`, and "caption". A source that draws
            (a clip, a crop) has `sample(index, rng, single_frame)` too, which is then used instead of `[]`.
        batch_size: videos per step over all processes.
        seed: below 2³²; fixes the order and every draw.
        tokenize: caption to int32 `[L]`, the same L for all.
        shuffle: another order in each epoch; else the source's own order.
        repeat: for ever; else one epoch without its incomplete last batch (`shuffle=False, repeat=False` to
            evaluate).
        caption_dropout: probability that a caption is replaced by "", drawn for each caption.
        flip: mirror half of the clips, left to right. Wrong for captions that say left and right.
        joint_images: K above.
        num_workers: worker processes; 0 reads in threads of this one. A script that starts workers needs the
            `if __name__ == "__main__"` guard, and should `close()` the iterator.
        prefetch: batches made ahead, by each worker; 0 for none.
        process_index, process_count: this process of a multi-process run, of those that read different videos.

    Raises:
        InputError: the batch does not divide, the source has too few videos, or its longest caption, where it knows
            one (`longest_caption`: where it is, and what it says), is too long.
    """
    count = len(source)
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be a positive multiple of {process_count} processes")
    if count < batch_size:
        raise InputError(f"the data has {count} videos, fewer than one batch (batch_size={batch_size})")
    if not 0 <= joint_images < count:
        raise InputError(f"joint_images={joint_images} must be less than the {count} videos of the data")
    if not 0 <= caption_dropout <= 1:
        raise InputError(f"caption_dropout={caption_dropout} must lie between 0 and 1")

    longest = getattr(source, "longest_caption", None) if caption_dropout < 1 else None
    if longest is not None:  # better refused now than in mid-training
        where, caption = longest
        try:
            tokenize(caption)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    positions = grain.MapDataset.range(count).seed(seed)
    if shuffle:
        positions = positions.shuffle()
    if repeat:
        positions = positions.repeat()
    else:  # cut before the processes share, so that all of them see equally many batches
        positions = positions[: count // batch_size * batch_size]
    examples = positions.random_map(_Example(source, tokenize, caption_dropout, flip, joint_images))
    # In turn, so that the processes' shares one after another are the batch of a single process.
    shares = examples.batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
    return BatchIterator(shares[process_index::process_count], num_workers, prefetch)


class BatchIterator(grain.DatasetIterator):
    """Iterates over a map of batches; its state is `{"next_batch": n}`, whatever the workers and processes.

    Grain's own iterators keep one state per worker; slicing the map at `n` leads to the same place without.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int, prefetch: int):
        super().__init__()
        self._batches, self._num_workers, self._prefetch = batches, num_workers, prefetch
        self._next_batch = 0
        self._inner: grain.DatasetIterator | None = None  # opened by the first `next`, workers and all

    def __next__(self) -> Batch:
        if self._inner is None:
            self._inner = self._open()
        batch = next(self._inner)
        if self._num_workers:  # off the workers' shared memory, which they use again
            batch = {key: np.array(value) for key, value in batch.items()}
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of batches drawn, ready for JSON."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was taken; takes the time of opening the iterator anew."""
        self._close_inner()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes and threads."""
        self._close_inner()
        super().close()

    def _open(self) -> grain.DatasetIterator:
        ahead = 0 if self._num_workers else self._prefetch  # the workers keep their own buffers
        stream = self._batches[self._next_batch :].to_iter_dataset(
            grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
        )
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read them; outside `app.run` nobody parsed them
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


def _leave_signals_to_the_parent(worker: int, workers: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the training loop has still to draw a batch and to save."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def end_with_the_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Example:
    """Reads and augments one example: a function of the row and of the generator of its position."""

    source: RandomAccessDataSource
    tokenize: Callable[[str], np.ndarray]
    caption_dropout: float | int
    flip: bool
    joint_images: int

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        video, tokens = self._load(index, rng, single_frame=False)
        if not self.joint_images:
            return {"video": video, "tokens": tokens}
        count = len(self.source)
        steps = 1 + rng.choice(count - 1, self.joint_images, replace=False)  # to K different others
        loaded = [self._load(int((index + step) % count), rng, single_frame=True) for step in steps]
        frames, image_tokens = zip(*loaded, strict=True)
        return {
            "video": np.concatenate([video, *frames]),
            "tokens": tokens,
            "image_tokens": np.stack(image_tokens),
        }

    def _load(self, index: int, rng: np.random.Generator, *, single_frame: bool) -> tuple[np.ndarray, np.ndarray]:
        """One video `[T, H, W, C]` (or one frame of it, T = 1) and its caption's tokens."""
        if hasattr(self.source, "sample"):
            item = self.source.sample(index, rng, single_frame)
            video = item["video"]
        else:
            item = self.source[index]
            video = item["video"]
            if single_frame:
                start = rng.integers(len(video))
                video = video[start : start + 1]
        # Both draws are always made, so that turning one option on leaves the other's outcome as it was.
        mirrored, dropped = rng.random() < 0.5, rng.random() < self.caption_dropout
        if self.flip and mirrored:
            video = video[:, :, ::-1]
        caption = item["caption"].decode() if isinstance(item["caption"], bytes) else str(item["caption"])
        return video, np.asarray(self.tokenize("" if dropped else caption), np.int32)


def _stack(examples: Sequence[Batch]) -> Batch:
    shapes = sorted({example["video"].shape for example in examples})
    if len(shapes) > 1:
        raise InputError(
            f"videos of one batch differ in shape ({shapes[0]}, {shapes[1]} …): "
            "set frames and size, so that all are cut to the same clip"
        )
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
