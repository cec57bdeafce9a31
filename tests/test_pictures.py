"""Frames and picture files become what a screen shows, whatever their file stores."""

import struct

import av
import numpy as np
import pytest
from PIL import Image

from vdm_jax.data.folder import fit
from vdm_jax.errors import InputError
from vdm_jax.pictures import BLACK, WHITE, read_picture
from vdm_jax.video import probe, read_video

COLOURS = np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [90, 140, 200], [0, 0, 0]])


def stripes(height=32):
    """Returns a picture of the colours as vertical stripes of 16 columns."""
    return np.broadcast_to(COLOURS.repeat(16, axis=0), (height, 96, 3))


def encode(path, codec, pixels, frame, count=3, options=None, **attributes):
    """Writes a video of equal frames; `attributes` of the codec say what the file tells of its pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        for _ in range(count):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_mapped_to_sdr(tmp_path, transfer):
    srgb = COLOURS / 255
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    bt2020 = np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    nits = 203 * (light @ bt2020.T).clip(0)
    if transfer == 16:  # PQ
        power = (nits / 10_000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:  # HLG
        scene = (nits / 1000) ** (1 / 1.2)
        with np.errstate(all="ignore"):
            logarithmic = 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
        code = np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithmic)
    rgb = np.broadcast_to(np.rint(code * 65535).astype(np.uint16).repeat(16, axis=0), (32, 96, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb48le")
    frame = frame.reformat(format="yuv422p10le", dst_colorspace="BT2020")
    path = tmp_path / "hdr.mp4"
    tags = dict(colorspace=9, color_range=1, color_primaries=9, color_trc=transfer)
    encode(path, "libx264", "yuv422p10le", frame, options={"crf": "4"}, **tags)
    read, _ = read_video(path)
    np.testing.assert_allclose(read[0, 16, 8::16].astype(int), COLOURS, atol=6)
    half, _ = read_video(path, lambda image: fit(image, (16, 48), (0.5, 0.5)))
    np.testing.assert_allclose(half[0, 8, 4::8].astype(int), COLOURS, atol=6)
    assert probe(path).hdr


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda video: video),
        ((0, 1, -1, 0), lambda video: np.rot90(video, -1, axes=(1, 2))),  # a phone held upright
        ((-1, 0, 0, -1), lambda video: np.rot90(video, 2, axes=(1, 2))),
        ((0, -1, 1, 0), lambda video: np.rot90(video, 1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda video: video[:, :, ::-1]),  # a front camera
        ((1, 0, 0, -1), lambda video: video[:, ::-1]),
        ((0, 1, 1, 0), lambda video: video.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda video: video[:, ::-1, ::-1].swapaxes(1, 2)),
    ],
)
def test_turned_and_mirrored_cameras(tmp_path, matrix, turn):
    path = tmp_path / "phone.mp4"
    y, x, _ = np.mgrid[:32, :48, :3]
    picture = (5 * y + 2 * x).astype(np.uint8)
    encode(path, "libx264", "yuv420p", av.VideoFrame.from_ndarray(picture, format="rgb24"))
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # the display matrix of the track header
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    expected = turn(np.stack([picture] * 3))
    read, _ = read_video(path)
    assert read.shape == expected.shape
    assert abs(read.astype(float) - expected).mean() < 4


def test_pixels_that_are_not_square_are_stretched_to_their_proportions(tmp_path):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stripes()), format="rgb24")
    encode(tmp_path / "wide.mp4", "libx264", "yuv420p", frame, sample_aspect_ratio=2)
    read, _ = read_video(tmp_path / "wide.mp4")
    assert read.shape == (3, 32, 192, 3)
    np.testing.assert_allclose(read[0, 16, 16::32].astype(int), COLOURS, atol=6)


def test_interlaced_frames_show_one_moment(tmp_path):
    picture = np.full((32, 32, 3), 200, np.uint8)
    picture[1::2] = 50  # the lower field was recorded later
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    encode(tmp_path / "tv.mp4", "libx264", "yuv420p", frame, options={"x264-params": "tff=1"})
    read, _ = read_video(tmp_path / "tv.mp4")
    assert read.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(read[0].astype(int), 200, atol=4)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p")]
)
def test_transparent_parts_of_a_video_show_the_background(tmp_path, name, codec, pixels):
    picture = np.full((32, 32, 4), 255, np.uint8)
    picture[..., 1:3] = 0  # red …
    picture[:, :16] = [0, 255, 0, 0]  # … and on the left a hidden green
    encode(tmp_path / name, codec, pixels, av.VideoFrame.from_ndarray(picture, format="rgba"))
    for background in (WHITE, BLACK):
        read = read_video(tmp_path / name, background=background)[0][0].astype(int)
        np.testing.assert_allclose(read[:, :12], background, atol=6)
        np.testing.assert_allclose(read[:, 20:], np.broadcast_to([255, 0, 0], (32, 12, 3)), atol=6)


def test_transparent_parts_of_a_picture_show_the_background(tmp_path):
    picture = np.zeros((4, 6, 4), np.uint8)
    picture[..., 1] = 255  # green …
    picture[:, :, 3] = [0, 0, 128, 128, 255, 255]  # … that is hidden on the left, and half seen in the middle
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0, ::2].tolist() == [[255, 255, 255], [127, 255, 127], [0, 255, 0]]
    assert read_picture(tmp_path / "a.png", BLACK)[0, ::2].tolist() == [[0, 0, 0], [0, 128, 0], [0, 255, 0]]


def test_grey_of_16_bits_keeps_its_scale(tmp_path):
    Image.fromarray(np.uint16([[0, 257, 1000, 32768, 65535]])).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 1, 4, 128, 255)]


def test_a_picture_too_large_to_be_meant_is_one_clear_line(tmp_path, monkeypatch):
    Image.new("1", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(InputError, match=r"bomb.png cannot be read as a picture .*1600 pixels") as error:
        read_picture(tmp_path / "bomb.png")
    assert "\n" not in str(error.value)
