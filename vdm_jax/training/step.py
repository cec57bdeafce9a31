"""One training step: prepare, loss, gradient, update, average; skipped where a number is not finite."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import on_cpu
from vdm_jax.parallel.sharding import shardings
from vdm_jax.training.losses import DROPOUT, Batch, Loss
from vdm_jax.training.optimizer import ema_decay
from vdm_jax.training.state import TrainState, state_shardings
from vdm_jax.typing import Array, Params, PyTree, Scalar


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, batch, frozen) → (state, metrics), as one program or as two; the state is donated.

    The two programs are gradients, (params, step, batch, frozen) → (gradients, metrics), and update, (state, gradients,
    metrics) → (state, metrics). One compiles while the other is traced, but gradients cannot share the activations'
    memory.
    """

    programs: tuple[Callable, ...]

    def __call__(self, state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, dict[str, Scalar]]:
        if len(self.programs) == 1:
            return self.programs[0](state, batch, frozen)
        gradients, update = self.programs
        return update(state, *gradients(state.params, state.step, batch, frozen))

    def lower(self, state: TrainState, batch: Batch, frozen: PyTree) -> Iterator[jax.stages.Lowered]:
        """Traces the programs for arrays, or shapes with shardings, like these; yields each when it is traced."""
        if len(self.programs) == 1:
            yield self.programs[0].lower(state, batch, frozen)
            return
        gradients = self.programs[0].lower(state.params, state.step, batch, frozen)
        yield gradients
        place = state.step.sharding
        metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), gradients.out_info[1])
        yield self.programs[1].lower(state, state.params, metrics)  # gradients are like their parameters

    def compile(self, background: Executor, *arguments: TrainState | Batch | PyTree) -> Callable[[], "TrainStep"]:
        """Traces here as `lower`, compiles in the background; the returned function waits for the compiled step."""
        programs = [background.submit(lowered.compile) for lowered in self.lower(*arguments)]
        return lambda: TrainStep(tuple(program.result() for program in programs))


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    accumulate: int = 1,
    ema: float | int = 0.999,
    one_program: bool | None = None,
) -> TrainStep:
    """Returns a training step: one program, or two on CPUs, where the first step waits longest (`one_program=None`).

    `tx` is given the gradients' global norm as `norm`, if it takes that.

    Randomness is a function of (seed, step). With `accumulate` n the batch is divided into n parts, whose gradients are
    averaged. `loss.prepare` draws for the whole batch first, so the update equals that of n = 1, except for dropout,
    which each part draws for itself. A step whose loss or gradient norm is not finite leaves parameters, optimizer and
    EMA as they were.
    """
    value_and_grad = jax.value_and_grad(loss.value, has_aux=True)
    tx = optax.with_extra_args_support(tx)

    def gradients(params: Params, step: Array, batch: Batch, frozen: PyTree):
        key = jax.random.fold_in(jax.random.key(seed), step)
        batch = loss.prepare(frozen, batch, key)
        dropout_key = jax.random.fold_in(key, DROPOUT)
        if accumulate == 1:
            (_, metrics), grads = value_and_grad(params, frozen, batch, dropout_key)
        else:

            def part(carry, rows_and_index):
                rows, index = rows_and_index
                (_, metrics), grads = value_and_grad(params, frozen, rows, jax.random.fold_in(dropout_key, index))
                return jax.tree.map(jnp.add, carry, (metrics, grads)), None

            parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(value_and_grad, params, frozen, first, dropout_key)
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
            total, _ = jax.lax.scan(part, zero, (parts, jnp.arange(accumulate)))
            metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        # Constrain the outputs explicitly: the compiler may otherwise choose shardings that the next step does not
        # accept.
        return jax.lax.with_sharding_constraint(
            (grads, metrics), (shardings(mesh, grads), jax.tree.map(lambda _: NamedSharding(mesh, P()), metrics))
        )

    def update(state: TrainState, grads: Params, metrics: dict[str, Scalar]):
        finite = jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(metrics["loss"])
        updates, opt_state = tx.update(grads, state.opt_state, state.params, norm=metrics["grad_norm"])
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step - state.skipped, ema)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, params)

        params, average, opt_state = jax.tree.map(
            lambda new, old: jax.lax.select(finite, new, old),
            (params, average, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        bad = jnp.where(finite, 0, 1).astype(jnp.int32)
        skipped, in_a_row = state.skipped + bad, (state.skipped_in_a_row + 1) * bad
        after = TrainState(state.step + 1, params, average, opt_state, skipped, in_a_row)
        metrics = metrics | {"skipped": skipped, "skipped_in_a_row": in_a_row}
        return jax.lax.with_sharding_constraint(after, state_shardings(after, mesh)), metrics

    def step(state: TrainState, batch: Batch, frozen: PyTree):
        return update(state, *gradients(state.params, state.step, batch, frozen))

    if one_program is None:
        one_program = mesh.devices.flat[0].platform != "cpu"
    jit = functools.partial(jax.jit, compiler_options=on_cpu(mesh, optimization=1))
    if one_program:
        return TrainStep((jit(step, donate_argnums=0),))
    return TrainStep((jit(gradients), jit(update, donate_argnums=0)))


def _split(x: Array, parts: int) -> Array:
    """Reshapes [B, …] to [parts, B/parts, …], strided: every part lies over all devices, as the batch does."""
    if x.shape[0] % parts:
        raise InputError(f"batch_size={x.shape[0]} must be a multiple of accumulate={parts}")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
