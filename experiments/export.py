"""Writes the U-Net of a run, or the LoRA that the run trained, as a folder that diffusers loads.

python experiments/export.py --run runs/motion --out exported/unet
python experiments/export.py --run runs/style --lora --out exported/style
"""

from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError

RUN = flags.DEFINE_string("run", None, "Run folder of a config with `model.network.folder`.")
PRETRAINED = flags.DEFINE_string("pretrained", None, "Folder of the run's published model, where it has moved.")
ADAPTER = flags.DEFINE_string("motion_adapter", None, "Folder of its motion adapter, where it has moved.")
OUT = flags.DEFINE_string("out", None, "Folder for the weights.")
LORA = flags.DEFINE_bool("lora", False, "Write only the low-rank changes of a run with `train.parts='lora'`.")


def main() -> None:
    """Loads the run's averaged parameters, and writes them alone (--lora) or merged with the frozen ones."""
    if not RUN.value or not OUT.value:
        raise InputError("--run=runs/<name> and --out=<folder> are needed")

    from vdm_jax.build import load_trained
    from vdm_jax.config import read_config
    from vdm_jax.pretrained.families import translate
    from vdm_jax.pretrained.lora import save_lora
    from vdm_jax.pretrained.names import Part
    from vdm_jax.pretrained.networks import write_network
    from vdm_jax.split import join

    config = read_config(RUN.value)
    moved = {"folder": PRETRAINED.value or "", "motion_adapter": ADAPTER.value or ""}
    model, trained, split = load_trained(RUN.value, **moved)
    if model.network_config is None:
        raise InputError(f"{RUN.value} trained a network of its own, which diffusers does not know")
    if LORA.value and config.train.parts != "lora":
        raise InputError(f"{RUN.value} has train.parts={config.train.parts!r}, not 'lora': it has no low-rank changes")
    kind = model.network_config["_class_name"]
    if LORA.value:
        save_lora(trained["network"], translate(model.network_config)[1], OUT.value)
        print(f"{OUT.value}: LoRA for {kind}, of step {model.step}")
        return
    params = join(trained, split.frozen)
    write_network(Part(None, params["network"], model.network_config), OUT.value)
    print(f"{OUT.value}: {kind} of step {model.step}, for diffusers to load")


if __name__ == "__main__":
    command.run(main)
