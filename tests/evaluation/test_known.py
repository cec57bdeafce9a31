"""Modes: their masks, their floors without a network, and the comparison of drawn clips with the truth."""

from types import SimpleNamespace

import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.evaluation.known import (
    MODES,
    check_strength,
    digit_kept,
    in_windows,
    known_of,
    mask_of,
    new_frames,
    place_kept,
    without_a_network,
)

SHAPE = (8, 16, 16, 1)


def a_dot(rows, columns):
    """A clip of a white pixel. `rows` and `columns`: its position in each frame."""
    video = np.full((1, 8, 16, 16, 1), -1, np.float32)
    video[0, range(8), rows, columns] = 1
    return video


def test_modes_know_what_they_are_called_by():
    frames = {mode: set(range(8)) - set(new_frames(mask_of(mode, SHAPE))) for mode in MODES}
    assert frames == {
        "extension, half known": {0, 1, 2, 3},
        "extension, half known, two frames at a time": {0, 1, 2, 3},
        "extension backward, half known": {4, 5, 6, 7},
        "image to video, with the caption": {0},
        "first and last frame": {0, 7},
        "every second frame": {0, 2, 4, 6},
        "inpainting, left half": set(),
        "outpainting, a border of an eighth": set(),
        "video to video": set(),
        "super-resolution by 2": set(),
    }
    assert mask_of("inpainting, left half", SHAPE)[0, 3, 5, :, 0].tolist() == [False] * 8 + [True] * 8
    border = mask_of("outpainting, a border of an eighth", SHAPE)[0, 3, :, :, 0]
    assert border[2:14, 2:14].all()
    assert border.sum() == 144
    wide = mask_of("outpainting, a border of an eighth", (8, 16, 32, 1))[0, 3, :, :, 0]
    assert wide[2:14, 4:28].all()
    assert wide.sum() == 12 * 24
    with pytest.raises(InputError, match=r"known='extention' must be one of: extension, half known; "):
        mask_of("extention", SHAPE)


def test_a_window_sees_the_frames_drawn_before_it():
    clip, seen = a_dot(range(8), 3), []

    def draw(known, block):
        seen.append((block, known.mask[0].all((1, 2, 3)).sum()))
        return np.where(known.mask, known.video, known.video[:, known.mask[0].all((1, 2, 3))].max() + len(seen))

    drawn = in_windows("extension, half known, two frames at a time", clip, draw)
    assert seen == [(0, 4), (1, 6)]
    np.testing.assert_array_equal(drawn[:, :4], clip[:, :4])
    np.testing.assert_array_equal(np.unique(drawn[:, 4:6]), [2])  # the brightest known pixel is 1
    np.testing.assert_array_equal(np.unique(drawn[:, 6:]), [4])


def test_without_a_network_the_nearest_known_frame_stays_or_the_rest_is_black():
    clip = a_dot(range(8), 3)
    held = without_a_network(clip, "first and last frame")
    np.testing.assert_array_equal(held[0].argmax(1)[:, 3, 0], [0, 0, 0, 0, 7, 7, 7, 7])
    half = without_a_network(clip, "inpainting, left half")
    assert (half == -1).all()
    np.testing.assert_array_equal(without_a_network(a_dot(4, 9), "inpainting, left half"), a_dot(4, 9))


def test_super_resolution_gives_the_means_of_squares_and_interpolates_them_without_a_network():
    clip = a_dot(range(8), 3)
    given = known_of("super-resolution by 2", clip)
    assert given["coarse"] == 2
    assert given["known"].mask.all()
    expected = np.full((16, 16), -1.0)
    expected[4:6, 2:4] = -0.5  # one white pixel of four
    np.testing.assert_allclose(given["known"].video[0, 5, :, :, 0], expected)
    gradient = np.broadcast_to(np.linspace(-0.8, 0.8, 16, dtype=np.float32)[:, None, None], (1, 2, 16, 16, 1))
    guess = without_a_network(gradient, "super-resolution by 2")
    np.testing.assert_allclose(guess[:, :, 4:-4], gradient[:, :, 4:-4], atol=1e-5)
    with pytest.raises(InputError, match="rows and columns, 15×16, must be multiples of 2"):
        mask_of("super-resolution by 2", (8, 15, 16, 1))


def test_only_video_to_video_begins_with_the_clip():
    check_strength("video to video", 0.6)
    check_strength("every second frame", 1.0)
    with pytest.raises(InputError, match="strength=1 must be below 1 where known='video to video'"):
        check_strength("video to video", 1.0)
    with pytest.raises(InputError, match=r"strength=0\.6 must be 1 where known='every second frame'"):
        check_strength("every second frame", 0.6)


def test_distance_is_over_new_frames_alone():
    real, drawn = a_dot(range(8), 3), a_dot([0, 1, 2, 3, 4, 5, 6, 9], 3)  # 2 pixels off in the last of four
    kept = place_kept(np.concatenate([drawn, real]), np.concatenate([real, real]), (4, 5, 6, 7))
    np.testing.assert_allclose(kept["position_error"], [0.5, 0], atol=1e-5)
    assert kept["within_pixel"].tolist() == [True, True]
    far = place_kept(drawn, real, (7,))
    np.testing.assert_allclose(far["position_error"], [2], atol=1e-5)
    assert not far["within_pixel"].any()


def test_the_digit_is_read_off_new_frames_alone():
    seen = []

    def judge(videos):
        seen.append(videos[0, :, 0, 0, 0].tolist())
        return SimpleNamespace(digit=np.eye(10)[[3, 4]])

    videos = np.broadcast_to(np.arange(8.0)[None, :, None, None, None], (2, 8, 2, 2, 1))
    assert digit_kept(judge, videos, np.array([3, 3]), (5, 6, 7)).tolist() == [True, False]
    assert seen == [[5, 6, 7, 5, 6, 7, 5, 6]]
