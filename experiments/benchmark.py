"""Measures a config on this machine: compilation, training step, sampling, share of the peak, memory.

python experiments/benchmark.py --config=configs/moving_digits.py --startup --peer diffusers --out speed.json
"""

import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
PEER = flags.DEFINE_enum("peer", None, ["diffusers"], "Also time this library's network beside ours.")
PEER_SHAPE = flags.DEFINE_string("peer_shape", "4x8x16x16", "Its batch x frames x height x width.")
PEER_WIDTHS = flags.DEFINE_list("peer_widths", ["64", "128"], "Its width at each level.")
OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")


def main() -> None:
    """Checks the input, measures, prints a markdown table and writes the figures."""
    config = command.read_config_flag()
    if BATCH.value:
        config.batch_size = BATCH.value
    if PEER.value:
        import benchmark_peer as peer

        shape, widths = peer.check(PEER_SHAPE.value, PEER_WIDTHS.value)
    command.check_out(OUT.value)

    import jax

    from vdm_jax.evaluation.speed import measure_peak, rate
    from vdm_jax.parallel.machine import about_machine

    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed fresh
    if PEER.value:  # leaves the peer its share of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = {"config": json.loads(config.to_json())}
    if STARTUP.value:  # first: the processes that it starts need the devices for themselves
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
    """(mesh, abstract model, optimizer, graphdef, state) as `training.loop` makes them."""

    from vdm_jax import configuration
    from vdm_jax.parallel.mesh import make_mesh
    from vdm_jax.parallel.sharding import check_batch
    from vdm_jax.training.state import create_state

    mesh, data = make_mesh(**config.mesh.to_dict()), config.data
    check_batch(mesh, config.batch_size)
    model = configuration.abstract_model(config)
    model.unet.check_size(data.frames, data.height, data.width, data.joint_images)
    tx, _ = configuration.optimizer_of(config)
    return (
        mesh,
        model,
        tx,
        *create_state(lambda r: configuration.make_model(config, r), tx, mesh, config.seed),
    )


def countable(config):
    """The network with attention that XLA can count: it does not look into the fused kernel."""
    from flax import nnx

    from vdm_jax.configuration import abstract_model

    config = config.copy_and_resolve_references()
    config.unlock()
    config.model.unet.attention = "xla"
    return nnx.split(abstract_model(config))[0]


def measure_training(config, runs: int) -> dict:
    """The training step of `training.loop` on random videos that lie on the device: no data pipeline."""
    import jax
    import numpy as np

    from vdm_jax import configuration
    from vdm_jax.evaluation.speed import (
        bytes_on_a_device,
        count_collectives,
        flops_of,
        one_cpu,
        peak_memory,
        shapes_on_cpu,
        summarize,
        time_calls,
    )
    from vdm_jax.parallel.mesh import make_mesh
    from vdm_jax.parallel.sharding import batch_sharding
    from vdm_jax.training.step import make_train_step

    mesh, model, tx, graphdef, state = set_up(config)
    data, size, images = config.data, config.batch_size, config.data.joint_images
    shape, tokens = (data.frames + images, data.height, data.width, data.channels), model.tokenize("a video")
    batch = {
        "video": np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8),
        "tokens": np.tile(tokens, (size, 1)),
    }
    if images:
        batch["image_tokens"] = np.tile(tokens, (size, images, 1))
    batch = jax.device_put(batch, batch_sharding(mesh))

    def make(graphdef, accumulate, mesh):
        objective, process = configuration.objective_of(config), configuration.process_of(config)
        null = None if model.text is None else model.tokenize("")
        options = {"null_tokens": null, "images": images, "accumulate": accumulate, "ema": config.ema}
        options["conditioning"] = configuration.conditioning_of(config)
        return make_train_step(graphdef, objective, process, tx, mesh, seed=config.seed, **options)

    counted = make(countable(config), 1, make_mesh(devices=[one_cpu()]))
    flops = sum(flops_of(program, mesh.size) for program in counted.lower(*shapes_on_cpu((state, batch))))
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor() as background:
        compiled = make(graphdef, config.accumulate, mesh).compile(background, state, batch)()
    compile_seconds = time.perf_counter() - start
    *gradients, last = compiled.programs
    averages = bytes_on_a_device((state.ema, state.opt_state))

    def step():
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, batch))

    seconds = summarize(time_calls(step, runs))
    memory = [peak_memory(last), *(peak_memory(program, beside=averages) for program in gradients)]
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "videos_per_second": size / seconds["median"],
        "flops": flops,
        "memory": max(memory, key=lambda m: m["bytes"]),
        "collectives": count_collectives("".join(program.as_text() for program in compiled.programs))
        if mesh.size > 1
        else {},
    }


