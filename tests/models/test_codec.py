"""Codecs: from pixels to latents and back, and what is known of latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.randomised import normal, randomised
from vdm_jax.errors import InputError
from vdm_jax.models.autoencoder import Autoencoder
from vdm_jax.models.codec import ENCODED, PIXELS, Codec, latent_codec, video_codec
from vdm_jax.models.rngs import Keys
from vdm_jax.models.video_autoencoder import VideoAutoencoder

SIZES = dict(channels=4, factor=2, scale=0.2)


@pytest.fixture(scope="module", params=[False, True], ids=["image", "in time"])
def autoencoder(request):
    arguments = dict(widths=(4, 8), blocks=1, groups=2, in_time=request.param)
    return randomised(lambda: Autoencoder(**arguments, rngs=Keys(0)), scale=0.3), request.param


def of_frames(codec_module, **options):
    module, in_time = codec_module
    graphdef, params = nnx.split(module)
    return latent_codec(graphdef, **SIZES | options, in_time=in_time), nnx.to_pure_dict(params)


def test_pixels_are_their_own_latents():
    video = normal(0, 2, 3, 4, 4, 3)
    assert PIXELS.encode({}, video) is video
    assert PIXELS.decode({}, video) is video
    assert PIXELS.shape((3, 5, 7, 1)) == (3, 5, 7, 1)
    mask = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 4, 1)) < 0.5)
    np.testing.assert_array_equal(PIXELS.mask(mask), mask)
    assert hash(PIXELS) == hash(Codec((1, 1), None, PIXELS.encode, PIXELS.decode))  # programs are compiled for it


@pytest.mark.parametrize("frames", [1, 2 * ENCODED, 7])
def test_latents_are_the_scaled_means_of_the_autoencoder(autoencoder, frames):
    codec, params = of_frames(autoencoder)
    module, _ = autoencoder
    video = normal(0, 2, frames, 6, 8, 3)
    latents = codec.encode(params, video)
    assert latents.shape == (2, *codec.shape((frames, 6, 8, 3))) == (2, frames, 3, 4, 4)
    expected = 0.2 * jax.jit(lambda video: module.encode(video)[0])(video)
    np.testing.assert_allclose(latents, expected, atol=1e-4)
    decoded = codec.decode(params, latents)
    assert decoded.shape == video.shape
    expected = jax.jit(lambda latents: module.decode(latents / 0.2))(latents)
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_a_decoder_in_time_may_take_chunks(autoencoder):
    codec, params = of_frames(autoencoder, chunk=3)
    latents = normal(1, 1, 6, 3, 4, 4)
    chunks = codec.decode(params, latents)
    whole = of_frames(autoencoder)[0].decode(params, latents)
    if not autoencoder[1]:
        np.testing.assert_allclose(chunks, whole, atol=1e-4)
        return
    assert np.abs(chunks - whole).max() > 1e-3  # a chunk does not see the next one
    alone = [codec.decode(params, latents[:, i : i + 3]) for i in (0, 3)]
    np.testing.assert_allclose(chunks, np.concatenate(alone, 1), atol=1e-5)


def test_a_latent_is_known_where_all_of_its_pixels_are():
    codec = Codec((2, 3), 4, PIXELS.encode, PIXELS.decode)
    mask = np.ones((1, 4, 6, 9, 1), bool)
    mask[0, 1, 4, 8] = mask[0, 2, 0, 0] = mask[0, 3, 2, 2] = False
    known = codec.mask(jnp.asarray(mask))
    assert known.shape == (1, 2, 2, 3, 1)
    expected = np.ones((2, 2, 3), bool)
    expected[0, 1, 2] = expected[1, 0, 0] = False
    np.testing.assert_array_equal(known[0, ..., 0], expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 6, 6, 3), "frames=3 must be a multiple of 2"),
        ((4, 5, 6, 3), "height=5 must be a multiple of 3"),
        ((4, 6, 8, 3), "width=8 must be a multiple of 3"),
        ((4, 6, 0, 3), "width=0 must be at least 1"),
    ],
)
def test_sizes_that_the_factors_do_not_divide(shape, message):
    codec = Codec((2, 3), 4, PIXELS.encode, PIXELS.decode)
    assert codec.shape((4, 6, 9, 3)) == (2, 2, 3, 4)
    with pytest.raises(InputError, match=message):
        codec.shape(shape)


def test_an_autoencoder_of_colours_takes_no_grey_video():
    codec = Codec((1, 2), 4, PIXELS.encode, PIXELS.decode, video_channels=3)
    with pytest.raises(InputError, match="channels=1 must be 3"):
        codec.shape((4, 6, 6, 1))


# ----------------------------------------------------------------------------------------------------- causal codecs

CAUSAL = Codec((4, 2), 3, PIXELS.encode, PIXELS.decode, first_alone=True)
CHUNKS = Codec((4, 1), 3, PIXELS.encode, PIXELS.decode, chunk=17)


@pytest.mark.parametrize(
    ("codec", "frames", "spans"),
    [
        (CAUSAL, 1, [1]),
        (CAUSAL, 9, [1, 4, 4]),
        (CHUNKS, 1, [1]),
        (CHUNKS, 17, [1, 4, 4, 4, 4]),
        (CHUNKS, 17 + 7, [1, 4, 4, 4, 4, 3, 4]),
        (CHUNKS, 17 + 8, [1, 4, 4, 4, 4, 4, 4]),
        (CHUNKS, 51, [1, 4, 4, 4, 4] * 3),
    ],
)
def test_latents_stand_for_frames(codec, frames, spans):
    assert codec.spans(frames) == spans
    assert codec.shape((frames, 2, 4, 3))[0] == len(spans)
    mask = np.ones((1, frames, 2, 4, 1), bool)
    for frame in range(frames):
        mask[0, frame, 1, 1] = False
        known = np.asarray(codec.mask(jnp.asarray(mask)))
        hidden = np.searchsorted(np.cumsum(spans), frame, side="right")
        assert (~known[0, ..., 0]).any((1, 2)).tolist() == (np.arange(len(spans)) == hidden).tolist()
        mask[0, frame] = True


@pytest.mark.parametrize(("frames", "fits"), [(18, "17 or 21"), (20, "17 or 21"), (2, "1 or 5")])
def test_other_numbers_of_frames_are_refused_with_what_fits(frames, fits):
    with pytest.raises(
        InputError, match=rf"frames={frames} must be 1 \+ a multiple of 4 \(the autoencoder's\): {fits}"
    ):
        CAUSAL.shape((frames, 2, 2, 3))


def test_no_frames_are_refused():
    for codec in (CAUSAL, CHUNKS):
        with pytest.raises(InputError, match="frames=0 must be at least 1"):
            codec.shape((0, 2, 2, 3))


@pytest.mark.parametrize("streams", [True, False])
def test_a_video_codec_normalises_each_channel_and_clips(streams):
    sizes = dict(widths=[4, 4], blocks=(1, 1), down=[(2, 2)], up=[(2, 2)], latent_channels=2)
    module = randomised(lambda: VideoAutoencoder(**sizes, rngs=Keys(0)))
    graphdef, params = nnx.split(module)
    params, mean, std = nnx.to_pure_dict(params), np.float32([0.5, -1]), np.float32([2, 3])
    statistics = dict(mean=mean.tolist(), std=std.tolist())
    codec = video_codec(graphdef, factors=(2, 2), **statistics, streams=streams, clip=True)
    video = normal(0, 1, 5, 4, 4, 3)
    latents = codec.encode(params, video)
    assert latents.shape[1:] == codec.shape(video.shape[1:]) == (3, 2, 2, 2)
    np.testing.assert_allclose(latents * std + mean, jax.jit(module.encode)(video)[0], atol=1e-4)
    decoded = codec.decode(params, latents)
    whole = np.asarray(jax.jit(module.decode)(latents * std + mean))
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(decoded, whole.clip(-1, 1), atol=1e-4)
    with pytest.raises(InputError, match="frames=4 must be 1"):
        codec.encode(params, video[:, :4])
