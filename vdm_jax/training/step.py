"""One training step: draw, loss, gradient, update, average; skipped where a number is not finite."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.diffusion.conditioning import Conditioning, draw_told
from vdm_jax.diffusion.objective import Draws, Objective, draw, loss_at
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.parallel.mesh import on_cpu
from vdm_jax.parallel.sharding import ActivationLayout, shardings
from vdm_jax.training.optimizer import ema_decay
from vdm_jax.training.state import TrainState, state_shardings
from vdm_jax.typing import Array, Int, Key, Params, PyTree, Scalar

# What a step's key is used for; the objective folds its own purposes into DRAW.
DRAW, DROPOUT, TOLD = range(3)

Batch = dict[str, Array | np.ndarray | jax.ShapeDtypeStruct]


def to_float(video: Array) -> Array:
    """uint8 video → float32 in [-1, 1]: bytes travel to the device, floats are made there."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def make_loss(
    graphdef: nnx.GraphDef,
    objective: Objective,
    process: Process,
    *,
    null_tokens: Int[np.ndarray, "L"] | None,
    images: int = 0,
    assemble: Callable[[Params, PyTree], Params],
    layout: Callable,
) -> Callable[[Params, Batch, Draws, Key, PyTree], tuple[Scalar, dict[str, Scalar]]]:
    """The loss as a function of parameters, a batch, what was drawn for it, the key of dropout, and what is frozen.

    `null_tokens` is the tokenised null condition, None for an unconditional model. `batch` holds "video" (clean,
    B T H W C), "tokens" (B L), with K joint images "image_tokens" (B K L), and for a model that is told what is
    known of the video, "told" (B T H W C+1).
    """

    def loss(params, batch, draws, dropout_key, frozen):
        model = nnx.merge(graphdef, assemble(params, frozen))
        text = None
        if model.text is not None:
            # The null condition is the empty text, whose tokens are a start token and nothing.
            tokens = jnp.where(draws.drop[:, None], null_tokens, batch["tokens"])
            image_tokens = None
            if images:
                image_tokens = jnp.where(draws.drop[:, None, None], null_tokens, batch["image_tokens"])
            text = model.encode(tokens, image_tokens)

        def predict(z, network_time, drop):
            told = batch.get("told")
            return model(z, network_time, text, known=told, images=images, key=dropout_key, layout=layout)

        return loss_at(objective, process, predict, batch["video"], draws)

    return loss


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, batch[, frozen]) → (state, metrics), as one program or as two; the state is donated.

    Two are gradients, (params, step, batch, frozen) → (gradients, metrics), and update, (state, gradients, metrics) →
    (state, metrics): one compiles while the other is traced, but gradients cannot share the activations' memory.
    """

    programs: tuple[Callable, ...]

    def __call__(self, state: TrainState, batch: Batch, frozen: PyTree = None) -> tuple[TrainState, dict[str, Scalar]]:
        if len(self.programs) == 1:
            return self.programs[0](state, batch, frozen)
        gradients, update = self.programs
        return update(state, *gradients(state.params, state.step, batch, frozen))

    def lower(self, state: TrainState, batch: Batch, frozen: PyTree = None) -> Iterator[jax.stages.Lowered]:
        """Traces the programs for arrays, or shapes with shardings, like these; yields each when it is there."""

        def like(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        if len(self.programs) == 1:
            yield self.programs[0].lower(state, batch, frozen)
            return
        gradients = self.programs[0].lower(state.params, state.step, batch, frozen)
        yield gradients
        grads = jax.tree.map(lambda x: like(x, x.sharding), state.params)
        metrics = jax.tree.map(lambda x: like(x, state.step.sharding), gradients.out_info[1])
        yield self.programs[1].lower(state, grads, metrics)

    def compile(
        self, background: Executor, state: TrainState, batch: Batch, frozen: PyTree = None
    ) -> Callable[[], "TrainStep"]:
        """Traces here and compiles in the background; what it returns waits for the compiled step."""
        programs = [background.submit(lowered.compile) for lowered in self.lower(state, batch, frozen)]
        return lambda: TrainStep(tuple(program.result() for program in programs))


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    process: Process,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    null_tokens: Int[np.ndarray, "L"] | None,
    conditioning: Conditioning | None = None,
    images: int = 0,
    accumulate: int = 1,
    ema: float | int = 0.999,
    assemble: Callable[[Params, PyTree], Params] = lambda params, frozen: params,
    clean: Callable[[PyTree, Array], Array] = lambda frozen, video: video,
    one_program: bool | None = None,
) -> TrainStep:
    """A step of training: one program, or two on CPUs, where the first step waits longest (`one_program=None`).

    `tx` is given the gradients' global norm as `norm`, if it takes that. `assemble` and `clean` are those of a
    `Trainee`, for networks of which only a part is trained.

    Randomness is a function of (seed, step). With `accumulate` n the batch is worked through in n parts, whose
    gradients are averaged; times and noise are drawn for the whole batch first, so the update is as of n = 1, but for
    dropout, which each part draws for itself.
    A step whose loss or gradient norm is not finite leaves parameters, optimizer and EMA as they were.
    """
    loss = make_loss(
        graphdef,
        objective,
        process,
        null_tokens=null_tokens,
        images=images,
        assemble=assemble,
        layout=ActivationLayout(mesh),
    )
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    tx = optax.with_extra_args_support(tx)

    def gradients(params: Params, step: Array, batch: Batch, frozen: PyTree = None):
        key = jax.random.fold_in(jax.random.key(seed), step)
        batch = batch | {"video": clean(frozen, to_float(batch["video"]))}
        draws = draw(objective, process, batch["video"], jax.random.fold_in(key, DRAW))
        dropout_key = jax.random.fold_in(key, DROPOUT)
        if conditioning is not None:
            told = draw_told(conditioning, batch["video"], jax.random.fold_in(key, TOLD), images)
            batch = batch | {"told": told}
        if accumulate == 1:
            (_, metrics), grads = value_and_grad(params, batch, draws, dropout_key, frozen)
        else:

            def part(carry, rows_and_index):
                (part_batch, part_draws), index = rows_and_index
                (_, metrics), grads = value_and_grad(
                    params, part_batch, part_draws, jax.random.fold_in(dropout_key, index), frozen
                )
                return jax.tree.map(jnp.add, carry, (metrics, grads)), None

            parts = jax.tree.map(lambda x: _split(x, accumulate), (batch, draws))
            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(value_and_grad, params, *first, dropout_key, frozen)
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
            total, _ = jax.lax.scan(part, zero, (parts, jnp.arange(accumulate)))
            metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
        metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
        # Said, not left to the compiler: it may return arrays in other shards than it takes them next.
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

    def step(state: TrainState, batch: Batch, frozen: PyTree = None):
        return update(state, *gradients(state.params, state.step, batch, frozen))

    if one_program is None:
        one_program = mesh.devices.flat[0].platform != "cpu"
    jit = functools.partial(jax.jit, compiler_options=on_cpu(mesh, optimization=1))
    if one_program:
        return TrainStep((jit(step, donate_argnums=0),))
    return TrainStep((jit(gradients), jit(update, donate_argnums=0)))


def _split(x: Array, parts: int) -> Array:
    """[B, …] → [parts, B/parts, …], strided: every part lies over all devices, as the batch does."""
    if x.shape[0] % parts:
        raise InputError(f"batch_size={x.shape[0]} must be a multiple of accumulate={parts}")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
