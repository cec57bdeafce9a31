"""Loads I3D from the files that Fréchet video distances are computed with, after `experiments/convert_i3d.py`.

The files name the tensors of the same network in two ways: pytorch-i3d (`i3d_pretrained_400.pt`, `rgb_imagenet.pt`) and
kinetics_i3d_pytorch (`i3d_torchscript.pt`).
"""

from pathlib import Path

from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.judges.i3d import I3D, MIXED
from vdm_jax.pretrained.folder import Weights
from vdm_jax.pretrained.names import Naming, Part, Table, first_three, load_part

PUBLISHED = (
    "i3d_torchscript.pt (flateon/FVD-I3D-torchscript) or i3d_pretrained_400.pt (songweige/TATS, tats/fvd), made "
    "into safetensors by experiments/convert_i3d.py"
)

_CONVOLUTIONS = ("1a_7x7", "2b_1x1", "2c_3x3")
_UNITS: Table = (
    (r"/conv/", "/conv3d/"),
    (r"/norm/(mean|var)$", r"/norm/running_\1"),
    (r"^logits/", "logits/conv3d/"),
    (r"/(kernel|scale)$", "/weight"),
)
PYTORCH_I3D: Table = (
    *((f"^conv{name[:2]}/", f"Conv3d_{name}/") for name in _CONVOLUTIONS),
    *((f"^mixed/{i}/", f"Mixed_{name}/") for i, name in enumerate(MIXED)),
    *_UNITS,
    (r"/norm/", "/bn/"),
)
KINETICS_I3D_PYTORCH: Table = (
    *((f"^conv{name[:2]}/", f"conv3d_{name}/") for name in _CONVOLUTIONS),
    *((f"^mixed/{i}/", f"mixed_{name}/") for i, name in enumerate(MIXED)),
    (r"/b0/", "/branch_0/"),
    (r"/b([12])a/", r"/branch_\1/0/"),
    (r"/b([123])b/", r"/branch_\1/1/"),
    *_UNITS,
    (r"/norm/", "/batch3d/"),
    (r"^logits/", "conv3d_0c_1x1/"),
)
# For each first tensor of a file: the names of all tensors, and the last tensor.
_NAMES = {
    "Conv3d_1a_7x7.conv3d.weight": (PYTORCH_I3D, "logits.conv3d.weight"),
    "conv3d_1a_7x7.conv3d.weight": (KINETICS_I3D_PYTORCH, "conv3d_0c_1x1.conv3d.weight"),
}


def load_i3d(path: str | Path, *, mesh: Mesh | None = None, epsilon: float = 1e-3) -> Part:
    """Loads an `I3D` from a safetensors file.

    `epsilon` belongs to batch norm: 1e-3 in TensorFlow's graph, 1e-5 in code that comes with i3d_pretrained_400.pt.

    Raises:
        InputError: no such file, a pickle, another network, or tensors that do not fit it.
    """
    weights = open_judge(Path(path), "I3D", PUBLISHED, "convert_i3d.py makes one of a .pt file")
    weights.part(*[name for name in weights if name.endswith(".num_batches_tracked")])  # counters of training
    first = next((name for name in _NAMES if name in weights), None)
    table, last = _NAMES.get(first, ((), ""))
    if last not in weights:
        names = first_three(sorted(weights))
        raise InputError(f"{path} does not hold I3D: {' or '.join(_NAMES)} must be there, not only {names}")
    config = {"classes": weights.shape(last)[0], "width": weights.shape(first)[0], "epsilon": epsilon}
    return load_part(weights, I3D, config, Naming(table), config, mesh=mesh, where=str(path))


def open_judge(path: Path, name: str, published: str, script: str) -> Weights:
    """Opens a file that a script in experiments/ made. Raises InputError for no file, or a file of another format."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; {name} is published as {published}")
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must be a safetensors file; experiments/{script}")
    return Weights(path)
