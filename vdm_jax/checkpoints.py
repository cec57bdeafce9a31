"""Checkpoints: named trees of arrays in a folder, written by Orbax in the background.

A run's checkpoint is the folder `checkpoints/<step>` with one part each for parameters, EMA, the rest of the training
state, and the data iterator. Orbax writes it under a temporary name and renames it when it is complete.
"""

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from vdm_jax.errors import InputError
from vdm_jax.parallel.sharding import path_name
from vdm_jax.typing import Params, PyTree

policies = ocp.training.preservation_policies
# Each device writes a slice of a replicated array; slicing a small array costs more than it saves.
SMALLEST_SLICE = 2**20  # bytes


class Checkpoints:
    """Writes checkpoints; keeps the last `keep`, and every `keep_every`-th step (None: only the last)."""

    def __init__(self, folder: str | Path, *, keep: int = 2, keep_every: int | None = None):
        keeping = [policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else [])]
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = SMALLEST_SLICE
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_unlogged())
        self._orbax = ocp.training.Checkpointer(
            epath.Path(folder).resolve(),
            preservation_policy=policies.AnyPreservationPolicy(keeping),
            cleanup_tmp_directories=True,
            context=context,
        )

    def save(self, step: int, parts: dict[str, PyTree]) -> None:
        """Copies the parts off the devices and returns; the writing goes on in the background.

        A checkpoint of this step that exists already (damaged, or it would have been restored) is replaced.
        """
        self._orbax.wait()
        self._orbax.save_checkpointables_async(step, parts, force=True, overwrite=True)

    def close(self) -> None:
        """Waits until everything is on disk, then ends the background threads."""
        with self._quiet:
            self._orbax.close()


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps Orbax from logging, once for each of its threads, the errors that it also raises."""
    absl = logging.getLogger("absl")

    def by_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    absl.addFilter(by_others)
    try:
        yield
    finally:
        absl.removeFilter(by_others)


def restore_ema(folder: str | Path, ema: PyTree) -> tuple[int, Params]:
    """Returns the step of the newest readable checkpoint and its averaged parameters; reads nothing else.

    `ema` gives shapes, dtypes and shardings.

    Raises:
        InputError: no checkpoint, none that can be read, or parameters of other names or shapes.
    """
    loaded = restore_latest(folder, {"ema": ema})
    if loaded is None:
        raise InputError(f"{folder} holds no checkpoint; train the run first, or wait for its first one")
    return loaded["step"], loaded["ema"]


def restore_latest(folder: str | Path, parts: dict[str, PyTree]) -> dict[str, Any] | None:
    """Returns the parts of the newest checkpoint that can be read, and its "step"; None where there is no checkpoint.

    `parts` gives shapes, dtypes and shardings. The mesh may differ from the one that was saved from: every array is
    read straight into its new shards. A damaged checkpoint is passed over for the one before it, with a line that says
    so.

    Raises:
        InputError: there are checkpoints, but none that can be read.
    """
    folder = epath.Path(folder).resolve()
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
    abstract = {name: jax.tree.map(_abstract, part) for name, part in parts.items()}
    unreadable = {}
    for step in steps:
        loaded = _read(folder / str(step), abstract)
        if not isinstance(loaded, str):
            for other, why in unreadable.items():
                logging.warning("checkpoint %s cannot be read, %s is used instead: %s", folder / str(other), step, why)
            return loaded | {"step": step}
        unreadable[step] = loaded
    if unreadable:
        raise InputError(
            f"no checkpoint in {folder} (steps {', '.join(map(str, steps))}) can be read into this model: "
            f"it is damaged, or was made with another config ({unreadable[steps[0]]})"
        )
    return None


def _read(checkpoint: epath.Path, parts: dict[str, PyTree]) -> dict[str, Any] | str:
    """Returns parts of one checkpoint, or the reason in one line why they cannot be read."""
    with warnings.catch_warnings(action="ignore"), _unlogged():
        try:
            if difference := _difference(checkpoint, parts):
                return difference
            return {name: ocp.load_checkpointables(checkpoint, {name: parts[name]})[name] for name in parts}
        except Exception as error:  # whatever a damaged file makes the reader raise
            while error.__cause__:
                error = error.__cause__
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        gc.collect()  # the reader leaves coroutines that were never awaited, which warn when they are collected
        return reason


def _difference(checkpoint: epath.Path, parts: dict[str, PyTree]) -> str | None:
    """Describes the first parameter whose name or shape differs from the one in `parts`."""
    for part in parts.keys() & {"params", "ema"}:
        there, here = (
            {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (ocp.metadata(checkpoint, part).metadata, parts[part])
        )
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                return f"{name} has shape {there.get(name, 'none')} there and {here.get(name, 'none')} here"
    return None


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x
