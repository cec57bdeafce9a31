"""A briefly trained network must know the order of frames: neither its loss nor its single frames would tell."""

from pathlib import Path
from runpy import run_path

import jax
import numpy as np

from vdm_jax.configuration import make_model, objective_of, optimizer_of, process_of
from vdm_jax.evaluation.judge import jerk, shuffle_frames
from vdm_jax.generation.pipeline import make_pipeline
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.training.state import create_state
from vdm_jax.training.step import make_train_step

CONFIG = Path(__file__).parents[2] / "configs" / "moving_digits.py"
FRAMES, HEIGHT, WIDTH, BAR = 8, 8, 16, 3


def moving_bars(count, seed):
    """White bars on black that go to the left or the right by one pixel a frame, in view all the time."""
    rng = np.random.default_rng(seed)
    left = rng.integers(WIDTH - BAR - FRAMES + 2, size=(count, 1)) + np.arange(FRAMES)
    left = np.where(rng.integers(2, size=(count, 1)), left, left[:, ::-1])[:, :, None]
    lit = (left <= np.arange(WIDTH)) & (np.arange(WIDTH) < left + BAR)
    return np.broadcast_to(255 * lit[:, :, None, :, None], (count, FRAMES, HEIGHT, WIDTH, 1)).astype(np.uint8)


def test_samples_of_a_briefly_trained_network_move_smoothly(monkeypatch):
    """The temporal slots of the demo's network, after some seconds on bars: no captions, one device.

    A network that has not learned the order of frames (a weak temporal position is enough for that) draws every
    frame as well, and its jerk is that of shuffled frames.
    """
    monkeypatch.delenv("XLA_FLAGS")  # 200 steps take longer than their compilation: optimised as for users
    config = run_path(str(CONFIG))["get_config"]()
    config.model.text = {"length": 0}
    config.model.unet.update(channels=16, multipliers=(1,), head_size=16)
    config.model.unet.update(space_attention=(True,), time_attention=(True,))
    config.data.frames, config.data.height, config.data.width = FRAMES, HEIGHT, WIDTH
    config.steps, config.batch_size = 200, 8
    config.optimizer.update(warmup=10, learning_rate=8e-3)
    mesh = make_mesh(devices=jax.devices()[:1])
    tx, _ = optimizer_of(config)
    graphdef, state = create_state(lambda rngs: make_model(config, rngs), tx, mesh, seed=0)
    step = make_train_step(
        graphdef, objective_of(config), process_of(config), tx, mesh, seed=0, null_tokens=None, ema=config.ema
    )
    real = moving_bars(config.steps * config.batch_size, seed=0)
    for video in np.split(real, config.steps):
        state, _ = step(state, {"video": video})

    drawn = make_pipeline(config, graphdef, state.ema, mesh, config.steps)([""] * 32, batch_size=32, steps=16)
    floor = shuffle_frames(drawn, jax.random.key(0))
    assert jerk(drawn).mean() < 0.4 * jerk(floor).mean()
    assert drawn.max() > 0.5  # and there is something in them that moves
