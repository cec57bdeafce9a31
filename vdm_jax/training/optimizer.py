"""The Optax chain of a config: clipping, an optimizer by name, a learning-rate schedule; and the EMA's decay."""

import jax.numpy as jnp
import optax

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Scalar

SCHEDULES = ("cosine", "constant")


def learning_rate(*, peak: float, warmup: int, steps: int, decay: str, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up to `peak`, then constant, or a cosine to `final · peak` at the last step."""
    if decay not in SCHEDULES:
        raise InputError(f"optimizer.decay={decay!r} must be one of {', '.join(SCHEDULES)}")
    if not 0 <= warmup < steps:
        raise InputError(f"optimizer.warmup={warmup} must be at least 0 and below steps={steps}")
    if decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, final * peak)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, max(warmup, 1)), optax.constant_schedule(peak)], [warmup]
    )


def make_optimizer(
    name: str, schedule: optax.Schedule, *, clip: float | int | None = None, **options
) -> optax.GradientTransformation:
    """Global-norm clipping (None: off), then the Optax optimizer called `name`, with its own options.

    Raises:
        InputError: Optax has no such optimizer, or it has no such option.
    """
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    if not callable(make):
        raise InputError(
            f"optimizer.name={name!r} must be an optimizer of optax, such as adamw, adam, lion, sgd"
        )
    try:
        optimizer = make(schedule, **options)
    except TypeError as error:
        raise InputError(f"optimizer.options={options!r} do not fit optax.{name}: {error}") from error
    if clip is None:
        return optimizer
    if clip <= 0:
        raise InputError(f"optimizer.clip={clip} must be positive, or None for no clipping")
    return optax.chain(optax.clip_by_global_norm(clip), optimizer)


def ema_decay(step: Array, decay: float) -> Scalar:
    """Decay after `step` updates with warm-up: min(decay, (1 + step) / (10 + step)), as in TensorFlow's EMA."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))
