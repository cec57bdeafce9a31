"""Prints the table of a config's parameters, without training or allocating any.

python experiments/parameters.py --config=configs/video_diffusion_models.py:text_small
"""

from absl import flags
from ml_collections import config_flags

from vdm_jax import command

config_flags.DEFINE_config_file("config", None, "Config file.")
LINES = flags.DEFINE_integer("lines", 0, "Lines of the table at most; 0: all.", lower_bound=0)


def main() -> None:
    """Builds the model's shapes, and prints them."""
    config = command.read_config_flag()
    from clu import parameter_overview

    from vdm_jax.build import build

    params = build(config).params
    print(parameter_overview.get_parameter_overview(params, include_stats=False, max_lines=LINES.value or None))


if __name__ == "__main__":
    command.run(main)
