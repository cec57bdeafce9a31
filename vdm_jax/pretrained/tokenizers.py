"""CLIP's tokenizer: byte pairs of words in lower case, from the files of a folder."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import component
from vdm_jax.pretrained.parts.clip import read_json

_ROLES = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_FURTHER = ("additional_special_tokens", "extra_special_tokens")
# What would change the tokens and is not implemented.
_MUST = {
    "tokenizer_class": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "do_lower_case": (True,),
    "add_prefix_space": (False,),
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "split_special_tokens": (False,),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTokenizer:
    """Text → int32 [length]: the start token, the text's, the end token, then padding."""

    backend: Tokenizer
    start: int
    end: int
    pad: int
    length: int
    cut: set[str] = dataclasses.field(default_factory=set, repr=False)  # texts that a warning was given of

    def __call__(self, text: str) -> np.ndarray:
        """Host side; a text that is too long is cut, with a warning that says what is lost."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        room = self.length - 2
        if len(encoding.ids) > room and text not in self.cut:
            self.cut.add(text)
            lost = text[encoding.offsets[room][0] :]
            logging.warning("text of %d tokens is cut after %d; lost: %r", len(encoding.ids), room, lost)
        tokens = [self.start, *encoding.ids[:room], self.end]
        return np.array(tokens + [self.pad] * (self.length - len(tokens)), np.int32)


def load_tokenizer(folder: str | Path, *, length: int = 77) -> ClipTokenizer:
    """Loads the tokenizer of a folder, or of its pipeline: tokenizer.json, else vocab.json and merges.txt.

    `length` is the text encoder's; tokenizer_config.json may say less.

    Raises:
        InputError: files that are missing or broken, another tokenizer, or a setting that is not implemented.
    """
    folder = component(folder, "tokenizer")
    config, special = _special_tokens(folder)
    whole = folder / "tokenizer.json"
    try:
        backend = Tokenizer.from_file(str(whole)) if whole.exists() else _from_vocabulary(folder, special, config)
    except InputError:
        raise
    except Exception as error:  # the library raises no class of its own
        raise InputError(f"{folder} holds no tokenizer that can be read: {error}") from error
    if not isinstance(backend.model, models.BPE) or backend.model.end_of_word_suffix != "</w>":
        raise InputError(f"{whole} is not a CLIP tokenizer: it must hold byte pairs with the suffix '</w>'")
    backend.no_truncation()
    backend.no_padding()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for role, token in special.items():
        if backend.token_to_id(token.content) is None:
            raise InputError(f"{folder}: {role}={token.content!r} is not in the vocabulary")
        if token.content not in known:
            backend.add_special_tokens([token])  # of several with one text, the last one's flags hold
    start, end, pad = (backend.token_to_id(special[role].content) for role in ("bos_token", "eos_token", "pad_token"))
    length = min(length, config.get("model_max_length", length))
    if length < 2:
        raise InputError(f"{folder}: length={length} must be at least 2, for the start and end tokens")
    return ClipTokenizer(backend, start, end, pad, length)


def _special_tokens(folder: Path) -> tuple[dict[str, Any], dict[str, AddedToken]]:
    """The tokenizer's config and, for each role, its token.

    special_tokens_map.json has the last word: Stable Diffusion 2 pads with "!" by it. Newer files, known by their
    `added_tokens_decoder`, say it all in the config.
    """
    settings, extra = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(settings) if settings.exists() else {}
    for key, fit in _MUST.items():
        if config.get(key, fit[0]) not in fit:
            raise InputError(f"{settings}: {key}={config[key]!r} is not implemented; it must be {fit[0]!r}")
    said = _ROLES | {role: config[role] for role in _ROLES if config.get(role) is not None}
    added = {token["content"]: token for token in config.get("added_tokens_decoder", {}).values()}
    if "added_tokens_decoder" not in config and extra.exists():
        mapped = read_json(extra)
        said |= {role: token for role, token in mapped.items() if role in _ROLES}
        config = config | {key: mapped[key] for key in _FURTHER if key in mapped}
    special = {}
    for role, token in said.items():
        token = token if isinstance(token, dict) else {"content": token}
        token = added.get(token["content"], token)
        flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip") if key in token}
        normalized = token.get("normalized", False)
        special[role] = AddedToken(token["content"], special=True, normalized=normalized, **flags)
    return config, special


def _from_vocabulary(folder: Path, special: dict[str, AddedToken], config: dict[str, Any]) -> Tokenizer:
    """CLIP's pipeline around a vocabulary and its merges."""
    files = [folder / "vocab.json", folder / "merges.txt"]
    for file in files:
        if not file.exists():
            raise InputError(f"{folder} holds no tokenizer: {file.name} is missing, and there is no tokenizer.json")
    further = [
        *config.get("added_tokens_decoder", {}).values(),
        *(t for key in _FURTHER for t in config.get(key) or ()),
    ]
    further += read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else []
    further = {token["content"] if isinstance(token, dict) else token for token in further}
    if further := sorted(further - {token.content for token in special.values()}):
        raise InputError(f"{folder}: added tokens {', '.join(further[:3])} are not implemented without tokenizer.json")
    vocabulary, merges = map(str, files)
    options = dict(unk_token=special["unk_token"].content, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges, **options))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    # A piece is a contraction, letters, one digit, or a row of other signs; spaces go.
    contractions = "|".join(f"'{end}" for end in ("s", "t", "re", "ve", "m", "ll", "d"))
    markers = r"<\|startoftext\|>|<\|endoftext\|>"
    piece = Regex(rf"{markers}|{contractions}|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(piece, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
