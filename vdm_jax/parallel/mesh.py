"""The device mesh: `data × fsdp × context × tensor`, over one process or many."""

import logging
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from vdm_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")
# With these a process is told its hosts or its chips, and asks nobody.
_NO_METADATA = {f"TPU_{name}" for name in ("WORKER_HOSTNAMES", "PROCESS_ADDRESSES", "SKIP_MDS_QUERY")}
_NO_METADATA |= {f"TPU_{name}" for name in ("PROCESS_BOUNDS", "VISIBLE_CHIPS", "VISIBLE_DEVICES")}


def start_processes() -> None:
    """Joins this process to the others of a multi-host run; call before any device is touched.

    Slurm, Open MPI, indexed Kubernetes jobs and TPU pods are known by their variables, and JAX asks them, or Google's
    metadata server, for the rest.
    Anywhere else JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. A failure is
    raised, never swallowed: N hosts that do not find each other would each train alone. Without signs of a cluster
    nothing is done.

    Raises:
        InputError: JAX_COORDINATOR_ADDRESS without a number of processes and this one's place among them.
    """
    by_hand = [os.environ.get(f"JAX_{name}", "") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")]
    tpu = "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    clusters = {
        "SLURM_NTASKS": lambda value: int(value or 0) > 1,
        "OMPI_COMM_WORLD_SIZE": lambda value: int(value or 0) > 1,
        "JOB_COMPLETION_INDEX": str.isdecimal,
        "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
        "TPU_PROCESS_ADDRESSES": lambda value: "," in value,
        "MEGASCALE_NUM_SLICES": lambda value: int(value or 0) > 1,
        # Set by JAX itself on TPU VMs: where nothing else says how many there are, Google's metadata server does.
        "TPU_ML_PLATFORM": lambda value: value == "JAX" and tpu and not os.environ.keys() & _NO_METADATA,
    }
    found = [name for name, says_many in clusters.items() if name in os.environ and says_many(os.environ[name])]
    if by_hand[0]:
        if not (by_hand[1].isdecimal() and by_hand[2].isdecimal() and int(by_hand[2]) < int(by_hand[1])):
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={by_hand[0]} needs JAX_NUM_PROCESSES={by_hand[1]!r} to be a number, and "
                f"JAX_PROCESS_ID={by_hand[2]!r} one from 0 below it"
            )
        jax.distributed.initialize(by_hand[0], int(by_hand[1]), int(by_hand[2]))
    elif found:
        jax.distributed.initialize()
    else:
        return
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def make_mesh(
    data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, devices: Sequence | None = None
) -> Mesh:
    """A mesh of the given sizes; one of them may be -1 and takes the devices that are left.

    The batch is split over `data` and `fsdp`, parameters over `fsdp` and `tensor`, frames over `context`.

    Raises:
        InputError: the sizes do not make up the devices that there are, or hosts share them that did not join.
    """
    devices = list(jax.devices() if devices is None else devices)
    if len(processes := {device.process_index for device in devices}) > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"this is one of {len(processes)} hosts, which have not joined: experiments/train.py joins them, told by "
            "JAX_COORDINATOR_ADDRESS=<first host>:<port>, JAX_NUM_PROCESSES and JAX_PROCESS_ID where it cannot know; "
            "other commands are for one host (or call jax.distributed.initialize() first)"
        )
    sizes = dict(zip(AXES, (data, fsdp, context, tensor), strict=True))
    asked = " × ".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {asked}: sizes must be positive, at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if len(devices) % fixed:
            raise InputError(f"mesh {asked} does not divide the {len(devices)} devices ({devices[0].platform})")
        sizes[free[0]] = len(devices) // fixed
    elif fixed > len(devices):
        raise InputError(f"mesh {asked} needs {fixed} devices, but there are {len(devices)}")
    elif fixed < len(devices):
        raise InputError(f"mesh {asked} uses {fixed} of {len(devices)} devices; set one size to -1 to use all")
    grid = np.array(devices).reshape([sizes[name] for name in AXES])
    # Auto: Explicit types reject sharded convolution kernels and a U-Net's reshapes (jax 0.10 to 0.12).
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_cpu(mesh: Mesh, *, optimization: int) -> dict[str, int] | None:
    """Compiler options that set how far LLVM optimises where the mesh is of CPUs (XLA's default: 3).

    What XLA_FLAGS says of it stands.
    """
    name = "xla_backend_optimization_level"
    if mesh.devices.flat[0].platform != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return None
    return {name: optimization}
