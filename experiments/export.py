"""Writes the U-Net of a run that went on training a published model as a folder that diffusers loads.

python experiments/export.py --run runs/motion --out exported/unet
"""

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder of a config with `pretrained.folder`.")
OUT = flags.DEFINE_string("out", None, "Folder for config.json and the weights.")


def main() -> None:
    """Loads the run's averaged parameters, merges them with what was frozen, and writes."""
    if not RUN.value or not OUT.value:
        raise InputError("--run=runs/<name> and --out=<folder> are needed")

    from vdm_jax.generation.pipeline import load
    from vdm_jax.pretrained.unets import PublishedUNet, save_unet

    pipeline = load(RUN.value)
    if pipeline.unet_config is None:
        raise InputError(f"{RUN.value} trained a network of its own, which diffusers does not know")
    save_unet(PublishedUNet(None, pipeline.params["unet"], pipeline.unet_config), OUT.value)
    print(f"{OUT.value}: {pipeline.unet_config['_class_name']} of step {pipeline.step}, for diffusers to load")


if __name__ == "__main__":
    command.run(main)
