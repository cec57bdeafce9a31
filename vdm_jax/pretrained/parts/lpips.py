"""Loads LPIPS, after `experiments/convert_lpips.py`: AlexNet or VGG-16, and the authors' weights for their layers."""

from pathlib import Path

from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.judges.lpips import LPIPS
from vdm_jax.pretrained.names import Naming, Part, first_three, load_part
from vdm_jax.pretrained.parts.i3d import open_judge

PUBLISHED = (
    "alexnet-owt-7be5be79.pth or vgg16-397923af.pth (torchvision) and alex.pth or vgg.pth "
    "(richzhang/PerceptualSimilarity, lpips/weights/v0.1), made into safetensors by experiments/convert_lpips.py"
)
# Places of the convolutions in torchvision's list of layers.
PLACES = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}


def naming(kind: str) -> Naming:
    """Returns the names of "alex" or "vgg"."""
    places = ((rf"^convolutions/{i}/", f"features/{place}/") for i, place in enumerate(PLACES[kind]))
    return Naming((*places, (r"^linear/(\d)/", r"lin\1/model/1/"), (r"/kernel$", "/weight")))


def load_lpips(path: str | Path, *, mesh: Mesh | None = None) -> Part:
    """Loads an `LPIPS` from a safetensors file, whose layers show which network it is.

    Raises:
        InputError: no such file, a pickle, another network, or tensors that do not fit it.
    """
    weights = open_judge(Path(path), "LPIPS", PUBLISHED, "convert_lpips.py makes one of two .pth files")
    kind = "alex" if "features.3.weight" in weights else "vgg"
    if "features.0.weight" not in weights or "lin0.model.1.weight" not in weights:
        must = "features.0.weight and lin0.model.1.weight must be there"
        raise InputError(f"{path} does not hold LPIPS: {must}, not only {first_three(sorted(weights))}")
    config = {"kind": kind, "width": weights.shape("features.0.weight")[0]}
    return load_part(weights, LPIPS, config, naming(kind), config, mesh=mesh, where=str(path))
