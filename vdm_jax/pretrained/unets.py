"""Published U-Nets, loaded from their folders and saved to them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import save_file

from vdm_jax.errors import InputError
from vdm_jax.models.keys import Keys
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.transformer import interleaved_code
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.pretrained.families import Config, translate, with_motion
from vdm_jax.pretrained.folder import NAMES, Weights, component, read_config
from vdm_jax.pretrained.names import load_params, torch_tensors
from vdm_jax.typing import Params

POSITIONS = "pos_embed.pe"  # of motion modules: a constant that their files hold


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedUNet:
    """A loaded network: `nnx.merge(graphdef, params)` is the `LatentUNet`; `config` is that of its folder."""

    graphdef: nnx.GraphDef
    params: Params
    config: Config


def load_unet(
    folder: str | Path, *, motion_adapter: str | Path | None = None, mesh: Mesh | None = None, **options
) -> PublishedUNet:
    """Loads a U-Net from its folder, or from that of its pipeline; with a motion adapter beside an image network.

    `options` are arguments of `LatentUNet` that are no matter of the config: dtype, attention, remat, per_frame_norm,
    window.

    Raises:
        InputError: an unknown family or setting, pickles, or tensors that the config does not say.
    """
    config, folders = read_config(folder), [component(folder, "unet")]
    if motion_adapter is not None:
        config = with_motion(config, read_config(motion_adapter))
        folders.append(Path(motion_adapter))
    arguments, naming = translate(config)
    weights = Weights(*folders)
    module = nnx.eval_shape(lambda: LatentUNet(**arguments, **options, rngs=Keys(0)))
    positions = {name: weights.take(name) for name in list(weights) if name.endswith(POSITIONS)}
    for name, code in positions.items():
        if not np.allclose(code[0], _positions(code.shape[1], code.shape[2]), atol=2e-3):
            raise InputError(f"{name} is not the sinusoidal code that is known; other positions are not implemented")
    mesh = make_mesh() if mesh is None else mesh
    params = load_params(weights, module, naming, mesh=mesh, where=" and ".join(map(str, folders)))
    return PublishedUNet(nnx.split(module)[0], params, config)


def save_unet(unet: PublishedUNet, folder: str | Path) -> None:
    """Writes config.json and safetensors that diffusers loads; a motion adapter is merged into its network."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tensors_of(unet)
    temporary = folder / f"{NAMES[0]}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / f"{NAMES[0]}.safetensors")
    (folder / "config.json").write_text(json.dumps(unet.config, indent=2) + "\n")


def tensors_of(unet: PublishedUNet) -> dict[str, np.ndarray]:
    """All tensors of a network by their names and in the layouts of the other format."""
    tensors = torch_tensors(unet.params, translate(unet.config)[1])
    if unet.config["_class_name"] == "UNetMotionModel":
        length = unet.config["motion_max_seq_length"]
        for name, tensor in list(tensors.items()):
            if "motion_modules" in name and name.endswith("norm1.weight"):
                tensors[name.replace("norm1.weight", POSITIONS)] = _positions(length, len(tensor))[None]
    return tensors


def _positions(length: int, width: int) -> np.ndarray:
    return np.asarray(interleaved_code(length, width))
