"""Describes the machine that a run or a figure was made on."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import jax


def about_machine(packages: tuple[str, ...] = ()) -> str:
    """Returns one line: devices, cores, and the versions of Python, JAX, Flax and the named packages."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    # The cores that this process may use.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{count} core{'s' if count != 1 else ''} {names[0] if names else platform.machine()}"
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "flax", *packages)]
    return ", ".join([device, cores, f"Python {platform.python_version()}", *versions])
