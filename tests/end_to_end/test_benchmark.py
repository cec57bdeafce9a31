"""The benchmark's arithmetic, and its measuring functions on tiny networks; no time is asserted."""

import importlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_flags

from vdm_jax.config import default_config
from vdm_jax.errors import InputError
from vdm_jax.parallel.machine import about_machine

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Puts the folder of the scripts on the path, as Python does for a script."""
    monkeypatch.syspath_prepend(EXPERIMENTS)


@pytest.fixture
def without_flags(monkeypatch):
    """Lets a script be imported as a module without its flags, whose names other scripts have, too."""
    for module in (flags, config_flags):
        for name in filter(lambda name: name.startswith("DEFINE"), dir(module)):
            monkeypatch.setattr(module, name, lambda *args, **kwargs: None)


@pytest.fixture
def benchmark(without_flags):
    return _load("benchmark")


@pytest.fixture
def peer():
    return _load("benchmark_peer")


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speed = _load("benchmark_measures")


@pytest.fixture
def config():
    config = default_config()
    config.batch_size = 8
    config.optimizer.name = "sgd"
    config.data.update(frames=2, height=4, width=4)
    config.model.text = {"kind": "none"}
    config.model.network = {
        "kind": "unet",
        "channels": 8,
        "multipliers": (1,),
        "blocks": 1,
        "patch": 2,
        "head_size": 8,
        "space_attention": False,
        "time_attention": False,  # the fewest operations: compiling them is what takes time here
    }
    return config


def test_rate_is_operations_over_seconds_and_peak():
    assert speed.rate(6e9, 2.0, 12e9) == {"flops": 6e9, "flops_per_second": 3e9, "share_of_peak": 0.25}


def test_summary_and_warm_up():
    calls = []
    assert len(speed.time_calls(lambda: calls.append(0), runs=3, warmup=2)) == 3
    assert len(calls) == 5
    assert speed.summarize([3.0, 1.0, 2.5]) == {"median": 2.5, "min": 1.0, "max": 3.0}


def test_operations_of_a_matrix_product():
    lowered = jax.jit(jnp.matmul).lower(jnp.ones((16, 32)), jnp.ones((32, 8)))
    assert speed.flops_of(lowered) == 2 * 16 * 32 * 8
    assert speed.flops_of(lowered, devices=8) == 2 * 16 * 32


def test_collectives_are_counted_once():
    hlo = """
      %a = f32[8] all-reduce(%x), replica_groups={}
      %b = (f32[8], f32[8]) all-gather-start(%a)
      %c = f32[8] all-gather-done(%b)
      %d = f32[8] add(%all-reduce.1, %c)
    """
    assert speed.count_collectives(hlo) == {"all-reduce": 1, "all-gather": 1}


def test_bytes_on_a_device_are_the_bytes_of_its_shards():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    arrays = [jax.device_put(jnp.ones((16, 3)), NamedSharding(mesh, P(axis))) for axis in ("data", None)]
    assert speed.bytes_on_a_device(arrays) == 4 * (2 * 3 + 16 * 3)


def test_measures_and_reports_a_config(benchmark, config):
    training = benchmark.measure_training(config, runs=2)
    sampling = benchmark.measure_sampling(config, runs=2, steps=2)
    assert training["collectives"]["all-reduce"] >= 1  # eight devices share the gradient
    assert (
        training["memory"]["bytes"] > 4 * 3 * training["parameters"]
    )  # parameters, averages and gradients of every device
    assert training["flops"] > sampling["flops"] > 0  # a step holds a call of the network and its gradient
    assert training["videos_per_second"] == pytest.approx(8 / training["seconds"]["median"])
    assert sampling["ratio_with_known"].keys() == {"replace"}  # the network sees no known pixels
    assert sampling["step_seconds"] == pytest.approx(sampling["sampler_seconds"]["median"] / 2)

    for group in (training, sampling):
        group |= speed.rate(group["flops"], group["seconds"]["median"], 1e12)
    peak = {"product": "2048³ float32", "flops_per_second": 1e12}
    result = {"machine": about_machine(), "config": config.to_dict(), "peak": peak}
    lines = benchmark.report(result | {"training": training, "sampling": sampling})
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {3}
    assert any("| **training step** |" in line for line in table)


def test_measures_networks_that_see_known_pixels_and_stills(benchmark, config):
    config.known.update(mixture={"first": 1.0}, tell="times")
    config.data.joint_images = 1
    assert benchmark.measure_training(config, runs=1)["flops"] > 0
    ratios = benchmark.measure_sampling(config, runs=1, steps=1)["ratio_with_known"]
    assert ratios.keys() == {"replace", "times"}
    config.known.tell = "channels"
    assert benchmark.measure_sampling(config, runs=1, steps=1)["ratio_with_known"].keys() == {"replace", "concat"}


def test_a_batch_that_does_not_divide_is_refused(benchmark, config):
    config.batch_size = 7
    with pytest.raises(InputError, match="batch_size=7"):
        benchmark.measure_training(config, runs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("4x8x16", ["64"]), "--peer_shape=4x8x16 must be batch x frames x height x width, such as 4x8x16x16"),
        (("4x8x16x16", ["40"]), "--peer_widths=40 must be multiples"),
        (("4x8x16x15", ["32", "64"]), "must be multiples of 2"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(peer, monkeypatch, arguments, message):
    monkeypatch.setattr(peer.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=message):
        peer.check(*arguments)
    with pytest.raises(InputError, match="--shape=8x16 must be frames x height x width, such as 8x16x16"):
        peer.check("8x16", ["64"], prefix="", example="8x16x16")


def test_without_the_parity_extra_it_says_what_to_install(peer, monkeypatch):
    monkeypatch.setattr(peer.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torch and diffusers: pip install vdm_jax\[parity\]"):
        peer.check("4x8x16x16", ["64"])


def test_the_ratio_is_our_time_over_the_peers(peer, monkeypatch):
    clock = iter(float(i * i) for i in range(100))  # each call lasts longer than the one before
    monkeypatch.setattr(peer.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(peer.time, "sleep", lambda seconds: None)
    result = peer.compare(lambda: None, lambda: None, rounds=1)
    assert result["ours"]["median"] == 17.0  # 9² − 8²
    assert result["peer"]["median"] == 21.0  # 11² − 10²
    assert result["ratio"]["median"] == pytest.approx(17 / 21)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of torch and diffusers
def test_counts_the_work_of_the_peer(peer):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    calls, counts = peer._peer((1, 2, 4, 4), (32,), "float32")
    for call in calls.values():
        call()
    assert counts["training step"] > 2 * counts["forward"] > 0

    equal = dict.fromkeys(("median", "min", "max"), 0.5)
    result = {"shape": (1, 2, 4, 4), "widths": (32,), "dtype": "float32", "ours": counts, "peer": counts}
    for name in calls:
        result[name] = {"ours": equal, "peer": equal, "ratio": dict.fromkeys(equal, 1.0)}
    lines = peer.report(result)
    assert sum("time per GFLOP" in line and "**1.00**" in line for line in lines) == 2


@pytest.fixture
def layers(without_flags):
    return _load("benchmark_layers")


def test_layers_are_measured_and_must_agree(layers):
    result = {"small": layers.measure_convolution(2, 3, 4, rounds=1)}
    assert result["small"].keys() == {"forward", "gradients"}
    assert len(layers.report("ours", "other", result)) == 4
    assert layers.measure_positions(1, 2, 2, 4, rounds=1).keys() == {"gradients"}
    with pytest.raises(InputError, match="gradients: the results differ by"):
        layers.in_turns(lambda a, x: a * x, lambda a, x: 2 * a * x, jnp.ones(2), jnp.ones(2), rounds=1)


def test_depths_are_compiled_from_the_config(layers, config, monkeypatch):
    monkeypatch.setattr(layers.benchmark_step, "compile_step", lambda *arguments: (None, 1.0, 2.0))
    with pytest.raises(InputError, match=r"model\.network\.kind='unet' must be 'dit'"):
        layers.measure_compilation(config, [1], rounds=1)
    config.model.network = {"kind": "dit", "width": 8, "heads": 1}
    result = layers.measure_compilation(config, [1, 3], rounds=2)
    assert result["3"]["parameters"] > result["1"]["parameters"]
    assert result["3"]["all"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert len(layers.report_compilation(result)) == 4
    with pytest.raises(InputError, match="--depths=4,0 must be numbers from 1"):
        layers.check_depths(["4", "0"])
