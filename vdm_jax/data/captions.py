"""Reads the captions of videos: metadata files as in Hugging Face's VideoFolder, and text files beside the videos."""

import csv
import io
import json
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.errors import InputError, some

log = logging.getLogger(__name__)

_OF_TEXT = (".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_captions(files: Sequence[Path], videos: Sequence[Path], several: str) -> dict[Path, tuple[str, ...]]:
    """Returns the captions of each video that has some; warns about videos without a caption.

    Captions are in `metadata.jsonl`, `metadata.csv` or `metadata.parquet` in any folder, with paths relative to that
    folder. A video that is not in them may have a .txt beside it: `a.txt` or `a.mp4.txt` for `a.mp4`.

    Args:
        files: all files of the folder, the videos among them.
        several: what a second caption of a video is: an error ("one"), left out ("first"), or kept ("all").

    Raises:
        InputError: a file that cannot be read, names a missing video, or has a second caption where one is allowed.
    """
    if several not in ("one", "first", "all"):
        raise InputError(f"data.captions={several!r} must be one, first or all")
    # macOS writes decomposed names (NFD); lists of captions are mostly composed (NFC).
    by_name = {_name(path): path for path in videos} | {os.path.abspath(path): path for path in videos}
    captions: dict[Path, list[str]] = {}
    metadata = [path for path in files if path.name in _METADATA]
    for path in metadata:
        _add_metadata(path, by_name, several, captions)
    beside = {_name(path.with_suffix("")): path for path in files if path.suffix.lower() == ".txt"}
    read = set(metadata)
    for video in videos:
        text = beside.get(_name(video)) or beside.get(_name(video.with_suffix("")))
        if text and video not in captions:
            captions[video] = [_read_text(text).strip()]
            read.add(text)
    if without := len(videos) - len(captions):
        unread = [path.name for path in files if path.suffix.lower() in _OF_TEXT and path not in read]
        note = f"; not read as captions: {some(unread)}" if unread else ""
        log.warning("%d of %d videos have no caption (now empty)%s", without, len(videos), note)
    return {video: tuple(texts) for video, texts in captions.items()}


def _add_metadata(path: Path, by_name: dict[str, Path], several: str, captions: dict[Path, list[str]]) -> None:
    """Adds the captions of a metadata file."""
    absent = []
    for line, row in _METADATA[path.name](path):
        file, text = _file_and_text(f"{path}, line {line}", row)
        video = _find(path.parent, file, by_name)
        if video is None:
            absent.append(file)
            continue
        texts = captions.setdefault(video, [])
        if several == "one" and texts and text not in texts:
            raise InputError(
                f"{path}, line {line}: {file} has a second caption; data.captions='first' takes the first one, "
                "'all' draws one of them for each sample"
            )
        if text not in texts and (several == "all" or not texts):
            texts.append(text)
    if absent:
        raise InputError(f"{path} has captions for {len(absent)} files that are no videos here: {some(absent)}")


def _name(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.abspath(path))


def _find(folder: Path, file: str, by_name: dict[str, Path]) -> Path | None:
    """Returns the video that a list in `folder` names `file`, with / or with \\ between folders."""
    for path in (folder / file, folder / file.replace("\\", "/")):
        if video := by_name.get(os.path.abspath(path)) or by_name.get(_name(path)):
            return video
    return None


def _file_and_text(where: str, row: Any) -> tuple[str, str]:
    """Returns a row's `file_name` (or only `*_file_name`), and its `text` (or `caption`)."""
    columns = row if isinstance(row, dict) else {}
    columns = {str(name).strip().lower(): value for name, value in columns.items() if isinstance(value, str)}
    files = [name for name in columns if name == "file_name"] or [n for n in columns if n.endswith("_file_name")]
    texts = [name for name in ("text", "caption") if name in columns]
    if len(files) != 1 or not texts:
        there = ", ".join(map(repr, columns)) or "no column"
        raise InputError(f"{where}: needs text in file_name and in text, and has it in {there}")
    file, text = columns[files[0]], columns[texts[0]]
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # possible in JSON, not in UTF-8
        raise InputError(f"{where}: the text contains half of a surrogate pair")
    return file, text


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    text = _read_text(path)
    if text.lstrip().startswith("["):
        raise InputError(f"{path} is one JSON array; it must have one object on each line")
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error})") from error


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the line on which each row begins, and the row. The columns are separated by , or ; or tabs."""
    text, header, line = _read_text(path), None, 1
    delimiter = max(",;\t", key=text.strip().split("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for row in rows:
            if header is None:
                header = row if any(row) else None
            elif len(row) > len(header):
                raise InputError(
                    f"{path}, line {line} has {len(row)} fields, and the header {len(header)}: "
                    f'a text with {delimiter!r} needs quotes ("a dog, running")'
                )
            elif any(map(str.strip, row)):
                yield line, dict(zip(header, row, strict=False))  # a row may be shorter
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line} is not CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet  # takes half a second, which other folders save

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]})") from error
    yield from enumerate(rows, 1)


_METADATA = {"metadata.jsonl": _read_jsonl, "metadata.csv": _read_csv, "metadata.parquet": _read_parquet}
