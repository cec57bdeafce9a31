"""Open-Sora 2.0 as a whole: its files draw what a loop written from the published facts draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.networks import relative
from tests.pretrained.tiny_open_sora import write_open_sora_2
from vdm_jax import Pipeline, load
from vdm_jax.diffusion.sampler import INITIAL, gaussian
from vdm_jax.errors import InputError
from vdm_jax.generation.modes import keyframes
from vdm_jax.generation.windows import generate
from vdm_jax.models.conditions import Conditions, Text
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import open_sora_2

FRAMES, ROWS, COLUMNS, STEPS, SEED = 5, 16, 32, 13, 3
ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def folder(monkeypatch, tmp_path):
    return write_open_sora_2(tmp_path / "open-sora-2", monkeypatch)


@pytest.fixture
def pipeline(folder):
    return Pipeline(load(folder, frames=FRAMES, size=(ROWS, COLUMNS), mesh=ONE), ONE)


def text_of(model, prompt):
    """T5's tokens without a mask, and CLIP's pooled vector, each from its own encoder."""
    both = nnx.merge(model.text.graphdef, model.params["text"])
    tokens = jnp.asarray(model.tokenize(prompt))[None, None]
    first = both.first(tokens[..., :512])
    assert bool(first.mask.all())
    return Text(first.tokens, first.mask, both.second(tokens[..., 512:]).pooled)


def expected_latents(model, prompt, known=None):
    """Open-Sora's sampler: guidance of text and known frames, which rests in every second step from the tenth on."""
    shape = (1, *model.latent_shape)
    network = jax.jit(nnx.merge(model.network, model.params["network"]))
    text, null = text_of(model, prompt), text_of(model, "")
    frames, rows, columns = shape[1:4]
    shift = (1 + 2 * (rows * columns / 4 - 256) / 3840) * frames**0.5
    grid = np.linspace(1, 0, STEPS + 1)
    times, image_scales = shift * grid / (1 + (shift - 1) * grid), np.linspace(3, 1, STEPS + 1)
    z = np.array(gaussian(jax.random.fold_in(jax.random.key(SEED), 0)[None], INITIAL, shape[1:], jnp.float32))
    nothing = jnp.zeros((*shape[:-1], shape[-1] + 1))
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        time = np.full(1, 1000 * t, np.float32)
        rests = i >= 10 and i % 2 == 1
        shown = nothing if known is None else known
        branches = (text, shown), (null, shown), (null, nothing)
        c, u, u2 = (np.asarray(network(z, time, Conditions(*branch))) for branch in branches)
        image = 1 if rests else np.linspace(1, image_scales[i], frames)[None, :, None, None, None]
        v = u2 + image * (u - u2) + (1 if rests else 7.5) * (c - u)
        z = z + v * (after - t)
    return z


def test_it_draws_what_the_published_sampler_draws(pipeline):
    model = pipeline.model
    assert (pipeline.settings.steps, pipeline.settings.guidance, model.fps) == (50, 7.5, 24.0)
    drawn = pipeline(["a cat"], seed=SEED, steps=STEPS)
    latents = jnp.asarray(expected_latents(model, "a cat"), jnp.float32)
    expected = model.codec.decode(model.params["codec"], latents, FRAMES)
    assert np.std(expected) > 0.05
    assert relative(drawn, np.clip(expected, -1, 1)) < 1e-4
    assert relative(pipeline(["a dog"], seed=SEED, steps=STEPS), drawn) > 1e-3


def test_a_known_frame_is_a_branch_of_guidance(pipeline):
    model = pipeline.model
    picture = np.random.default_rng(0).uniform(-1, 1, (ROWS, COLUMNS, 3)).astype(np.float32)
    *_, drawn = generate(pipeline, ["a cat"], keyframes({0: picture}, FRAMES, model.fps), seed=SEED, steps=STEPS)
    np.testing.assert_array_equal(drawn[0, 0], picture)
    still = jnp.broadcast_to(picture, (1, FRAMES, *picture.shape))
    latents = model.codec.encode(model.params["codec"], still)
    mask = np.zeros((*latents.shape[:-1], 1), np.float32)
    mask[:, 0] = 1
    expected = expected_latents(model, "a cat", jnp.concatenate([mask * latents, mask], -1))
    latents = jnp.asarray(np.where(mask, latents, expected), jnp.float32)  # the known latent is put back at the end
    expected = np.clip(model.codec.decode(model.params["codec"], latents, FRAMES), -1, 1)
    assert relative(drawn[:, 1:], expected[:, 1:]) < 1e-4


def test_the_published_sizes_have_the_published_shifts():
    process = open_sora_2.OPEN_SORA_2.at_size((129, 192, 336, 3))["process"]
    np.testing.assert_allclose(process.shift, 5.7326, rtol=1e-5)
    times = process.network_time(jnp.linspace(1, 0, 51)[:-1]) / 1000
    np.testing.assert_allclose(np.asarray(times)[[0, 1, 2, -2, -1]], [1, 0.9965, 0.9928, 0.1928, 0.1047], atol=6e-5)
    np.testing.assert_allclose(open_sora_2.OPEN_SORA_2.at_size((129, 768, 768, 3))["process"].shift, 11.872, rtol=1e-4)


def test_a_part_that_is_missing_is_named(folder):
    (folder / "clip" / "text_encoder" / "config.json").unlink()
    with pytest.raises(InputError, match=r"clip/text_encoder/config\.json cannot be read"):
        load(folder, frames=FRAMES, size=(ROWS, COLUMNS), mesh=ONE)
