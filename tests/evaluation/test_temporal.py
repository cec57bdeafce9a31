"""Metrics of single videos: definitions, parity, and the right order of real and damaged clips."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vdm_jax.data import moving_digits as data
from vdm_jax.errors import InputError
from vdm_jax.evaluation import temporal
from vdm_jax.evaluation.judge import frozen, shuffle_frames

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    config = dataclasses.replace(data.MovingDigits.BUILDER_CONFIGS[0], name="tiny", train_clips=1, test_clips=1)
    source = data.prepare(tmp_path_factory.mktemp("moving_digits"), config).as_data_source(split="test")
    return np.stack([source[i]["video"] for i in range(10)]).astype(np.float32) / 127.5 - 1


def flickering(videos):
    """Scales each frame by a random brightness."""
    return (videos + 1) * rng.uniform(0.6, 1, (*videos.shape[:2], 1, 1, 1)).astype(np.float32) - 1


def blurred(videos):
    return gaussian_filter(videos, (0, 0, 1, 1, 0))


def texture(height, width, channels=1):
    """Smooth noise from −1 to 1."""
    noise = gaussian_filter(rng.standard_normal((height, width, channels)), (2, 2, 0), mode="wrap")
    return (2 * (noise - noise.min()) / np.ptp(noise) - 1).astype(np.float32)


def pan(frames=5, speed=2, size=48, channels=1):
    """A clip of a window that moves to the right over a texture, so that the texture moves to the left."""
    wide = texture(size, size + speed * frames, channels)
    return np.stack([wide[:, speed * t : speed * t + size] for t in range(frames)])[None]


# ------------------------------------------------------------------------------------------------ no flow needed


def test_flicker_is_the_mean_change_as_a_share_of_the_range():
    video = np.full((2, 4, 5, 6, 3), -1, np.float32)
    video[1, 1::2] = 0  # up, down, up by half of the range
    np.testing.assert_allclose(temporal.flicker(video), [0, 0.5])


def test_subject_consistency_by_hand():
    features = np.array([[[1, 0], [1, 1], [0, 2]], [[1, 0], [-1, 0], [-1, 0]], [[0, 0], [1, 0], [1, 0]]], float)
    half = np.sqrt(0.5)
    # Cosines with the first and the previous frame: (√½, √½), (0, √½). Opposite and zero features count as 0.
    expected = [(half + half / 2) / 2, (0 + 1 / 2) / 2, (0 + 1 / 2) / 2]
    np.testing.assert_allclose(temporal.subject_consistency(features), expected)
    with pytest.raises(InputError, match="frames=1"):
        temporal.subject_consistency(features[:, :1])


def test_psnr_of_a_known_error():
    video = np.zeros((2, 2, 4, 4, 3), np.float32)
    other = video.copy()
    other[:, 0] += 0.2  # a tenth of the range: 20 dB
    other[0, 1] -= 0.02  # a hundredth: 40 dB
    np.testing.assert_allclose(temporal.psnr(other, video), [30, 60], rtol=1e-5)  # 100 dB for equal frames


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_formula_in_every_window(channels):
    """Wang et al. 2004, eqs. 13 to 16, written out."""
    x = rng.uniform(-1, 1, (1, 2, 13, 14, channels)).astype(np.float32)
    y = (0.7 * x + 0.2 * rng.uniform(-1, 1, x.shape)).astype(np.float32)
    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / ramp.sum() ** 2
    values = []
    for a, b in zip((x[0] + 1) / 2, (y[0] + 1) / 2, strict=True):
        for i, j, c in np.ndindex(3, 4, channels):
            p, q = (z[i : i + 11, j : j + 11, c].astype(float) for z in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = ((window * d).sum() for d in ((p - mp) ** 2, (q - mq) ** 2, (p - mp) * (q - mq)))
            luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
            values.append(luminance * (2 * cov + 9e-4) / (vp + vq + 9e-4))
    assert temporal.ssim(x, y)[0] == pytest.approx(np.mean(values), rel=1e-6)
    assert temporal.ssim(x, x)[0] == pytest.approx(1)


def test_parity_of_ssim_and_psnr_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = rng.uniform(-1, 1, (2, 3, 2, 20, 17, 3))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = [list(zip((a + 1) / 2, (b + 1) / 2, strict=True)) for a, b in zip(x, y, strict=True)]
    ssim = [[metrics.structural_similarity(a, b, channel_axis=-1, **settings) for a, b in clip] for clip in pairs]
    psnr = [[metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in clip] for clip in pairs]
    np.testing.assert_allclose(temporal.ssim(x, y), np.mean(ssim, axis=1), rtol=1e-9)
    np.testing.assert_allclose(temporal.psnr(x, y), np.mean(psnr, axis=1), rtol=1e-9)


def test_blur_and_noise_lower_the_likeness(real):
    noisy = (real + rng.normal(0, 0.1, real.shape).astype(np.float32)).clip(-1, 1)
    for metric in (temporal.psnr, temporal.ssim):
        assert (metric(noisy, real) < metric((real + noisy) / 2, real)).all()
        assert metric(blurred(real), real).mean() > metric(blurred(blurred(blurred(real))), real).mean()


def test_what_cannot_be_measured_is_refused():
    videos = np.zeros((1, 2, 16, 16, 1), np.float32)
    with pytest.raises(InputError, match="frames=1 must be at least 2"):
        temporal.flicker(videos[:, :1])
    with pytest.raises(InputError, match="pixels from 0 to 255"):
        temporal.flicker(videos + np.array([0, 255], np.float32).reshape(1, 2, 1, 1, 1))
    with pytest.raises(InputError, match="pixels from nan"):
        temporal.psnr(videos, videos * np.nan)
    with pytest.raises(InputError, match="frames of 10×16"):
        temporal.ssim(videos[:, :, :10], videos[:, :, :10])


def test_without_opencv_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"vdm_jax\[evaluation\]"):
        temporal.dynamic_degree(np.zeros((1, 2, 16, 16, 1), np.float32))


# ------------------------------------------------------------------------------------------------ by optical flow


@pytest.fixture
def flow():
    pytest.importorskip("cv2")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pan_is_smooth_and_as_fast_as_it_is(flow, channels):
    video = pan(speed=2, channels=channels)
    assert temporal.dynamic_degree(video)[0] == pytest.approx(2, abs=0.15)
    assert temporal.motion_smoothness(video)[0] > 0.99
    assert temporal.warping_error(video)[0] < 1e-3
    assert temporal.occluded_share(video)[0] < 0.2
    still = np.repeat(video[:, :1], 5, axis=1)
    assert temporal.dynamic_degree(still)[0] == 0
    assert temporal.motion_smoothness(still)[0] == 1


def test_what_a_moving_thing_uncovers_is_not_counted(flow):
    """A square passes over a texture: the warped frame is wrong next to the square, where the mask excludes it."""
    ground, square = texture(48, 48), texture(16, 16)
    video = np.repeat(ground[None, None], 3, axis=1)
    for t in range(3):
        video[0, t, 16:32, 8 + 4 * t : 24 + 4 * t] = square
    ((error, visible), _) = next(iter(temporal._warped(video)))
    assert error[visible].mean() < 0.2 * error[~visible].mean()
    assert visible[:, 40:].all()  # far from the square
    assert visible.mean() > 0.5


def test_on_real_clips_the_metrics_move_the_right_way(flow, real):
    names = ("motion_smoothness", "warping_error", "occluded_share", "dynamic_degree")
    clips = {"real": real, "shuffled": np.asarray(shuffle_frames(real, jax.random.key(0))), "frozen": frozen(real)}
    found = {name: {row: getattr(temporal, name)(x).mean() for row, x in clips.items()} for name in names}
    light = {name: getattr(temporal, name)(flickering(real)).mean() for name in names}
    soft = {name: getattr(temporal, name)(blurred(real)).mean() for name in names}

    smooth = found["motion_smoothness"]
    assert 0.995 < smooth["real"] < smooth["frozen"] == 1
    assert smooth["shuffled"] < 0.95
    assert light["motion_smoothness"] < smooth["real"] - 0.005
    assert soft["motion_smoothness"] > smooth["real"] - 0.001  # blind to blur

    error = found["warping_error"]
    assert error["frozen"] == 0
    assert error["shuffled"] > 10 * error["real"]
    assert light["warping_error"] > 1.5 * error["real"]

    assert found["occluded_share"]["shuffled"] > found["occluded_share"]["real"] + 0.1
    speed = found["dynamic_degree"]  # one pixel a frame
    assert speed["real"] == pytest.approx(1, abs=0.1)
    assert speed["frozen"] == 0
    assert speed["shuffled"] > 1.3 * speed["real"]


def test_videos_that_flow_cannot_be_had_of_are_refused(flow):
    with pytest.raises(InputError, match="frames of 8×8 are too small"):
        temporal.dynamic_degree(np.zeros((1, 2, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match="channels=2"):
        temporal.dynamic_degree(np.zeros((1, 2, 16, 16, 2), np.float32))
    with pytest.raises(InputError, match="frames=2 must be at least 3"):
        temporal.motion_smoothness(np.zeros((1, 2, 16, 16, 1), np.float32))
