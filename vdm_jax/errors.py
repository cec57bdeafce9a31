"""The exception for input that a person can correct."""


class InputError(ValueError):
    """Reports bad input in one line, which names the thing, its value and what would be right.

    Commands print the line and exit with status 2. Any other exception is a bug and keeps its traceback.
    """
