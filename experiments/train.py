"""Trains a model, or goes on training it.

python experiments/train.py --config=configs/moving_digits.py --workdir=runs/digits [--config.a.b=c]
"""

import logging
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vdm_jax import command
from vdm_jax.errors import InputError

config_flags.DEFINE_config_file("config", None, "Config file, such as configs/moving_digits.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; a run that is there is gone on with.")


def main() -> None:
    """Joins the processes, trains, and says where everything is."""
    if flags.FLAGS.config is None or not WORKDIR.value:
        raise InputError("--config=configs/<experiment>.py and --workdir=runs/<name> are needed")
    config, workdir = command.read_config_flag(), Path(WORKDIR.value)

    import jax

    from vdm_jax import configuration
    from vdm_jax.generation.finetune import load_trainee, trained_pipeline
    from vdm_jax.generation.pipeline import make_pipeline
    from vdm_jax.generation.settings import check_samples
    from vdm_jax.parallel.mesh import make_mesh, start_processes
    from vdm_jax.training.loop import train
    from vdm_jax.video import contact_sheet, write_image

    configuration.check_keys(config)
    if config.sample.every and not config.sample.prompts:
        logging.warning("no sheets of samples are drawn: config.sample.prompts is empty")
    start_processes()
    trainee = base = None
    if config.pretrained.folder:
        trainee, base = load_trainee(config, make_mesh(**config.mesh.to_dict()))
    if config.sample.prompts:
        base.check(config.sample.prompts, seed=config.sample.seed) if base else check_samples(config)

    def draw_samples(graphdef, params, mesh, step):
        pipeline = (
            trained_pipeline(trainee, base, params, step)
            if base
            else make_pipeline(config, graphdef, params, mesh, step)
        )
        videos = pipeline(config.sample.prompts, seed=config.sample.seed)
        about = {"step": step, "seed": config.sample.seed, "prompts": list(config.sample.prompts)}
        if jax.process_index() == 0:
            write_image(workdir / "samples" / f"{step:07}.png", contact_sheet(videos), about)

    state = train(config, workdir, draw_samples if config.sample.prompts else None, trainee)
    sheets = ", sheets of samples in samples/" if config.sample.every and config.sample.prompts else ""
    print(f"{workdir}: {int(state.step)} steps done. Metrics in metrics.jsonl{sheets}.")
    what = '--prompt "…"' if config.pretrained.folder or config.model.text.length else "--num 4"
    what = what if config.known.downsample == 1 else "--video small.mp4"
    print(f"Sample from it: python experiments/sample.py --run {workdir} {what}")


if __name__ == "__main__":
    command.run(main)
