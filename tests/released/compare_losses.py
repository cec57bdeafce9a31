"""Compares the first 50 losses of the digit configs with version 0.1.0; about two minutes on two CPU cores.

    python -m tests.released.compare_losses

Exits with status 1 where a loss differs by more than 1e-5 of its value.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax.build import build, objective_of, split_of
from vdm_jax.config import read_file, source_arguments
from vdm_jax.data.pipeline import make_iterator
from vdm_jax.data.source import make_source
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import batch_sharding
from vdm_jax.training.losses import denoising
from vdm_jax.training.optimizer import optimizer_of
from vdm_jax.training.state import plan_state
from vdm_jax.training.step import make_train_step

ROOT = Path(__file__).parents[2]
RELEASED: dict[str, list[float]] = json.loads(Path(__file__).with_name("losses.json").read_text())
TOLERANCE = 1e-5


def first_losses(name: str, steps: int, data_dir: str | Path, mesh: Mesh) -> list[float]:
    """Returns the losses of the first steps of configs/<name>.py."""
    config = read_file(ROOT / "configs" / f"{name}.py")
    config.data.data_dir = str(data_dir)
    model = build(config, mesh)
    split, (tx, _) = split_of(config, model), optimizer_of(config)
    batches = make_iterator(
        make_source(**source_arguments(config)),
        batch_size=config.batch_size,
        seed=config.seed,
        tokenize=model.tokenize,
        flip=config.data.flip,
        joint_images=config.data.joint_images,
    )
    loss = denoising(model, objective_of(config), stills=config.data.joint_images)
    step = make_train_step(loss, tx, mesh, seed=config.seed, accumulate=config.accumulate, ema=config.ema)
    state, losses = plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)[1](), []
    for batch in itertools.islice(batches, steps):
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), split.frozen)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses


def main() -> int:
    """Prints the largest difference of each config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="datasets", help="where moving digits are, or are built")
    data_dir, mesh, failed = parser.parse_args().data_dir, make_mesh(devices=jax.devices()[:1]), False
    for name, released in RELEASED.items():
        losses = np.array(first_losses(name, len(released), data_dir, mesh))
        differences = np.abs(losses / np.array(released) - 1)
        failed |= bool(differences.max() > TOLERANCE)
        print(f"{name:<20} {len(released)} losses, largest relative difference {differences.max():.1e}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
