"""Eight fake CPU devices for every test, and shape checks on the package's annotated functions."""

import os

# Unoptimised programs compile in two thirds of the time, and that is what the tests wait for.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("vdm_jax", "beartype.beartype")
