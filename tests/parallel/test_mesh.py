"""Sizes and order of a mesh, and when processes join."""

import dataclasses
import itertools
import logging
from types import SimpleNamespace

import jax
import numpy as np
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
def test_one_size_takes_the_remaining_devices(sizes, expected):
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
def test_sizes_that_do_not_match_the_devices_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(**sizes)


# --- The order of the devices ---


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes a TPU chip as JAX does."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Describes a GPU as JAX does, without the number of its slice."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def chips(shape, slices=1):
    """Returns the chips of `slices` slices of this shape; four neighbours belong to a host."""
    places = [tuple(reversed(place)) for place in itertools.product(*map(range, reversed(shape)))]
    hosts = [place[0] // 2 + shape[0] * (place[1] // 2 + shape[1] * place[2]) for place in places]
    return [
        Chip(i * len(places) + j, place, i, 1000 * i + host)
        for i in range(slices)
        for j, (place, host) in enumerate(zip(places, hosts, strict=True))
    ]


def neighbours(mesh, name):
    """Returns the pairs of devices that follow each other along an axis of a mesh."""
    grid = np.moveaxis(mesh.devices, AXES.index(name), 0)
    return list(zip(grid[:-1].ravel(), grid[1:].ravel(), strict=True))


def distance(pair, shape):
    """Returns the number of links between two chips of a torus, whose first and last chips are neighbours."""
    steps = [abs(a - b) for a, b in zip(pair[0].coords, pair[1].coords, strict=True)]
    return sum(min(step, size - step) for step, size in zip(steps, shape, strict=True))


@pytest.mark.parametrize(
    "sizes", [{"data": 4, "fsdp": 4, "context": 4}, {"data": 4, "context": 4, "tensor": 4}, {"data": 16, "tensor": 4}]
)
def test_neighbours_in_the_mesh_are_neighbours_in_the_torus(sizes):
    mesh = make_mesh(**sizes, devices=chips((4, 4, 4)))
    assert mesh.devices.size == len(set(mesh.devices.flat)) == 64
    for name in [name for name in sizes if sizes[name] == 4]:
        assert all(distance(pair, (4, 4, 4)) == 1 for pair in neighbours(mesh, name))
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_an_axis_takes_a_whole_plane_of_the_torus():
    devices = chips((2, 4, 4))
    mesh = make_mesh(data=1, fsdp=2, context=16, devices=devices)
    assert all(a.coords[0] == b.coords[0] for a, b in neighbours(mesh, "context"))
    assert not all(chip.coords[0] == 0 for chip in devices[:16])  # as the plain order would have it


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [
        ({"data": 2, "fsdp": 4, "context": 4}, "data"),
        ({"data": 8, "context": 4}, "data"),
        ({"data": 1, "fsdp": 8, "context": 4}, "fsdp"),
    ],
)
def test_slices_are_split_along_data_or_else_fsdp(sizes, axis):
    mesh = make_mesh(**sizes, devices=chips((4, 4, 1), slices=2))
    assert mesh.devices.size == len(set(mesh.devices.flat)) == 32
    for name in AXES:
        crossings = sum(a.slice_index != b.slice_index for a, b in neighbours(mesh, name))
        assert (crossings > 0) == (name == axis)
    pairs = neighbours(mesh, "context")
    assert all(distance(pair, (4, 4, 1)) == 1 for pair in pairs)


def test_slices_that_data_and_fsdp_share():
    mesh = make_mesh(data=2, fsdp=8, context=2, devices=chips((2, 4, 1), slices=4))
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)[:, :, 0, 0]
    np.testing.assert_array_equal(slices, [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4])


@pytest.mark.parametrize(
    ("sizes", "slices", "message"),
    [
        ({"data": 1, "context": -1}, 2, r"context=32 × tensor=1 cannot be split over 2 slices: data × fsdp = 1 must"),
        ({"data": 2, "fsdp": 4, "tensor": -1}, 3, "cannot be split over 3 slices: data × fsdp = 8 must be a multiple"),
    ],
)
def test_a_mesh_that_does_not_split_over_slices_is_refused(sizes, slices, message):
    with pytest.raises(InputError, match=message) as error:
        make_mesh(**sizes, devices=chips((4, 4, 1), slices))
    assert "\n" not in str(error.value)


def test_slices_of_different_sizes_are_refused():
    with pytest.raises(InputError, match=r"the slices differ in size \(16, 8\)"):
        make_mesh(devices=chips((4, 4, 1), slices=2)[:24])


def test_a_part_of_a_torus_keeps_its_order(caplog):
    devices = chips((4, 4, 1))[:6]
    with caplog.at_level(logging.WARNING):
        assert list(make_mesh(devices=devices).devices.flat) == devices
    assert "form no complete torus" in caplog.text
    assert make_mesh(devices=devices[:1]).devices.shape == (1, 1, 1, 1)


@pytest.mark.parametrize("per_process", [4, 1])
def test_hosts_of_gpus_are_split_along_data(per_process):
    devices = [Gpu(i, i // per_process) for i in range(8)]
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=devices[::-1])
    assert list(mesh.devices.flat) == devices
    # A host's network is fast enough for any axis.
    assert list(make_mesh(data=1, context=2, tensor=4, devices=devices).devices.flat) == devices


def test_given_devices_need_no_local_devices(monkeypatch):
    monkeypatch.setattr(mesh_module.jax, "devices", None)
    assert make_mesh(devices=chips((2, 2, 1), slices=2)).devices.shape == (8, 1, 1, 1)


def test_cpus_keep_their_plain_order():
    assert list(make_mesh(data=2, context=4).devices.flat) == jax.devices()


# --- Joining ---


def test_hosts_that_have_not_joined_are_refused(monkeypatch):
    devices = [SimpleNamespace(process_index=i // 2, platform="tpu") for i in range(4)]
    monkeypatch.setattr(mesh_module.jax, "devices", lambda: devices)
    with pytest.raises(InputError, match=r"this is one of 2 hosts that have not joined.* JAX_COORDINATOR_ADDRESS"):
        make_mesh()


def without_cluster(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MEGASCALE_NUM_SLICES", "TPU_ML_PLATFORM", *mesh_module._NO_METADATA):  # JAX itself sets some
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
def test_processes_join_if_a_variable_names_several(environment, joins, monkeypatch):
    without_cluster(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(mesh_module.jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    start_processes()
    expected = [("a:1", 2, 1)] if "JAX_COORDINATOR_ADDRESS" in environment else [()]
    assert calls == (expected if joins else [])


@pytest.mark.parametrize(("count", "number"), [("", ""), ("2", ""), ("2", "2"), ("two", "0"), ("2", "-1")])
def test_a_coordinator_needs_the_number_of_processes_and_the_number_of_this_one(count, number, monkeypatch):
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
