"""Frozen parameters that no published folder holds, such as the image network that a run began with.

A run keeps them in its folder, so that the folder is all that sampling needs.
"""

import json
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vdm_jax.checkpoints import Checkpoints, restore_latest
from vdm_jax.errors import InputError
from vdm_jax.files import write_text
from vdm_jax.parallel.sharding import path_name, sharded
from vdm_jax.typing import PyTree

FOLDER, NAMES = "frozen", "names.json"


def save_frozen(run: str | Path, params: PyTree) -> None:
    """Writes frozen parameters into a run folder, once; nothing where there are none."""
    folder = Path(run) / FOLDER
    if not jax.tree.leaves(params) or (folder / NAMES).exists():
        return
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, {"params": params})
    checkpoints.close()
    if jax.process_index() == 0:  # last: without the names the rest may be half written
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        write_text(folder / NAMES, json.dumps(names))


def restore_frozen(run: str | Path, params: PyTree, mesh: Mesh) -> PyTree:
    """Returns a model's parameters with those that the run folder keeps, if it keeps any."""
    folder = Path(run) / FOLDER
    if not (folder / NAMES).is_file():
        return params
    names = set(json.loads((folder / NAMES).read_text()))
    flat = flatten_dict(params)
    kept = unflatten_dict({path: leaf for path, leaf in flat.items() if "/".join(map(str, path)) in names})
    restored = restore_latest(folder, {"params": sharded(kept, mesh)})
    if restored is None:
        raise InputError(f"{folder} holds no parameters: begin the run again with init_from")
    return unflatten_dict(flat | flatten_dict(restored["params"]))
