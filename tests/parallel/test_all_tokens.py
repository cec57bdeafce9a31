"""Attention over all tokens of a video whose frames lie on several devices: heads over `context`."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.parallel.hlo import communicated
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, shardings

BATCH, TOKENS, HEADS, WIDTH = 8, (8, 4, 4), 8, 32
ALL_TOKENS = {
    "context": {"data": 2, "fsdp": 2, "context": 2},
    "wide_context": {"data": 2, "context": 4},
    "tensor": {"data": 2, "context": 2, "tensor": 2},
    "context_alone": {"data": 1, "context": 8},
}


def attend_to_all(layout, params, x, heads):
    """Applies attention from every pixel of every frame to all pixels of all frames, as a transformer block does."""
    x = layout(x, "space")
    q, k, v = (
        layout.heads(rearrange(x @ params[name], "b t h w (n d) -> b t (h w) n d", n=heads)) for name in ("q", "k", "v")
    )
    scores = jnp.einsum("btpnd,bsrnd->bntpsr", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(scores, axis=(-2, -1))
    mixed = jnp.einsum("bntpsr,bsrnd->btpnd", weights, v)
    mixed = rearrange(layout.heads(mixed, back=True), "b t (h w) n d -> b t h w (n d)", h=x.shape[2])
    return layout(x + mixed @ params["out"], "space")


class AllTokens:
    """Runs `attend_to_all` and its gradient on a mesh; holds values, gradients and HLO."""

    def __init__(self, sizes, heads=HEADS):
        mesh = make_mesh(**sizes) if sizes else make_mesh(devices=jax.devices()[:1])
        rng = np.random.default_rng(0)
        params = {name: rng.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32) for name in ("q", "k", "v", "out")}
        self.params = params
        x = rng.normal(size=(BATCH, *TOKENS, WIDTH)).astype(np.float32)
        named = {name: {"kernel": value} for name, value in params.items()}
        places = {name: place["kernel"] for name, place in shardings(mesh, {"block": named})["block"].items()}

        def loss(params, x):
            y = attend_to_all(ActivationLayout(mesh), params, x, heads)
            return (y**2).mean(), y

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        arguments = jax.device_put(params, places), jax.device_put(x, batch_sharding(mesh))
        compiled = step.lower(*arguments).compile()
        self.hlo = compiled.as_text()
        (_, self.value), self.gradients = compiled(*arguments)

    @property
    def gathered(self):
        """Returns the shapes of gathered arrays that are not whole parameters."""
        return [shape for shape, _ in communicated(self.hlo, "all-gather") if math.prod(shape) > WIDTH * WIDTH]


@pytest.fixture(scope="module")
def one_device():
    return AllTokens(None)


@pytest.mark.parametrize("name", ALL_TOKENS)
def test_attention_over_all_tokens_equals_one_device(one_device, name):
    many = AllTokens(ALL_TOKENS[name])
    np.testing.assert_allclose(many.value, one_device.value, atol=1e-5)
    for key, expected in one_device.gradients.items():
        np.testing.assert_allclose(many.gradients[key], expected, atol=1e-5 * np.abs(expected).max(), err_msg=key)
    # Exactly four arrays are exchanged, forward and backward: queries, keys, values and the result.
    exchanged = sum(math.prod(shape) for shape, _ in communicated(many.hlo, "all-to-all"))
    assert exchanged == 8 * BATCH * math.prod(TOKENS) * WIDTH // 8
    assert many.gathered == []


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_that_do_not_divide_are_not_split(heads):
    many, alone = (AllTokens(sizes, heads) for sizes in ({"data": 1, "context": 4, "tensor": 2}, None))
    np.testing.assert_allclose(many.value, alone.value, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "heads", "expected"),
    [
        ({"context": 4, "tensor": 2}, 8, ("tensor", "context")),
        ({"context": 4, "tensor": 2}, 4, "context"),
        ({"context": 4, "tensor": 2}, 2, "tensor"),
        ({"context": 4, "tensor": 2}, 3, None),
    ],
)
def test_heads_lie_over_context_and_tensor_where_they_divide(sizes, heads, expected):
    mesh = make_mesh(data=1, **sizes)
    for back in (False, True):
        x = jax.jit(functools.partial(ActivationLayout(mesh).heads, back=back))(jnp.zeros((2, 4, 3, heads, 5)))
        tensor = "tensor" if heads % 2 == 0 else None
        spec = P(None, "context", None, tensor) if back else P(None, None, None, expected)
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
