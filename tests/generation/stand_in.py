"""A pipeline that draws constants, and notes what it is asked to draw."""

import copy

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vdm_jax.diffusion.process import make_process
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.settings import Settings
from vdm_jax.generation.windows import generate
from vdm_jax.model import Model
from vdm_jax.models.codec import PIXELS

FRAMES, SIZE = 4, (2, 3)


def clip(length, size=SIZE):
    """Returns a video whose frame i is all i + 1."""
    return np.float32(np.broadcast_to(np.arange(1, length + 1)[:, None, None, None], (length, *size, 1)))


class Counting(Pipeline):
    """Draws a window n of which the unknown part is all 100·n.

    `windows` holds (known, block, strength, seed) of each, `prompts` and `first_frames` what else it was given.
    """

    def __init__(self, shape=(FRAMES, *SIZE, 1), breaks_at=None, **fields):
        model = Model(
            network=nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))[0],
            text=None,
            codec=PIXELS,
            process=make_process("cosine"),
            prediction="v",
            shape=shape,
            fps=8.0,
            params={"network": {"w": jnp.ones(3)}},
            origin="here",
            step=5,
            **fields,
        )
        noted = {"windows": [], "prompts": [], "first_frames": [], "breaks_at": breaks_at}
        for name, value in ({"model": model, "mesh": None, "settings": Settings()} | noted).items():
            object.__setattr__(self, name, value)

    def batches(self, prompts, *, known, block, strength, coarse, seed=0, frame=None):
        if block == self.breaks_at:
            raise KeyboardInterrupt
        self.windows.append((copy.deepcopy(known), block, strength, seed))
        self.prompts.append(list(prompts))
        self.first_frames.append(frame)
        assert coarse == self.model.downsample
        drawn = np.full((len(prompts), *self.model.shape), 100.0 * (block + 1), np.float32)
        yield drawn if known is None or coarse > 1 else np.where(known.mask, known.video, drawn)


def run(task, **options):
    """Returns the finished video of a task by the first pixels of its frames, and the windows that were drawn."""
    pipeline = Counting()
    *_, videos = generate(pipeline, ["a", "b"], task, **options)
    np.testing.assert_array_equal(videos[0], videos[1])
    known = np.broadcast_to(task.mask, task.video.shape)
    np.testing.assert_array_equal(videos[0][known], task.video[known])
    return videos[0][:, 0, 0, 0].tolist(), pipeline.windows
