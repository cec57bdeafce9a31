"""Video files keep pixels, frame rate and metadata, and are written completely or not at all."""

import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vdm_jax import video as videos
from vdm_jax.data.folder import VideoFolder, fit
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


@pytest.mark.parametrize("fps", [24, 40, 50, 60, 100, 120])
def test_gif_has_no_frame_that_browsers_slow_down(tmp_path, fps):
    path, frames = tmp_path / "fast.gif", 48
    videos.write_video(path, np.arange(frames, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2) * 5, fps)
    with Image.open(path) as image:
        durations = [image.seek(k) or image.info["duration"] for k in range(image.n_frames)]
    assert min(durations) >= 20
    assert len(durations) == min(frames, 50 * frames // fps)
    assert sum(durations) == pytest.approx(1000 * frames / fps, abs=5)
    read, _ = videos.read_video(path)
    assert len(read) == len(durations)
    shown = read[:, 0, 0, 0] / 5
    np.testing.assert_allclose(shown, np.arange(len(read)) * frames / len(read), atol=1.01)
    videos.write_video(path, gradient(frames=1, channels=1), 1000)
    assert videos.read_video(path)[0].shape[0] == 1


def test_gif_of_ten_milliseconds_takes_as_long_as_in_a_browser(tmp_path):
    pictures = [Image.new("L", (8, 8), 10 * k) for k in range(20)]
    pictures[0].save(tmp_path / "ten.gif", save_all=True, append_images=pictures[1:], duration=10)
    assert videos.probe(tmp_path / "ten.gif")[:2] == (10, 2)
    assert [time for time, _ in videos.iter_frames(tmp_path / "ten.gif")][:3] == [0, 0.1, 0.2]
    assert videos.read_video(tmp_path / "ten.gif")[1] == 10


def test_gif_with_a_long_pause_is_named_and_keeps_its_time(tmp_path, caplog):
    pictures = [Image.new("L", (8, 8), 10 * k) for k in range(10)]
    durations = [20] * 9 + [6000]
    pictures[0].save(tmp_path / "pause.gif", save_all=True, append_images=pictures[1:], duration=durations)
    read, fps = videos.read_video(tmp_path / "pause.gif")
    assert (len(read), fps) == (309, pytest.approx(50))
    assert "pause.gif: 10 frames become 309, as one lasts 6 s" in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_frames_come_in_order_and_from_the_requested_time(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    videos.write_video(path, np.arange(0, 240, 8, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2), 10)
    times = [time for time, _ in videos.iter_frames(path)]
    np.testing.assert_allclose(times, np.arange(30) / 10, atol=0.01)
    later = [time for time, _ in videos.iter_frames(path, start=2.05)]
    assert later[0] <= 2.05
    assert later == times[-len(later) :]


def encode(path, codec, stamps, options=None, sizes=((16, 16),), **container):
    """Writes frames whose grey is 8 times their number, shown at `stamps` / 10 s. The stream takes on all `sizes`."""
    with av.open(str(path), "w", **container) as file:
        stream = file.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *sizes[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for part, (height, width) in zip(np.array_split(np.arange(len(stamps)), len(sizes)), sizes, strict=True):
            encoder = stream.codec_context
            if (height, width) != sizes[0]:
                encoder = av.CodecContext.create(codec, "w")
                encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
                encoder.time_base = Fraction(1, 10)
            frames = [av.VideoFrame.from_ndarray(np.full((height, width, 3), 8 * k, np.uint8)) for k in part]
            for k, frame in zip(part, frames, strict=True):
                frame.pts, frame.time_base = int(stamps[k]), Fraction(1, 10)
            for packet in [p for frame in [*frames, None] for p in encoder.encode(frame)]:
                packet.stream = stream
                file.mux(packet)


def numbers(video):
    return np.rint(video.mean((1, 2, 3)) / 8).astype(int).tolist()


def starts(path, frames):
    """Returns the frames of the clips of a folder with one video, from every start."""
    folder = VideoFolder(path.parent, frames=frames, size=16)
    draw = folder.shape.draw
    clips = []
    for start in range(folder._last_start(folder.files[0], frames) + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(folder.shape), "draw", lambda *_, start=start: (start, (0.5, 0.5)))
            clips.append(numbers(folder[0]["video"]))
    assert folder.shape.draw == draw
    return clips


def test_a_cut_without_encoding_is_as_long_as_it_is_shown(tmp_path):
    """The frames from the key frame to the cut are stored, and an edit list hides them."""
    encode(tmp_path / "whole.mp4", "libx264", range(30), {"bf": "2", "g": "100"})
    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut" / "cut.mp4"
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(path), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.pts -= int(1.2 / packet.time_base)
                packet.dts -= int(1.2 / packet.time_base)
                packet.stream = stream
                cut.mux(packet)
    assert videos.probe(path)[:2] == (10, pytest.approx(1.8))
    read, fps = videos.read_video(path)
    assert (numbers(read), fps) == (list(range(12, 30)), 10)
    assert starts(path, 6) == [list(range(k, k + 6)) for k in range(12, 25)]
    with pytest.raises(InputError, match="too short"):
        VideoFolder(path.parent, frames=19, size=16)


@pytest.mark.parametrize(
    ("name", "codec", "options", "container"),
    [
        ("transport_stream.mp4", "mpeg2video", {"g": "12"}, {"format": "mpegts"}),
        ("b_frames.avi", "mpeg4", {"bf": "2", "g": "12", "qmin": "1", "qmax": "1"}, {}),
        ("b_pyramid.avi", "libx264", {"bf": "3", "g": "12"}, {}),
    ],
)
def test_every_start_of_a_clip_gives_its_frames(tmp_path, name, codec, options, container):
    encode(tmp_path / name, codec, range(30), options, **container)
    assert starts(tmp_path / name, 4) == [list(range(k, k + 4)) for k in range(27)]
    assert numbers(videos.read_video(tmp_path / name)[0]) == list(range(30))


def test_variable_frame_rates_are_sampled_by_time(tmp_path):
    stamps = [*range(10), *range(10, 30, 4)]  # ten frames a second, then 2.5
    encode(tmp_path / "screen.mp4", "libx264", stamps, {"bf": "2"})
    read, fps = videos.read_video(tmp_path / "screen.mp4")
    assert fps == pytest.approx(10)
    assert numbers(read)[:26] == [*range(10), *np.repeat(range(10, 14), 4)]


def test_a_stream_whose_size_changes(tmp_path):
    path = tmp_path / "call.webm"
    encode(path, "libvpx", range(20), sizes=((16, 16), (32, 48)))
    with pytest.raises(InputError, match=r"call.webm has frames of \(16, 16\) and of \(32, 48\) pixels"):
        videos.read_video(path)
    fitted, _ = videos.read_video(path, lambda image: fit(image, (8, 8), (0.5, 0.5)))
    assert fitted.shape == (20, 8, 8, 3)
    assert numbers(fitted) == list(range(20))


def test_frames_are_fitted_as_they_are_decoded(tmp_path):
    """60 frames of 1080p are 373 MB, or 187 MB as they are decoded."""
    with av.open(str(tmp_path / "large.avi"), "w") as file:
        stream = file.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuvj420p"
        picture = av.VideoFrame.from_ndarray(np.full((1080, 1920, 3), 128, np.uint8))
        encoded = b"".join(bytes(packet) for frame in (picture, None) for packet in stream.encode(frame))
        for k in range(60):
            packet = av.Packet(encoded)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, k, k, True
            file.mux(packet)
    program = (
        "import resource, sys; from vdm_jax.generation.inputs import read_clip;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); print(read_clip(sys.argv[1], (16, 16), 3)[0].shape, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "large.avi")], capture_output=True, text=True, check=True
    )
    shape, megabytes = done.stdout.rsplit(maxsplit=1)
    assert shape == "(60, 16, 16, 3)"
    assert float(megabytes) < 100


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_file_says_how_its_colours_are_stored(tmp_path, suffix):
    """An untagged mp4 of 720 rows is BT.709 for a browser."""
    videos.write_video(tmp_path / f"clip{suffix}", gradient(), 8)
    with av.open(str(tmp_path / f"clip{suffix}")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (6, 1, 1, 1)


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
