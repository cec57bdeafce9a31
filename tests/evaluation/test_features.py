"""Features of clips: batch size, mesh and type of pixels change nothing; preprocessing follows the protocols."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained import test_clip_pair, test_videomae
from tests.pretrained.make_golden_features import (
    GOLDEN,
    VIDEOMAES,
    WORDS,
    clips,
    i3d_weights,
    lpips_weights,
    videomae_clips,
    write_clip,
    write_folder,
)
from tests.pretrained.networks import relative
from vdm_jax.errors import InputError
from vdm_jax.evaluation.features import (
    _compiled,
    _videomae,
    clip_image_features,
    clip_input,
    clip_text_features,
    cosines,
    i3d_features,
    lpips_distances,
    resized,
    videomae_features,
)
from vdm_jax.models.text.clip import DEVIATION, MEAN
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.parts.clip_pair import load_clip
from vdm_jax.pretrained.parts.i3d import load_i3d
from vdm_jax.pretrained.parts.lpips import load_lpips
from vdm_jax.pretrained.parts.videomae import load_videomae

CONFIG = VIDEOMAES["videomae"]
KEPT = np.load(GOLDEN)


@pytest.fixture
def one():
    """A mesh of one device."""
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def videomae(tmp_path):
    folder = write_folder(tmp_path / "videomae", CONFIG, test_videomae.tensors(CONFIG))
    return lambda mesh: load_videomae(folder, mesh=mesh)


@pytest.fixture
def pair(tmp_path, one):
    return load_clip(write_clip(tmp_path / "clip", test_clip_pair.tensors()), mesh=one)


def test_clips_are_resized_as_the_protocols_do():
    given = jnp.asarray(clips("resized", 1, 2, 7, 5, 3))
    np.testing.assert_allclose(resized(given, 9), KEPT["resized"], atol=1e-6)
    np.testing.assert_array_equal(resized(given[:, :, :5], 5), given[:, :, :5])
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 64)[:, None, None], (1, 1, 64, 64, 3))
    every_fourth = (ramp[:, :, 1::4] + ramp[:, :, 2::4]) / 2  # no antialiasing: two neighbours count, whatever the size
    np.testing.assert_allclose(resized(ramp, 16)[:, :, :, 0], every_fourth[:, :, :, 0], atol=1e-6)


def test_videomae_is_given_clips_between_0_and_1(videomae, one):
    given = videomae_clips(CONFIG)  # the stored features are of unscaled clips
    assert relative(videomae_features(videomae(one), given * 2 - 1), KEPT["videomae"]) < 1e-5


def test_batches_and_meshes_change_nothing(videomae, one):
    given = clips("many", 5, 6, 20, 28, 3)
    network = videomae(one)
    whole = videomae_features(network, given, batch_size=5)
    assert whole.shape == (5, 24)
    assert np.linalg.norm(whole[0] - whole[1]) > 0.1
    np.testing.assert_allclose(videomae_features(network, given, batch_size=2), whole, atol=1e-4)
    np.testing.assert_allclose(videomae_features(videomae(make_mesh(data=4, fsdp=2)), given), whole, atol=1e-4)


def test_products_are_those_of_float32_on_every_device(videomae, one):
    network = videomae(one)
    lowered = _compiled(_videomae, network.graphdef, one).lower(network.params, clips("many", 1, 6, 20, 28, 3))
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line or "convolution(" in line]
    assert len(products) > 10  # of one block: all are one scan
    assert all("HIGHEST" in line for line in products)


def test_pixels_may_be_bytes_or_grey(videomae, one):
    network = videomae(one)
    grey = np.random.default_rng(0).integers(0, 256, (2, 6, 16, 16, 1)).astype(np.uint8)
    expected = videomae_features(network, np.repeat(grey, 3, -1) / np.float32(127.5) - 1)
    np.testing.assert_allclose(videomae_features(network, grey), expected, atol=1e-4)


def test_i3d_sees_resized_clips(tmp_path, one):
    save_file(i3d_weights(8), tmp_path / "i3d.safetensors")
    network = load_i3d(tmp_path / "i3d.safetensors", mesh=one)
    given = clips("i3d, small", 1, 9, 28, 40, 1)
    assert relative(i3d_features(network, given), KEPT["i3d, small"]) < 1e-5
    with pytest.raises(InputError, match="clips of 8 frames must have at least 9 for I3D"):
        i3d_features(network, given[:, :8])


def test_clip_sees_the_middle_of_a_frame():
    given = np.full((1, 1, 20, 50, 3), -1, np.float32)
    given[:, :, :, 15:35] = 0.5
    given = jnp.asarray(given)
    expected = (0.75 - MEAN) / DEVIATION
    np.testing.assert_allclose(clip_input(given, 20), np.broadcast_to(expected, (1, 1, 20, 20, 3)), atol=1e-5)
    np.testing.assert_allclose(clip_input(given, 40)[0, 0, :, 4:-4], np.broadcast_to(expected, (40, 32, 3)), atol=1e-5)
    assert float(clip_input(given, 40).max()) <= ((1 - MEAN) / DEVIATION).max()


def test_clip_embeds_frames_as_was_kept(pair):
    assert relative(clip_image_features(pair, clips("clip", 2, 3, 32, 32, 3)), KEPT["clip, images"]) < 1e-5


def test_clip_score_is_the_mean_cosine(pair):
    given = clips("clip", 2, 3, 32, 32, 3)
    frames, texts = clip_image_features(pair, given), clip_text_features(pair, WORDS)
    assert texts.shape == (2, 20)
    cosine = np.mean([frame @ texts[1] / np.linalg.norm(frame) / np.linalg.norm(texts[1]) for frame in frames[1]])
    np.testing.assert_allclose(cosines(frames, texts)[1], cosine, rtol=1e-5)


def test_what_cannot_be_seen_is_refused(videomae, one):
    network, given = videomae(one), clips("refused", 2, 6, 8, 8, 3)
    with pytest.raises(InputError, match="clips of 4 frames must have 6, as VideoMAE's config says"):
        videomae_features(network, given[:, :4])
    with pytest.raises(InputError, match="clips of 2 channels must have 1 or 3"):
        videomae_features(network, given[..., :2])
    with pytest.raises(InputError, match="batch_size=0 and the number of clips, 2, must be at least 1"):
        videomae_features(network, given, batch_size=0)
    with pytest.raises(InputError, match="batch_size=4 and the number of clips, 0, must be at least 1"):
        videomae_features(network, given[:0])


def test_lpips_is_the_mean_over_frames_of_grey_and_bytes_too(tmp_path):
    save_file(lpips_weights("vgg"), tmp_path / "lpips.safetensors")
    network = load_lpips(tmp_path / "lpips.safetensors")
    a, b = (np.random.default_rng(i).integers(256, size=(3, 2, 16, 18, 1)).astype(np.uint8) for i in range(2))
    found = lpips_distances(network, a, b, batch_size=2)
    as_floats = (np.repeat(x, 3, -1).astype(np.float32) / 127.5 - 1 for x in (a, b))
    np.testing.assert_allclose(found, lpips_distances(network, *as_floats), rtol=1e-5)
    frames = [lpips_distances(network, a[:, [i]], b[:, [i]]) for i in range(2)]
    np.testing.assert_allclose(found, np.mean(frames, axis=0), rtol=1e-5)
    assert found.min() > 0.001
    np.testing.assert_array_equal(lpips_distances(network, a, a), 0)
    with pytest.raises(InputError, match="frames of 15×18 must be at least 16×16 for LPIPS of vgg"):
        lpips_distances(network, a[:, :, :15], b[:, :, :15])
    with pytest.raises(InputError, match="must have one shape"):
        lpips_distances(network, a, b[:, :1])
