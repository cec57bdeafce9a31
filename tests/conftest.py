"""Eight fake CPU devices for every test, shape checks on the package's annotated functions, and quick compilation."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Compiling is what the tests wait for. Unoptimised programs take two thirds of the time.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones have no other way
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", QUICK)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where the environment is that of a GPU or TPU

# Compiled programs are kept: the first run needs some of them again, and the next one all. A folder for each worker, as
# JAX writes its files in place, where another one could read a half of them.
KEPT = Path(__file__).parents[1] / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(KEPT))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")

import jax  # noqa: E402, as it reads them
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook("vdm_jax", "beartype.beartype")
gc.set_threshold(100_000)  # as commands do

# Slow files first, so that no worker is left with one at the end.
SLOW = (
    "end_to_end/test_train_and_sample",
    "end_to_end/test_demo",
    "generation/test_pipeline",
    "training/test_finetune",
    "end_to_end/test_pretrained",
    "end_to_end/test_motion",
    "parallel/test_sharding",
    "end_to_end/test_errors",
    "end_to_end/test_ablate",
    "pretrained/test_unets",
    "pretrained/test_load",
    "training/test_loop",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, name in enumerate(SLOW) if name in item.nodeid), len(SLOW)))
