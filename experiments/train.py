"""Trains a model, or continues a run.

python experiments/train.py --config=configs/moving_digits.py --workdir=runs/digits [--config.a.b=c]
"""

import logging
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vdm_jax import command
from vdm_jax.errors import InputError

config_flags.DEFINE_config_file("config", None, "Config file, such as configs/moving_digits.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; an existing run is continued.")


def main() -> None:
    """Joins the processes, trains, and says where everything is."""
    if flags.FLAGS.config is None or not WORKDIR.value:
        raise InputError("--config=configs/<experiment>.py and --workdir=runs/<name> are needed")
    config, workdir = command.read_config_flag(), Path(WORKDIR.value)

    import jax

    from vdm_jax.build import build
    from vdm_jax.config import check_keys
    from vdm_jax.generation.pipeline import Pipeline
    from vdm_jax.parallel.mesh import make_mesh, start_processes
    from vdm_jax.training.loop import train
    from vdm_jax.video import contact_sheet, write_image

    check_keys(config)
    if config.sample.every and not config.sample.prompts:
        logging.warning("no sheets of samples are drawn: config.sample.prompts is empty")
    start_processes()
    mesh, prompts = make_mesh(**config.mesh.to_dict()), config.sample.prompts
    model = build(config, mesh)
    if prompts and model.downsample > 1:
        raise InputError(f"sample.prompts must be (): known.downsample={model.downsample} enlarges videos only")
    if prompts:
        Pipeline(model, mesh).check(prompts, seed=config.sample.seed)

    def draw_samples(model, mesh):
        videos = Pipeline(model, mesh)(prompts, seed=config.sample.seed)
        metadata = {"step": model.step, "seed": config.sample.seed, "prompts": list(prompts)}
        if jax.process_index() == 0:
            write_image(workdir / "samples" / f"{model.step:07}.png", contact_sheet(videos), metadata)

    state = train(config, workdir, draw_samples if prompts else None, model)
    sheets = ", sheets of samples in samples/" if config.sample.every and prompts else ""
    print(f"{workdir}: {int(state.step)} steps done. Metrics in metrics.jsonl{sheets}.")
    flag = '--prompt "…"' if model.text is not None else "--num 4"
    flag = flag if model.downsample == 1 else "--video small.mp4"
    print(f"Sample from it: python experiments/sample.py --run {workdir} {flag}")


if __name__ == "__main__":
    command.run(main)
