"""A model: how conditions are made of texts and known pixels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vdm_jax.build import build
from vdm_jax.config import default_config
from vdm_jax.diffusion.known import Known, MaskMixture
from vdm_jax.errors import InputError
from vdm_jax.model import TextEncoder
from vdm_jax.models.codec import Codec
from vdm_jax.models.conditions import Conditions
from vdm_jax.models.rngs import Keys
from vdm_jax.models.text.clip import ClipText

B, T, S = 2, 4, 4
TIME = jnp.array([3.0, 700.0])


def small_config():
    config = default_config()
    config.data.update(frames=T, height=S, width=S)
    config.model.network = dict(kind="unet", channels=8, multipliers=(1,), blocks=0, head_size=4, time_conv=True)
    config.model.text = dict(kind="bytes", width=8, depth=1, length=8, head_size=4)
    return config


def make(config):
    """Returns the model of a config with every parameter drawn, so that nothing is zero."""
    model, rng = build(config), np.random.default_rng(0)
    draw = functools.partial(jax.tree.map, lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype))
    return dataclasses.replace(model, params=draw(model.params))


@pytest.fixture(scope="module")
def model():
    return make(small_config())


@pytest.fixture(scope="module")
def z():
    return jnp.asarray(np.random.default_rng(1).normal(size=(B, T, S, S, 1)), jnp.float32)


# ---------------------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def run(model, z):
    """Returns the function from the captions of videos, and of each video's stills, to the prediction."""

    @functools.partial(jax.jit, static_argnums=1)
    def predict(tokens, stills):
        text = model.encode(model.params, tokens, frames=T)
        is_still = jnp.broadcast_to(jnp.arange(T) >= T - stills, (B, T))
        return model.merge(model.params)(z, TIME, Conditions(text, is_still=is_still))

    def run(texts, still_texts=((), ())):
        rows = [[text, *others] for text, others in zip(texts, still_texts, strict=True)]
        return np.asarray(predict(np.stack([[model.tokenize(t) for t in row] for row in rows]), len(still_texts[0])))

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
    config = small_config()
    config.model.text = dict(kind="none")
    model = build(config)
    assert model.text is None
    assert model.tokenize("anything").shape == (0,)
    assert model.encode({}, jnp.zeros((B, 1, 0), jnp.int32)) is None
    assert set(model.params) == {"network"}
    assert not any("text" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(model.params))
    predict = jax.eval_shape(lambda params: model.merge(params)(z, TIME, Conditions()), model.params)
    assert predict.shape == z.shape


@pytest.fixture(scope="module")
def clip_model(model):
    """Returns a model whose text encoder is CLIP's."""
    sizes = dict(vocabulary=20, length=5, width=8, middle=16, depth=1, heads=2, activation="gelu", epsilon=1e-5)
    graphdef, params = nnx.split(ClipText(**sizes, end=None, rngs=Keys(0)))
    text = TextEncoder(graphdef, lambda prompt: np.zeros(5, np.int32), 8, 8)
    return dataclasses.replace(model, text=text, params=model.params | {"text": nnx.to_pure_dict(params)})


def words(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 20, (*shape, 5)).astype(np.int32))


def test_every_frame_has_its_mixture_of_texts(clip_model):
    tokens, encode = words(0, 2, 3), functools.partial(clip_model.encode, clip_model.params)
    mixed = encode(tokens, shares=jnp.float32([[[1, 0, 0], [0.25, 0.75, 0]], [[0, 0, 1], [0, 0.5, 0.5]]]))
    first, second, third = (encode(tokens[:, k : k + 1]) for k in range(3))
    assert mixed.mask.shape == (2, 2, 5)
    for name, shape in (("tokens", (2, 2, 5, 8)), ("pooled", (2, 2, 8))):
        out, a, b, c = (getattr(text, name) for text in (mixed, first, second, third))
        assert out.shape == shape
        np.testing.assert_allclose(out[0, 0], a[0, 0], atol=1e-6)
        np.testing.assert_allclose(out[0, 1], 0.25 * a[0, 0] + 0.75 * b[0, 0], atol=1e-6)
        np.testing.assert_allclose(out[1, 0], c[1, 0], atol=1e-6)
        np.testing.assert_allclose(out[1, 1], 0.5 * b[1, 0] + 0.5 * c[1, 0], atol=1e-6)


def test_a_text_of_a_frame_reaches_that_frame_most(clip_model, z):
    tokens = words(1, 2, 2)
    call = jax.jit(lambda text: clip_model.merge(clip_model.params)(z, TIME, Conditions(text)))
    encode = functools.partial(clip_model.encode, clip_model.params)
    plain = call(encode(tokens[:, :1]))
    same = encode(tokens, shares=jnp.tile(jnp.float32([1, 0]), (2, 4, 1)))
    np.testing.assert_allclose(call(same), plain, atol=1e-4)
    last = encode(tokens, shares=jnp.float32([[[1, 0], [1, 0], [1, 0], [0, 1]]] * 2))
    change = np.abs(call(last) - plain).max((0, 2, 3, 4))
    assert change[3] > change[:3].max() > 0  # the other frames see it through the time slots


