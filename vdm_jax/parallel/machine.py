"""What a figure or a run was made on, in words."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import jax


def about_machine(more: tuple[str, ...] = ()) -> str:
    """Devices, cores and versions of JAX, Flax and further packages."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # that it may use
    cores = f"{count} core{'s' if count != 1 else ''} {names[0] if names else platform.machine()}"
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "flax", *more)]
    return ", ".join([device, cores, f"Python {platform.python_version()}", *versions])
