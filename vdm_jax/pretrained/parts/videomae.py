"""Loads VideoMAE's encoder in the format of transformers; of version 2 after `experiments/convert_videomae.py`.

A setting that is not implemented is an error, never ignored.
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.judges.videomae import VideoMAE
from vdm_jax.pretrained.folder import Config, Weights
from vdm_jax.pretrained.names import Naming, Part, Table, load_part
from vdm_jax.pretrained.parts.clip import COMMON, IGNORED, STACKED, arguments_of, read_model

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
_KEYS = COMMON | {"num_frames": "frames", "image_size": "size", "num_channels": "channels"}
_KEYS |= {"tubelet_size": "tubelet", "patch_size": "patch"}
# Settings of training, of the classes, and of other programs.
_IGNORED = (*IGNORED, "attention_probs_dropout_prob", "hidden_dropout_prob", "norm_pix_loss", "problem_type")
_IGNORED += ("id2label", "label2id", "num_labels", "fc_norm_eps", "decoder_hidden_size", "decoder_intermediate_size")
_IGNORED += ("decoder_num_attention_heads", "decoder_num_hidden_layers")


def load_videomae(folder: str | Path, *, mesh: Mesh | None = None) -> Part:
    """Loads a `VideoMAE` from its folder in float32, without the last matrix of a classifier.

    Raises:
        InputError: no such folder, another model, an unknown setting, pickles, or tensors that do not fit the config.
    """
    folder = Path(folder)
    config = read_model(folder, "videomae", f"VideoMAE is published as {PUBLISHED}")
    arguments, naming = translate(config)
    weights = Weights(folder)
    if config["architectures"] == [CLASSIFIER]:
        weights.part("classifier.")
    return load_part(weights, VideoMAE, arguments, naming, config, mesh=mesh, where=str(folder))


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
