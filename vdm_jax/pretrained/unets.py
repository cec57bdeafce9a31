"""Loads published U-Nets from their folders, and saves them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vdm_jax.models.rngs import Keys
from vdm_jax.models.unet import UNet
from vdm_jax.parallel.mesh import make_mesh, on_cpu
from vdm_jax.parallel.sharding import path_name
from vdm_jax.pretrained.families import animatediff, translate
from vdm_jax.pretrained.folder import Config, Weights, component, read_config, write_folder
from vdm_jax.pretrained.lora import Lora, merge_lora
from vdm_jax.pretrained.names import load_params, torch_tensors
from vdm_jax.typing import Array, Params, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedUNet:
    """A loaded network: `nnx.merge(graphdef, params)` is the `UNet`; `config` is the config.json of its folder."""

    graphdef: nnx.GraphDef | None  # not needed to save it
    params: Params
    config: Config


def load_unet(
    folder: str | Path,
    *,
    motion_adapter: str | Path | None = None,
    new_motion: Mapping[str, Any] | None = None,
    per_frame_norm: bool = False,
    window: tuple[int, int] | None = None,
    seed: int = 0,
    loras: Sequence[Lora] = (),
    mesh: Mesh | None = None,
    params_dtype: str = "float32",
    **options,
) -> PublishedUNet:
    """Loads a U-Net from its folder or from its pipeline's folder; a motion adapter is put into an image network.

    Args:
        folder, motion_adapter: in the diffusers format.
        new_motion: settings of new motion modules, instead of an adapter (`animatediff.NEW_MOTION` has the defaults).
            Their last matrices are 0, so that they change nothing yet.
        per_frame_norm, window: choices for motion modules (`families.animatediff`).
        seed: of the other parameters of new motion modules.
        loras: merged into the weights.
        mesh: default: all devices along data.
        params_dtype: of the parameters.
        options: arguments of `UNet` that the config does not decide: dtype, attention, remat.

    Raises:
        InputError: an unknown family or setting, pickles, tensors that do not fit the config, or a LoRA that does not
            fit.
    """
    config, folders, new = read_config(folder), [component(folder, "unet")], "$^"
    if motion_adapter:
        config = animatediff.with_motion(config, read_config(motion_adapter, "motion_adapter"))
        folders.append(component(motion_adapter, "motion_adapter"))
    elif new_motion is not None:
        config = animatediff.with_motion(config, animatediff.new_adapter(config, new_motion))
        new = "/time_attention/"
    arguments, naming = translate(config, per_frame_norm=per_frame_norm, window=window)
    weights = Weights(*folders)

    def make(seed: int) -> UNet:
        return UNet(**arguments, **options, rngs=Keys(seed))

    module = nnx.eval_shape(lambda: make(0))
    animatediff.take_positions(weights)
    for lora in loras:
        merge_lora(lora.where, lora.unet, weights)
    mesh = make_mesh() if mesh is None else mesh
    where = " and ".join(map(str, folders))
    params = load_params(weights, module, naming, mesh=mesh, where=where, dtype=params_dtype, new=new)
    return PublishedUNet(nnx.split(module)[0], _initialised(params, lambda: make(seed), mesh), config)


def _initialised(params: PyTree, make: Callable[[], UNet], mesh: Mesh) -> Params:
    """Replaces parameters that are still shapes by new ones; the last matrix of each motion module is 0."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    new = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    def initialise() -> list[Array]:
        fresh = jax.tree.leaves(nnx.to_pure_dict(nnx.split(make())[1]))
        last = ["/project_out/" in path_name(leaves[i][0]) for i in new]
        arrays = [jnp.zeros_like(fresh[i]) if zero else fresh[i] for i, zero in zip(new, last, strict=True)]
        return [array.astype(leaves[i][1].dtype) for i, array in zip(new, arrays, strict=True)]

    arrays = [leaf for _, leaf in leaves]
    if new:  # the compiler drops the other parameters of the module
        options = {"out_shardings": [arrays[i].sharding for i in new], "compiler_options": on_cpu(mesh, optimization=0)}
        for i, array in zip(new, jax.jit(initialise, **options)(), strict=True):
            arrays[i] = array
    return jax.tree.unflatten(tree, arrays)


def save_unet(unet: PublishedUNet, folder: str | Path) -> None:
    """Writes config.json and safetensors that diffusers loads; a motion adapter is merged into its network.

    Raises:
        InputError: the folder cannot be written.
    """
    write_folder(folder, tensors_of(unet), unet.config)


def tensors_of(unet: PublishedUNet) -> dict[str, np.ndarray]:
    """Returns all tensors of a network by their names and in the layouts of the published format."""
    tensors = torch_tensors(unet.params, translate(unet.config)[1])
    if unet.config["_class_name"] == "UNetMotionModel":
        animatediff.put_positions(tensors, unet.config)
    return tensors
