"""What a training run carries from step to step, and how it is created on a mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.models.keys import Keys
from vdm_jax.parallel.mesh import on_cpu
from vdm_jax.parallel.sharding import like_params, shardings
from vdm_jax.typing import Params, PyTree


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


def plan_state(
    params: PyTree,
    make_params: Callable[..., Params],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *given: PyTree,
) -> tuple[TrainState, Callable[[], TrainState]]:
    """The state as shapes with their shardings, and the function that computes it.

    So a step can be compiled before there is a state. `params` are shapes; `make_params(*given)` computes them straight
    into their shards, as the moments are: no device ever holds a whole copy, and all meshes have the same.
    """

    def begin(params: PyTree) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        # A copy, so that a step may donate params and EMA both.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(zero, params, ema, tx.init(params), zero, zero)

    def initialise(*given: PyTree) -> TrainState:
        return begin(make_params(*given))

    shapes = jax.eval_shape(begin, params)
    sharding = state_shardings(shapes, mesh)
    planned = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding)
    # It runs once, so optimisation would cost more than it saves.
    jitted = jax.jit(initialise, out_shardings=sharding, compiler_options=on_cpu(mesh, optimization=0))
    return planned, functools.partial(jitted, *given)


def create_state(
    make_model: Callable[[nnx.Rngs], nnx.Module], tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> tuple[nnx.GraphDef, TrainState]:
    """A new model's static half, and the state that `plan_state` plans. The same seed gives the same parameters."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make_model(Keys(seed))))

    def make_params() -> Params:
        return nnx.to_pure_dict(nnx.split(make_model(Keys(seed)))[1])

    return graphdef, plan_state(nnx.to_pure_dict(shapes), make_params, tx, mesh)[1]()


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
