"""Mesh sizes, and when processes join."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType

from vdm_jax.errors import InputError
from vdm_jax.parallel import mesh as mesh_module
from vdm_jax.parallel.mesh import AXES, make_mesh, start_processes


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1, 1)),
        ({"data": 2, "fsdp": 2, "context": -1}, (2, 2, 2, 1)),
        ({"data": 2, "fsdp": 2, "context": 1, "tensor": 2}, (2, 2, 1, 2)),
    ],
)
def test_one_size_takes_the_devices_that_are_left(sizes, expected):
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == AXES == ("data", "fsdp", "context", "tensor")
    assert mesh.devices.shape == expected
    assert set(mesh.devices.flat) == set(jax.devices())
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_a_mesh_of_some_devices():
    assert make_mesh(devices=jax.devices()[:1]).devices.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        ({"data": 0}, "data=0 × fsdp=1 × context=1 × tensor=1: sizes must be positive"),
        ({"data": -2}, "sizes must be positive"),
        ({"tensor": 3}, r"tensor=3 does not divide the 8 devices \(cpu\)"),
        ({"data": 16}, "needs 16 devices, but there are 8"),
        ({"data": 4}, "uses 4 of 8 devices; set one size to -1"),
    ],
)
def test_sizes_that_do_not_make_up_the_devices_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(**sizes)


def test_hosts_that_did_not_join_are_told_how():
    devices = [SimpleNamespace(process_index=i // 2, platform="tpu") for i in range(4)]
    with pytest.raises(InputError, match=r"this is one of 2 hosts, .* told by JAX_COORDINATOR_ADDRESS"):
        make_mesh(devices=devices)


def without_cluster(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MEGASCALE_NUM_SLICES", "TPU_ML_PLATFORM", *mesh_module._NO_METADATA):  # JAX sets some itself
        monkeypatch.delenv(name, raising=False)
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True),
        ({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "localhost"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_VISIBLE_CHIPS": "0"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"JOB_COMPLETION_INDEX": "0"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, True),
    ],
)
def test_processes_join_where_there_are_signs_of_many(environment, joins, monkeypatch):
    without_cluster(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(mesh_module.jax.distributed, "initialize", lambda *given: calls.append(given))
    start_processes()
    by_hand = [("a:1", 2, 1)] if "JAX_COORDINATOR_ADDRESS" in environment else [()]
    assert calls == (by_hand if joins else [])


@pytest.mark.parametrize(("count", "number"), [("", ""), ("2", ""), ("2", "2"), ("two", "0"), ("2", "-1")])
def test_a_coordinator_by_hand_needs_the_number_of_processes_and_this_ones_place(count, number, monkeypatch):
    without_cluster(monkeypatch)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", number)
    with pytest.raises(InputError, match=f"needs JAX_NUM_PROCESSES='{count}' .* JAX_PROCESS_ID='{number}'"):
        start_processes()


def test_a_failure_to_join_is_raised(monkeypatch):
    def fail():
        raise RuntimeError("no coordinator")

    without_cluster(monkeypatch)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setattr(mesh_module.jax.distributed, "initialize", fail)
    with pytest.raises(RuntimeError, match="no coordinator"):
        start_processes()
