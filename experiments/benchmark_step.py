"""The training step of a config, for the scripts that measure it: as `training.loop` makes it, on random videos."""

import concurrent.futures
import time


def plan(config):
    """Returns (mesh, model, split, optimizer, shapes of the state, the function that computes it), as training does."""
    from vdm_jax.build import build, split_of
    from vdm_jax.parallel.mesh import make_mesh
    from vdm_jax.parallel.sharding import check_batch
    from vdm_jax.training.optimizer import optimizer_of
    from vdm_jax.training.state import plan_state

    mesh = make_mesh(**config.mesh.to_dict())
    check_batch(mesh, config.batch_size)
    model = build(config, mesh)
    split = split_of(config, model)
    tx, _ = optimizer_of(config)
    return mesh, model, split, tx, *plan_state(split.trained, split.initialise, tx, mesh, *split.arrays)


def random_batch(config, model, mesh) -> dict:
    """Returns a training batch of random videos that lies on the devices."""
    import jax
    import numpy as np

    from vdm_jax.parallel.sharding import batch_sharding

    size, stills, tokens = config.batch_size, config.data.joint_images, model.tokenize("a video")
    frames, *pixels = model.shape
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (size, frames + stills, *pixels), np.uint8),
        "tokens": np.tile(tokens, (size, 1)),
    }
    if stills:
        batch["image_tokens"] = np.tile(tokens, (size, stills, 1))
    return jax.device_put(batch, batch_sharding(mesh))


def make_step(config, model, tx, mesh, accumulate: int):
    """Returns the training step of the config, with this model, mesh and number of parts of a batch."""
    from vdm_jax.build import objective_of
    from vdm_jax.parallel.sharding import ActivationLayout
    from vdm_jax.training.losses import denoising
    from vdm_jax.training.step import make_train_step

    layout, stills = ActivationLayout(mesh), config.data.joint_images
    loss = denoising(model, objective_of(config), stills=stills, layout=layout)
    return make_train_step(loss, tx, mesh, seed=config.seed, accumulate=accumulate, ema=config.ema)


def compile_step(step, state, batch, frozen):
    """Returns (the compiled step, seconds of tracing, seconds until all is compiled: tracing included)."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor() as background:
        wait = step.compile(background, state, batch, frozen)
        traced = time.perf_counter() - start
        compiled = wait()
    return compiled, traced, time.perf_counter() - start
