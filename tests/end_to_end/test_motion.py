"""A briefly trained network must know the order of frames: its loss and its single frames would not show it."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from vdm_jax.build import build, objective_of, split_of
from vdm_jax.config import read_file
from vdm_jax.evaluation.judge import jerk, shuffle_frames
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.training.losses import denoising
from vdm_jax.training.optimizer import optimizer_of
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step

CONFIG = Path(__file__).parents[2] / "configs" / "moving_digits.py"
FRAMES, HEIGHT, WIDTH, BAR = 8, 8, 16, 3


def moving_bars(count, seed):
    """Draws white bars on black that move left or right by one pixel a frame, and never leave the picture."""
    rng = np.random.default_rng(seed)
    left = rng.integers(WIDTH - BAR - FRAMES + 2, size=(count, 1)) + np.arange(FRAMES)
    left = np.where(rng.integers(2, size=(count, 1)), left, left[:, ::-1])[:, :, None]
    lit = (left <= np.arange(WIDTH)) & (np.arange(WIDTH) < left + BAR)
    return np.broadcast_to(255 * lit[:, :, None, :, None], (count, FRAMES, HEIGHT, WIDTH, 1)).astype(np.uint8)


def test_samples_of_a_briefly_trained_network_move_smoothly(monkeypatch):
    """Trains the time slots of the demo's network for some seconds on bars, without captions, on one device.

    A network that has not learned the order of frames (a weak position in time is enough for that) draws every frame
    as well, and its jerk is the jerk of shuffled frames.
    """
    monkeypatch.delenv("XLA_FLAGS")  # 200 steps take longer than their compilation: optimised as for users
    config = read_file(CONFIG)
    config.model.text = dict(kind="none")
    config.model.network.update(channels=16, multipliers=(1,), head_size=16)
    config.model.network.update(space_attention=(True,), time_attention=(True,))
    config.data.frames, config.data.height, config.data.width = FRAMES, HEIGHT, WIDTH
    config.steps, config.batch_size = 200, 8
    config.optimizer.update(warmup=10, learning_rate=8e-3)
    mesh = make_mesh(devices=jax.devices()[:1])
    model = build(config, mesh)
    split = split_of(config, model)
    tx, _ = optimizer_of(config)
    _, initialise = plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)
    state = initialise()
    step = make_train_step(denoising(model, objective_of(config)), tx, mesh, seed=0, ema=config.ema)
    tokens = np.tile(model.tokenize(""), (config.batch_size, 1))
    real = moving_bars(config.steps * config.batch_size, seed=0)
    for video in np.split(real, config.steps):
        state, _ = step(state, {"video": video, "tokens": tokens}, split.frozen)

    pipeline = Pipeline(dataclasses.replace(model, params=state.ema), mesh)
    drawn = pipeline([""] * 32, batch_size=32, steps=16)
    floor = shuffle_frames(drawn, jax.random.key(0))
    assert jerk(drawn).mean() < 0.4 * jerk(floor).mean()
    assert drawn.max() > 0.5  # something moves
