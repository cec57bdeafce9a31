"""Open-Sora 1.2 as a whole: its folder draws what a loop written from the published facts draws."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.pretrained.networks import relative
from tests.pretrained.tiny_open_sora import write_open_sora
from vdm_jax import Pipeline, load
from vdm_jax.diffusion.sampler import INITIAL, gaussian
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import keyframes
from vdm_jax.generation.windows import generate
from vdm_jax.models.conditions import Conditions
from vdm_jax.parallel.mesh import make_mesh

FRAMES, ROWS, COLUMNS, STEPS, SEED = 21, 10, 20, 5, 3
ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def folder(temporal, tmp_path):
    return write_open_sora(tmp_path / "open_sora", temporal)


@pytest.fixture
def pipeline(folder):
    return Pipeline(load(folder, frames=FRAMES, size=(ROWS, COLUMNS), mesh=ONE), ONE)


def expected_latents(model, prompt, first=None):
    """Open-Sora's sampler: Euler steps of z + v (t − t'), where v = x − ε is guided by the learned null text.

    The null text counts as many tokens as the prompt. A first latent that is known stands at time 0.
    """
    params, shape = model.params, (1, *model.latent_shape)
    network = jax.jit(nnx.merge(model.network, params["network"]))
    text = nnx.merge(model.text.graphdef, params["text"])(jnp.asarray(model.tokenize(prompt))[None, None])
    null = text._replace(tokens=jnp.asarray(params["network"]["null_text"])[None, None])
    shift = (ROWS * COLUMNS / 512**2) ** 0.5 * (FRAMES // 17 * 5) ** 0.5
    times = np.linspace(1, 0, STEPS + 1)
    times = shift * times / (1 + (shift - 1) * times)
    z = np.array(gaussian(jax.random.fold_in(jax.random.key(SEED), 0)[None], INITIAL, shape[1:], jnp.float32))
    for t, after in itertools.pairwise(times):
        time = np.full(shape[:2], 1000 * t, np.float32)
        if first is not None:
            z[:, 0], time[:, 0] = first, 0
        guided, free = (network(z, time, Conditions(x, scalars=jnp.full((1, 1), 24.0))) for x in (text, null))
        z = z + np.asarray(free + 7 * (guided - free)) * (t - after)
    if first is not None:
        z[:, 0] = first
    return jnp.asarray(z, jnp.float32)


def test_it_draws_what_the_published_sampler_draws(pipeline):
    model = pipeline.model
    assert (pipeline.settings.steps, pipeline.settings.guidance, model.fps) == (30, 7.0, 24.0)
    assert model.latent_shape[0] == 6  # 5 of the first 17 frames, and 1 of the others
    prompt = "a cat"
    assert (model.tokenize(prompt) > 1).sum() < len(model.tokenize(prompt)) - 1  # its mask matters
    drawn = pipeline([prompt], seed=SEED, steps=STEPS)
    expected = model.codec.decode(model.params["codec"], expected_latents(model, prompt), FRAMES)
    assert np.std(expected) > 0.05
    assert relative(drawn, np.clip(expected, -1, 1)) < 1e-4


def test_a_known_frame_stands_at_time_0(pipeline):
    model = pipeline.model
    picture = np.random.default_rng(0).uniform(-1, 1, (ROWS, COLUMNS, 3)).astype(np.float32)
    task = keyframes({0: picture}, FRAMES, model.fps)
    options = dict(seed=SEED, steps=STEPS, respect="times", exact=False)
    *_, drawn = generate(pipeline, ["a cat"], task, **options)
    still = jnp.broadcast_to(picture, (1, FRAMES, *picture.shape))
    first = model.codec.encode(model.params["codec"], still)[:, 0]  # its latent stands for this frame alone
    expected = model.codec.decode(model.params["codec"], expected_latents(model, "a cat", first), FRAMES)
    assert relative(drawn, np.clip(expected, -1, 1)) < 1e-4


def test_the_published_size_has_the_published_shift(folder):
    model = load(folder, frames=51, size=(240, 426), mesh=ONE)
    times = model.process.network_time(jnp.linspace(1, 0, 31)[:-1])
    np.testing.assert_allclose(model.process.shift, 2.41872, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(times)[[0, 1, 2, -2, -1]], [1000, 985.94, 971.32, 147.31, 76.98], rtol=1e-4)
    picture = load(folder, frames=1, size=(512, 512), mesh=ONE)
    assert (picture.process.shift, picture.scalars) == (1.0, (120.0,))


def test_what_it_cannot_do_is_refused_in_one_line(pipeline, folder):
    with pytest.raises(InputError, match="this model has a learned null text instead"):
        pipeline(["a cat"], negative="a dog")
    with pytest.raises(InputError, match="scheduler=ddim is not for STDiT3, which has one schedule"):
        load(folder, scheduler="ddim")
    network = folder / "transformer" / "model.safetensors"
    tensors = load_file(network)
    save_file(tensors | {"rope.freqs": 2 * tensors["rope.freqs"]}, network)
    with pytest.raises(InputError, match=r"rope\.freqs are not 10000\^\(-2i/size\)"):
        load(folder)
    save_file(tensors, network)
    for part, line in (("text_encoder", "text_encoder/config.json cannot be read"), ("vae", "vae/config.json cannot")):
        shutil.move(folder / part, folder / "away")
        with pytest.raises(InputError, match=line):
            load(folder)
        shutil.move(folder / "away", folder / part)
