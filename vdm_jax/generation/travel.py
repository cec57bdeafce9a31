"""Prompts that change in the course of a video: "0: a seven going up | 8: a seven going left"."""

import re
from collections.abc import Sequence

from vdm_jax.errors import InputError


def read_travel(prompt: str) -> dict[int, str]:
    """What is asked for from which frame on; a plain prompt holds from frame 0.

    Raises:
        InputError: a part that does not begin with its frame, or frames that do not rise from 0.
    """
    if not re.match(r"\s*\d+\s*:", prompt):
        return {0: prompt}
    parts = [re.fullmatch(r"\s*(\d+)\s*:(.*)", part) for part in prompt.split("|")]
    if not all(parts):
        raise InputError(f"prompt {prompt!r}: every part between | must begin with its frame, as in '8: a prompt'")
    frames = [int(part[1]) for part in parts]
    if frames[0] != 0 or sorted(set(frames)) != frames:
        raise InputError(f"prompt {prompt!r}: frames {frames} must begin with 0 and rise")
    return {frame: part[2].strip() for frame, part in zip(frames, parts, strict=True)}


def prompts_at(prompts: Sequence[str], frame: int) -> list[str]:
    """What each prompt asks for at a frame."""
    travels = [read_travel(prompt) for prompt in prompts]
    return [travel[max(start for start in travel if start <= frame)] for travel in travels]


def check_travel(prompts: Sequence[str], windows: Sequence[int]) -> None:
    """Raises InputError where a prompt changes at a frame that is not the first new one of a window."""
    for prompt in prompts:
        for frame in read_travel(prompt):
            if frame not in (0, *windows):
                raise InputError(
                    f"prompt {prompt!r} changes at frame {frame}, but the windows draw from frames "
                    f"{', '.join(map(str, sorted(windows)))} on (--context and --frames set them)"
                )
