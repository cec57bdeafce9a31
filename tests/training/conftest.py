"""A model of three layers: the tests are about what training does with a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax import build
from vdm_jax.diffusion.known import MaskMixture
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import make_process
from vdm_jax.model import Model, TextEncoder
from vdm_jax.models.codec import PIXELS
from vdm_jax.models.conditions import Text
from vdm_jax.models.layout import ONE_DEVICE
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout
from vdm_jax.training.losses import denoising
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.state import plan_state, state_shardings
from vdm_jax.training.step import make_train_step

LENGTH = 5  # of a caption
STILLS = 2
WIDTH = 16

# How a loss conditions the network, and which times it draws: masks and fields of the objective.
KINDS = {
    "text": (None, {}),
    "channels": (MaskMixture({"first_k": 1.0, "inside": 1.0}, noise=0.5), {}),
    "times": (MaskMixture({"first_k": 1.0, "frames": 1.0}, noise=0.5, tell="times"), {}),
    "time_per_frame": (None, {"time_per_frame": True}),
}


class ToyText(nnx.Module):
    """Embeds each token."""

    width = WIDTH

    def __init__(self, *, dtype="float32", rngs):
        self.embed = nnx.Embed(10, WIDTH, dtype=dtype, rngs=rngs)

    @staticmethod
    def tokenize(text):
        return np.full(LENGTH, len(text) % 9, np.int32)  # zeros for the empty text

    def __call__(self, tokens):
        embedded = self.embed(tokens)
        return Text(embedded, jnp.ones(tokens.shape, bool), embedded.mean(2))


class Toy(nnx.Module):
    """Mixes channels; adds the pooled text, the time and the known channels."""

    def __init__(self, *, channels_in, channels_out, text_width=WIDTH, pooled_width=WIDTH, dtype="float32", rngs):
        assert (text_width, pooled_width) == (WIDTH, WIDTH)
        self.up = nnx.Linear(channels_in, WIDTH, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(WIDTH, channels_out, dtype=dtype, rngs=rngs)

    def check(self, frames, height, width, stills=0):
        pass

    def __call__(self, z, time, conditions, *, key=None, layout=ONE_DEVICE):
        if conditions.known is not None:
            z = z + conditions.known[..., :-1] * conditions.known[..., -1:]
        hidden = layout(self.up(z), "space") + conditions.text.pooled[:, :, None, None]
        return self.down(jnp.tanh(hidden + time.reshape(len(time), -1, 1, 1, 1) / 1000))


def new_params(channels, seed):
    rngs = nnx.Rngs(seed)
    modules = {"text": ToyText(rngs=rngs), "network": Toy(channels_in=channels, channels_out=channels, rngs=rngs)}
    return {name: nnx.to_pure_dict(nnx.split(module)[1]) for name, module in modules.items()}


@pytest.fixture(scope="session")
def make_model():
    """Returns the toy model for videos of a shape, its parameters as shapes."""

    def make(shape=(6, 4, 4, 1), masks=None):
        def make_toys(rngs):
            return ToyText(rngs=rngs), Toy(channels_in=shape[3], channels_out=shape[3], rngs=rngs)

        text, network = nnx.eval_shape(lambda: make_toys(nnx.Rngs(0)))
        return Model(
            network=nnx.split(network)[0],
            text=TextEncoder(nnx.split(text)[0], ToyText.tokenize, WIDTH, WIDTH),
            codec=PIXELS,
            process=make_process("cosine"),
            prediction="v",
            shape=shape,
            fps=8.0,
            params=jax.eval_shape(lambda: new_params(shape[3], 0)),
            masks=masks,
        )

    return make


@pytest.fixture(scope="session")
def toy_kinds():
    """Registers the toy network and text encoder, so that configs can name them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "toy", Toy)
        patch.setitem(build.TEXT_ENCODERS, "toy", ToyText)
        yield


@pytest.fixture(scope="session")
def make_params():
    """Returns the toy model's parameters for a number of channels and a seed."""
    return new_params


@pytest.fixture(scope="session")
def tx():
    return make_optimizer("adam", lambda step: 0.01, clip=1.0)


@pytest.fixture(scope="session")
def on_devices():
    """Returns a mesh of the first `count` devices."""

    def mesh(count, **sizes):
        return make_mesh(**sizes, devices=jax.devices()[:count])

    return mesh


@pytest.fixture(scope="session")
def plan(make_model, tx):
    """Returns the planned state of the toy model on a mesh, and the function that computes it."""

    def plan(mesh, seed=3):
        return plan_state(make_model().params, lambda: new_params(1, seed), tx, mesh)

    return plan


@pytest.fixture(scope="session")
def make_state(plan, on_devices):
    """Returns a fresh copy of the same first state, on any mesh, for a step to donate."""
    first = jax.device_get(plan(on_devices(1))[1]())

    def make(mesh=None, state=first):
        sharding = state_shardings(state, mesh or on_devices(1))
        return jax.device_put(jax.tree.map(np.array, state), sharding, may_alias=False)

    return make


@pytest.fixture(scope="session")
def make_loss(make_model):
    """Returns a denoising loss of the toy model: one of KINDS, with changes to its objective."""

    @functools.cache
    def make(kind="text", mesh=None, **changes):
        masks, objective = KINDS[kind]
        layout = ONE_DEVICE if mesh is None else ActivationLayout(mesh)
        return denoising(make_model(masks=masks), Objective(**objective | changes), stills=STILLS, layout=layout)

    return make


@pytest.fixture(scope="session")
def make_step(make_loss, tx, on_devices):
    """Returns a step of the toy model; each is compiled once for all tests."""

    @functools.cache
    def make(kind="text", mesh=None, seed=0, accumulate=1, tx=tx, one_program=None, **objective):
        return make_train_step(
            make_loss(kind, mesh, **objective),
            tx,
            mesh or on_devices(1),
            seed=seed,
            accumulate=accumulate,
            ema=0.15,
            one_program=one_program,
        )

    return make


@pytest.fixture(scope="session")
def difference():
    """Returns the largest difference between two trees of arrays."""

    def difference(left, right):
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)

    return difference


@pytest.fixture(scope="session")
def batch():
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(256, size=(16, 6, 4, 4, 1)).astype(np.uint8),
        "tokens": rng.integers(1, 10, (16, LENGTH)).astype(np.int32),
        "image_tokens": rng.integers(1, 10, (16, STILLS, LENGTH)).astype(np.int32),
    }
