"""The one exception for input that a person can correct."""


class InputError(ValueError):
    """Bad input: one line that names the thing, its value and what would be right.

    Commands print it and exit with status 2; anything else that is raised is a bug and keeps its traceback.
    """
