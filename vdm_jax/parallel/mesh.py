"""The device mesh `data × fsdp × context × tensor`, over one process or many."""

import collections
import logging
import math
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdm_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")
# With any of these set, a process knows its hosts or its chips without a metadata server.
_NO_METADATA = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY")
_NO_METADATA += ("TPU_PROCESS_BOUNDS", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")


def start_processes() -> None:
    """Joins this process to a multi-host run; call it before any device is used.

    Slurm, Open MPI, indexed Kubernetes jobs and TPU pods are recognised by their environment variables; JAX asks the
    cluster, or Google's metadata server, for the rest. Elsewhere, set JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without signs of a cluster, nothing is done. A failure is raised and never
    swallowed: N hosts that do not find each other would each train alone. Raises InputError if JAX_COORDINATOR_ADDRESS
    is set without the number of processes and the number of this one.
    """
    address, count, process = (
        os.environ.get(f"JAX_{name}", "") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
    )
    counts, lists = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"), _NO_METADATA[:2]
    several = any(int(os.environ.get(name) or 0) > 1 for name in counts)
    several |= any("," in os.environ.get(name, "") for name in lists)
    several |= os.environ.get("JOB_COMPLETION_INDEX", "").isdecimal()
    # JAX itself sets this on TPU VMs. Without a variable that names the hosts, the metadata server knows them.
    on_tpu = os.environ.get("TPU_ML_PLATFORM") == "JAX" and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")
    several |= on_tpu and not any(name in os.environ for name in _NO_METADATA)
    if address:
        if not (count.isdecimal() and process.isdecimal() and int(process) < int(count)):
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address} needs JAX_NUM_PROCESSES={count!r} to be a number, and "
                f"JAX_PROCESS_ID={process!r} a number from 0 below it"
            )
        jax.distributed.initialize(address, int(count), int(process))
    elif several:
        jax.distributed.initialize()
    else:
        return
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def make_mesh(
    data: int = -1, fsdp: int = 1, context: int = 1, tensor: int = 1, devices: Sequence | None = None
) -> Mesh:
    """Returns a mesh of the given sizes; one of them may be -1 and takes the remaining devices.

    The batch is split over `data` and `fsdp`, parameters over `fsdp` and `tensor`, frames over `context`. Neighbours in
    the mesh are neighbours in the machine, and `data` (then `fsdp`) crosses the slow links between slices.

    Args:
        data, fsdp, context, tensor: sizes of the axes.
        devices: the devices to use. None: all devices of all hosts. Described devices
            (`jax.experimental.topologies`) work too.

    Raises:
        InputError: the sizes do not match the number of devices, data × fsdp cannot be split over the slices, or this
            is one of several hosts that have not joined.
    """
    if devices is None:
        devices = jax.devices()
        hosts = len({device.process_index for device in devices})
        if hosts > 1 and not jax.distributed.is_initialized():
            raise InputError(
                f"this is one of {hosts} hosts that have not joined: experiments/train.py joins them (where it cannot "
                "detect the cluster, set JAX_COORDINATOR_ADDRESS=<first host>:<port>, JAX_NUM_PROCESSES and "
                "JAX_PROCESS_ID); other commands are for one host (or call jax.distributed.initialize() first)"
            )
    sizes = _fill({"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}, devices)
    # Auto: Explicit types reject sharded convolution kernels and a U-Net's reshapes (jax 0.10 to 0.12).
    return Mesh(_arrange(sizes, list(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _fill(sizes: dict[str, int], devices: Sequence) -> dict[str, int]:
    """Replaces -1 by the number of remaining devices."""
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh {_words(sizes)}: sizes must be positive, at most one may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed:
        raise InputError(f"mesh {_words(sizes)} does not divide the {len(devices)} devices ({devices[0].platform})")
    if free:
        return sizes | {free[0]: len(devices) // fixed}
    if fixed > len(devices):
        raise InputError(f"mesh {_words(sizes)} needs {fixed} devices, but there are {len(devices)}")
    if fixed < len(devices):
        raise InputError(f"mesh {_words(sizes)} uses {fixed} of {len(devices)} devices; set one size to -1 to use all")
    return sizes


def _arrange(sizes: dict[str, int], devices: list) -> np.ndarray:
    """Returns the grid of devices: in plain order on CPUs, else by the topology of the machine."""
    shape = list(sizes.values())
    if devices[0].platform == "cpu":
        return np.array(devices).reshape(shape)
    # GPUs of one host count as a slice where JAX does not number the slices.
    by_process = devices[0].platform in ("gpu", "cuda", "rocm") and not hasattr(devices[0], "slice_index")
    key = "process_index" if by_process else "slice_index"
    slices = collections.Counter(getattr(device, key, 0) for device in devices)
    if len(set(slices.values())) > 1:
        raise InputError(f"mesh {_words(sizes)}: the slices differ in size ({', '.join(map(str, slices.values()))})")
    try:
        if len(slices) == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        across = _across_slices(sizes, len(slices), devices[0].platform)
        within = [size // part for size, part in zip(shape, across, strict=True)]
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, process_is_granule=by_process, allow_split_physical_axes=True
        )
    except AssertionError:  # the devices are a part of a torus, or TPU v4 cores without megacore
        logging.warning("mesh %s: the devices form no complete torus, so their plain order is kept", _words(sizes))
        return np.array(devices).reshape(shape)


def _across_slices(sizes: dict[str, int], slices: int, platform: str) -> list[int]:
    """Splits the number of slices over the axes; `data` takes as much as it can, then `fsdp`.

    On TPUs no other axis may cross slices. GPU hosts have fast networks, so the later axes take the rest.
    """
    if platform == "tpu" and sizes["data"] * sizes["fsdp"] % slices:
        raise InputError(
            f"mesh {_words(sizes)} cannot be split over {slices} slices: "
            f"data × fsdp = {sizes['data'] * sizes['fsdp']} must be a multiple of {slices}"
        )
    parts = []
    for size in sizes.values():
        parts.append(math.gcd(size, slices))
        slices //= parts[-1]
    return parts


def _words(sizes: dict[str, int]) -> str:
    return " × ".join(f"{name}={size}" for name, size in sizes.items())


def on_cpu(mesh: Mesh, *, optimization: int) -> dict[str, int] | None:
    """Returns compiler options that set LLVM's optimisation level on a mesh of CPUs (XLA's default: 3), else None.

    A level in XLA_FLAGS wins.
    """
    name = "xla_backend_optimization_level"
    if mesh.devices.flat[0].platform != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return None
    return {name: optimization}
