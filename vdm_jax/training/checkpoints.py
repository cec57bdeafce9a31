"""Checkpoints of a run: everything needed to go on exactly, written by Orbax in the background.

A checkpoint is the folder `checkpoints/<step>` with one part each for parameters, EMA, the rest of the training
state, and the data iterator. Orbax writes it under a temporary name and renames it when it is whole.
"""

import logging
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from vdm_jax.errors import InputError
from vdm_jax.training.state import TrainState
from vdm_jax.typing import Params, PyTree

policies = ocp.training.preservation_policies


class Checkpoints:
    """Writes a run's checkpoints; keeps the last `keep` of them and every `keep_every`-th step (None: no more)."""

    def __init__(self, folder: str | Path, *, keep: int = 2, keep_every: int | None = None):
        keeping: list[Any] = [policies.LatestN(keep)]
        if keep_every:
            keeping.append(policies.EveryNSteps(keep_every))
        self._orbax = ocp.training.Checkpointer(
            epath.Path(folder).resolve(),
            preservation_policy=policies.AnyPreservationPolicy(keeping),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, data: dict[str, int]) -> None:
        """Copies the state off the devices and returns; the writing goes on in the background.

        A checkpoint of this step that is there already (damaged, or it would have been restored) is replaced.
        """
        self._orbax.wait()
        self._orbax.save_checkpointables_async(
            step, _parts(state) | {"data": data}, force=True, overwrite=True
        )

    def close(self) -> None:
        """Waits until everything is on disk, then ends the background threads."""
        self._orbax.close()


def restore_state(folder: str | Path, state: TrainState) -> tuple[TrainState, dict[str, int]] | None:
    """The newest readable checkpoint as (state, data iterator's state); None where there is none.

    `state` gives shapes, dtypes and shardings. Its mesh may differ from the one that was saved from: every array
    is read straight into its new shards.

    Raises:
        InputError: there are checkpoints, but none fits `state`.
    """
    loaded = _restore_latest(folder, _parts(state) | {"data": {"next_batch": 0}})
    if loaded is None:
        return None
    rest = loaded["rest"]
    return TrainState(params=loaded["params"], ema=loaded["ema"], **rest), loaded["data"]


def restore_ema(folder: str | Path, ema: Params) -> tuple[int, Params]:
    """The averaged parameters of the newest readable checkpoint, and its step; reads nothing else.

    Raises:
        InputError: no checkpoint, none that can be read, or parameters of other names or shapes.
    """
    loaded = _restore_latest(folder, {"ema": ema})
    if loaded is None:
        raise InputError(f"{folder} holds no checkpoint; train the run first, or wait for its first one")
    return loaded["step"], loaded["ema"]


def _parts(state: TrainState) -> dict[str, PyTree]:
    """Parameters and EMA apart from the rest, so that a sampler can read the EMA alone."""
    rest = {name: getattr(state, name) for name in ("step", "opt_state", "skipped", "skipped_in_a_row")}
    return {"params": state.params, "ema": state.ema, "rest": rest}


def _restore_latest(folder: str | Path, parts: dict[str, PyTree]) -> dict[str, Any] | None:
    """The parts of the newest checkpoint that can be read, and its "step".

    A damaged checkpoint is passed over for the one before it, with a line that says so.
    """
    folder = epath.Path(folder).resolve()
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
    abstract = {name: jax.tree.map(_abstract, part) for name, part in parts.items()}
    for step in steps:
        path, loaded = folder / str(step), {"step": step}
        try:
            for name, part in abstract.items():
                loaded |= ocp.load_checkpointables(path, {name: part})
            return loaded
        except Exception as error:  # whatever a damaged file makes the reader raise
            while error.__cause__:
                error = error.__cause__
            line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            logging.warning("checkpoint %s cannot be read and is passed over: %s", path, line)
    if steps:
        raise InputError(
            f"none of the checkpoints {steps} in {folder} can be read into this model: "
            "they are damaged, or were made with another config"
        )
    return None


def _abstract(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x
