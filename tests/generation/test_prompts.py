"""Prompts that change in the course of a video."""

import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.generation.prompts import check_travel, prompts_at, read_prompts, read_travel, texts_and_shares


def test_only_line_feeds_separate_the_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    text = "\ufeffa dog\u2028running\r\n\n  a\x0bcat\x0cand\x1ca\x85fish  \r\n\t\nlast"
    file.write_bytes(text.encode())
    assert read_prompts(file) == ["a dog\u2028running", "a\x0bcat\x0cand\x1ca\x85fish", "last"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "holds no prompt"), (b"\xef\xbb\xbf \r\n\n", "holds no prompt"), (b"\xff\xfea", "it is not text in UTF-8")],
)
def test_a_file_without_prompts_is_refused(tmp_path, content, words):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"prompts\.txt.*{words}"):
        read_prompts(tmp_path / "prompts.txt")


def test_a_plain_prompt_holds_throughout():
    for prompt in ("a seven going up", "", "at 8: a | b"):
        assert read_travel(prompt) == {0: prompt}


def test_each_part_holds_from_its_frame_on():
    prompt = "0: a seven going up | 8: a seven: going left|12:"
    assert read_travel(prompt) == {0: "a seven going up", 8: "a seven: going left", 12: ""}
    assert prompts_at([prompt, "b"], 0) == ["a seven going up", "b"]
    assert prompts_at([prompt, "b"], 11) == ["a seven: going left", "b"]
    assert prompts_at([prompt, "b"], 30) == ["", "b"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("0: a | b", "every part between | must begin with its frame"),
        ("1: a | 8: b", r"frames \[1, 8\] must begin with 0 and rise"),
        ("0: a | 8: b | 8: c", r"frames \[0, 8, 8\] must begin with 0 and rise"),
    ],
)
def test_other_parts_are_refused(prompt, words):
    with pytest.raises(InputError, match=words):
        read_travel(prompt)


def test_a_change_within_a_window_is_refused():
    check_travel(["0: a | 8: b", "c"], [0, 8, 12])
    with pytest.raises(InputError, match="changes at frame 9, but the windows draw from frames 0, 8, 12 on"):
        check_travel(["0: a | 9: b"], [0, 8, 12])


def test_a_change_after_the_end_is_refused():
    check_travel(["0: a | 9: b | 15: c"], range(16))
    with pytest.raises(InputError, match="changes at frame 16, but the video has frames 0 to 15"):
        check_travel(["0: a | 16: b"], range(16))


def test_one_text_passes_into_the_next_and_the_last_holds():
    texts, shares = texts_and_shares(["0: a | 2: b | 6: c", "d", "0: e | 8: f"], 0, 8)
    assert texts == ["a", "b", "c", "d", "", "", "e", "f", ""]
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(shares[0, :, 0], [1, 0.5, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(shares[0, :, 1], [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_array_equal(shares[1], np.tile([1, 0, 0], (8, 1)))
    np.testing.assert_allclose(shares[2, :, 1], np.arange(8) / 8)


def test_windows_share_as_the_whole():
    prompts = ["0: a | 5: b | 11: c", "0: d | 9: e"]
    texts, whole = texts_and_shares(prompts, 0, 16)
    parts = [texts_and_shares(prompts, frame, 8) for frame in (0, 4, 8)]
    for frame, (own, shares) in zip((0, 4, 8), parts, strict=True):
        assert own == texts
        np.testing.assert_array_equal(shares, whole[:, frame : frame + 8])


def test_a_prompt_that_does_not_change_has_no_shares():
    assert texts_and_shares(["0: a", "b"], 4, 8) == (["a", "b"], None)
    assert texts_and_shares([], 0, 8) == ([], None)
