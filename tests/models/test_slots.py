"""The four slots of a layer: what fills them where, and in which order and layout they run."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.models.randomised import normal
from vdm_jax.errors import InputError
from vdm_jax.models.convolution import Inputs, ModulatedBlock, ResidualBlock, TimeConv
from vdm_jax.models.layout import Layout
from vdm_jax.models.slots import SLOTS, Layer, make_layer, one_of, per_level, place_fillings
from vdm_jax.models.transformer import SpaceAttention, Transformer

OWN = {name: dict(kind=next(iter(kinds)), own=True) for name, (_, kinds) in SLOTS.items()}
OFF = dict.fromkeys(SLOTS, False)


def fillings_of(name, slot, levels):
    """Returns the kind at each place, None where a slot is empty."""
    table = place_fillings(OFF | {name: slot}, OWN, levels)
    assert set(table) == {(way, level) for way in ("down", "up") for level in range(levels)} | {
        ("middle", 0),
        ("middle", 1),
    }
    assert all(filling is None for place in table.values() for other, filling in place.items() if other != name)
    return {place: filling[name] and filling[name]["kind"] for place, filling in table.items()}


@pytest.mark.parametrize("name", SLOTS)
def test_true_is_our_own_filling_at_every_level(name):
    own = OWN[name]["kind"]
    found = fillings_of(name, True, 2)
    attention = name.endswith("attention")
    assert found.pop(("middle", 1)) == (None if attention else own)  # the second middle layer has no attention
    assert set(found.values()) == {own}
    assert set(fillings_of(name, False, 2).values()) == {None}


def test_a_value_a_level_is_for_both_ways_and_the_last_filled_level_fills_the_middle():
    found = fillings_of("time_attention", (False, True, False), 3)
    levels = {None: (0, 2), "attention": (1,)}
    for kind, where in levels.items():
        assert {found[way, level] for way in ("down", "up") for level in where} == {kind}
    assert found["middle", 0] == "attention"
    kinds = ({"kind": "attention"}, {"kind": "transformer"})
    assert fillings_of("time_attention", kinds, 2)["middle", 0] == "transformer"


def test_places_may_differ():
    slot = dict(down=[{"kind": "stack"}, False], middle={"kind": "blended"}, up=True)
    assert fillings_of("time_conv", slot, 2) == {
        ("down", 0): "stack",
        ("down", 1): None,
        ("middle", 0): "blended",
        ("middle", 1): "blended",
        ("up", 0): "three",
        ("up", 1): "three",
    }
    found = fillings_of("time_conv", dict(down=(True, False), middle=False), 2)
    assert (found["up", 0], found["up", 1], found["middle", 0]) == ("three", None, None)


def test_bad_fillings_are_named():
    for name, slot, message in (
        ("time_conv", (True,), r"time_conv=\(True,\) must be one value or 2 of them \(one per level\)"),
        ("time_conv", {"kind": "four"}, "time_conv.kind='four' must be one of three, stack, blended"),
        ("space_conv", "three", "space_conv='three' must be True, False, or dict"),
        ("space_attention", ({"heads": 2}, True), "space_attention.kind=None must be one of attention, transformer"),
        ("time_conv", {"heads": 2}, "time_conv.kind=None must be one of three, stack, blended"),
        ("time_attention", 3, "time_attention=3 must be True, False, or dict"),
    ):
        with pytest.raises(InputError, match=message):
            place_fillings(OFF | {name: slot}, OWN, 2)
    with pytest.raises(InputError, match="stem='fold' must be one of patch, conv"):
        one_of("stem", "fold", ("patch", "conv"))
    assert per_level("resample", "space", 3) == ["space"] * 3
    assert per_level("resample", ("a", "b"), 2) == ["a", "b"]


def test_a_layer_has_the_blocks_of_its_fillings():
    fillings = {
        "space_conv": dict(kind="residual", groups=2, epsilon=1e-5),
        "time_conv": dict(kind="three"),
        "space_attention": dict(kind="attention", head_size=4, context="joint", all_frames=False),
        "time_attention": dict(kind="transformer", heads=2, groups=2),
    }
    common = dict(embedding=6, text_width=5, attention="auto", dtype="float32")
    layer = nnx.eval_shape(lambda: make_layer(fillings, 4, 8, **common, rngs=nnx.Rngs(0)))
    kinds = [type(getattr(layer, name)) for name in SLOTS]
    assert kinds == [ResidualBlock, TimeConv, SpaceAttention, Transformer]
    assert layer.space_conv.conv1.in_features == 4
    assert layer.space_conv.conv2.out_features == 8
    assert layer.time_attention.blocks[0].attention1.along == "time"
    assert layer.space_attention.attention.text_kv.in_features == 5
    fillings["space_conv"] = dict(kind="modulated")
    layer = nnx.eval_shape(lambda: make_layer(fillings | {"time_attention": None}, 8, 8, **common, rngs=nnx.Rngs(0)))
    assert isinstance(layer.space_conv, ModulatedBlock)
    assert layer.time_attention is None


def test_slots_run_in_order_each_in_its_layout():
    calls = []

    class Recorded(Layout):
        def __call__(self, x, where):
            calls.append(where)
            return x

    class Slot(nnx.Module):
        def __init__(self, name, factor):
            self.name, self.factor = name, factor

        def __call__(self, x, inputs, layout):
            calls.append(self.name)
            return x * self.factor + inputs.embedding[:, :, None, None, :1]

    names = list(SLOTS)
    slots = {name: Slot(name, i + 2.0) for i, name in enumerate(names)}
    x, inputs = normal(0, 2, 3, 4, 4, 5), Inputs(embedding=jnp.ones((2, 1, 1)))
    out = Layer(**slots)(x, inputs, Recorded())
    wheres = [SLOTS[name][0] for name in names]
    assert calls == [call for name, where in zip(names, wheres, strict=True) for call in (where, name, where)] + [
        "space"
    ]
    expected = x
    for i in range(4):
        expected = expected * (i + 2.0) + 1
    assert jnp.allclose(out, expected)
    calls.clear()
    Layer(**slots | {"time_conv": None, "space_attention": None})(x, inputs, Recorded())
    assert [call for call in calls if call in names] == ["space_conv", "time_attention"]
    assert jax.tree.leaves(nnx.state(Layer(**dict.fromkeys(SLOTS)))) == []
