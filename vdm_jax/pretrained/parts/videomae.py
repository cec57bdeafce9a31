"""Loads VideoMAE's encoder in the format of transformers; of version 2 after `experiments/convert_videomae.py`.

A setting that is not implemented is an error, never ignored.
"""

from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.judges.videomae import VideoMAE
from vdm_jax.models.rngs import Keys
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.names import Naming, Table
from vdm_jax.pretrained.parts.clip import STACKED, Config, PublishedEncoder, arguments_of, published, read_json

PUBLISHED = (
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth (OpenGVLab/InternVideoMAE_models, mae-g), made into a folder by "
    "experiments/convert_videomae.py, or as a folder of transformers, such as MCG-NJU/videomae-base-finetuned-ssv2"
)
HEADLESS, CLASSIFIER = "VideoMAEModel", "VideoMAEForVideoClassification"

_TABLE: Table = (
    (r"^patches/", "embeddings/patch_embeddings/projection/"),
    (r"^blocks/", "encoder/layer/"),
    (r"/norm1/", "/layernorm_before/"),
    (r"/norm2/", "/layernorm_after/"),
    (r"/attention/([qkv]|out)/", r"/\1/"),
    (r"/q/kernel$", "/attention/attention/query/weight"),
    (r"/k/kernel$", "/attention/attention/key/weight"),
    (r"/v/kernel$", "/attention/attention/value/weight"),
    (r"/([qv])/bias$", r"/attention/attention/\1_bias"),
    (r"/out/", "/attention/output/dense/"),
    (r"/up/", "/intermediate/dense/"),
    (r"/down/", "/output/dense/"),
    (r"/(kernel|scale)$", "/weight"),
)
_KEYS = {
    "num_frames": "frames",
    "image_size": "size",
    "num_channels": "channels",
    "tubelet_size": "tubelet",
    "patch_size": "patch",
    "hidden_size": "width",
    "intermediate_size": "middle",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
# Settings of training, of the classes, and of other programs.
_IGNORED = ("_name_or_path", "model_type", "transformers_version", "torch_dtype", "dtype", "initializer_range")
_IGNORED += ("_attn_implementation_autoset",)
_IGNORED += ("attention_probs_dropout_prob", "hidden_dropout_prob", "norm_pix_loss", "problem_type")
_IGNORED += ("id2label", "label2id", "num_labels", "fc_norm_eps")
_IGNORED += tuple(
    f"decoder_{name}" for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
)


def load_videomae(folder: str | Path, *, mesh: Mesh | None = None) -> PublishedEncoder:
    """Loads a `VideoMAE` from its folder in float32, without the last matrix of a classifier.

    Raises:
        InputError: no such folder, another model, an unknown setting, pickles, or tensors that do not fit the config.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; VideoMAE is published as {PUBLISHED}")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "videomae":
        raise InputError(f"{folder}: model_type={config.get('model_type')!r} must be 'videomae'")
    arguments, naming = translate(config)
    weights = Weights(folder)
    if config["architectures"] == [CLASSIFIER]:
        weights.part("classifier.")
    abstract = nnx.eval_shape(lambda: VideoMAE(**arguments, rngs=Keys(0)))
    return published(abstract, weights, naming, mesh, str(folder), config)


def translate(config: Config) -> tuple[dict[str, Any], Naming]:
    """Returns (arguments of `VideoMAE`, names of its parameters) of a config.

    With use_mean_pooling a classifier normalises the mean of all tokens, and a model without a head has no last norm.
    Without use_mean_pooling the first token is normalised. `fc_norm_eps` is the epsilon of a classifier's norm: our own
    key, as transformers always takes 1e-5.

    Raises:
        InputError: another architecture, or a setting that is not implemented.
    """
    config = {"qv_bias" if key == "qkv_bias" else key: value for key, value in config.items()}  # the older spelling
    for key in ("architectures", "use_mean_pooling", "qv_bias"):
        if key not in config:
            raise InputError(f"VideoMAE: the config must have {key}")
    must = {"architectures": ([CLASSIFIER], [HEADLESS]), "use_mean_pooling": (True, False), "qv_bias": (True, False)}
    arguments = arguments_of("VideoMAE", config, _KEYS, _IGNORED, must)
    mean, headed = config["use_mean_pooling"], config["architectures"] == [CLASSIFIER]
    final = (config.get("fc_norm_eps", 1e-5) if headed else None) if mean else config["layer_norm_eps"]
    table = (*_TABLE, (r"^norm/", "layernorm/"), (r"^", "videomae/" if headed else ""))
    table = (*table, (r"^videomae/layernorm/", "fc_norm/")) if mean else table
    return arguments | {"biased": config["qv_bias"], "mean": mean, "final": final}, Naming(table, stacked=STACKED)
