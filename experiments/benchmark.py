"""Measures a config on this machine: compilation, training step, sampling, share of the peak, memory.

python experiments/benchmark.py --config=configs/moving_digits.py --startup --peer diffusers --out speed.json
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import benchmark_step
from absl import flags
from ml_collections import config_flags

from vdm_jax import command
from vdm_jax.errors import InputError
from vdm_jax.files import write_text

config_flags.DEFINE_config_file("config", None, "Config file, such as configs/moving_digits.py.")
BATCH = flags.DEFINE_integer("batch_size", None, "Videos per step (default: the config's).", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 10, "Timed runs, after warm-up.", lower_bound=1)
SAMPLE_STEPS = flags.DEFINE_integer("sample_steps", 8, "Sampling steps.", lower_bound=1)
STARTUP = flags.DEFINE_bool("startup", False, "Also time the import and the first training step.")
PEER = flags.DEFINE_enum("peer", None, ["diffusers"], "Also time a network of this library, in turns with ours.")
PEER_SHAPE = flags.DEFINE_string("peer_shape", "4x8x16x16", "Batch x frames x height x width of the comparison.")
PEER_WIDTHS = flags.DEFINE_list("peer_widths", ["64", "128"], "Width of each level of the comparison.")
OUT = flags.DEFINE_string("out", None, "JSON file for the numbers.")


def main() -> None:
    """Checks the input, measures, prints a markdown table and writes the numbers."""
    config = command.read_config_flag()
    if BATCH.value:
        config.batch_size = BATCH.value
    if PEER.value:
        import benchmark_peer as peer

        shape, widths = peer.check(PEER_SHAPE.value, PEER_WIDTHS.value)
    command.check_out(OUT.value)

    import jax
    from benchmark_measures import measure_peak, rate

    from vdm_jax.parallel.machine import about_machine

    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed fresh
    if PEER.value:  # leaves memory of the GPU to the peer
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = {"config": json.loads(config.to_json())}
    if STARTUP.value:  # first: the processes that it starts need the devices
        result["startup"] = measure_startup(config)
    result["machine"] = about_machine(("torch", "diffusers") if PEER.value else ())
    result["training"] = measure_training(config, STEPS.value)
    result["sampling"] = measure_sampling(config, STEPS.value, SAMPLE_STEPS.value)
    result["peak"] = measure_peak(config.model.dtype)  # last: it would add to the training step's peak memory
    for group in (result["training"], result["sampling"]):
        group |= rate(group["flops"], group["seconds"]["median"], result["peak"]["flops_per_second"])
    if PEER.value:
        result["peer"] = peer.measure(shape, widths, STEPS.value, config.model.dtype)
    print("\n".join(report(result)))
    if PEER.value:
        print("\n".join(peer.report(result["peer"])))
    if OUT.value:
        write_text(OUT.value, json.dumps(result, indent=2) + "\n")
        print(f"\nwritten to {OUT.value}")


# ------------------------------------------------------------------------------------------------ the config


def set_up(config):
    """Returns (mesh, model, split, optimizer, state) as `training.loop` makes them."""
    *parts, _, initialise = benchmark_step.plan(config)
    return *parts, initialise()


def countable(config):
    """Returns the model with attention that XLA can count: it does not look into the fused kernel."""
    from vdm_jax.build import build

    config = config.copy_and_resolve_references()
    config.unlock()
    config.model.network.attention = "xla"
    return build(config)


def measure_training(config, runs: int) -> dict:
    """Times the training step of `training.loop` on one batch: no data pipeline."""
    import benchmark_measures as speed
    import jax

    from vdm_jax.parallel.mesh import make_mesh

    mesh, model, split, tx, state = set_up(config)
    batch, frozen = benchmark_step.random_batch(config, model, mesh), split.frozen
    counted = benchmark_step.make_step(config, countable(config), tx, make_mesh(devices=[speed.one_cpu()]), 1)
    programs = counted.lower(*speed.shapes_on_cpu((state, batch, frozen)))
    flops = sum(speed.flops_of(program, mesh.size) for program in programs)
    step = benchmark_step.make_step(config, model, tx, mesh, config.accumulate)
    compiled, _, compile_seconds = benchmark_step.compile_step(step, state, batch, frozen)
    *gradients, last = compiled.programs
    averages = speed.bytes_on_a_device((state.ema, state.opt_state))

    def train():
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, batch, frozen))

    seconds = speed.summarize(speed.time_calls(train, runs))
    text = "".join(program.as_text() for program in compiled.programs)
    memory = [speed.peak_memory(last), *(speed.peak_memory(program, beside=averages) for program in gradients)]
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "videos_per_second": config.batch_size / seconds["median"],
        "flops": flops,
        "memory": max(memory, key=lambda m: m["bytes"]),
        "collectives": speed.count_collectives(text) if mesh.size > 1 else {},
    }


def measure_sampling(config, runs: int, steps: int) -> dict:
    """Times one call of the network, and the whole sampler of `generation.pipeline` with the config's settings."""
    import benchmark_measures as speed
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vdm_jax.diffusion.known import Known
    from vdm_jax.generation.pipeline import Pipeline
    from vdm_jax.models.conditions import Conditions
    from vdm_jax.models.layout import ONE_DEVICE
    from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding
    from vdm_jax.split import join

    mesh, model, split, _, state = set_up(config)
    size, params = config.batch_size, join(state.params, split.frozen)
    model = dataclasses.replace(model, params=params)
    pipeline, prompt, known = Pipeline(model, mesh), prompt_of(model), {}
    if model.downsample > 1:
        video, mask = np.zeros((1, *model.shape), np.float32), np.ones((1, *model.shape[:3], 1), bool)
        known = {"coarse": model.downsample, "known": Known(video, mask)}
    text = jax.jit(model.static.encode)(params, np.tile(model.tokenize(prompt), (size, 1, 1)))
    z = jnp.zeros((size, *model.latent_shape))
    conditions = Conditions(text, model.channels(size, None, z))
    inputs = jax.device_put((z, jnp.ones(size), conditions), batch_sharding(mesh))

    def lower(model, layout, arguments):
        def predict(params, z, time, conditions):
            return model.merge(params)(z, time, conditions, layout=layout)

        return jax.jit(predict).lower(*arguments)

    call = lower(model.static, ActivationLayout(mesh), (params, *inputs)).compile()
    seconds = speed.summarize(speed.time_calls(lambda: call(params, *inputs).block_until_ready(), runs))

    draw = lambda: list(pipeline.batches([prompt] * size, batch_size=size, steps=steps, **known))  # noqa: E731
    first, *rest = speed.time_calls(draw, 1 + max(2, runs // 3), warmup=0)
    whole = speed.summarize(rest)
    counted = lower(countable(config).static, ONE_DEVICE, speed.shapes_on_cpu((params, *inputs)))
    return {
        "seconds": seconds,
        "flops": speed.flops_of(counted, mesh.size),
        "compile_seconds": first - whole["median"],  # the first call traces and compiles
        "sampler_seconds": whole,
        "step_seconds": whole["median"] / steps,
        "videos_per_second": size / whole["median"],
        "settings": f"{pipeline.settings.solver}, {steps} steps, guidance {pipeline.settings.guidance:g}",
        "ratio_with_known": compare_modes(pipeline, size, steps, max(3, runs // 2)),
    }


def prompt_of(model) -> str:
    """Returns a prompt that the model takes."""
    return "" if model.text is None else "a video"


def compare_modes(pipeline, size: int, steps: int, rounds: int) -> dict[str, float]:
    """Returns the time of a sampler that knows half of the frames, over the time of one that knows nothing.

    It is the median ratio of calls in turns, for each way to respect what is known.
    """
    import numpy as np

    from vdm_jax.diffusion.known import Known

    model = pipeline.model
    if model.downsample > 1:
        return {}
    mask = np.arange(model.shape[0])[None, :, None, None, None] < model.shape[0] // 2
    known = Known(np.zeros((1, *model.shape), np.float32), np.broadcast_to(mask, (1, *model.shape[:3], 1)))
    ways = ["replace", *(["concat"] if model.tell == "channels" else []), *(["times"] if model.time_per_frame else [])]

    def seconds(known, respect):
        start = time.perf_counter()
        prompts = [prompt_of(model)] * size
        list(pipeline.batches(prompts, batch_size=size, steps=steps, known=known, respect=respect))
        return time.perf_counter() - start

    turns = [[seconds(None, way) for way in ways] + [seconds(known, way) for way in ways] for _ in range(1 + rounds)]
    turns = turns[1:]  # the first turn compiles
    return {way: statistics.median(turn[len(ways) + i] / turn[i] for turn in turns) for i, way in enumerate(ways)}


def measure_startup(config) -> dict[str, float]:
    """Times fresh processes: the import of the package, and train.py until its first step is done."""
    from vdm_jax.config import source_arguments
    from vdm_jax.data.source import make_source

    make_source(**source_arguments(config))  # builds the data set, if it is not there
    result = {}
    for name, line in (("import", "import vdm_jax"), ("import_load", "from vdm_jax import load")):
        timed = f"import time; start = time.perf_counter(); {line}; print(time.perf_counter() - start)"
        runs = [subprocess.check_output([sys.executable, "-c", timed], text=True) for _ in range(3)]
        result[name] = statistics.median(map(float, runs))
    short = config.copy_and_resolve_references()
    short.steps, short.log_every, short.optimizer.warmup = 1, 1, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.py"
        file.write_text(
            "import json, ml_collections\n\ndef get_config():\n"
            f"    return ml_collections.ConfigDict(json.loads({short.to_json()!r}))\n"
        )
        for name in ("first_step_cold", "first_step_warm"):
            result[name] = _first_step(file, Path(folder) / name, Path(folder) / "cache")
    return result


def _first_step(config: Path, workdir: Path, cache: Path) -> float:
    """Returns the seconds until train.py has written its first line of metrics."""
    script, log = Path(__file__).with_name("train.py"), workdir / "metrics.jsonl"
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:  # a pipe would be full before it is read
        process = subprocess.Popen(
            [sys.executable, script, f"--config={config}", f"--workdir={workdir}"],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if status := process.wait():
            errors.seek(0)
            lines = errors.read().split("\n")
            raise InputError(f"train.py failed: {next(filter(None, reversed(lines)), f'status {status}')}")
    return seconds


# ------------------------------------------------------------------------------------------------ the report


def report(result: dict) -> list[str]:
    """Returns the lines of a markdown table."""
    config, training, sampling = result["config"], result["training"], result["sampling"]
    peak, memory = result["peak"], training["memory"]
    rows = {
        "parameters": f"{training['parameters'] / 1e6:.3f} M",
        f"peak of a device (product of {peak['product']})": f"{peak['flops_per_second'] / 1e9:.0f} GFLOP/s",
        "**training step**": _spread(training["seconds"]),
        "videos/s": f"{training['videos_per_second']:.1f}",
        "work": _work(training),
        "compilation, fresh": f"{training['compile_seconds']:.1f} s, tracing included",
        f"peak memory ({memory['how']})": f"{memory['bytes'] / 2**20:.0f} MiB",
        "collectives": ", ".join(f"{n} {kind}" for kind, n in training["collectives"].items()) or "none",
        "**call of the network**": _spread(sampling["seconds"]),
        "work of a call": _work(sampling),
        f"**sampling** ({sampling['settings']})": _spread(sampling["sampler_seconds"]),
        "a sampling step": f"{sampling['step_seconds'] * 1e3:.1f} ms",
        "videos/s sampled": f"{sampling['videos_per_second']:.1f}",
        "compilation of the sampler, fresh": f"{sampling['compile_seconds']:.1f} s",
    }
    rows |= {
        f"a sampling step with half the frames known, by {way}": f"{ratio:.2f} of one with none"
        for way, ratio in sampling["ratio_with_known"].items()
    }
    startup = {
        "import": "`import vdm_jax`",
        "import_load": "`from vdm_jax import load`",
        "first_step_cold": "process start to first step, nothing compiled before",
        "first_step_warm": "process start to first step, compiled programs kept",
    }
    rows |= {startup[name]: f"{seconds:.2f} s" for name, seconds in result.get("startup", {}).items()}
    title = f"{config['data']['name']}, batch {config['batch_size']}, {config['model']['dtype']}"
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return [f"{result['machine']}\n", f"| {title} | |", "|---|---|", *table]


def _spread(seconds: dict[str, float]) -> str:
    median, least, most = (seconds[name] * 1e3 for name in ("median", "min", "max"))
    return f"{median:.1f} ms ({least:.1f} to {most:.1f})"


def _work(group: dict) -> str:
    return (
        f"{group['flops'] / 1e9:.3g} GFLOP, {group['flops_per_second'] / 1e9:.3g} GFLOP/s,"
        f" {group['share_of_peak']:.0%} of the peak"
    )


if __name__ == "__main__":
    command.run(main)
