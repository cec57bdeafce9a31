"""Published U-Nets, loaded from their folders and saved to them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.errors import InputError
from vdm_jax.models.keys import Keys
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.transformer import interleaved_code
from vdm_jax.parallel.mesh import make_mesh, on_cpu
from vdm_jax.parallel.sharding import path_name
from vdm_jax.pretrained.families import Config, translate, with_motion
from vdm_jax.pretrained.folder import Weights, component, read_config, write_folder
from vdm_jax.pretrained.lora import Lora, merge_lora
from vdm_jax.pretrained.names import load_params, torch_tensors
from vdm_jax.typing import Array, Params, PyTree

# AnimateDiff's second version.
NEW_MOTION: Config = {
    "motion_num_attention_heads": 8,
    "motion_transformer_layers_per_block": 1,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}
POSITIONS = "pos_embed.pe"  # of motion modules: a constant that their files hold


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedUNet:
    """A loaded network: `nnx.merge(graphdef, params)` is the `LatentUNet`; `config` is that of its folder."""

    graphdef: nnx.GraphDef | None  # not needed to save it
    params: Params
    config: Config


def load_unet(
    folder: str | Path,
    *,
    motion_adapter: str | Path | None = None,
    new_motion: Mapping[str, Any] | None = None,
    seed: int = 0,
    loras: Sequence[Lora] = (),
    mesh: Mesh | None = None,
    params_dtype: str = "float32",
    **options,
) -> PublishedUNet:
    """Loads a U-Net from its folder, or from that of its pipeline; with a motion adapter beside an image network.

    Args:
        folder, motion_adapter: in the diffusers format.
        new_motion: in the place of an adapter, settings of its config (`NEW_MOTION` has the others): an image network
            gets motion modules that do nothing yet, as their last matrices are 0; `seed` is of the rest.
        loras: what they have for a U-Net is merged into its weights.
        mesh: default: all devices along data.
        params_dtype: of the parameters.
        options: arguments of `LatentUNet` that are no matter of the config: dtype, attention, remat, per_frame_norm,
            window.

    Raises:
        InputError: an unknown family or setting, pickles, tensors that the config does not say, or a LoRA that does
            not fit.
    """
    config, folders, new = read_config(folder), [component(folder, "unet")], "$^"
    if motion_adapter is not None:
        config = with_motion(config, read_config(motion_adapter))
        folders.append(Path(motion_adapter))
    elif new_motion is not None:
        config, new = with_motion(config, _new_adapter(config, new_motion)), "/time_attention/"
    arguments, naming = translate(config)
    weights = Weights(*folders)

    def make(seed: int) -> LatentUNet:
        return LatentUNet(**arguments, **options, rngs=Keys(seed))

    module = nnx.eval_shape(lambda: make(0))
    positions = {name: weights.take(name) for name in list(weights) if name.endswith(POSITIONS)}
    for name, code in positions.items():
        if not np.allclose(code[0], _positions(code.shape[1], code.shape[2]), atol=2e-3):
            raise InputError(f"{name} is not the sinusoidal code that is known; other positions are not implemented")
    for lora in loras:
        merge_lora(lora.where, lora.unet, weights)
    mesh = make_mesh() if mesh is None else mesh
    how = dict(mesh=mesh, where=" and ".join(map(str, folders)), dtype=params_dtype)
    params = load_params(weights, module, naming, **how, new=new)
    return PublishedUNet(nnx.split(module)[0], _begun(params, lambda: make(seed), mesh), config)


def _begun(params: PyTree, make: Callable[[], LatentUNet], mesh: Mesh) -> Params:
    """The parameters, where those that are still shapes begin as a new module's, which adds nothing to its input."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    new = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    def begin() -> list[Array]:
        fresh = jax.tree.leaves(nnx.to_pure_dict(nnx.split(make())[1]))
        last = ["/project_out/" in path_name(leaves[i][0]) for i in new]
        begun = [jnp.zeros_like(fresh[i]) if zero else fresh[i] for i, zero in zip(new, last, strict=True)]
        return [array.astype(leaves[i][1].dtype) for i, array in zip(new, begun, strict=True)]

    arrays = [leaf for _, leaf in leaves]
    if new:  # all else of the module is never computed
        how = {"out_shardings": [arrays[i].sharding for i in new], "compiler_options": on_cpu(mesh, optimization=0)}
        begun = jax.jit(begin, **how)()
        for i, array in zip(new, begun, strict=True):
            arrays[i] = array
    return jax.tree.unflatten(tree, arrays)


def _new_adapter(config: Config, settings: Mapping[str, Any]) -> Config:
    if unknown := settings.keys() - NEW_MOTION.keys():
        raise InputError(f"new_motion: {min(unknown)} is no setting; there are {', '.join(NEW_MOTION)}")
    fitting = {
        "_class_name": "MotionAdapter",
        "block_out_channels": config["block_out_channels"],
        "motion_layers_per_block": config["layers_per_block"],
        "motion_norm_num_groups": config["norm_num_groups"],
    }
    adapter = fitting | NEW_MOTION | settings
    return adapter | {"motion_transformer_layers_per_mid_block": adapter["motion_transformer_layers_per_block"]}


def save_unet(unet: PublishedUNet, folder: str | Path) -> None:
    """Writes config.json and safetensors that diffusers loads; a motion adapter is merged into its network.

    Raises:
        InputError: the folder cannot be written.
    """
    write_folder(folder, tensors_of(unet), unet.config)


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
