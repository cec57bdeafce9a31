"""What a training run carries from step to step, how it is created on a mesh, and how it is saved."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.checkpoints import restore_latest
from vdm_jax.parallel.mesh import on_cpu
from vdm_jax.parallel.sharding import like_params, shardings
from vdm_jax.typing import Params, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes in training except the data iterator: arrays, or their shapes or shardings."""

    step: PyTree  # batches seen
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: PyTree  # steps skipped because their loss or gradient was not finite
    skipped_in_a_row: PyTree


def plan_state(
    params: PyTree, make_params: Callable[..., Params], tx: optax.GradientTransformation, mesh: Mesh, *arrays: PyTree
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Returns the state as shapes with their shardings, and the function that computes it.

    A step can so be compiled before the state exists. `params` are shapes; `make_params(*arrays)` computes them
    straight into their shards, like the optimizer's moments: no device ever holds a whole copy, and all meshes get the
    same values.
    """

    def begin(params: PyTree) -> TrainState:
        zero, ema = jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params)  # a step may donate params and EMA both
        return TrainState(zero, params, ema, tx.init(params), zero, zero)

    shapes = jax.eval_shape(begin, params)
    sharding = state_shardings(shapes, mesh)
    planned = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding)
    # It runs once: optimisation would cost more than it saves.
    options = on_cpu(mesh, optimization=0)
    jitted = jax.jit(lambda *arrays: begin(make_params(*arrays)), out_shardings=sharding, compiler_options=options)
    return planned, functools.partial(jitted, *arrays)


def to_parts(state: TrainState) -> dict[str, PyTree]:
    """Returns a checkpoint's parts: parameters and EMA separate from the rest, so that a sampler can read the EMA."""
    rest = {name: getattr(state, name) for name in ("step", "opt_state", "skipped", "skipped_in_a_row")}
    return {"params": state.params, "ema": state.ema, "rest": rest}


def restore_state(folder: str | Path, state: TrainState) -> tuple[TrainState, dict[str, int]] | None:
    """Returns the newest readable checkpoint as (state, data iterator's state); None where there is none.

    `state` gives shapes, dtypes and shardings. Raises InputError if there are checkpoints, but none fits it.
    """
    loaded = restore_latest(folder, to_parts(state) | {"data": {"next_batch": 0}})
    if loaded is None:
        return None
    return TrainState(params=loaded["params"], ema=loaded["ema"], **loaded["rest"]), loaded["data"]


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Returns the shardings of a state: EMA and moments are sharded like their parameters, counters replicated."""
    of_params = shardings(mesh, state.params)
    of_moments = like_params(mesh, state.opt_state, state.params, of_params)
    counter = NamedSharding(mesh, P())
    return TrainState(counter, of_params, of_params, of_moments, counter, counter)
