"""Video files keep pixels, frame rate and metadata, and are written completely or not at all."""

import json
import struct

import av
import numpy as np
import pytest
from PIL import Image

from vdm_jax import video as videos
from vdm_jax.errors import InputError

METADATA = {"prompt": "a seven – «sieben» 七", "seed": 3, "settings": {"steps": 32}}


def gradient(frames=9, height=18, width=14, channels=3):
    """Returns a video that is smooth in space and grows brighter in time, which a codec keeps."""
    t, y, x, c = np.mgrid[:frames, :height, :width, :channels]
    return (20 * t + 4 * y + 3 * x * (c + 1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("suffix", "tolerance"), [(".mp4", 4), (".webm", 4), (".gif", 1)])
def test_round_trip_of_pixels_rate_and_metadata(tmp_path, suffix, tolerance, channels):
    video, path = gradient(channels=channels), tmp_path / f"clip{suffix}"
    videos.write_video(path, video, 10, METADATA)
    read, fps = videos.read_video(path)
    assert read.shape == (9, 18, 14, 3)
    assert abs(read.astype(float) - video).mean() < tolerance
    assert fps == pytest.approx(10)
    assert videos.read_metadata(path) == METADATA
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_float_pixels_map_to_bytes_and_back(tmp_path):
    video = gradient()
    videos.write_video(tmp_path / "clip.npy", video, 8, METADATA)
    raw = np.load(tmp_path / "clip.npy")
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(videos.to_uint8(raw), video)
    np.testing.assert_array_equal(videos.to_uint8(np.float32([-3, -1, 0, 1, 7])), [0, 0, 128, 255, 255])
    assert videos.read_metadata(tmp_path / "clip.npy") == {"fps": 8, **METADATA}
    videos.write_video(tmp_path / "exact.npy", raw, 8)
    np.testing.assert_array_equal(np.load(tmp_path / "exact.npy"), raw)
    assert videos.read_metadata(tmp_path / "exact.npy") == {}


def test_png_shows_the_frames_in_a_row(tmp_path):
    video, path = gradient(frames=3), tmp_path / "sheet.png"
    videos.write_video(path, video, 8, METADATA, scale=2)
    with Image.open(path) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (36, 3 * 28 + 2, 3)
    np.testing.assert_array_equal(sheet[::2, 29:57:2], video[1])
    assert videos.read_metadata(path) == METADATA


def test_contact_sheet_has_a_row_per_video_and_evenly_spaced_columns():
    batch = np.stack([gradient(), gradient()[::-1]])
    sheet = videos.contact_sheet(batch, columns=3)
    assert sheet.shape == (18 + 1 + 18, 3 * 14 + 2, 3)
    for row, video in enumerate(batch):
        for column, frame in enumerate((0, 4, 8)):
            part = sheet[row * 19 : row * 19 + 18, column * 15 : column * 15 + 14]
            np.testing.assert_array_equal(part, video[frame])
    assert videos.contact_sheet(batch).shape == (37, 9 * 15 - 1, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sizes_grow_by_their_last_row_and_column(tmp_path, suffix):
    video, path = gradient(height=15, width=13), tmp_path / f"odd{suffix}"
    videos.write_video(path, video, 8)
    read, _ = videos.read_video(path)
    assert read.shape[1:3] == (16, 14)
    assert abs(read[:, :15, :13].astype(float) - video).mean() < 5
    videos.write_video(path, video, 8, scale=4)
    assert videos.read_video(path)[0].shape[1:3] == (60, 52)


def test_gif_keeps_its_length_at_rates_that_hundredths_of_seconds_cannot_show(tmp_path):
    path = tmp_path / "clip.gif"
    videos.write_video(path, gradient(frames=8, channels=1), 7.5)
    assert videos.probe(path)[1] == pytest.approx(8 / 7.5, abs=0.006)
    assert videos.read_video(path)[1] == pytest.approx(7.5, rel=0.01)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_gif_of_more_than_a_hundred_frames_a_second_leaves_some_out(tmp_path):
    path = tmp_path / "fast.gif"
    videos.write_video(path, gradient(frames=12, channels=1), 120)
    assert videos.probe(path)[1] == pytest.approx(0.1)
    videos.write_video(path, gradient(frames=1, channels=1), 1000)
    assert videos.read_video(path)[0].shape[0] == 1


def test_gif_with_a_pause_reads_as_repeated_frames(tmp_path):
    video = gradient(frames=4, channels=1)[[0, 1, 1, 1, 2, 3]]
    videos.write_video(tmp_path / "pause.gif", video, 10)
    read, fps = videos.read_video(tmp_path / "pause.gif")
    np.testing.assert_array_equal(read[..., :1], video)
    assert fps == pytest.approx(10)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_frames_come_in_order_and_from_the_requested_time(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    videos.write_video(path, np.arange(0, 240, 8, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2), 10)
    times = [time for time, _ in videos.iter_frames(path)]
    np.testing.assert_allclose(times, np.arange(30) / 10, atol=0.01)
    later = [time for time, _ in videos.iter_frames(path, start=2.05)]
    assert later[0] <= 2.05
    assert later == times[-len(later) :]


def test_a_phone_held_upright_reads_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    videos.write_video(path, gradient(), 8)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # the display matrix of the track header: turn clockwise by 90°
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    read, _ = videos.read_video(path)
    assert read.shape == (9, 14, 18, 3)
    assert abs(np.rot90(read, 1, axes=(1, 2)).astype(float) - gradient()).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png", ".npy"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise RuntimeError("the encoder broke")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail) if suffix == ".mp4" else None
    monkeypatch.setattr(Image.Image, "save", fail)
    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(RuntimeError, match="broke"):
        videos.write_video(path, gradient(), 8)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_bad_input_is_one_clear_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    with av.open(str(tmp_path / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    (tmp_path / "file").write_text("")
    nan = np.full((2, 4, 4, 1), np.nan, np.float32)
    cases = [
        (lambda: videos.read_video(tmp_path / "text.mp4"), "cannot be read as a video"),
        (lambda: videos.read_video(tmp_path / "none.mp4"), "none.mp4 cannot be read .*No such file"),
        (lambda: videos.probe(tmp_path / "text.mp4"), "cannot be read as a video"),
        (lambda: videos.read_video(tmp_path / "sound.mov"), "no video stream"),
        (lambda: videos.read_metadata(tmp_path / "text.mp4"), "cannot be read"),
        (lambda: videos.write_video(tmp_path / "a.mkv", gradient(), 8), r"suffix must be one of .mp4"),
        (lambda: videos.write_video(tmp_path / "a.mp4", gradient(), 0), "fps=0"),
        (lambda: videos.write_video(tmp_path / "a.gif", gradient(channels=2), 8), "1 or 3 channels"),
        (lambda: videos.write_video(tmp_path / "a.mp4", nan, 8), "holds values that are not finite"),
        (lambda: videos.write_video(tmp_path / "file" / "a.mp4", gradient(), 8), "cannot be written"),
        (lambda: videos.write_image(tmp_path / "a.jpg", gradient()[0]), "suffix must be .png"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "sound.mov", "text.mp4"]


def test_metadata_of_other_software_is_no_metadata(tmp_path):
    picture = Image.new("L", (4, 4))
    for comment in (b"made with something else", b"\xa9 2020", b"2020"):
        picture.save(tmp_path / "a.gif", comment=comment)
        assert videos.read_metadata(tmp_path / "a.gif") == {}
    assert json.dumps(videos.read_metadata(tmp_path / "a.gif")) == "{}"


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_tags_in_another_encoding_do_not_keep_a_video_from_being_read(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    videos.write_video(path, gradient(), 8, {"by": "Rene1"})
    path.write_bytes(path.read_bytes().replace(b"Rene1", b"Ren\xe9\xff"))  # Latin-1 of the same length
    assert len(videos.read_video(path)[0]) == 9
    assert videos.probe(path)[0] == pytest.approx(8)
    assert videos.read_metadata(path)["by"].startswith("Ren")
