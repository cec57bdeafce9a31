"""Loads tokenizers from the files of a folder: CLIP's byte pairs, T5's sentencepiece models, BERT's pieces of words."""

import dataclasses
import html
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import component, read_json
from vdm_jax.pretrained.sentencepiece import read_sentencepiece

_ROLES = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
_MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens")
# Implemented values of settings that change the tokens.
_IMPLEMENTED = {
    "tokenizer_class": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "do_lower_case": (True,),
    "add_prefix_space": (False,),
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "split_special_tokens": (False,),
}


def unescape(text: str) -> str:
    """Returns a text with characters for HTML's names, as in "&amp;amp;", and one space for any row of spaces (Wan)."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def lower(text: str) -> str:
    """Returns a text in lower case, without spaces around it (Latte)."""
    return text.lower().strip()


# How a published pipeline cleans prompts, by name. None also mends wrongly decoded characters, as ftfy does.
CLEANING: dict[str | None, Callable[[str], str]] = {None: str, "html": unescape, "lower": lower}


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """Returns the tokens of a text, int32 [length]: tokens of the `start`, of the text and of the `end`, padding."""

    backend: Tokenizer
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    length: int
    normalise: Callable[[str], str] = str  # before `backend`
    clean: Callable[[str], str] = str  # before `normalise`
    cut: set[str] = dataclasses.field(default_factory=set, repr=False)  # texts with a warning already

    def __call__(self, text: str) -> np.ndarray:
        """Runs on the host. A text that is too long is cut, with a warning that shows the lost part."""
        normal = self.normalise(self.clean(text))
        encoding = self.backend.encode(normal, add_special_tokens=False)
        room = self.length - len(self.start) - len(self.end)
        if len(encoding.ids) > room and text not in self.cut:
            self.cut.add(text)
            lost = normal[encoding.offsets[room][0] :]
            logging.warning("a text of %d tokens is cut after %d; lost: %r", len(encoding.ids), room, lost)
        tokens = [*self.start, *encoding.ids[:room], *self.end]
        return np.array(tokens + [self.pad] * (self.length - len(tokens)), np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class PairTokenizer:
    """Returns the tokens of two tokenizers, one after the other (`models.text.pair`)."""

    first: Callable[[str], np.ndarray]
    second: Callable[[str], np.ndarray]

    def __call__(self, text: str) -> np.ndarray:
        """Runs on the host."""
        return np.concatenate([self.first(text), self.second(text)])


def load_t5_tokenizer(folder: str | Path, *, length: int) -> PromptTokenizer:
    """Loads the tokenizer of a T5 or UMT5: tokenizer.json, else spiece.model.

    It is in the pipeline's folder, in the encoder's folder, or in the folder `tokenizer` next to that.

    Raises:
        InputError: files are missing or broken, it is another tokenizer, or `length` has no room for the end token.
    """
    file = _tokenizer_file(folder, "tokenizer.json", "spiece.model")
    if file.suffix == ".model":
        model = read_sentencepiece(file)
        backend, normalise = model.backend, model.normalise
    else:
        backend, normalise = _read_whole(file), str
    # A sentencepiece model has spaces before the names of special tokens.
    special = [(backend.id_to_token(number) or "").strip() for number in range(2)]
    if not isinstance(backend.model, models.Unigram) or special != ["<pad>", "</s>"]:
        raise InputError(f"{file} is not a tokenizer of T5: it must be a Unigram model with <pad> and </s> as 0 and 1")
    if length < 1:
        raise InputError(f"{file}: length={length} must be at least 1, for the end token")
    return PromptTokenizer(backend, (), (1,), 0, length, normalise)


def load_bert_tokenizer(folder: str | Path, *, length: int) -> PromptTokenizer:
    """Loads the tokenizer of a BERT: tokenizer.json, else vocab.txt; see `load_t5_tokenizer`."""
    file = _tokenizer_file(folder, "tokenizer.json", "vocab.txt")
    backend = _read_whole(file) if file.suffix == ".json" else _from_words(file)
    pad, start, end = (backend.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
    if not isinstance(backend.model, models.WordPiece) or pad != 0 or None in (start, end):
        raise InputError(f"{file} is no tokenizer of BERT: it must have pieces of words, [CLS], [SEP], and [PAD] as 0")
    if length < 2:
        raise InputError(f"{file}: length={length} must be at least 2, for the start and end tokens")
    return PromptTokenizer(backend, (start,), (end,), pad, length)


def _tokenizer_file(folder: str | Path, *names: str) -> Path:
    """Returns the first of the files that is there."""
    places = (component(folder, "tokenizer"), Path(folder).parent / "tokenizer")
    for file in (place / name for place in places for name in names):
        if file.exists():
            return file
    raise InputError(f"{places[0]} holds no tokenizer: {' and '.join(names)} are missing")


def _read_whole(file: Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, which neither cuts nor pads."""
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no class of its own
        raise InputError(f"{file} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _from_words(file: Path) -> Tokenizer:
    """Returns BERT's tokenizer for a vocabulary; tokenizer_config.json says whether it is for lower case."""
    settings = file.with_name("tokenizer_config.json")
    config = read_json(settings) if settings.exists() else {}
    try:
        backend = Tokenizer(models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    except Exception as error:  # the library raises no class of its own
        raise InputError(f"{file} cannot be read: {error}") from error
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([token for token in special if backend.token_to_id(token) is not None])
    return backend


def load_tokenizer(folder: str | Path, *, length: int = 77) -> PromptTokenizer:
    """Loads the tokenizer of CLIP: tokenizer.json, else vocab.json and merges.txt; see `load_t5_tokenizer`.

    `length` is the length of the text encoder; tokenizer_config.json may have a smaller one.

    Raises:
        InputError: files are missing or broken, it is another tokenizer, or a setting is not implemented.
    """
    beside = Path(folder).parent / "tokenizer"
    folder = component(folder, "tokenizer")
    if beside.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        folder = beside
    config, special = _special_tokens(folder)
    file = folder / "tokenizer.json"
    try:
        backend = _read_whole(file) if file.exists() else _from_vocabulary(folder, special, config)
    except InputError:
        raise
    except Exception as error:  # the library raises no class of its own
        raise InputError(f"{folder} holds no tokenizer that can be read: {error}") from error
    if not isinstance(backend.model, models.BPE) or backend.model.end_of_word_suffix != "</w>":
        raise InputError(f"{file} is not a CLIP tokenizer: it must hold byte pairs with the suffix '</w>'")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for role, token in special.items():
        if backend.token_to_id(token.content) is None:
            raise InputError(f"{folder}: {role}={token.content!r} is not in the vocabulary")
        if token.content not in known:
            backend.add_special_tokens([token])  # if several have the same text, the flags of the last one count
    start, end, pad = (backend.token_to_id(special[role].content) for role in ("bos_token", "eos_token", "pad_token"))
    length = min(length, config.get("model_max_length", length))
    if length < 2:
        raise InputError(f"{folder}: length={length} must be at least 2, for the start and end tokens")
    return PromptTokenizer(backend, (start,), (end,), pad, length)


def _special_tokens(folder: Path) -> tuple[dict[str, Any], dict[str, AddedToken]]:
    """Returns the tokenizer's config, and the token of each role.

    special_tokens_map.json overrides tokenizer_config.json: Stable Diffusion 2 pads with "!" by it. Newer folders, with
    an `added_tokens_decoder`, have all tokens in tokenizer_config.json.
    """
    settings, extra = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(settings) if settings.exists() else {}
    for key, valid in _IMPLEMENTED.items():
        if config.get(key, valid[0]) not in valid:
            raise InputError(f"{settings}: {key}={config[key]!r} is not implemented; it must be {valid[0]!r}")
    tokens = _ROLES | {role: config[role] for role in _ROLES if config.get(role) is not None}
    added = {token["content"]: token for token in config.get("added_tokens_decoder", {}).values()}
    if "added_tokens_decoder" not in config and extra.exists():
        mapped = read_json(extra)
        tokens |= {role: token for role, token in mapped.items() if role in _ROLES}
        config = config | {key: mapped[key] for key in _MORE_TOKENS if key in mapped}
    special = {}
    for role, token in tokens.items():
        token = token if isinstance(token, dict) else {"content": token}
        token = added.get(token["content"], token)
        flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip") if key in token}
        normalized = token.get("normalized", False)
        special[role] = AddedToken(token["content"], special=True, normalized=normalized, **flags)
    return config, special


def _from_vocabulary(folder: Path, special: dict[str, AddedToken], config: dict[str, Any]) -> Tokenizer:
    """Returns CLIP's tokenizer for a vocabulary and its merges."""
    files = [folder / "vocab.json", folder / "merges.txt"]
    for file in files:
        if not file.exists():
            raise InputError(f"{folder} holds no tokenizer: {file.name} is missing, and there is no tokenizer.json")
    added = [*config.get("added_tokens_decoder", {}).values()]
    added += [token for key in _MORE_TOKENS for token in config.get(key) or ()]
    added += read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else []
    texts = {token["content"] if isinstance(token, dict) else token for token in added}
    if added := sorted(texts - {token.content for token in special.values()}):
        raise InputError(f"{folder}: added tokens {', '.join(added[:3])} are not implemented without tokenizer.json")
    vocabulary, merges = map(str, files)
    options = dict(unk_token=special["unk_token"].content, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges, **options))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    # A piece is a contraction, a row of letters, one digit, or a row of other signs. Spaces are dropped.
    piece = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(piece), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
