"""Which parameters are trained, and that the whole comes together again."""

import jax
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.parallel.sharding import path_name
from vdm_jax.training.trainee import divide, join, low_rank


@pytest.fixture
def params():
    rng = np.random.default_rng(0)

    def array(*shape):
        return jax.numpy.asarray(rng.normal(size=shape), np.float32)

    layer = {"blocks": {0: {"attention1": {"q": {"kernel": array(6, 4)}, "out": {"kernel": array(4, 6)}}}}}
    return {
        "text": {"embed": array(5, 4)},
        "unet": {
            "conv_in": {"kernel": array(3, 6)},
            "down": {0: {0: {"space_attention": layer, "time_attention": jax.tree.map(lambda x: x + 1, layer)}}},
            "stem_time": {"norm": {"scale": array(6)}},
        },
    }


def names(tree):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_parts_are_what_they_are_called_and_join_to_the_whole(params):
    everything = names(params)
    for part, expected in {
        "all": {name for name in everything if name.startswith("unet/")},
        "time": {name for name in everything if "time" in name},
        "lora": {name for name in everything if "attention1" in name},
    }.items():
        trained, frozen = divide(params, part)
        assert names(trained) == expected
        assert names(frozen) == everything - expected
        whole = join(trained, frozen)
        assert jax.tree.structure(whole) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_low_rank_changes_begin_as_none_and_add_their_product(params):
    matrices, _ = divide(params, "lora")
    changes = low_rank(matrices, 2, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, join(changes, params), params)
    q, other = (
        changes["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
        for slot in ("space_attention", "time_attention")
    )
    assert np.abs(q["lora_down"] - other["lora_down"]).max() > 0.1  # each its own
    changes = jax.tree.map(lambda x: x + 0.5, changes)
    whole = join(changes, params)
    slot = "space_attention"
    change = whole["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    change = change - params["unet"]["down"][0][0][slot]["blocks"][0]["attention1"]["q"]["kernel"]
    np.testing.assert_allclose(change, (q["lora_down"] + 0.5) @ (q["lora_up"] + 0.5), atol=1e-6)
    np.testing.assert_array_equal(whole["text"]["embed"], params["text"]["embed"])


def test_what_there_is_not_cannot_be_trained(params):
    with pytest.raises(InputError, match="train='some' must be one of all, time, lora"):
        divide(params, "some")
    with pytest.raises(InputError, match="train='time': the network has no such parameters"):
        divide({"text": params["text"], "unet": {"conv_in": params["unet"]["conv_in"]}}, "time")
    with pytest.raises(InputError, match="rank=5 must be at least 1 and at most 4"):
        low_rank(divide(params, "lora")[0], 5, jax.random.key(0))