# --------------------------------------------------------------------------------------- known pixels


def conditioned_config(tell="channels", **known):
    config = small_config()
    config.known.update(mixture={"first": 1.0}, tell=tell, **known)
    return config


def test_a_network_conditioned_on_channels_sees_what_is_known(z):
    model = make(conditioned_config())
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(np.stack([[model.tokenize("a")]] * B))
    text = model.encode(model.params, tokens)
    predict = jax.jit(lambda known: model.merge(model.params)(z, TIME, Conditions(text, known)))
    known = jnp.asarray(rng.normal(size=(B, T, S, S, 2)), jnp.float32)
    plain = predict(known)
    assert plain.shape == z.shape
    for channel in range(2):  # the video, and its certainty
        moved = np.abs(predict(known.at[0, ..., channel].add(1.0)) - plain).max((1, 2, 3, 4))
        assert moved[0] > 1e-3
        assert moved[1] == 0


def test_channels_are_the_known_video_and_its_certainty(z):
    model = build(conditioned_config())
    mask = jnp.zeros((B, T, S, S, 1), bool).at[:, 0].set(True)
    channels = model.channels(B, Known(z, mask), jnp.zeros_like(z))
    np.testing.assert_array_equal(channels[:, 0], jnp.concatenate([z[:, 0], jnp.ones((B, S, S, 1))], -1))
    assert not channels[:, 1:].any()
    nothing = model.channels(B, None, jnp.zeros_like(z))
    assert nothing.shape == (B, T, S, S, 2)
    assert not nothing.any()
    assert build(small_config()).channels(B, Known(z, mask), jnp.zeros_like(z)) is None
    assert build(conditioned_config("times")).channels(B, Known(z, mask), jnp.zeros_like(z)) is None


class FirstFrame:
    """Conditions on nothing."""

    def __call__(self, params, frame, noise, level, frames):
        return Conditions()

    def null(self, conditions):
        return conditions


def test_a_model_says_how_it_is_conditioned_on_known_pixels():
    cases = {
        "nothing": (small_config(), False),
        "channels": (conditioned_config(), False),
        "times": (conditioned_config("times"), True),
    }
    for tell, (config, time_per_frame) in cases.items():
        model = build(config)
        assert (model.tell, model.time_per_frame, model.downsample) == (tell, time_per_frame, 1)
    assert build(conditioned_config(downsample=2)).downsample == 2
    config = small_config()
    config.objective.time_per_frame = True
    assert build(config).time_per_frame
    animates = dataclasses.replace(build(small_config()), first_frame=FirstFrame())
    assert animates.tell == "first_frame"


def test_latents_are_known_where_all_of_their_pixels_are(model):
    codec = Codec((1, 2), None, lambda params, video: video[:, :, ::2, ::2] + params["shift"], lambda params, z: z)
    latent = dataclasses.replace(model, codec=codec)
    assert latent.latent_shape == (T, S // 2, S // 2, 1)
    video = jnp.asarray(np.random.default_rng(3).normal(size=(B, T, S, S, 1)), jnp.float32)
    mask = jnp.ones((B, T, 1, 1, 1), bool).at[:, 2].set(False)  # constant along rows and columns
    known = latent.known_latents({"codec": {"shift": jnp.float32(3)}}, Known(video, mask))
    np.testing.assert_array_equal(known.video, video[:, :, ::2, ::2] + 3)
    assert known.mask.shape == (B, T, S // 2, S // 2, 1)
    assert known.mask[:, [0, 1, 3]].all()
    assert not known.mask[:, 2].any()


def test_a_model_that_animates_a_picture_knows_its_first_frame_and_no_other(model):
    first = np.zeros((T, S, S, 1), bool)
    first[0] = True
    animates = dataclasses.replace(model, first_frame=FirstFrame())
    animates.check_known(first)
    model.check_known(~first)
    for mask in (~first, np.ones_like(first), first & (np.arange(S) > 0)[:, None, None]):
        with pytest.raises(InputError, match=r"first frame must be known, and no other .* a multiple of 3 with"):
            animates.check_known(mask)


# ------------------------------------------------------------------------------------------ as a value


def test_equal_models_share_a_program():
    one, two = build(small_config()).static, build(small_config()).static
    assert one == two
    assert hash(one) == hash(two)
    assert one.params is None
    calls = []

    @functools.partial(jax.jit, static_argnums=0)
    def program(model, x):
        calls.append(model)
        return x

    other = build(conditioned_config()).static
    for model in (one, two, dataclasses.replace(one, step=7, origin="runs/x", sampling={"steps": 4}), other):
        program(model, jnp.zeros(1))
    assert calls == [one, other]
    assert other.masks == MaskMixture({"first": 1.0})
