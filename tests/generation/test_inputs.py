"""Files of any size become what a pipeline draws."""

import numpy as np
import pytest
from PIL import Image

from vdm_jax.errors import InputError
from vdm_jax.generation.inputs import read_clip, read_image, read_mask
from vdm_jax.video import write_video


@pytest.fixture
def files(tmp_path):
    """A red picture with grey sides, a video like it, and masks."""
    picture = np.full((8, 16, 3), 128, np.uint8)
    picture[:, 4:12] = [255, 0, 0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    frames = np.repeat(picture[None], 3, 0)
    frames[:, 0, 0] = [[0], [100], [200]]  # equal frames of a gif would become one
    write_video(tmp_path / "video.gif", frames, 5)
    white = np.zeros((8, 16), np.uint8)
    white[:, :8] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    write_video(tmp_path / "mask.gif", np.stack([white, 255 - white, white])[..., None], 5)
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_the_middle_is_cut_out_and_grey_is_luma(files, caplog):
    with caplog.at_level("INFO"):
        image = read_image(files / "picture.png", (4, 4), 3)
    assert "picture.png: 8×16 pixels; the middle part is cut to the proportions of 4×4 and resized" in caplog.text
    # Within: the filter reaches over the edges of the cut.
    np.testing.assert_array_equal(image[:, 1:3], np.broadcast_to(np.float32([1, -1, -1]), (4, 2, 3)))
    grey, fps, pixels = read_clip(files / "video.gif", (4, 4), 1)
    assert (grey.shape, fps, pixels) == ((3, 4, 4, 1), 5, (8, 16))
    np.testing.assert_allclose(grey[:, :, 1:3], 2 * 0.299 - 1, atol=0.02)


def test_a_picture_that_a_camera_held_sideways_is_upright(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255  # white is right, and above once it is turned
    turned = Image.Exif()
    turned[0x0112] = 8  # orientation: to be turned by a quarter to the left
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=turned)
    image = read_image(tmp_path / "photo.png", (8, 4), 1)
    np.testing.assert_allclose(image[:, :, 0], np.repeat([[1.0], [-1.0]], 4, axis=0) * np.ones(4), atol=1e-6)


def test_masks_are_fitted_as_their_video(files):
    mask = read_mask(files / "mask.png", (4, 4), (8, 16))
    np.testing.assert_array_equal(mask[0, ..., 0], [[1, 1, 0, 0]] * 4)
    mask = read_mask(files / "mask.gif", (4, 4), (8, 16))
    assert mask.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(mask[1], ~mask[0])


def test_masks_of_16_bits_and_in_the_alpha_channel(tmp_path):
    """Half of the range is white; what is transparent is not white."""
    Image.fromarray(np.uint16([[0, 1000, 32000, 33000, 65535]])).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "deep.png", (1, 5), (1, 5)).ravel().tolist() == [False] * 3 + [True] * 2
    white = np.full((2, 4, 4), 255, np.uint8)
    white[:, :2, 3] = 0
    Image.fromarray(white).save(tmp_path / "alpha.png")
    assert read_mask(tmp_path / "alpha.png", (2, 4), (2, 4))[0, 0, :, 0].tolist() == [False, False, True, True]
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png", (2, 4), 3), 1)


def test_files_of_another_kind_are_refused(files):
    cases = [
        (lambda: read_clip(files / "picture.png", (4, 4), 3), r"picture.png is not a video \(.mp4"),
        (lambda: read_image(files / "video.gif", (4, 4), 3), "video.gif is a video, where a picture is needed"),
        (lambda: read_image(files / "text.png", (4, 4), 3), "text.png cannot be read as a picture"),
        (lambda: read_image(files / "none.png", (4, 4), 3), "none.png cannot be read .*No such file"),
        (lambda: read_mask(files / "mask.png", (4, 4), (8, 8)), "mask.png has 8×16 pixels, its video 8×8"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
