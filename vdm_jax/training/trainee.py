"""What is trained: every parameter of a new network, or a part of a loaded one while the rest is frozen."""

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vdm_jax import configuration
from vdm_jax.diffusion.conditioning import Conditioning
from vdm_jax.diffusion.objective import Objective
from vdm_jax.diffusion.process import Process
from vdm_jax.errors import InputError
from vdm_jax.models.keys import Keys
from vdm_jax.parallel.sharding import path_name, shardings
from vdm_jax.training.checkpoints import restore_ema
from vdm_jax.typing import Array, Float, Int, Key, Params, PyTree

PARTS = ("all", "time", "lora")
TIME_SLOTS = r"^unet/.*(time_conv|time_attention|stem_time)/"
ATTENTION = r"^unet/.*attention\d/([qkv]|out)/kernel$"


@dataclasses.dataclass(frozen=True, eq=False)
class Trainee:
    """A network, the parameters of it that are trained, and the diffusion that they are trained for.

    Args:
        graphdef: of the module, whose parameters are `assemble(trained, frozen)`.
        tokenize: of a caption; `null_tokens` are those of the null condition, None for an unconditional network.
        shapes: of the trained parameters; `initialise(*given)` computes them.
        frozen: arrays that stay as they are.
        clean: `clean(frozen, video)` is what noise is put on: the video, or its latents.
    """

    graphdef: nnx.GraphDef
    tokenize: Callable[[str], np.ndarray]
    null_tokens: Int[np.ndarray, "L"] | None
    process: Process
    objective: Objective
    shapes: PyTree
    initialise: Callable[..., Params]
    given: tuple[PyTree, ...] = ()
    frozen: PyTree = dataclasses.field(default_factory=dict)
    assemble: Callable[[Params, PyTree], Params] = lambda trained, frozen: trained
    clean: Callable[[PyTree, Array], Array] = lambda frozen, video: video
    conditioning: Conditioning | None = None


def from_scratch(config) -> Trainee:
    """The network that a config describes, all of it new.

    Raises:
        InputError: it does not fit the clips.
    """
    model, data = configuration.abstract_model(config), config.data
    model.unet.check_size(data.frames, data.height, data.width, data.joint_images)
    return Trainee(
        graphdef=nnx.split(model)[0],
        tokenize=model.tokenize,
        null_tokens=model.tokenize("") if model.text is not None else None,
        process=configuration.process_of(config),
        objective=configuration.objective_of(config),
        shapes=nnx.to_pure_dict(nnx.split(model)[1]),
        initialise=lambda: nnx.to_pure_dict(nnx.split(configuration.make_model(config, Keys(config.seed)))[1]),
        conditioning=configuration.conditioning_of(config),
    )


def load_averaged(run: str | Path, config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[int, Params]:
    """The step of a run's newest checkpoint and its averaged parameters, straight into their shards.

    Raises:
        InputError: no checkpoint, or one that does not fit the config.
    """
    abstract = nnx.to_pure_dict(nnx.split(configuration.abstract_model(config))[1])
    sharded = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings(mesh, abstract)
    )
    return restore_ema(Path(run) / "checkpoints", sharded)


def begin_with(trainee: Trainee, run: str | Path, mesh: Mesh) -> Trainee:
    """The trainee with a run's averaged parameters wherever both have one of that name; all others are new.

    So a video network begins as the image network of the run, frame by frame: new time slots end in zeros, and do
    nothing yet (identity-initialised, Singer et al. 2022, section 3.2; Guo et al. 2024, section 4.2).

    Raises:
        InputError: no such run, nothing in common with it, another shape under the same name, or a published model.
    """
    if trainee.frozen:
        raise InputError(f"init_from={run} must be empty: a published model begins as it was loaded")
    step, loaded = load_averaged(run, configuration.read_config(run), mesh)
    common = in_common(trainee.shapes, loaded, f"init_from={run}")
    count = len(jax.tree.leaves(trainee.shapes))
    logging.info("begins with %d of its %d arrays from %s at step %d", len(common), count, run, step)

    def initialise(common: dict[tuple, Array]) -> Params:
        # Copies, as a training step takes the place of what it is given.
        return unflatten_dict(flatten_dict(trainee.initialise()) | jax.tree.map(jnp.copy, common))

    return dataclasses.replace(trainee, initialise=initialise, given=(common,))


def in_common(here: PyTree, there: PyTree, name: str) -> dict[tuple, Any]:
    """What is there under the names that both have, by path. Raises InputError for other shapes, and for nothing."""
    here, there = flatten_dict(here), flatten_dict(there)
    common = {path: there[path] for path in here if path in there}
    for path, array in common.items():
        if array.shape != here[path].shape:
            shapes = f"{array.shape} there and {here[path].shape} here"
            raise InputError(f"{name}: {'/'.join(map(str, path))} has shape {shapes}")
    if not common:
        raise InputError(f"{name} has no parameter of this network")
    return common


def check_part(part: str) -> None:
    """Raises InputError for what is not one of the parts that can be trained."""
    if part not in PARTS:
        raise InputError(f"pretrained.train={part!r} must be one of {', '.join(PARTS)}")


def divide(params: Params, part: str) -> tuple[Params, Params]:
    """(what is trained, what is frozen) of a loaded denoiser: "all" of its U-Net, or its "time" slots.

    With "lora" nothing of it is trained itself: the first are the attention matrices that `low_rank` adds to.
    """
    check_part(part)
    pattern = re.compile({"all": "^unet/", "time": TIME_SLOTS, "lora": ATTENTION}[part])
    chosen, rest = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        _put(chosen if pattern.search(path_name(path)) else rest, path, leaf)
    if not chosen:
        raise InputError(f"pretrained.train={part!r}: the network has no such parameters")
    return chosen, rest


def low_rank(params: Params, rank: int, key: Key[Array, ""]) -> Params:
    """Matrices A and B in the place of each W, whose sum W + A B begins as W (LoRA, Hu et al. 2022, section 4.1)."""

    numbers = itertools.count()

    def one(kernel):
        inputs, outputs = kernel.shape
        if not 1 <= rank <= min(inputs, outputs):
            raise InputError(f"pretrained.rank={rank} must be at least 1 and at most {min(inputs, outputs)}")
        down = jax.random.normal(jax.random.fold_in(key, next(numbers)), (inputs, rank)) / np.sqrt(inputs)
        return {"lora_down": down, "lora_up": jnp.zeros((rank, outputs))}

    return jax.tree.map(one, params)


def join(trained: Params, frozen: Params) -> Params:
    """The inverse of `divide`: parameters of the whole, with low-rank changes added to the matrices they are of."""
    if not isinstance(trained, dict):
        return trained
    if "lora_down" in trained:
        change: Float[Array, "I O"] = trained["lora_down"] @ trained["lora_up"]
        return frozen + change.astype(frozen.dtype)
    return frozen | {name: join(part, frozen.get(name, {})) for name, part in trained.items()}


def _put(tree: dict[Any, Any], path: tuple, leaf: Any) -> None:
    *parents, last = (key.key for key in path)
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
