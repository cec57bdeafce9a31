"""Causal autoencoders of videos: what sees what, pieces and whole videos, meshes; tests/pretrained compares numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.causal import in_pieces
from vdm_jax.models.rngs import Keys
from vdm_jax.models.video_autoencoder import VideoAutoencoder
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding, shardings

FACTORS = [(2, 2), (2, 1)]
WAN = dict(widths=[4, 8, 8], blocks=(1, 2), down=[(1, 2), (2, 2)], up=[(2, 2), (1, 2)], latent_channels=4)
RESIDUAL = WAN | dict(residual=True, patch=2, decoder_widths=[8, 8, 16])
NEAREST = dict(resample="nearest", widths=[4, 8, 8], blocks=(1, 1), down=FACTORS, up=FACTORS, latent_channels=4)
PAST = NEAREST | dict(padding="first", attention="past")
HUNYUAN = NEAREST | dict(padding="replicate", attention="past", groups=2)
SHUFFLE = NEAREST | dict(resample="shuffle", attention=None, kernel_out=1, bias=False, middle=1, groups=2)
SMALL = WAN | dict(widths=[4, 8], blocks=(1, 1), down=[(2, 2)], up=[(2, 2)])
KINDS = {"small": SMALL, "wan": WAN, "residual": RESIDUAL, "past": PAST, "hunyuan": HUNYUAN, "shuffle": SHUFFLE}
SIDE = 8


def make(kind, **options):
    return randomised(lambda: VideoAutoencoder(**KINDS[kind] | options, rngs=Keys(0)), scale=0.3)


def factors(kind):
    down = KINDS[kind]["down"]
    return down[0][0] * down[1][0], down[0][1] * down[1][1] * KINDS[kind].get("patch", 1)


def latents_of(kind, frames, seed=1):
    side = SIDE // factors(kind)[1]
    return normal(seed, 1, frames, side, side, 4)


def mean(module):
    return jax.jit(lambda video: module.encode(video)[0])


@pytest.mark.parametrize(("kind", "counts"), [("wan", (5, 3)), ("hunyuan", (5, 2)), ("shuffle", (4, 1))])
def test_shapes(kind, counts):
    module, side, (frames, latents) = make(kind), factors(kind)[1], counts
    means, log_variance = jax.eval_shape(module.encode, jnp.zeros((2, frames, SIDE, SIDE, 3)))
    assert means.shape == log_variance.shape == (2, latents, SIDE // side, SIDE // side, 4)
    assert jax.eval_shape(module.decode, means).shape == (2, frames, SIDE, SIDE, 3)


@pytest.mark.parametrize("kind", ["wan", "residual"])
def test_pieces_give_what_the_whole_video_gives(kind):
    module, (time, _) = make(kind), factors(kind)
    video, latents = normal(0, 2, 1 + 3 * time, SIDE, SIDE, 3), jnp.tile(latents_of(kind, 4), (2, 1, 1, 1, 1))
    pieces = jax.jit(lambda video: in_pieces(lambda x, past: module.encode(x, past=past)[0], video, time))
    np.testing.assert_allclose(pieces(video), mean(module)(video), atol=1e-4)
    pieces = jax.jit(lambda z: in_pieces(lambda x, past: module.decode(x, past=past), z, 1))
    np.testing.assert_allclose(pieces(latents), jax.jit(module.decode)(latents), atol=1e-4)


def test_pieces_need_the_memory_of_one():
    module = make("wan")

    def temporary(function, frames):
        z = jax.ShapeDtypeStruct((1, frames, 4, 4, 4), jnp.float32)
        return jax.jit(function).lower(z).compile().memory_analysis().temp_size_in_bytes

    def streamed(z):
        return in_pieces(lambda x, past: module.decode(x, past=past), z, 1)

    growth = [temporary(function, 33) / temporary(function, 9) for function in (streamed, module.decode)]
    # What grows is the result: three channels of it, against the widths of the levels.
    assert growth[0] < 2 < growth[1]


@pytest.mark.parametrize(("kind", "causal"), [("wan", True), ("residual", True), ("past", True), ("hunyuan", False)])
def test_later_frames_change_earlier_latents_only_through_group_norms(kind, causal):
    module, (time, _) = make(kind), factors(kind)
    video, latents = normal(0, 1, 1 + 2 * time, SIDE, SIDE, 3), latents_of(kind, 3)

    def touched(function, x, start):
        return np.abs(function(x.at[:, start:].multiply(-1)) - function(x)).max((0, 2, 3, 4)) > 1e-5

    assert touched(mean(module), video, 1 + time).tolist() == [not causal, not causal, True]
    frames = touched(jax.jit(module.decode), latents, 2)
    assert frames[: 1 + time].tolist() == [not causal] * (1 + time)
    assert frames[1 + time :].any()


def test_zeros_fill_up_the_first_latent_of_a_chunk():
    module = make("shuffle")
    video = normal(0, 1, 5, SIDE, SIDE, 3)
    filled = jnp.concatenate([jnp.zeros((1, 3, SIDE, SIDE, 3)), video], axis=1)
    np.testing.assert_allclose(mean(module)(video), mean(module)(filled), atol=1e-5)


def test_a_program_in_bfloat16_has_float32_at_both_ends():
    module = make("residual", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    means, log_variance = jax.eval_shape(module.encode, jnp.zeros((1, 3, SIDE, SIDE, 3)))
    assert {means.dtype, log_variance.dtype} == {jnp.dtype("float32")}
    assert jax.eval_shape(module.decode, means).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(padding="mirror"), "padding='mirror' must be one of zeros, replicate, first"),
        (dict(resample="linear"), "resample='linear' must be one of separate, nearest, shuffle"),
        (dict(attention="all"), "attention='all' must be one of None, frame, past"),
        (dict(groups=3), "groups=3 must divide every width, not 4"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        make("wan", **options)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("small", dict(data=8)), ("hunyuan", dict(data=2, fsdp=2, context=2)), ("shuffle", dict(data=2, context=4))],
)
def test_a_mesh_computes_what_one_device_computes(kind, sizes):
    module, mesh = make(kind), make_mesh(**sizes)
    graphdef, params = nnx.split(module)
    params = nnx.to_pure_dict(params)
    video = normal(0, 8, 4 if kind == "shuffle" else 3, 2 * SIDE, SIDE, 3)

    def loss(params, video, *layout):
        module = nnx.merge(graphdef, params)
        means, _ = module.encode(video, *layout)
        again = module.decode(means, *layout)
        return (again**2).mean() + means.mean(), (means, again)

    step = jax.value_and_grad(loss, has_aux=True)
    (_, expected), gradients = jax.jit(step)(params, video)
    sharded = jax.device_put(params, shardings(mesh, params)), jax.device_put(video, batch_sharding(mesh))
    (_, found), sharded_gradients = jax.jit(lambda *args: step(*args, ActivationLayout(mesh)))(*sharded)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    for a, b in zip(jax.tree.leaves(sharded_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-5)