def measure_sampling(config, runs: int, steps: int) -> dict:
    """One call of the network, and the whole sampler of `generation.pipeline` as the config sets it."""
    import jax
    import numpy as np
    from flax import nnx

    from vdm_jax.diffusion.known import Known
    from vdm_jax.evaluation.speed import flops_of, shapes_on_cpu, summarize, time_calls
    from vdm_jax.generation.pipeline import make_pipeline
    from vdm_jax.models.space import ONE_DEVICE
    from vdm_jax.parallel.sharding import ActivationLayout, batch_sharding

    mesh, _, _, graphdef, state = set_up(config)
    size, params = config.batch_size, state.params
    pipeline = make_pipeline(config, graphdef, params, mesh, 0)
    model = nnx.merge(graphdef, params)
    prompt, known = "a video" if pipeline.takes_text else "", {}
    if pipeline.conditioning is not None and (coarse := pipeline.conditioning.downsample) > 1:
        shape = (1, *pipeline.shape)
        known = {"coarse": coarse, "known": Known(np.zeros(shape, np.float32), np.ones((*shape[:-1], 1), bool))}
    tokens = np.tile(pipeline.tokenize(prompt), (size, 1))
    text = None if model.text is None else jax.jit(model.encode)(tokens)
    told = np.zeros((size, *pipeline.shape[:-1], pipeline.shape[-1] + 1), np.float32) if model.told else None
    inputs = (np.zeros((size, *pipeline.shape), np.float32), np.ones(size, np.float32), text, told)
    inputs = jax.device_put(inputs, batch_sharding(mesh))

    def lower(graphdef, layout, given):
        def predict(params, z, time, text, told):
            return nnx.merge(graphdef, params)(z, time, text, known=told, layout=layout)

        return jax.jit(predict).lower(*given)

    call = lower(graphdef, ActivationLayout(mesh), (params, *inputs)).compile()
    seconds = summarize(time_calls(lambda: call(params, *inputs).block_until_ready(), runs))

    def sampler():
        list(pipeline.batches([prompt] * size, batch_size=size, steps=steps, **known))

    first, *rest = time_calls(sampler, 1 + max(2, runs // 3), warmup=0)
    whole = summarize(rest)
    return {
        "seconds": seconds,
        "flops": flops_of(lower(countable(config), ONE_DEVICE, shapes_on_cpu((params, *inputs))), mesh.size),
        "compile_seconds": first - whole["median"],  # the first call traces and compiles
        "sampler_seconds": whole,
        "step_seconds": whole["median"] / steps,
        "videos_per_second": size / whole["median"],
        "settings": f"{pipeline.settings.solver}, {steps} steps, guidance {pipeline.settings.guidance:g}",
        "ratio_with_known": compare_modes(pipeline, size, steps, max(3, runs // 2)),
    }


def compare_modes(pipeline, size: int, steps: int, rounds: int) -> dict[str, float]:
    """Time of a sampler that knows half of the frames, over that of one that knows nothing: median of turns."""
    import numpy as np

    from vdm_jax.diffusion.known import Known

    if pipeline.conditioning is not None and pipeline.conditioning.downsample > 1:
        return {}
    mask = np.arange(pipeline.shape[0])[None, :, None, None, None] < pipeline.shape[0] // 2
    known = Known(np.zeros((1, *pipeline.shape), np.float32), np.broadcast_to(mask, (1, *pipeline.shape[:3], 1)))
    ways = ["replace"] if pipeline.conditioning is None else ["replace", "concat"]

    prompt = "a video" if pipeline.takes_text else ""

    def seconds(known, respect):
        start = time.perf_counter()
        list(pipeline.batches([prompt] * size, batch_size=size, steps=steps, known=known, respect=respect))
        return time.perf_counter() - start

    turns = [[seconds(None, way) for way in ways] + [seconds(known, way) for way in ways] for _ in range(1 + rounds)][
        1:
    ]
    return {way: statistics.median(turn[len(ways) + i] / turn[i] for turn in turns) for i, way in enumerate(ways)}


def measure_startup(config) -> dict[str, float]:
    """Seconds in fresh processes: to import the package, and until train.py has done its first step."""
    from vdm_jax.configuration import source_arguments
    from vdm_jax.data.source import make_source

    make_source(**source_arguments(config))  # builds the data set, where that is yet to be done
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
    """Seconds until train.py has written its first line of metrics."""
    script, log = Path(__file__).with_name("train.py"), workdir / "metrics.jsonl"
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:  # no pipe, which would be full before it is read
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
            said = errors.read().split("\n")
            raise InputError(f"train.py failed: {next(filter(None, reversed(said)), f'status {status}')}")
    return seconds


# ------------------------------------------------------------------------------------------------ the report


def report(result: dict) -> list[str]:
    """The figures as a markdown table."""
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
