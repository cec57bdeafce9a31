"""Measures compiled programs: seconds, operations, share of the peak, memory, collectives."""

import math
import re
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from vdm_jax.errors import InputError
from vdm_jax.typing import PyTree

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def time_calls(call: Callable, runs: int, warmup: int = 2) -> list[float]:
    """Seconds of each of `runs` calls after a warm-up. `call` must wait for its result."""
    times = []
    for _ in range(warmup + runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[warmup:]


def summarize(times: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def rate(flops: float, seconds: float, peak: float) -> dict[str, float]:
    """Operations, operations per second, and their share of the peak."""
    return {"flops": flops, "flops_per_second": flops / seconds, "share_of_peak": flops / seconds / peak}


def measure_peak(dtype: str) -> dict:
    """FLOP/s of one device in a large square matrix product, the best of ten; on CPU always float32."""
    cpu = jax.default_backend() == "cpu"
    size = 2048 if cpu else 8192
    dtype = "float32" if cpu else dtype
    a, product = jnp.ones((size, size), dtype), jax.jit(jnp.matmul)
    seconds = min(time_calls(lambda: product(a, a).block_until_ready(), 10))
    return {"product": f"{size}³ {dtype}", "flops_per_second": 2 * size**3 / seconds}


def one_cpu() -> jax.Device:
    """The CPU device for which programs are lowered to count operations, even if there is a GPU or TPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        platforms = jax.config.jax_platforms
        raise InputError(f"JAX_PLATFORMS={platforms} must include cpu: operations are counted for it") from error


def shapes_on_cpu(tree: PyTree) -> PyTree:
    """The shapes of arrays, placed on one CPU device."""
    sharding = SingleDeviceSharding(one_cpu())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def flops_of(lowered, devices: int = 1) -> float:
    """Operations per device, as XLA counts them in the lowered program, before compilation.

    After compilation a GPU's matrix products are calls into a library, which XLA does not count; on CPU both counts
    agree. JAX counts lowered programs only for CPUs (`shapes_on_cpu`). The body of a loop counts once.
    """
    return lowered.cost_analysis()["flops"] / devices


def peak_memory(compiled, beside: int = 0) -> dict:
    """The peak recorded by the device; without a record, the memory of a compiled program plus `beside` bytes."""
    record = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in record:
        return {"bytes": record["peak_bytes_in_use"], "how": "most in use so far on one device"}
    m = compiled.memory_analysis()
    size = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return {"bytes": size + beside, "how": "compiled step: arguments + outputs + temporaries − donated"}


def bytes_on_a_device(arrays) -> int:
    """Bytes of the arrays on each device, by their shardings."""
    leaves = jax.tree.leaves(arrays)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def count_collectives(hlo: str) -> dict[str, int]:
    """The number of collectives of each kind in a compiled program; an asynchronous collective counts once."""
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", hlo)) for kind in COLLECTIVES}
    return {kind: count for kind, count in counts.items() if count}
