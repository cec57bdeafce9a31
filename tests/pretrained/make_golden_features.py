"""Random feature networks and their inputs; and makes golden_features.npz: what PyTorch answers to them.

I3D's answers are those of tests/parity/i3d_reference.py, the others those of transformers.

pip install -e .[parity,dev] && python -m tests.pretrained.make_golden_features
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tests.pretrained.make_golden_clip import ENCODERS, tokens, write_vocabulary
from tests.pretrained.networks import numbers, tensor
from vdm_jax.models.judges.i3d import I3D
from vdm_jax.models.judges.lpips import LPIPS, PLANS
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.names import Naming, Table, torch_shapes
from vdm_jax.pretrained.parts import lpips
from vdm_jax.pretrained.parts.i3d import PYTORCH_I3D

GOLDEN = Path(__file__).parent / "golden_features.npz"

I3D_WIDTH, I3D_FRAMES = 8, 11
LPIPS_WIDTH, LPIPS_SIZE = 8, (37, 50)

_VIDEOMAE = {
    "architectures": ["VideoMAEForVideoClassification"],
    "model_type": "videomae",
    "num_frames": 6,
    "image_size": 24,
    "num_channels": 3,
    "tubelet_size": 2,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
    "qv_bias": True,
    "use_mean_pooling": True,
    "num_labels": 5,
}
_FIRST = {"use_mean_pooling": False}
VIDEOMAES = {
    "videomae": _VIDEOMAE,
    "videomae, other": _VIDEOMAE | _FIRST | {"qv_bias": False, "tubelet_size": 3, "image_size": 22, "patch_size": 5},
    "videomae, headless": _VIDEOMAE | {"architectures": ["VideoMAEModel"]},
    "videomae, headless, first": _VIDEOMAE | _FIRST | {"architectures": ["VideoMAEModel"], "layer_norm_eps": 1e-12},
}

_TEXT, _VISION = ({**ENCODERS[name]} for name in ("text, quick", "image, quick"))
CLIP = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 20,
    "text_config": _TEXT | {"vocab_size": 523, "eos_token_id": 522},
    "vision_config": _VISION | {"num_channels": 3},
}
WORDS = ["the cat", "a cat, the thing!!"]


def i3d_weights(width: int, table: Table = PYTORCH_I3D) -> dict[str, np.ndarray]:
    """A tensor for every name of a spelling, the same in both; what goes through keeps its size."""
    spelt, known = (torch_shapes(_i3d(width), Naming(names)) for names in (table, PYTORCH_I3D))

    def one(name, shape):
        if name.endswith("running_var"):
            return 0.2 + np.abs(numbers(name, shape))
        return tensor(name, shape) * np.float32(2**0.5 if len(shape) > 1 else 1)

    return {name: one(*item) for name, item in zip(spelt, known.items(), strict=True)}


def lpips_weights(kind: str, width: int = LPIPS_WIDTH) -> dict[str, np.ndarray]:
    """A tensor for every name; those for layers are not negative, as the published ones."""
    abstract = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: LPIPS(kind, width=width, rngs=Keys(0))))[1])
    tensors = named(torch_shapes(abstract, lpips.naming(kind)))
    return {name: np.abs(array) if name.startswith("lin") else array for name, array in tensors.items()}


def lpips_images() -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of images."""
    first = clips("lpips", 2, *LPIPS_SIZE, 3)
    return first, np.tanh(first + 0.3 * numbers("lpips, other", first.shape))


@functools.cache
def _i3d(width: int):
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: I3D(width=width, rngs=Keys(0))))[1])


def clips(name: str, *shape: int) -> np.ndarray:
    """Clips in [-1, 1], B T H W C."""
    return np.tanh(numbers(f"clips {name}", shape))


def videomae_clips(config: dict) -> np.ndarray:
    """Two clips of a network's shape."""
    return clips("videomae", 2, config["num_frames"], *2 * [config["image_size"]], config["num_channels"])


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    """A folder of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_clip(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The folder of the pair, with its tokenizer."""
    write_vocabulary(folder, model_max_length=_TEXT["max_position_embeddings"])
    return write_folder(folder, CLIP, tensors)


def named(shapes: dict[str, tuple[int, ...]], change: Callable = tensor) -> dict[str, np.ndarray]:
    """The tensors of names."""
    return {name: change(name, shape) for name, shape in shapes.items()}


if __name__ == "__main__":
    from tests.parity import test_features as theirs
    from tests.parity.i3d_reference import i3d

    logits, pooled = i3d(i3d_weights(I3D_WIDTH), clips("i3d", 1, I3D_FRAMES, 224, 224, 3))
    kept = {"i3d, logits": logits, "i3d, pooled": pooled}
    small = np.repeat(clips("i3d, small", 1, 9, 28, 40, 1), 3, axis=-1)
    kept["i3d, small"] = i3d(i3d_weights(I3D_WIDTH), theirs.interpolated(small, 224))[0]
    for name, config in VIDEOMAES.items():
        kept[name] = theirs.videomae_answers(theirs.videomae(config), videomae_clips(config))
    size = _VISION["image_size"]
    kept["clip, images"], kept["clip, texts"] = theirs.clip_answers(
        theirs.clip(), clips("clip", 2, 3, size, size, 3), tokens(12, end=522)
    )
    for kind in PLANS:
        kept[f"lpips, {kind}"] = theirs.lpips_answers(kind, lpips_weights(kind), *lpips_images())
    kept["resized"] = theirs.interpolated(clips("resized", 1, 2, 7, 5, 3), 9)
    np.savez_compressed(GOLDEN, **kept)
