"""Reads sentencepiece models (Kudo & Richardson 2018, arXiv 1808.06226) of the kind Unigram, as in T5's spiece.model.

The file is a protocol buffer; its fields have the numbers of sentencepiece_model.proto.
"""

import dataclasses
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, models

from vdm_jax.errors import InputError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # types of pieces
# Implemented values of settings, which are also their defaults: (message, field) → (name, value).
_IMPLEMENTED = {
    (2, 3): ("model_type", 1),
    (2, 24): ("treat_whitespace_as_suffix", 0),
    (3, 3): ("add_dummy_prefix", 1),
    (3, 4): ("remove_extra_whitespaces", 1),
    (3, 5): ("escape_whitespaces", 1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Sentencepiece:
    """The tokens of a sentencepiece model.

    The names of tokens that no text contains, such as </s>, begin with a space in `backend`: no text is cut into them.
    """

    backend: Tokenizer
    table: bytes  # of characters and what stands for them: a double array of keys, then the values
    own: Sequence[str]  # pieces of the user, which the table leaves alone

    def normalise(self, text: str) -> str:
        """Returns a text as it is cut into pieces: characters replaced by the table, and ▁ before each word."""
        parts = re.split(f"({'|'.join(map(re.escape, self.own))})" if self.own else "(?!)", text)
        text = "".join(part if i % 2 else self._replaced(part) for i, part in enumerate(parts))
        text = re.sub(" +", " ", text).strip(" ")
        return f"▁{text}".replace(" ", "▁").rstrip("▁") if text else ""

    def _replaced(self, text: str) -> str:
        """Replaces the longest prefix that is a key, again and again."""
        if not self.table:
            return text
        size = int.from_bytes(self.table[:4], "little")
        units, values = np.frombuffer(self.table, "<u4", size // 4, 4), self.table[4 + size :]
        data, out, at = text.encode(errors="replace"), b"", 0
        while at < len(data):
            length, value = _longest(units, data[at:])
            if length:
                out += values[value : values.index(b"\0", value)]
            else:
                length = next(i for i in range(1, 5) if at + i >= len(data) or data[at + i] & 0xC0 != 0x80)
                out += data[at : at + length]
            at += length
        return out.decode()


def _longest(units: np.ndarray, data: bytes) -> tuple[int, int]:
    """Returns (length, value) of the longest key that data begin with; length 0 if there is none.

    `units` are a double array of the library Darts-clone.
    """
    at, length, value = 0, 0, 0
    unit = int(units[0])
    for i, byte in enumerate(data):
        at ^= (unit >> 10) << ((unit & 512) >> 6) ^ byte
        unit = int(units[at])
        if unit & 0x800000FF != byte:
            break
        if unit & 256:  # a key ends here
            length, value = i + 1, int(units[at ^ (unit >> 10) << ((unit & 512) >> 6)]) & 0x7FFFFFFF
    return length, value


def read_sentencepiece(file: Path) -> Sentencepiece:
    """Reads a sentencepiece model.

    Raises:
        InputError: the file cannot be read, or a setting is not implemented.
    """
    try:
        messages = list(_fields(file.read_bytes()))
        pieces = [_piece(value) for number, value in messages if number == 1]
        settings = {
            (message, number): value
            for message, content in messages
            if message in (2, 3)
            for number, value in _fields(content)
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{file} cannot be read as a sentencepiece model: {error}") from error
    for key, (name, value) in _IMPLEMENTED.items():
        if settings.get(key, value) != value:
            raise InputError(f"{file}: {name}={settings[key]} is not implemented; it must be {value}")
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise InputError(f"{file}: a model must have one unknown piece, not {len(unknown)}")
    in_texts = (_NORMAL, _USER_DEFINED, _BYTE)
    vocabulary = [(piece if kind in in_texts else f" {piece}", score) for piece, score, kind in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unknown[0], byte_fallback=bool(settings.get((2, 35)))))
    own = sorted((piece for piece, _, kind in pieces if kind == _USER_DEFINED), key=len, reverse=True)
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    return Sentencepiece(backend, settings.get((3, 2), b""), own)


def _piece(message: bytes) -> tuple[str, float, int]:
    """Returns (text, score, type) of a piece."""
    fields = dict(_fields(message))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, _NORMAL)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of the fields of a protocol buffer's message."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        if key & 7 == 0:
            value, at = _number(message, at)
        else:
            size, at = _number(message, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, -1), at)
            if not 0 <= size <= len(message) - at:
                raise ValueError(f"a field of {size} bytes at byte {at} of {len(message)}")
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number at a byte, seven bits a byte, and where the next field begins."""
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return value, at
