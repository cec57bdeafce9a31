"""Trains the model of a config in a run folder. The loop is one function: read it from top to bottom."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh

from vdm_jax.build import begin_with, build, objective_of, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import check_numbers, check_run, source_arguments, write_config
from vdm_jax.data.pipeline import BatchIterator, make_iterator
from vdm_jax.data.source import make_source
from vdm_jax.errors import InputError
from vdm_jax.files import alone_in, read_json_lines, write_text
from vdm_jax.frozen import restore_frozen, save_frozen
from vdm_jax.model import Model
from vdm_jax.parallel.machine import about_machine
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, check_batch, share_of_batch
from vdm_jax.split import join
from vdm_jax.training.losses import denoising
from vdm_jax.training.metrics_log import MetricsLog
from vdm_jax.training.optimizer import optimizer_of
from vdm_jax.training.state import TrainState, plan_state, restore_state, to_parts
from vdm_jax.training.step import make_train_step

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of a file

# Draws samples during training, from the model with its averaged parameters.
DrawSamples = Callable[[Model, Mesh], None]


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    draw_samples: DrawSamples | None = None,
    model: Model | None = None,
) -> TrainState:
    """Trains the run in `workdir` until `config.steps`, from its last checkpoint if it has one.

    SIGTERM and a closed terminal (SIGHUP) save a checkpoint and exit with status 0. Ctrl-C saves a checkpoint and
    raises KeyboardInterrupt. With several processes, SIGTERM to one of them stops all at the same step, and Ctrl-C ends
    without saving. `model` is the config's model, if it is built already. Raises InputError for a config that cannot be
    trained, or a full disk.
    """
    try:
        with contextlib.ExitStack() as exit_stack:
            return _train(config, Path(workdir), draw_samples, model, exit_stack)
    except (OSError, ValueError) as error:  # ValueError: as TensorStore tells of the same
        full = next((words for words in map(os.strerror, _FULL) if words in str(error)), None)
        if full is None or isinstance(error, InputError):
            raise
        raise InputError(
            f"{workdir} cannot be written: {full}; saved checkpoints stay good, and the same command goes on from the "
            "last of them once there is room"
        ) from error


def _train(config, workdir: Path, draw_samples, model, exit_stack: contextlib.ExitStack) -> TrainState:
    check_numbers(config)
    check_run(workdir, config)

    # ------------------------------------------------------------------------------- mesh, model and split
    mesh = make_mesh(**config.mesh.to_dict())
    check_batch(mesh, config.batch_size, config.accumulate)
    tx, schedule = optimizer_of(config)
    schedule = jax.jit(schedule)
    model = _initialised(config, workdir, model or build(config, mesh), mesh)
    split = split_of(config, model)

    # ----------------------------------------------------------------------------------------------- data
    source, iterator = _open_data(config, model, mesh)
    exit_stack.callback(iterator.close)
    _on_first_process(lambda: write_config(workdir, config))
    _on_first_process(lambda: exit_stack.enter_context(alone_in(workdir)))

    # ---------------------------------------------------------------------------------------------- state
    planned, initialise = plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)
    restored, start = restore_state(workdir / "checkpoints", planned), 0
    if restored is not None:
        state, position = restored
        start = int(state.step)
        iterator.set_state(position)
    else:
        if jax.process_index() == 0:
            overview = parameter_overview.get_parameter_overview(planned.params, include_stats=False, max_lines=60)
            write_text(workdir / "parameters.txt", overview + "\n")
        save_frozen(workdir, {name: tree for name, tree in split.frozen.items() if name not in model.loaded})
    sizes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    _log_plan(config, workdir, planned, f"{mesh.devices.flat[0].device_kind} ({sizes})", len(source), start)
    if start >= config.steps:
        return state
    _note_beginning(workdir / "environment.jsonl", start, len(source), sizes)

    # ----------------------------------------------------------------------------------------------- step
    loss = denoising(model, objective_of(config), stills=config.data.joint_images, layout=ActivationLayout(mesh))
    train_step = make_train_step(loss, tx, mesh, seed=config.seed, accumulate=config.accumulate, ema=config.ema)
    sharding = batch_sharding(mesh)

    def placed(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    log = exit_stack.enter_context(contextlib.closing(MetricsLog(workdir, config, start)))
    stop = _StopSignal(exit_stack)  # before the checkpoints: it holds until the last of them is whole
    keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every or None
    checkpoints = Checkpoints(workdir / "checkpoints", keep=keep, keep_every=keep_every)
    exit_stack.callback(checkpoints.close)
    trace = _Trace(workdir / "profile", **config.profile.to_dict())
    exit_stack.callback(trace.switch, False)

    # ----------------------------------------------------------------------------------------------- loop
    first = placed(next(iterator))
    with concurrent.futures.ThreadPoolExecutor() as background:  # all programs are compiled at the same time
        initial = background.submit(initialise) if restored is None else None
        compiled = train_step.compile(background, planned, first, split.frozen)
        if initial is not None:
            state = initial.result()
            del initial  # it would keep the first state in memory
        train_step = compiled()
    for array in jax.tree.leaves(split.arrays):
        array.delete()  # the state has copies
    batches = itertools.chain([first], map(placed, iterator))
    for step in range(start + 1, config.steps + 1):
        trace.switch(step in trace.steps, state)
        state, metrics = train_step(state, next(batches), split.frozen)
        trace.switch(step in trace.steps[:-1], state)

        log.add(metrics)
        last = step == config.steps
        stopping = stop.requested(step)
        if step % config.log_every == 0 or last or stopping:
            values = log.write(step, schedule)
            if values["skipped_in_a_row"] >= config.max_skipped:
                raise InputError(
                    f"step {step}: {values['skipped_in_a_row']:.0f} losses or gradients in a row were not finite, and "
                    "were skipped; earlier checkpoints stay as they are (lower optimizer.learning_rate?)"
                )
        # Saved before the next batch is drawn, so that data and state are of the same step.
        if step % config.checkpoint.every == 0 or last or stopping:
            checkpoints.save(step, to_parts(state) | {"data": iterator.get_state()})
        every = config.sample.every
        if draw_samples and every and (step % every == 0 or last) and not stopping:
            averaged = dataclasses.replace(model, params=join(state.ema, split.frozen), step=step)
            _try_samples(lambda averaged=averaged: draw_samples(averaged, mesh), step)
        if stopping:
            logging.info("\nstopped at step %d; the same command goes on from there", step)
            break
    stop.end()
    return state


def _initialised(config: ml_collections.ConfigDict, workdir: Path, model: Model, mesh: Mesh) -> Model:
    """Puts parameters into the model that another run, or this run's folder, has for it."""
    saved = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
    if config.init_from and not saved:
        model = begin_with(model, config.init_from, mesh)
    return dataclasses.replace(model, params=restore_frozen(workdir, model.params, mesh))


