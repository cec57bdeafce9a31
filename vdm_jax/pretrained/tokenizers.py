"""Loads CLIP's tokenizer, byte pairs of words in lower case, from the files of a folder."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vdm_jax.errors import InputError
from vdm_jax.pretrained.folder import component
from vdm_jax.pretrained.parts.clip import read_json

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


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTokenizer:
    """Returns the tokens of a text, int32 [length]: start token, tokens of the text, end token, padding."""

    backend: Tokenizer
    start: int
    end: int
    pad: int
    length: int
    cut: set[str] = dataclasses.field(default_factory=set, repr=False)  # texts with a warning already

    def __call__(self, text: str) -> np.ndarray:
        """Runs on the host. A text that is too long is cut, with a warning that shows the lost part."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        room = self.length - 2
        if len(encoding.ids) > room and text not in self.cut:
            self.cut.add(text)
            lost = text[encoding.offsets[room][0] :]
            logging.warning("a text of %d tokens is cut after %d; lost: %r", len(encoding.ids), room, lost)
        tokens = [self.start, *encoding.ids[:room], self.end]
        return np.array(tokens + [self.pad] * (self.length - len(tokens)), np.int32)


def load_tokenizer(folder: str | Path, *, length: int = 77) -> ClipTokenizer:
    """Loads the tokenizer of a folder or of a pipeline's folder: tokenizer.json, else vocab.json and merges.txt.

    `length` is the length of the text encoder; tokenizer_config.json may have a smaller one.

    Raises:
        InputError: files are missing or broken, it is another tokenizer, or a setting is not implemented.
    """
    folder = component(folder, "tokenizer")
    config, special = _special_tokens(folder)
    file = folder / "tokenizer.json"
    try:
        backend = Tokenizer.from_file(str(file)) if file.exists() else _from_vocabulary(folder, special, config)
    except InputError:
        raise
    except Exception as error:  # the library raises no class of its own
        raise InputError(f"{folder} holds no tokenizer that can be read: {error}") from error
    if not isinstance(backend.model, models.BPE) or backend.model.end_of_word_suffix != "</w>":
        raise InputError(f"{file} is not a CLIP tokenizer: it must hold byte pairs with the suffix '</w>'")
    backend.no_truncation()
    backend.no_padding()
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
    return ClipTokenizer(backend, start, end, pad, length)


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
