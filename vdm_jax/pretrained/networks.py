"""Loads published networks from their folders, and saves them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vdm_jax.models.rngs import Keys
from vdm_jax.parallel.mesh import make_mesh, on_cpu
from vdm_jax.pretrained.families import FAMILIES, animatediff, open_sora, translate
from vdm_jax.pretrained.folder import Weights, component, network_folder, read_config, write_folder
from vdm_jax.pretrained.lora import Lora, merge_lora
from vdm_jax.pretrained.names import Part, load_part, torch_tensors
from vdm_jax.typing import Params, PyTree


def read_network(
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
    **options: Any,
) -> Part:
    """Loads a network from its folder or from its pipeline's folder; a motion adapter is put into an image network.

    Args:
        folder, motion_adapter: in the diffusers format.
        new_motion: settings of new motion modules, instead of an adapter (`animatediff.NEW_MOTION` has the defaults).
            Their last matrices are 0, so that they change nothing yet.
        per_frame_norm, window: choices for motion modules (`families.animatediff`).
        seed: of the other parameters of new motion modules.
        loras: merged into the weights.
        mesh: default: all devices along data.
        options: arguments of the network that the config does not decide: dtype, attention, remat.

    Raises:
        InputError: an unknown family or setting, pickles, tensors that do not fit the config, or a LoRA that does not
            fit.
    """
    config, folders, new = read_config(folder), [network_folder(folder)], "$^"
    if motion_adapter:
        config = animatediff.with_motion(config, read_config(motion_adapter, "motion_adapter"))
        folders.append(component(motion_adapter, "motion_adapter"))
    elif new_motion is not None:
        config = animatediff.with_motion(config, animatediff.new_adapter(new_motion))
        new = "/time_attention/"
    if config["_class_name"] in FAMILIES:
        config = FAMILIES[config["_class_name"]].config | config
    arguments, naming = translate(config, per_frame_norm=per_frame_norm, window=window)
    arguments = dict(**arguments, **options)
    weights, mesh = Weights(*folders), mesh or make_mesh()
    animatediff.take_positions(weights)
    if config["_class_name"] == "STDiT3":
        open_sora.take_frequencies(weights, config)
    for lora in loras:
        merge_lora(lora.where, lora.unet, weights)
    where = " and ".join(map(str, folders))
    kind = FAMILIES[config["_class_name"]].kind
    network = load_part(weights, kind, arguments, naming, config, mesh=mesh, where=where, dtype=params_dtype, new=new)
    params = _initialised(network.params, lambda: kind(**arguments, rngs=Keys(seed)), mesh)
    return Part(network.graphdef, params, config)


def _initialised(params: PyTree, make: Callable[[], nnx.Module], mesh: Mesh) -> Params:
    """Replaces parameters that are still shapes by new ones; the last matrix of each motion module is 0."""
    flat = flatten_dict(params)
    new = {path: leaf for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)}

    def initialise() -> Params:  # the compiler drops the other parameters of the module
        fresh = flatten_dict(nnx.to_pure_dict(nnx.split(make())[1]))
        fresh |= {path: jnp.zeros_like(fresh[path]) for path in new if "project_out" in path}
        return unflatten_dict({path: fresh[path].astype(leaf.dtype) for path, leaf in new.items()})

    if not new:
        return params
    places = jax.tree.map(lambda leaf: leaf.sharding, unflatten_dict(new))
    arrays = jax.jit(initialise, out_shardings=places, compiler_options=on_cpu(mesh, optimization=0))()
    return unflatten_dict(flat | flatten_dict(arrays))


def write_network(network: Part, folder: str | Path) -> None:
    """Writes a folder that diffusers loads, motion modules and all. Raises InputError if it cannot be written."""
    write_folder(folder, tensors_of(network), network.config)


def tensors_of(network: Part) -> dict[str, np.ndarray]:
    """Returns all tensors of a network by their names and in the layouts of the published format."""
    tensors = torch_tensors(network.params, translate(network.config)[1])
    if network.config["_class_name"] == "UNetMotionModel":
        animatediff.put_positions(tensors, network.config)
    elif network.config["_class_name"] == "STDiT3":
        open_sora.put_frequencies(tensors, network.config)
    return tensors