def _open_data(config: ml_collections.ConfigDict, model: Model, mesh: Mesh) -> tuple[Any, BatchIterator]:
    """Opens the data source, and this process's share of its batches."""
    source, (share, shares) = make_source(**source_arguments(config)), share_of_batch(mesh)
    kwargs = {name: config.data[name] for name in ("flip", "joint_images", "num_workers", "prefetch")}
    kwargs |= {"batch_size": config.batch_size, "seed": config.seed, "tokenize": model.tokenize}
    iterator = make_iterator(source, process_index=share, process_count=shares, **kwargs)
    if (clip := source[0]["video"].shape) != model.shape:
        raise InputError(f"clips of {config.data.name} are {clip} (frames, height, width, channels), not {model.shape}")
    return source, iterator


def _log_plan(
    config: ml_collections.ConfigDict, workdir: Path, planned: TrainState, devices: str, videos: int, start: int
) -> None:
    """Logs what is trained, on what, and from which step."""
    count = sum(x.size for x in jax.tree.leaves(planned.params))
    plan = f"going on from step {start}" if start else f"{config.steps} steps of {config.batch_size}"
    if start >= config.steps:
        plan = f"finished: it is at step {start}, and config.steps={config.steps}"
    logging.info("%s: %.2f M parameters on %s, %d videos, %s", workdir, count / 1e6, devices, videos, plan)


def _try_samples(draw: Callable[[], None], step: int) -> None:
    """Draws samples; where that fails, warns and lets the training go on."""
    try:
        draw()
    except (InputError, jax.errors.JaxRuntimeError) as error:
        logging.warning("\nno samples of step %d: %s", step, str(error).splitlines()[0])


class _StopSignal:
    """Records SIGTERM, SIGHUP and the first Ctrl-C, so that the loop can save. A second Ctrl-C interrupts at once.

    The exit stack puts the signal handlers back that were there before.
    """

    def __init__(self, exit_stack: contextlib.ExitStack):
        self.signal: int | None = None
        # With several processes JAX catches SIGTERM, and all processes agree on the step to stop at.
        self._single = jax.process_count() == 1
        if self._single and threading.current_thread() is threading.main_thread():
            signals = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
                signals.append(signal.SIGHUP)
            for number in signals:
                exit_stack.callback(signal.signal, number, signal.signal(number, self._record))

    def _record(self, number, frame):
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self, step: int) -> bool:
        if not self._single:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None

    def end(self) -> None:
        """Ends the process, or raises KeyboardInterrupt, if a signal stopped the loop."""
        if self.signal in (signal.SIGTERM, signal.SIGHUP):
            sys.exit(0)
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt


class _Trace:
    """Traces `steps` steps with the profiler, from step `start` on, or from the first step if training starts later."""

    def __init__(self, folder: Path, start: int, steps: int):
        self._folder, self._on = str(folder), False
        self.steps = range(max(start, 1), max(start, 1) + steps)

    def switch(self, on: bool, state: TrainState | tuple = ()) -> None:
        """Starts or stops the trace, once the state is there: else it would show other steps."""
        if on != self._on:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder) if on else jax.profiler.stop_trace()
            self._on = on


def _note_beginning(path: Path, step: int, videos: int, mesh: str) -> None:
    """On the first process, appends a line about this start. Warns if the number of videos was another before."""
    if jax.process_index() != 0:
        return
    before = [line["videos"] for line in read_json_lines(path) if "videos" in line]
    if before and before[-1] != videos:
        logging.warning("there are %d videos, and were %d before: they come in another order", videos, before[-1])
    line = {"step": step, "time": datetime.now().isoformat(timespec="seconds"), "videos": videos}
    with path.open("a") as file:
        file.write(json.dumps(line | {"mesh": mesh, "machine": about_machine()}) + "\n")


def _on_first_process(write: Callable[[], None]) -> None:
    """Calls `write` on the first process. If it raises InputError, all processes do."""
    error = None
    if jax.process_index() == 0:
        try:
            write()
        except InputError as raised:
            error = raised
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if multihost_utils.broadcast_one_to_all(np.int32(error is not None)) and error is None:
            error = InputError("the first process could not write into the workdir; it says why")
    if error is not None:
        raise error
