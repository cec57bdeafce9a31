"""Which parameters are trained: all of the network, time slots, attention, low-rank changes, or those of a pattern."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Float, Key, Params, PyTree

TIME_SLOTS = r"^network/.*(time_conv|time_attention|stem_attention|layers/time)/"
ATTENTION = r"^network/.*(attention\d?|cross)/([qkv]|qkv|text_kv|out|[qk]_norm)/"
PARTS = {"time": TIME_SLOTS, "attention": ATTENTION, "lora": f"{ATTENTION}kernel$"}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The parameters of a model, divided into a trained and a frozen part.

    Args:
        trained: shapes of the trained parameters; `initialise(*arrays)` computes them.
        arrays: loaded parameters that the trained ones start as.
        frozen: parameters that stay as they are.
    """

    trained: PyTree
    initialise: Callable[..., Params]
    arrays: tuple[PyTree, ...]
    frozen: PyTree


def make_split(
    params: PyTree, parts: str, rank: int, *, seed: int, loaded: Collection[str] = (), make_new: Callable | None = None
) -> Split:
    """Divides a model's parameters, of which loaded ones are arrays and new ones shapes.

    Args:
        params: {"network": ..., "text": ..., "codec": ...}.
        parts: "all" of the network, its "time" slots or blocks, its "attention" (projections and their norms), "lora"
            (low-rank changes of these projections), or a regular expression on paths such as
            "network/down/0/0/space_conv/conv1/kernel". With "all", a text encoder that is not loaded is trained, too.
        rank: of low-rank changes.
        loaded: the parts ("network", "text", "codec") that come out of a folder.
        make_new: computes the values of all new parameters.

    Raises:
        InputError: nothing is trained, or new parameters would stay untrained.
    """
    new = {path for path, leaf in flatten_dict(params).items() if isinstance(leaf, jax.ShapeDtypeStruct)}
    trained, frozen = divide(params, parts, loaded)
    untrained = new - flatten_dict(trained).keys()
    if untrained or (new and parts == "lora"):
        name = min(map(_name, untrained or new))
        raise InputError(
            f"train.parts={parts!r} leaves {len(untrained or new)} new parameters untrained ({name}, ...): begin with "
            "a run that has them (init_from), load them (folder), or train them, too"
        )
    if parts == "lora":

        def initialise() -> Params:
            return low_rank(trained, rank, jax.random.key(seed))  # of `trained` only the shapes are read

        return Split(jax.eval_shape(initialise), initialise, (), params)
    start = {path: leaf for path, leaf in flatten_dict(trained).items() if isinstance(leaf, jax.Array)}

    def initialise(start: dict[tuple, Array]) -> Params:
        # Copies, as a training step donates its state.
        values = jax.tree.map(jnp.copy, start)
        if new:
            values = flatten_dict(make_new()) | values
        return unflatten_dict({path: values[path] for path in flatten_dict(trained)})

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trained)
    return Split(shapes, initialise, (start,), frozen)


def divide(params: PyTree, parts: str, loaded: Collection[str] = ()) -> tuple[PyTree, PyTree]:
    """Returns (trained, frozen) parameters; with "lora" the first are the matrices that `low_rank` adds to.

    Raises:
        InputError: no parameter matches, or `parts` is no regular expression.
    """
    try:
        pattern = re.compile(PARTS.get(parts, parts))
    except re.error as error:
        raise InputError(
            f"train.parts={parts!r} is neither all, {', '.join(PARTS)} nor a regular expression: {error}"
        ) from None
    chosen, rest = {}, {}
    for path, leaf in flatten_dict(params).items():
        in_all = path[0] == "network" or (path[0] == "text" and "text" not in loaded)
        (chosen if (in_all if parts == "all" else pattern.search(_name(path))) else rest)[path] = leaf
    if not chosen:
        raise InputError(f"train.parts={parts!r}: the model has no such parameters")
    return unflatten_dict(chosen), unflatten_dict(rest)


def low_rank(params: PyTree, rank: int, key: Key[Array, ""]) -> Params:
    """Returns matrices A and B for each W, whose sum W + A B starts as W (LoRA, Hu et al. 2022, section 4.1)."""
    numbers = itertools.count()

    def factors(kernel):
        *blocks, inputs, outputs = kernel.shape  # of stacked blocks each has its own
        if not 1 <= rank <= min(inputs, outputs):
            raise InputError(f"train.rank={rank} must be at least 1 and at most {min(inputs, outputs)}")
        down = jax.random.normal(jax.random.fold_in(key, next(numbers)), (*blocks, inputs, rank)) / np.sqrt(inputs)
        return {"lora_down": down, "lora_up": jnp.zeros((*blocks, rank, outputs))}

    return jax.tree.map(factors, params)


def join(trained: Params, frozen: Params) -> Params:
    """Returns all parameters: the inverse of `divide`, with low-rank changes added to their matrices."""
    if not isinstance(trained, dict):
        return trained
    if "lora_down" in trained:
        change: Float[Array, "*blocks I O"] = trained["lora_down"] @ trained["lora_up"]
        return frozen + change.astype(frozen.dtype)
    return frozen | {name: join(part, frozen.get(name, {})) for name, part in trained.items()}


def in_common(here: PyTree, there: PyTree, name: str) -> dict[tuple, Any]:
    """Returns the leaves of `there` under paths that both have. Raises InputError for other shapes, or none."""
    here, there = flatten_dict(here), flatten_dict(there)
    common = {path: there[path] for path in here if path in there}
    for path, array in common.items():
        if array.shape != here[path].shape:
            shapes = f"{array.shape} there and {here[path].shape} here"
            raise InputError(f"{name}: {_name(path)} has shape {shapes}")
    if not common:
        raise InputError(f"{name} has no parameter of this network")
    return common


def _name(path: tuple) -> str:
    return "/".join(map(str, path))
