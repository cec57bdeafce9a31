"""What a training run carries from step to step, and how it is created on a mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.parallel.sharding import like_params, shardings
from vdm_jax.typing import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, but for the data iterator: arrays, or their shapes or shardings."""

    step: PyTree  # batches seen
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: PyTree  # steps skipped because their loss or gradient was not finite
    skipped_in_a_row: PyTree


def create_state(
    make_model: Callable[[nnx.Rngs], nnx.Module], tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialises model and optimizer straight into their shards: no device ever holds a whole copy.

    Returns the model's static half and the state; the same seed gives the same parameters on every mesh.
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(seed))))

    def init() -> TrainState:
        params = nnx.to_pure_dict(nnx.split(make_model(nnx.Rngs(seed)))[1])
        zero = jnp.zeros((), jnp.int32)
        # A copy, so that a step may donate params and EMA both.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(zero, params, ema, tx.init(params), zero, zero)

    sharding = state_shardings(jax.eval_shape(init), mesh)
    # It runs once; on a CPU compiling it with optimisation costs more than it saves.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    quick = {"xla_backend_optimization_level": 0} if on_cpu else None
    return graphdef, jax.jit(init, out_shardings=sharding, compiler_options=quick)()


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Shardings of a state: EMA and the optimizer's moments like their parameters, counters replicated."""
    of_params = shardings(mesh, state.params)
    replicated = NamedSharding(mesh, P())
    return TrainState(
        step=replicated,
        params=of_params,
        ema=of_params,
        opt_state=like_params(mesh, state.opt_state, state.params, of_params),
        skipped=replicated,
        skipped_in_a_row=replicated,
    )
