"""The exception for input that a person can correct."""

from collections.abc import Sequence


class InputError(ValueError):
    """Reports bad input in one line, which names the thing, its value and what would be right.

    Commands print the line and exit with status 2. Any other exception is a bug and keeps its traceback.
    """


def some(names: Sequence[str]) -> str:
    """Returns the first three names for a message, and dots for the others."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
