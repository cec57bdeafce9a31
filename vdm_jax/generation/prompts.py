"""Files of prompts, and prompts that change during a video: "0: a seven going up | 8: a seven going left"."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.files import FilePath
from vdm_jax.typing import Float


def read_prompts(path: FilePath) -> list[str]:
    """Returns the prompts of a text file, one a line, without blank lines.

    Raises:
        InputError: the file cannot be read as UTF-8, or has no prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InputError(f"{path} cannot be read: {reason}") from error
    # A prompt copied from elsewhere may hold U+2028, at which splitlines() would cut it.
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise InputError(f"{path} holds no prompt; it needs one a line")
    return prompts


def read_travel(prompt: str) -> dict[int, str]:
    """Returns {frame: text from that frame on}; a plain prompt holds from frame 0.

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
    """Returns the text of each prompt at a frame."""
    travels = [read_travel(prompt) for prompt in prompts]
    return [travel[max(start for start in travel if start <= frame)] for travel in travels]


def texts_and_shares(
    prompts: Sequence[str], frame: int, frames: int
) -> tuple[list[str], Float[np.ndarray, "B T K"] | None]:
    """Returns K texts for each prompt, one after the other, and the share of each in `frames` frames from `frame` on.

    Between its frames one text passes linearly into the next; the last holds to the end. A prompt of fewer than K texts
    is filled up with empty texts of share 0. If no prompt changes (K = 1), the shares are None.
    """
    travels = [read_travel(prompt) for prompt in prompts]
    most = max(map(len, travels), default=1)
    texts = [text for travel in travels for text in [*travel.values(), *[""] * (most - len(travel))]]
    if most == 1:
        return texts, None
    shares = np.zeros((len(travels), frames, most), np.float32)
    for share, travel in zip(shares, travels, strict=True):
        for k, only in enumerate(np.eye(len(travel))):
            share[:, k] = np.interp(np.arange(frame, frame + frames), list(travel), only)
    return texts, shares


def check_travel(prompts: Sequence[str], frames: Sequence[int]) -> None:
    """Raises InputError for a prompt that changes at a frame not among `frames`: all, or the starts of windows."""
    there = f"the windows draw from frames {', '.join(map(str, sorted(frames)))} on (--context and --frames set them)"
    if isinstance(frames, range):
        there = f"the video has frames 0 to {frames[-1]}"
    for prompt in prompts:
        for frame in read_travel(prompt):
            if frame not in (0, *frames):
                raise InputError(f"prompt {prompt!r} changes at frame {frame}, but {there}")
