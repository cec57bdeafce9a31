"""Config keys of earlier versions, and the keys that replaced them."""

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


def removed_key(key: str) -> str | None:
    """Returns a line that names the replacement of a removed key, or of a key in a removed group; None for others."""
    for old, new in REMOVED.items():
        if key == old or key.startswith(f"{old}."):
            return f"config.{key} was removed: use config.{new}{key.removeprefix(old)}"
    return None
