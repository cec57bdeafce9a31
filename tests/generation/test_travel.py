"""Prompts that change in the course of a video."""

import pytest

from vdm_jax.errors import InputError
from vdm_jax.generation.travel import check_travel, prompts_at, read_travel


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
