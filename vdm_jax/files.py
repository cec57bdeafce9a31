"""Writes files completely or not at all, and locks folders."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdm_jax.errors import InputError

FilePath = str | os.PathLike


@contextlib.contextmanager
def whole_file(path: FilePath) -> Iterator[Path]:
    """Yields a temporary path to write to; the file replaces `path` at the end. If writing fails, nothing is left.

    The temporary path has the suffix of `path`, by which libraries choose a format. Missing folders are made. Raises
    InputError if the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the name
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_text(path: FilePath, text: str) -> None:
    """Writes a text file completely or not at all. Raises InputError if it cannot be written."""
    with whole_file(path) as part:
        part.write_text(text)


def read_json_lines(path: FilePath) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file: a job may be writing the last line, or have been ended in a line before."""
    lines = []
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return lines


@contextlib.contextmanager
def alone_in(folder: FilePath) -> Iterator[None]:
    """Locks a folder against other processes.

    Raises InputError if another process has locked the folder, or it cannot be written.
    """
    path = Path(folder) / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process works there; wait for it, or use another folder") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
