"""Run folders of tiny networks in which every projection does something, also those that start at zero."""

import jax
import numpy as np

from tests.tiny_config import get_config
from vdm_jax import Pipeline, load
from vdm_jax.build import build, split_of
from vdm_jax.checkpoints import Checkpoints
from vdm_jax.config import write_config
from vdm_jax.parallel.mesh import make_mesh


def write_run(folder, network=None, objective=None, **known):
    """Writes a run folder at step 12; the arguments change groups of the tiny config."""
    config = get_config()
    config.known.update(known)
    config.model.network.update(network or {})
    config.objective.update(objective or {})
    write_config(folder, config)
    split = split_of(config, build(config))
    params = jax.jit(split.initialise)(*split.arrays)
    leaves, tree = jax.tree.flatten(params)
    leaves = [np.asarray(x) + waves(i, x.shape) for i, x in enumerate(leaves)]
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(12, {"ema": jax.device_put(tree.unflatten(leaves))})
    checkpoints.close()
    return folder


def waves(number, shape):
    """Returns small numbers that differ from array to array."""
    return np.float32(0.2 * np.sin(number + np.arange(np.prod(shape)).reshape(shape)))


def on_one(run):
    """Returns the pipeline of a run on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return Pipeline(load(run, mesh=mesh), mesh)
