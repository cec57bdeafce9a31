"""Writes what a run made of a published model for diffusers to load: the U-Net's folder, or the LoRA that it trained.

python experiments/export.py --run runs/motion --out exported/unet
python experiments/export.py --run runs/style --lora --out exported/style
"""

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder of a config with `pretrained.folder`.")
OUT = flags.DEFINE_string("out", None, "Folder for the weights.")
LORA = flags.DEFINE_bool("lora", False, "Only the low-rank changes of a run with `pretrained.train=lora`.")


def main() -> None:
    """Loads the run's averaged parameters, merges them with what was frozen unless they go alone, and writes."""
    if not RUN.value or not OUT.value:
        raise InputError("--run=runs/<name> and --out=<folder> are needed")

    from vdm_jax.configuration import read_config
    from vdm_jax.generation.finetune import load_changes
    from vdm_jax.generation.pipeline import load
    from vdm_jax.pretrained.families import translate
    from vdm_jax.pretrained.lora import save_lora
    from vdm_jax.pretrained.unets import PublishedUNet, save_unet

    if not read_config(RUN.value).pretrained.folder:
        raise InputError(f"{RUN.value} trained a network of its own, which diffusers does not know")
    if LORA.value:
        step, changes, config = load_changes(RUN.value)
        save_lora(changes, translate(config)[1], OUT.value)
        print(f"{OUT.value}: LoRA for {config['_class_name']}, of step {step}")
        return
    pipeline = load(RUN.value)
    save_unet(PublishedUNet(None, pipeline.params["unet"], pipeline.unet_config), OUT.value)
    print(f"{OUT.value}: {pipeline.unet_config['_class_name']} of step {pipeline.step}, for diffusers to load")


if __name__ == "__main__":
    command.run(main)
