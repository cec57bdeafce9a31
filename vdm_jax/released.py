"""Keys and names of version 0.1.0 in the terms of this version: the only place that knows them."""

import re
from typing import Any

# Config keys of version 0.1.0, and the keys that replaced them.
REMOVED = {
    "pretrained.folder": "model.network.folder",
    "pretrained.motion_adapter": "model.network.motion_adapter",
    "pretrained.new_motion": "model.network.new_motion",
    "pretrained.train": "train.parts",
    "pretrained.rank": "train.rank",
    "pretrained.unet": "model.network",
    "pretrained": "model.network",
    "model.unet": "model.network",
    "data.caption_dropout": "objective.null_probability",
}

# Parts of parameter paths, now and then, in the order in which they are replaced.
_PATHS = (
    (r"^network/", "unet/"),
    (r"^unet/(stem|head)/conv/", lambda m: f"unet/conv_{'in' if m[1] == 'stem' else 'out'}/"),
    (r"^unet/stem_attention/", "unet/stem_time/"),
    (r"^unet/scalars/", "unet/added_mlp/"),
    (r"/(space|time)_attention/attention/", r"/\1_attention/"),
    (r"/space_attention/cross/(q|out)/", r"/space_attention/cross_\1/"),
    (r"/cross/text_kv/", "/text_kv/"),
    (r"/text_kv/", "/context_kv/"),
    (r"^(text/blocks/\d+)/attention/", r"\1/"),
)


def is_released(values: dict[str, Any]) -> bool:
    """Returns whether a config.json is of version 0.1.0."""
    return "unet" in values.get("model", {})


def translate_config(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json of version 0.1.0 with the keys of this version; any other as it is."""
    if not is_released(values):
        return values
    values = {"init_from": ""} | values
    loaded = values.pop("pretrained", {"folder": ""})
    model, text = values["model"], values["model"]["text"]
    parts = {
        "network": {"kind": "unet"} | model["unet"],
        "text": {"kind": "bytes"} | text if text.get("length") else {"kind": "none"},
        "codec": {"kind": "pixels"},
    }
    values["train"] = {"parts": "all", "rank": 8}
    if folder := loaded["folder"]:
        motion = {"motion_adapter": loaded["motion_adapter"], "new_motion": loaded["new_motion"]}
        parts = {"network": {"folder": folder} | motion | loaded["unet"]}
        parts |= {"text": {"folder": folder}, "codec": {"folder": folder}}
        values["train"] = {"parts": loaded["train"], "rank": loaded["rank"]}
        values["process"], values["objective"]["prediction"] = {"name": "cosine"}, "v"
    known = values.get("known", {"mixture": {}, "noise": 0.0, "downsample": 1})
    data = {key: value for key, value in values["data"].items() if key != "caption_dropout"}
    return values | {"model": {"dtype": model["dtype"]} | parts, "known": known | {"tell": "channels"}, "data": data}


def released_path(path: str, *, own: bool) -> str:
    """Returns the path that a parameter had in version 0.1.0; `own` networks called the embedding of time otherwise."""
    for now, then in _PATHS:
        path = re.sub(now, then, path)
    if own:
        path = re.sub(r"^unet/time/(first|second)/", lambda m: f"unet/time_{'in' if m[1] == 'first' else 'out'}/", path)
    return path


def removed_key(key: str) -> str | None:
    """Returns a line that names the replacement of a removed key, or of a key in a removed group; None for others."""
    for old, new in REMOVED.items():
        if key == old or key.startswith(f"{old}."):
            return f"config.{key} was removed: use config.{new}{key.removeprefix(old)}"
    return None
