"""Eight fake CPU devices for every test, and shape checks on the package's annotated functions."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("vdm_jax", "beartype.beartype")
