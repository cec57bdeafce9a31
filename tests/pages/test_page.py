"""Pages, charts and folders of samples."""

import base64
import re

import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.evaluation.confidence import Interval
from vdm_jax.pages import chart, page, samples
from vdm_jax.video import read_metadata, read_video, write_video

NOISE = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3)).astype(np.uint8)


def test_a_video_of_small_pixels_is_embedded_with_its_colours_and_nothing_else(tmp_path):
    kind, content = page.embed_video(NOISE, 10).split(",")
    assert kind == "data:video/webm;base64"
    (tmp_path / "video.webm").write_bytes(base64.b64decode(content))
    read, fps = read_video(tmp_path / "video.webm")
    assert read.shape == (5, 128, 128, 3)
    assert fps == pytest.approx(10)
    assert abs(read[:, 8::16, 8::16].astype(float) - NOISE).mean() < 5
    assert read_metadata(tmp_path / "video.webm") == {}


def test_text_cannot_become_markup():
    text = page.render("study.html", title="<b>", question="<b>", study={"prompt": "</script><b>"})
    assert text.count("</script>") == 2
    assert '"\\u003c/script\\u003e\\u003cb\\u003e"' in text
    assert "&lt;b&gt;</title>" in text
    assert "&lt;b&gt;" in page.table([{"<b>": "<b>"}])
    assert "<b>" not in page.table([{"<b>": "<b>"}])
    assert text.count("<b>") == 0


def test_a_table_has_the_columns_of_all_rows_and_error_bars_on_one_scale():
    rows = [
        {"arm": "a", "fvd": Interval(2.0, 1.0, 3.0)},
        {"arm": "b", "fvd": Interval(4.0, 3.0, 5.0), "n": 3},
    ]
    text = page.table(rows)
    assert re.findall(r'<th scope="col" class="(\w+)">(\w+)', text) == [
        ("words", "arm"),
        ("numbers", "fvd"),
        ("numbers", "n"),
    ]
    assert text.count("<td>–</td>") == 1
    first, second = re.findall(r'<circle cx="([\d.]+)"', text)
    assert (float(first), float(second)) == (17, 43)  # 4 … 56 stand for 1 … 5
    across = page.table([{"metric": "fvd", "a": Interval(2.0, 1.0, 3.0), "b": Interval(4.0, 3.0, 5.0)}], across=True)
    assert re.findall(r'<circle cx="([\d.]+)"', across) == [first, second]


def test_estimates_read_as_they_were_made():
    assert str(page.Spread(0.5, 0.0625)) == "0.5 ± 0.062"
    assert str(Interval(0.9, 0.7, 0.95)) == "0.9 [0.7, 0.95]"


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be read as a picture"):
        page.image_figure(tmp_path / "file", "")


def drawn(figure, what="line0"):
    """The points of the first path of a class."""
    path = re.search(f'class="{what}" d="M(.*?)[hZ]', figure)[1]
    return np.array([[float(v) for v in point.split()] for point in path.split("L")])


def test_a_logarithmic_axis_has_powers_at_equal_distances_and_leaves_out_what_it_cannot_show():
    values = [1000.0, 100, 10, float("nan"), 0, 1]
    points = drawn(chart.line_chart("loss", range(6), values, log=True))
    assert points[:, 0].tolist() == [52, 135.6, 219.2, 470]  # 0, 1, 2 and 5 of 0 … 5, from 52 to 470
    np.testing.assert_allclose(np.diff(points[:, 1]), 62, atol=0.1)
    assert points[-1, 1] == chart.HEIGHT - chart.BOTTOM


def test_ticks_are_round_numbers_within_the_axis():
    for values in ([0.013, 0.094], [-3, 7], [1e-9, 4e-3], [5, 5], [50, 2400]):
        place, ticks = chart.axis(np.array(values, float), 0, 100)
        assert 3 <= len(ticks) <= 11, ticks
        assert all(-1e-9 <= place(tick) <= 100 + 1e-9 for tick in ticks)
        assert np.ptp(np.diff(ticks)) < 1e-12
        assert all(f"{tick:e}".strip("-")[0] in "0123456789" and len(f"{tick:.6g}") < 9 for tick in ticks)
    assert chart.axis(np.array([0.05, 0.84]), 0, 100, log=True)[1] == [0.05, 0.1, 0.2, 0.5]


def test_a_long_line_becomes_the_mean_of_neighbours_in_the_band_of_their_extremes():
    y = np.tile([0.0, 1.0], 4000)
    figure = chart.line_chart("loss", range(8000), y)
    points = drawn(figure)
    assert len(points) == chart.MOST
    middle = (chart.TOP + chart.HEIGHT - chart.BOTTOM) / 2
    np.testing.assert_allclose(points[:, 1], middle)
    band = drawn(figure, "band0")
    assert len(band) == 2 * chart.MOST
    assert set(band[:, 1]) == {chart.TOP, chart.HEIGHT - chart.BOTTOM}


def test_the_last_value_is_written_and_a_line_without_values_is_not_drawn():
    assert "last: 2 at step 2" in chart.line_chart("loss", [1, 2], [1.0, 2])
    assert "nothing to draw" in chart.line_chart("loss", [1], [float("nan")])


def test_samples_are_found_by_format_with_prompt_and_number(tmp_path):
    for number in (1, 0):
        for suffix in (".gif", ".npy"):
            about = {"prompt": f"p{number}", "number": number, "seed": 3}
            write_video(tmp_path / f"{9 - number}{suffix}", NOISE, 10, about)
    write_video(tmp_path / "other.gif", NOISE, 10)
    np.save(tmp_path / ".stage0-0.npy", NOISE)
    found = samples.find_samples(tmp_path)
    assert list(found) == [".npy", ".gif"]
    for kind in found.values():
        assert [(s.prompt, s.number, s.settings["seed"]) for s in kind] == [("p0", 0, 3), ("p1", 1, 3)]
    video, fps = found[".npy"][0].read()
    np.testing.assert_array_equal(video, NOISE)
    assert fps == 10


def test_a_folder_without_samples_and_a_damaged_sample_are_one_line(tmp_path):
    with pytest.raises(InputError, match="none is not a folder of samples"):
        samples.find_samples(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no videos of experiments/sample\.py"):
        samples.find_samples(tmp_path)
    write_video(tmp_path / "a.npy", NOISE, 10, {"prompt": "", "number": 0})
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"a.npy cannot be read as a video"):
        samples.find_samples(tmp_path)[".npy"][0].read()
