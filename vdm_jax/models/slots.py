"""The four slots of a layer, what may fill them, and where in a U-Net they are filled."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from vdm_jax.errors import InputError
from vdm_jax.models.convolution import BlendedTimeBlock, Inputs, ModulatedBlock, ResidualBlock, TimeConv, TimeConvStack
from vdm_jax.models.layout import Layout
from vdm_jax.models.transformer import SpaceAttention, SpaceTimeTransformer, TimeAttention, Transformer
from vdm_jax.typing import Array, Float

# The slots of a layer in order: where each mixes activations, and what may fill it.
SLOTS: dict[str, tuple[str, dict[str, Callable[..., nnx.Module]]]] = {
    "space_conv": ("space", {"modulated": ModulatedBlock, "residual": ResidualBlock}),
    "time_conv": ("time", {"three": TimeConv, "stack": TimeConvStack, "blended": BlendedTimeBlock}),
    "space_attention": (
        "space",
        {"attention": SpaceAttention, "transformer": Transformer, "space_time": SpaceTimeTransformer},
    ),
    "time_attention": (
        "time",
        {"attention": TimeAttention, "transformer": functools.partial(Transformer, along="time")},
    ),
}
# Published blocks in which the frames of a clip see its stills.
SHOWS_STILLS = {
    ("time_conv", "stack"),
    ("time_conv", "blended"),
    ("space_attention", "space_time"),
    ("time_attention", "transformer"),
}

Filling = Mapping[str, Any] | None  # kind and arguments of what fills a slot
Place = tuple[str, int]  # "down" or "up" and the level, or "middle" and 0 or 1


class Layer(nnx.Module):
    """The four slots in order, each filled or None."""

    def __init__(self, **slots: nnx.Module | None):
        for name in SLOTS:
            setattr(self, name, slots[name])

    def __call__(self, x: Float[Array, "B T H W C"], inputs: Inputs, layout: Layout) -> Float[Array, "B T H W C2"]:
        """Runs the filled slots."""
        for name, (where, _) in SLOTS.items():
            slot = getattr(self, name)
            if slot is not None:
                x = layout(slot(layout(x, where), inputs, layout), where)
        return layout(x, "space")


def make_layer(
    fillings: Mapping[str, Filling], channels_in: int, width: int, *, embedding, text_width, attention, dtype, rngs
) -> Layer:
    """Makes a layer from the fillings of one place."""
    before = {
        "space_conv": (channels_in, width, embedding),
        "time_conv": (width, embedding),
        "space_attention": (width, text_width),
        "time_attention": (width,),
    }
    slots = {}
    for name, (_, kinds) in SLOTS.items():
        arguments = dict(fillings[name] or {})
        if not arguments:
            slots[name] = None
            continue
        block = kinds[arguments.pop("kind")]
        if name == "space_attention":
            arguments["implementation"] = attention
        slots[name] = block(*before[name], **arguments, dtype=dtype, rngs=rngs)
    return Layer(**slots)


def place_fillings(
    slots: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], levels: int
) -> dict[Place, dict[str, Filling]]:
    """Returns what fills the slots at every place: levels on the way down and up, and two layers in the middle.

    Args:
        slots: for each slot one value, one a level, or `dict(down=..., middle=..., up=...)`; a value is False, True, or
            a filling. The first middle layer has the filling of the last filled level, the second no attention.
        own: for each slot the filling that True stands for.
    """
    table: dict[Place, dict[str, Filling]] = {("middle", 0): {}, ("middle", 1): {}}
    for name, slot in slots.items():
        places = slot if isinstance(slot, Mapping) and "down" in slot else {"down": slot}
        down = per_level(name, places["down"], levels)
        up = per_level(name, places.get("up", down), levels)
        middle = places.get("middle", next((value for value in reversed(down) if value), None))
        for level in range(levels):
            table.setdefault(("down", level), {})[name] = _filling(name, down[level], own[name])
            table.setdefault(("up", level), {})[name] = _filling(name, up[level], own[name])
        table["middle", 0][name] = _filling(name, middle, own[name])
        table["middle", 1][name] = table["middle", 0][name] if name.endswith("conv") else None
    return table


def _filling(name: str, value: Any, own: Mapping[str, Any]) -> Filling:
    if not value:
        return None
    value = own if value is True else value
    if not isinstance(value, Mapping):
        raise InputError(f"{name}={value!r} must be True, False, or dict(kind=..., arguments)")
    one_of(f"{name}.kind", value.get("kind"), SLOTS[name][1])
    return value


def per_level(name: str, value: Any, levels: int) -> Sequence[Any]:
    """Spreads one value over all levels. Raises InputError if there are several, but not one for each level."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * levels
    if len(value) != levels:
        raise InputError(f"{name}={tuple(value)!r} must be one value or {levels} of them (one per level)")
    return list(value)


def one_of(name: str, value: Any, valid) -> None:
    """Raises InputError for a value that is not among the valid ones."""
    if value not in valid:
        raise InputError(f"{name}={value!r} must be one of {', '.join(valid)}")
