"""A network of three layers that stands in for the U-Net: what is tested here is what is done with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import create_state, state_shardings

LENGTH = 5  # of a caption


class Toy(nnx.Module):
    """Mixes channels and adds an embedding of the captions."""

    def __init__(self, rngs, width=16, channels=1):
        self.text = nnx.Embed(10, width, rngs=rngs)
        self.up = nnx.Linear(channels, width, rngs=rngs)
        self.down = nnx.Linear(width, channels, rngs=rngs)

    def encode(self, tokens, image_tokens=None):
        texts = tokens[:, None] if image_tokens is None else jnp.concatenate([tokens[:, None], image_tokens], 1)
        return self.text(texts).mean(2)  # B G E

    def __call__(self, z, time, text, *, known, images, key, layout):
        if known is not None:
            z = z + known[..., :1] * known[..., 1:]
        groups = text.shape[1]
        repeats = jnp.array([z.shape[1] - groups + 1] + [1] * (groups - 1))
        text = jnp.repeat(text, repeats, axis=1, total_repeat_length=z.shape[1])
        hidden = layout(self.up(z), "space") + text[:, :, None, None]
        return self.down(jnp.tanh(hidden + time[:, None, None, None, None] / 1000))


@pytest.fixture(scope="session")
def make_toy():
    return Toy


@pytest.fixture(scope="session")
def tx():
    return make_optimizer("adam", lambda step: 0.01, clip=1.0)


@pytest.fixture(scope="session")
def on_devices():
    """A mesh of the first `count` devices."""

    def mesh(count, **sizes):
        return make_mesh(**sizes, devices=jax.devices()[:count])

    return mesh


@pytest.fixture(scope="session")
def toy(tx, on_devices):
    """(graphdef, make_state): a fresh copy of the same first state, on any mesh, for a step to donate."""
    graphdef, state = create_state(Toy, tx, on_devices(1), seed=3)
    state = jax.device_get(state)

    def make_state(mesh=None, state=state):
        sharding = state_shardings(state, mesh or on_devices(1))
        return jax.device_put(jax.tree.map(np.array, state), sharding, may_alias=False)

    return graphdef, make_state


@pytest.fixture(scope="session")
def batch():
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(256, size=(16, 6, 4, 4, 1)).astype(np.uint8),
        "tokens": rng.integers(1, 10, (16, LENGTH)).astype(np.int32),
        "image_tokens": rng.integers(1, 10, (16, 2, LENGTH)).astype(np.int32),
    }
