"""Folders of videos: the files listed, the frames of a clip, and files that are skipped or refused."""

import json
import logging

import av
import numpy as np
import pytest
from PIL import Image

from vdm_jax.data.folder import VideoFolder, fit
from vdm_jax.data.pipeline import make_iterator
from vdm_jax.errors import InputError
from vdm_jax.video import iter_frames, write_video


def write_clock(path, frames=20, fps=10, height=16, width=16, step=8):
    """Writes a video whose brightness tells the time: frame k is grey of value 8·k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = (np.arange(frames) * step).astype(np.uint8)
    write_video(path, np.broadcast_to(grey[:, None, None, None], (frames, height, width, 1)), fps)


def frame_numbers(video, step=8):
    return np.rint(video.mean(axis=(1, 2, 3)) / step).astype(int).tolist()


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "a.webm", "nested/deep/c.gif", "nested/d.mp4"):
        write_clock(tmp_path / name)
    return tmp_path


def names(source):
    return [str(file.path.relative_to(source.root)) for file in source.files]


def test_lists_nested_videos_in_order_and_cuts_clips(folder):
    (folder / "notes.pdf").write_text("not a video")
    (folder / "._b.mp4").write_text("a file system's leftovers")
    source = VideoFolder(folder, frames=4, size=8)
    assert names(source) == ["a.webm", "b.mp4", "nested/d.mp4", "nested/deep/c.gif"]
    for item in source:
        assert item["video"].shape == (4, 8, 8, 3)
        assert item["video"].dtype == np.uint8
        assert item["caption"] == ""
        assert set(np.diff(frame_numbers(item["video"]))) == {1}


def test_uncommon_containers(tmp_path):
    codecs = {".avi": "mpeg4", ".mov": "libx264", ".m4v": "libx264", ".3gp": "libx264", ".mkv": "libx264"}
    for suffix, codec in codecs.items():
        with av.open(str(tmp_path / f"clip{suffix}"), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
            for k in range(20):
                grey = np.full((16, 16, 3), 8 * k, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
    source = VideoFolder(tmp_path, frames=5, stride=2, size=16, crop="center")
    assert [frame_numbers(item["video"]) for item in source] == [[5, 7, 9, 11, 13]] * 5


def test_files_of_formats_that_are_not_read_are_counted(folder, caplog):
    for name in ("x.wmv", "y.WMV", "nested/z.ts"):
        (folder / name).touch()
    assert len(VideoFolder(folder, frames=2, size=8)) == 4
    assert "files of these formats are not read (convert them to mp4): 1 .ts, 2 .wmv" in caplog.text


def test_hidden_folders_and_trash_are_left_out_and_counted(folder, caplog):
    outside = [".cache/e.mp4", "nested/.ipynb_checkpoints/d-checkpoint.mp4", ".Trash-1000/files/f.mp4"]
    outside += ["$RECYCLE.BIN/g.mp4", "nested/__MACOSX/h.mp4"]
    for name in outside:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / ".git").mkdir()
    source = VideoFolder(folder, frames=2, size=8)
    assert names(source) == ["a.webm", "b.mp4", "nested/d.mp4", "nested/deep/c.gif"]
    assert "run folders are left out: 1 in $RECYCLE.BIN, 1 in .Trash-1000, 1 in .cache …" in caplog.text


@pytest.mark.parametrize("name", ["videos/.hidden/root", "$RECYCLE.BIN", "run"])
def test_the_folder_itself_may_have_any_name(tmp_path, name):
    write_clock(tmp_path / name / "a.mp4")
    (tmp_path / name / "checkpoints").mkdir()
    (tmp_path / name / "config.json").touch()
    assert names(VideoFolder(tmp_path / name, frames=2, size=8)) == ["a.mp4"]


@pytest.mark.parametrize("begun", ["checkpoints/5", "metrics.jsonl"])
def test_the_samples_of_a_run_below_the_folder_are_not_trained_on(folder, caplog, begun):
    run = folder / "runs" / "x"
    (run / "samples" / "seed0").mkdir(parents=True)
    (run / begun).mkdir(parents=True) if begun == "checkpoints/5" else (run / begun).touch()
    (run / "config.json").touch()
    write_clock(run / "samples" / "seed0" / "000.mp4")
    (folder / "config.json").touch()  # of something else
    assert names(VideoFolder(folder, frames=2, size=8)) == ["a.webm", "b.mp4", "nested/d.mp4", "nested/deep/c.gif"]
    assert "run folders are left out: 1 in runs/x" in caplog.text


def test_links_to_folders_are_followed_and_each_folder_is_read_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_clock(other / "inner" / "e.mp4")
    (other / "inner" / "loop").symlink_to(other)
    (folder / "a link").symlink_to(folder / "nested")
    (folder / "linked").symlink_to(other)
    (folder / "nested" / "again").symlink_to(other / "inner")
    (folder / "nested" / "up").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "nested" / "metadata.csv").write_text("file_name,text\nd.mp4,d\n")
    (other / "metadata.csv").write_text("file_name,text\ninner/e.mp4,e\n")
    source = VideoFolder(folder, frames=2, size=8)
    assert names(source) == ["a.webm", "b.mp4", "linked/inner/e.mp4", "nested/d.mp4", "nested/deep/c.gif"]
    assert [file.captions[0] for file in source.files] == ["", "", "e", "d", ""]


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv", "txt"])
def test_captions_in_three_forms(folder, form):
    captions = {
        "b.mp4": 'a "quoted", text',
        "a.webm": "größer",
        "nested/deep/c.gif": "c",
        "nested/d.mp4": "d",
    }
    if form == "metadata.jsonl":
        rows = (json.dumps({"file_name": k, "text": v}, ensure_ascii=False) for k, v in captions.items())
        (folder / form).write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    elif form == "metadata.csv":
        rows = (f'{k},"{v.replace(chr(34), chr(34) * 2)}"' for k, v in captions.items())
        (folder / form).write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    else:
        for name, text in captions.items():
            (folder / name).with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    source = VideoFolder(folder, frames=2, size=8)
    assert [item["caption"] for item in source] == [captions[name] for name in names(source)]


def test_videos_without_caption_are_counted_and_get_an_empty_one(folder, caplog):
    (folder / "metadata.jsonl").write_text('{"file_name": "b.mp4", "text": "b"}')
    source = VideoFolder(folder, frames=2, size=8)
    assert [item["caption"] for item in source] == ["", "b", "", ""]
    assert "3 of 4 videos have no caption" in caplog.text
    (folder / "metadata.jsonl").unlink()
    VideoFolder(folder, frames=2, size=8)
    assert "4 of 4 videos have no caption" in caplog.text


def test_corrupt_and_short_files_are_skipped_and_named_once(folder, caplog):
    (folder / "broken.mp4").write_bytes(b"\0" * 1000)
    write_clock(folder / "short.mp4", frames=3)
    source = VideoFolder(folder, frames=4, size=8)
    assert len(source) == 4
    [source[i] for i in range(4)]
    assert "skipped 2 of 6 videos" in caplog.text
    assert caplog.text.count("broken.mp4") == caplog.text.count("short.mp4") == 1


def test_a_file_that_fails_in_decoding_is_replaced_by_the_next(folder, caplog):
    content = (folder / "a.webm").read_bytes()
    source = VideoFolder(folder, frames=4, size=8)
    for damage in (b"", content[: len(content) // 3]):
        (folder / "a.webm").write_bytes(damage)
        first, again = source[0], source[0]
        np.testing.assert_array_equal(first["video"], again["video"])
        assert frame_numbers(first["video"])
    assert caplog.text.count("a.webm") == 1


def test_a_last_frame_that_is_held_fills_its_whole_time(tmp_path):
    pictures = [Image.new("L", (8, 8), 20 * i) for i in range(9)]
    pictures[0].save(tmp_path / "held.gif", save_all=True, append_images=pictures[1:], duration=[100] * 8 + [2000])
    source = VideoFolder(tmp_path, frames=8, size=8)
    values = [int(v) // 20 for v in source.sample(0, np.random.default_rng(0))["video"].mean((1, 2, 3)).round()]
    assert values[-3:] == [8] * 3
    assert len(values) == 8


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_frame_rate_is_resampled_to_the_nearest_frames(tmp_path, suffix):
    write_clock(tmp_path / f"clock{suffix}", frames=30, fps=20)  # 1.5 s
    middle = {"size": 16, "crop": "center"}
    assert frame_numbers(VideoFolder(tmp_path, frames=30, **middle)[0]["video"]) == list(range(30))
    assert frame_numbers(VideoFolder(tmp_path, frames=14, fps=10, **middle)[0]["video"]) == list(range(1, 28, 2))
    assert frame_numbers(VideoFolder(tmp_path, frames=4, fps=10, stride=4, **middle)[0]["video"]) == [
        2,
        10,
        18,
        26,
    ]
    assert frame_numbers(VideoFolder(tmp_path, frames=6, fps=40, **middle)[0]["video"]) in (
        [13, 13, 14, 14, 15, 15],
        [13, 14, 14, 15, 15, 16],
    )
    assert frame_numbers(VideoFolder(tmp_path, frames=4, fps=8, **middle)[0]["video"]) in (
        [11, 13, 16, 18],
        [11, 13, 16, 19],
        [10, 12, 15, 17],
        [10, 13, 15, 18],
    )
    with pytest.raises(InputError, match="too short"):
        VideoFolder(tmp_path, frames=17, fps=10, **middle)


def test_videos_that_are_slower_than_the_clip_are_counted(tmp_path, caplog):
    write_clock(tmp_path / "slow.mp4", frames=10, fps=5)
    write_clock(tmp_path / "film.mp4", frames=40, fps=23.976)
    VideoFolder(tmp_path, frames=4, size=16, fps=24)
    assert "1 of 2 videos have fewer than 24 frames a second: frames repeat" in caplog.text
    caplog.clear()
    VideoFolder(tmp_path, frames=4, size=16, fps=10, stride=2)
    assert "repeat" not in caplog.text


def test_hdr_videos_are_counted(tmp_path, caplog):
    write_clock(tmp_path / "sdr.mp4")
    with av.open(str(tmp_path / "hdr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt, stream.codec_context.color_trc = "yuv420p", 18  # HLG
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode())
    with caplog.at_level(logging.INFO):
        VideoFolder(tmp_path, frames=2, size=8)
    assert "1 of 2 videos are HDR" in caplog.text


def test_random_starts_reach_every_frame(tmp_path):
    write_clock(tmp_path / "clock.mp4", frames=8)
    source = VideoFolder(tmp_path, frames=3, stride=2, size=16)
    rng = np.random.default_rng(0)
    starts = {tuple(frame_numbers(source.sample(0, rng)["video"])) for _ in range(60)}
    assert starts == {(0, 2, 4), (1, 3, 5), (2, 4, 6), (3, 5, 7)}
    single = [source.sample(0, rng, single_frame=True)["video"] for _ in range(80)]
    assert {video.shape for video in single} == {(1, 16, 16, 3)}
    assert {frame_numbers(video)[0] for video in single} == set(range(8))


def test_seeking_finds_the_same_frames_as_reading_from_the_start(tmp_path):
    write_clock(tmp_path / "long.mp4", frames=600, fps=25)  # several key frames; brightness wraps
    source = VideoFolder(tmp_path, frames=4, size=16, crop="center")
    assert frame_numbers(source[0]["video"]) == [298 % 32 + k for k in range(4)]
    assert 9 < next(iter_frames(tmp_path / "long.mp4", 11.0))[0] <= 11  # decoded from the key frame before, not from 0


def test_crop_and_resize():
    y, x = np.mgrid[:12, :24]
    frame = np.stack([10 * x, 20 * y, 0 * x], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(fit(frame, (12, 12), (0.5, 0.0)), frame[:, :12])
    np.testing.assert_array_equal(fit(frame, (12, 12), (0.5, 0.5)), frame[:, 6:18])
    np.testing.assert_array_equal(fit(frame, (12, 12), (0.5, 0.999)), frame[:, 12:])
    half = fit(frame, (6, 12), (0.5, 0.5))
    assert half.shape == (6, 12, 3)
    np.testing.assert_allclose(half[1:-1, 1:-1, 0], (10 * x + 5)[2:10:2, 2:22:2], atol=1)
    stripes = np.broadcast_to(255 * (x % 2)[..., None], (12, 24, 1)).astype(np.uint8)
    assert abs(fit(stripes, (3, 6), (0.5, 0.5)).astype(int) - 127).max() < 30  # averaged, not aliased


def test_random_crops_differ_and_centre_crops_do_not(tmp_path):
    wide = np.broadcast_to((np.arange(64) * 4).astype(np.uint8)[:, None], (6, 16, 64, 1))
    write_video(tmp_path / "wide.mp4", wide, 10)

    def left_edges(crop):
        source, rng = VideoFolder(tmp_path, frames=2, size=16, crop=crop), np.random.default_rng(1)
        return {round(source.sample(0, rng)["video"][:, :, 0].mean() / 4) for _ in range(30)}

    assert left_edges("center") == {24}
    assert len(left_edges("random")) > 10


def test_feeds_the_pipeline_reproducibly(folder):
    source = VideoFolder(folder, frames=2, size=(8, 12), seed=3)
    np.testing.assert_array_equal(source[1]["video"], source[1]["video"])
    options = {"batch_size": 2, "seed": 1, "tokenize": lambda text: np.array([len(text)]), "joint_images": 1}
    first, second = make_iterator(source, **options), make_iterator(source, num_workers=1, **options)
    for _ in range(3):
        a, b = next(first), next(second)
        assert a["video"].shape == (2, 3, 8, 12, 3)
        np.testing.assert_array_equal(a["video"], b["video"])
    first.close(), second.close()


def test_progress_is_logged_for_large_folders(folder, caplog, monkeypatch):
    monkeypatch.setattr("time.monotonic", iter(np.arange(0, 1e4, 11.0)).__next__)
    with caplog.at_level(logging.INFO):
        VideoFolder(folder, frames=2, size=8)
    assert "checked 4 of 4 videos" in caplog.text


def test_bad_input(folder, tmp_path_factory):
    empty, broken = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("broken")
    (broken / "a.mp4").write_text("")
    Image.new("L", (8, 8)).save(empty / "picture.png")

    def metadata(text, name="metadata.jsonl"):
        other = tmp_path_factory.mktemp("captions")
        write_clock(other / "a.mp4")
        (other / name).write_bytes(text)
        return other

    gone = b"".join(b'{"file_name": "%d.mp4", "text": ""}\n' % i for i in range(5))
    cases = [
        (folder / "nowhere", {}, "nowhere is not a folder"),
        (empty, {}, "holds no videos"),
        (broken, {}, "none of its 1 videos gives a clip .*cannot be read"),
        (folder, {"frames": 50}, "none of its 4 videos gives a clip .*too short"),
        (folder, {"frames": 0}, "frames=0"),
        (folder, {"fps": 0}, "fps=0"),
        (metadata(gone), {}, "captions for 5 files that are no videos here: 0.mp4, 1.mp4, 2.mp4 …"),
        (metadata(b'{"file_name": "/etc/a.mp4", "text": ""}'), {}, "no videos here: /etc/a.mp4"),
        (metadata(b'{"file_name": "a.mp4", "text": ""}\n{'), {}, "line 2 is not JSON"),
        (metadata(rb'{"file_name": "a.mp4", "text": "\ud83d"}'), {}, "line 1: the text contains half of a surrogate"),
        (metadata(b'file_name,text\na.mp4,"' + b"x" * 140_000, "metadata.csv"), {}, "is not CSV .*field larger"),
        (metadata(b"\xff\xfe", "a.txt"), {}, "cannot be read as UTF-8"),
    ]
    for root, options, message in cases:
        with pytest.raises(InputError, match=message) as error:
            VideoFolder(root, **({"frames": 2, "size": 8} | options))
        assert "\n" not in str(error.value)
