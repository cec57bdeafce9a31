"""Fine-tuning of published models: what is trained of one, and a trained run as a pipeline."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from vdm_jax import configuration
from vdm_jax.errors import InputError
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.published import SVD, load_published
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.sharding import shardings
from vdm_jax.pretrained.families import Config
from vdm_jax.pretrained.folder import read_config
from vdm_jax.training.checkpoints import restore_ema
from vdm_jax.training.trainee import Trainee, check_part, divide, join, low_rank
from vdm_jax.typing import Params


def load_trainee(config, mesh: Mesh) -> tuple[Trainee, Pipeline]:
    """What a config trains of the published model that it names, and that model as a pipeline.

    Noise is put on latents. Text encoder and autoencoder are frozen, and so is what `pretrained.train` leaves out.

    Raises:
        InputError: a model that cannot be trained here, or a setting that is not for it.
    """
    data, group = config.data, config.pretrained.to_dict()
    if data.joint_images or config.known.mixture:
        raise InputError("data.joint_images and known.mixture are not for a published model: set them to 0 and {}")
    check_part(group["train"])
    adapter, kind = group["motion_adapter"] or None, read_config(group["folder"])["_class_name"]
    if kind == SVD:
        raise InputError(f"pretrained.folder={group['folder']}: training {kind} is not implemented")
    inflates = kind == "UNet2DConditionModel" and adapter is None
    if inflates and group["train"] == "lora":
        raise InputError("pretrained.train='lora' on an image model needs a motion_adapter: 'time' trains new ones")
    if group["new_motion"] and not inflates:
        raise InputError(f"pretrained.new_motion={group['new_motion']} is for an image model without a motion adapter")
    try:
        base = load_published(
            group["folder"],
            motion_adapter=adapter,
            new_motion=group["new_motion"] if inflates else None,
            frames=data.frames,
            size=(data.height, data.width),
            dtype=config.model.dtype,
            params_dtype="float32",
            seed=config.seed,
            mesh=mesh,
            **group["unet"],
        )
    except TypeError as error:
        raise InputError(f"config.pretrained.unet={group['unet']}: {error}") from error
    trained, frozen = divide(base.params, group["train"])
    given: tuple[Params, ...] = (trained,)
    first = _copied
    if group["train"] == "lora":
        frozen = base.params
        first, given = lambda: low_rank(trained, group["rank"], jax.random.key(config.seed)), ()
    trainee = Trainee(
        graphdef=base.graphdef,
        tokenize=base.tokenize,
        null_tokens=base.tokenize(""),
        process=base.process,
        objective=dataclasses.replace(configuration.objective_of(config), prediction=base.prediction),
        shapes=jax.eval_shape(first, *given),
        initialise=first,
        given=given,
        frozen={"network": frozen, "codec": base.codec.params},
        assemble=lambda params, frozen: join(params, frozen["network"]),
        clean=lambda frozen, video: base.codec.encode(frozen["codec"], video),
    )
    sample = config.sample
    settings = {name: sample[name] for name in ("steps", "eta", "guidance", "rescale")}
    settings = dataclasses.replace(base.settings, **settings, interval=tuple(sample.interval))
    return trainee, dataclasses.replace(base, settings=settings, fps=sample.fps)


def load_finetuned(run: str | Path, config, mesh: Mesh) -> Pipeline:
    """The pipeline of a run that went on training a published model; its folder is needed still."""
    trainee, base = load_trainee(config, mesh)
    step, params = _restore(run, trainee, mesh)
    return trained_pipeline(trainee, base, params, step, origin=str(run))


def load_changes(run: str | Path) -> tuple[int, Params, Config]:
    """The step of a run that trained low-rank changes, those of the U-Net's matrices, and its `config.json`.

    Raises:
        InputError: it trained something else.
    """
    config, mesh = configuration.read_config(run), make_mesh()
    group = config.pretrained
    if group.train != "lora":
        raise InputError(f"{run} has pretrained.train={group.train!r}, not 'lora': there are no low-rank changes")
    trainee, base = load_trainee(config, mesh)
    step, params = _restore(run, trainee, mesh)
    return step, params["unet"], base.unet_config


def _restore(run, trainee, mesh):
    """The step of a run's newest checkpoint, and what was trained, averaged."""
    sharded = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), trainee.shapes, shardings(mesh, trainee.shapes)
    )
    return restore_ema(Path(run) / "checkpoints", sharded)


def trained_pipeline(trainee: Trainee, base: Pipeline, params: Params, step: int, origin: str = "") -> Pipeline:
    """The pipeline with trained parameters in it."""
    return dataclasses.replace(base, params=trainee.assemble(params, trainee.frozen), step=step, origin=origin)


def _copied(params: Params) -> Params:
    """A copy, as a training step takes the place of what it is given."""
    return jax.tree.map(lambda x: x.copy(), params)
