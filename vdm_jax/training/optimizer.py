"""The Optax chain of a config: clipping, an optimizer by name, a learning-rate schedule; and the decay of the EMA."""

import inspect

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, PyTree, Scalar

SCHEDULES = ("cosine", "constant")
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of its Newton-Schulz iteration (Jordan et al. 2024)


def learning_rate(
    *, peak: float | int, warmup: int, steps: int, decay: str, final: float | int = 0.0
) -> optax.Schedule:
    """Returns a linear warm-up to `peak`, then a constant, or a cosine to `final · peak` at the last step."""
    if decay not in SCHEDULES:
        raise InputError(f"optimizer.decay={decay!r} must be one of {', '.join(SCHEDULES)}")
    if peak <= 0:
        raise InputError(f"optimizer.learning_rate={peak} must be positive")
    if not 0 <= warmup < steps:
        raise InputError(f"optimizer.warmup={warmup} must be at least 0 and below steps={steps}")
    if decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final * peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), lambda _: peak], [warmup])


def optimizer_of(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the gradient transformation and the learning-rate schedule of a config."""
    group, steps = config.optimizer, config.steps
    kwargs = {"warmup": group.warmup, "steps": steps, "decay": group.decay, "final": group.final}
    schedule = learning_rate(peak=group.learning_rate, **kwargs)
    return make_optimizer(group.name, schedule, clip=group.clip, **group.options.to_dict()), schedule


def make_optimizer(
    name: str, schedule: optax.Schedule, *, clip: float | int | None = None, **options
) -> optax.GradientTransformation:
    """Returns global-norm clipping (None: off), then the Optax optimizer called `name`, with its own options.

    With clipping, its update also takes `norm`, the global norm of the gradients. Raises InputError if Optax has no
    such optimizer, or it has no such option.
    """
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    parameters = inspect.signature(make).parameters if inspect.isfunction(make) else ()
    if "learning_rate" in options:
        raise InputError("optimizer.options.learning_rate must be optimizer.learning_rate")
    if "learning_rate" not in parameters:
        raise InputError(f"optimizer.name={name!r} must be an optimizer of optax, such as adamw, adam, lion, sgd")
    if unknown := options.keys() - parameters:
        known = ", ".join(list(parameters)[1:])
        raise InputError(f"optimizer.options.{min(unknown)} is no option of optax.{name}; it has {known}")
    if name == "muon":  # a convolution is a matrix too, from its window and channels to its output channels
        options["muon_weight_dimension_numbers"] = _matrices
        # With coefficients for each iteration Optax loops over the iterations. With one set it unrolls them for every
        # matrix, which takes half as long again to compile.
        options.setdefault("ns_coeffs", (MUON_COEFFICIENTS,) * options.get("ns_steps", 5))
    try:
        optimizer = make(learning_rate=schedule, **options)
        like = {"matrix": jax.ShapeDtypeStruct((2, 2), "float32"), "vector": jax.ShapeDtypeStruct((2,), "float32")}
        tried = optax.with_extra_args_support(optimizer)  # as a step calls it; some need more than gradients
        jax.eval_shape(lambda p: tried.update(p, tried.init(p), p, norm=jnp.ones(())), like)
    except TypeError as error:
        raise InputError(f"optimizer.name={name!r} cannot be used with options={options}: {error}") from error
    if clip is None:
        return optimizer
    if clip <= 0:
        raise InputError(f"optimizer.clip={clip} must be positive, or None for no clipping")
    return optax.chain(_clip_by_norm(clip), optimizer)


def _clip_by_norm(most: float | int) -> optax.GradientTransformationExtraArgs:
    """Clips like `optax.clip_by_global_norm`, by a given norm: one product a gradient, which compiles faster."""

    def update(grads, state, params=None, *, norm, **_):
        factor = jnp.minimum(1.0, most / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _matrices(params: PyTree) -> PyTree:
    """Returns which axes of each parameter are rows and columns of a matrix to Muon; None leaves vectors to Adam.

    The matrices of stacked blocks (`models.stack`), and their vectors, stay apart.
    """
    flat = flatten_dict(params)
    stacked = {path[:-1] for path, x in flat.items() if path[-1] == "kernel" and getattr(x, "ndim", 0) == 3}

    def numbers(path: tuple, x: Array | optax.MaskedNode):
        if isinstance(x, optax.MaskedNode):
            return x
        if x.ndim < 2 or path[-1] in ("scale", "table") or (path[-1] == "bias" and path[:-1] in stacked):
            return None
        first = 1 if path[:-1] in stacked else 0
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, x.ndim - 1)), x.ndim - 1)

    return unflatten_dict({path: numbers(path, x) for path, x in flat.items()})


def ema_decay(step: Array, decay: float | int) -> Scalar:
    """Returns the decay after `step` updates, min(decay, (1 + step) / (10 + step)): the warm-up of TensorFlow's EMA."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
