"""Text encoder and trunk together: whose text a frame hears."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.models.denoiser import Denoiser

B, T, S, LENGTH = 2, 4, 4, 8
TRUNK = {"channels": 8, "multipliers": (1,), "blocks": 0, "head_size": 4, "time_conv": True}
TEXT = {"width": 8, "depth": 1, "length": LENGTH, "head_size": 4}


def make(text=TEXT):
    """A denoiser with every parameter drawn anew, so that nothing is zero."""

    def create():
        return Denoiser(channels=1, unet=TRUNK, text=text, rngs=nnx.Rngs(0))

    rng = np.random.default_rng(0)
    graphdef, shapes = nnx.split(nnx.eval_shape(create))
    return nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype), shapes))


@pytest.fixture(scope="module")
def z():
    return jnp.asarray(np.random.default_rng(1).normal(size=(B, T, S, S, 1)), jnp.float32)


@pytest.fixture(scope="module")
def run(z):
    """Captions of the videos, and of each video's stills → the prediction."""
    model = make()

    @jax.jit
    def predict(tokens, image_tokens):
        images = 0 if image_tokens is None else image_tokens.shape[1]
        return model(z, jnp.array([3.0, 700.0]), model.encode(tokens, image_tokens), images=images)

    def run(texts, image_texts=None):
        tokens = np.stack([model.tokenize(t) for t in texts])
        images = image_texts and np.stack([[model.tokenize(t) for t in row] for row in image_texts])
        return np.asarray(predict(tokens, images))

    return run


def test_a_caption_changes_its_own_video_only(run):
    moved = np.abs(run(["a", "b"]) - run(["a", "c"]))
    assert moved[0].max() == 0
    assert (moved[1].max((1, 2, 3)) > 1e-4).all()


def test_each_still_has_its_own_text_and_the_clip_has_the_videos(run):
    before = run(["a", "b"], [["c", "d"], ["e", "f"]])
    still = np.abs(run(["a", "b"], [["c", "d"], ["e", "g"]]) - before).max((2, 3, 4))
    np.testing.assert_array_equal(still > 1e-4, [[False] * 4, [False, False, False, True]])
    assert still[1, :3].max() == 0
    clip = np.abs(run(["a", "z"], [["c", "d"], ["e", "f"]]) - before).max((2, 3, 4))
    np.testing.assert_array_equal(clip > 1e-4, [[False] * 4, [True, True, False, False]])


def test_without_text_the_model_is_unconditional(z):
    model = make(text=None)
    assert model.tokenize("anything").shape == (0,)
    assert jax.eval_shape(lambda: model(z, jnp.zeros(B), None)).shape == z.shape
    assert not any("context" in str(path) or "text" in str(path) for path, _ in _leaves(model))


def _leaves(model):
    return jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.split(model)[1]))


def test_a_network_that_is_told_sees_what_is_known(z):
    rng = np.random.default_rng(2)
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: Denoiser(channels=1, unet=TRUNK, text=None, told=True, rngs=nnx.Rngs(0)))
    )
    model = nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype), shapes))
    predict = jax.jit(lambda known: model(z, jnp.array([3.0, 700.0]), None, known=known))
    known = jnp.asarray(rng.normal(size=(B, T, S, S, 2)), jnp.float32)
    plain = predict(known)
    assert plain.shape == z.shape
    for channel in range(2):  # the video, and its certainty
        moved = np.abs(predict(known.at[0, ..., channel].add(1.0)) - plain).max((1, 2, 3, 4))
        assert moved[0] > 1e-3
        assert moved[1] == 0
