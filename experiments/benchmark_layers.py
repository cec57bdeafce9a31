"""Measures three choices by themselves: convolutions of videos, products over positions, stacked blocks.

python experiments/benchmark_layers.py --out layers.json
python experiments/benchmark_layers.py --only compilation --depths 2,4,28

convolution: the causal convolution as a sum of convolutions of frames, against XLA's convolution over three axes.
positions: the gradient of a matrix that is applied to one axis of all positions, against four axes.
compilation: seconds to trace and compile the training step of a config, by the depth of its transformer, with the
persistent cache off. The step's programs compile in parallel, while later ones are traced.
"""

import functools
import json

import benchmark_peer
import benchmark_step
from absl import flags
from ml_collections import config_flags

from vdm_jax import command
from vdm_jax.errors import InputError
from vdm_jax.files import write_text

KINDS = ("convolution", "positions", "compilation")
config_flags.DEFINE_config_file("config", "configs/moving_digits_dit.py", "Config of a DiT, for compilation.")
ONLY = flags.DEFINE_multi_enum("only", KINDS, KINDS, "What to measure.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed turns of layers, after a warm-up of two.", lower_bound=1)
COMPILATIONS = flags.DEFINE_integer("compilations", 3, "Compilations of each depth, in turns.", lower_bound=1)
DEPTHS = flags.DEFINE_list("depths", ["2", "4", "28"], "Depths of the transformer, for compilation.")
OUT = flags.DEFINE_string("out", None, "JSON file for the numbers.")

CONVOLUTIONS = ((32, 9, 32), (96, 9, 16), (192, 5, 16))  # channels, frames, rows and columns
POSITIONS = ((4, 8, 16, 64), (4, 8, 8, 256))  # batch, frames, rows and columns, channels


def main() -> None:
    """Checks the input, measures, prints markdown tables and writes the numbers."""
    config, depths = command.read_config_flag(), check_depths(DEPTHS.value)
    command.check_out(OUT.value)

    import jax

    from vdm_jax.parallel.machine import about_machine

    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed fresh
    result = {"machine": about_machine()}
    print(result["machine"])
    if "convolution" in ONLY.value:
        result["convolution"] = {str(size): measure_convolution(*size, ROUNDS.value) for size in CONVOLUTIONS}
        print("\n".join(report("a sum over frames", "three axes", result["convolution"])), flush=True)
    if "positions" in ONLY.value:
        result["positions"] = {str(size): measure_positions(*size, ROUNDS.value) for size in POSITIONS}
        print("\n".join(report("one axis", "four axes", result["positions"])), flush=True)
    if "compilation" in ONLY.value:
        result["compilation"] = measure_compilation(config, depths, COMPILATIONS.value)
        print("\n".join(report_compilation(result["compilation"])), flush=True)
    if OUT.value:
        write_text(OUT.value, json.dumps(result, indent=2) + "\n")


def check_depths(words: list[str]) -> list[int]:
    """Returns the depths. Raises InputError for one that is no number, or below 1."""
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"--depths={','.join(words)} must be numbers from 1, such as 2,4,28")
    return [int(word) for word in words]


def measure_convolution(channels: int, frames: int, side: int, rounds: int) -> dict:
    """Times a causal 3 × 3 × 3 convolution, forward and with the gradients of input and kernel, in turns."""
    import jax
    from flax import nnx

    from vdm_jax.models.causal import CausalConv, Past

    conv = CausalConv(channels, channels, kernel=(3, 3), padding="zeros", dtype="float32", rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(conv)
    x = jax.random.normal(jax.random.key(0), (1, frames, side, side, channels))

    def ours(params, x):
        return nnx.merge(graphdef, params)(x, Past())

    def over_three_axes(params, x):
        axes = ("NDHWC", "DHWIO", "NDHWC")
        padding = [(2, 0), (1, 1), (1, 1)]
        kernel, bias = params["kernel"][...], params["bias"][...]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=axes) + bias

    return in_turns(ours, over_three_axes, params, x, rounds, forward=True)


def measure_positions(batch: int, frames: int, side: int, channels: int, rounds: int) -> dict:
    """Times the gradient of a matrix, applied by `Layout.per_position` or to all axes, in turns."""
    import jax

    from vdm_jax.models.layout import ONE_DEVICE

    x = jax.random.normal(jax.random.key(0), (batch, frames, side, side, channels))
    matrix = jax.random.normal(jax.random.key(1), (channels, channels))
    ours = lambda matrix, x: ONE_DEVICE.per_position(lambda vectors: vectors @ matrix, x)  # noqa: E731
    return in_turns(ours, lambda matrix, x: x @ matrix, matrix, x, rounds)


def in_turns(ours, other, params, x, rounds: int, forward: bool = False) -> dict:
    """Times the gradients of two functions of (params, x), and the functions themselves if `forward`, in turns.

    Raises InputError where they differ.
    """
    import jax
    import numpy as np

    target = jax.random.normal(jax.random.key(2), ours(params, x).shape)

    def gradients(function):
        return jax.grad(lambda params, x: (function(params, x) * target).sum(), argnums=(0, 1))

    result = {}
    for what, make in (("forward", lambda function: function), ("gradients", gradients))[not forward :]:
        calls = [functools.partial(jax.jit(make(function)), params, x) for function in (ours, other)]
        answers = [jax.tree.leaves(call()) for call in calls]
        for a, b in zip(*answers, strict=True):
            error = np.linalg.norm(np.asarray(a - b)) / np.linalg.norm(np.asarray(b))
            if not error < 1e-4:
                raise InputError(
                    f"{what}: the results differ by {error:.1e} of their size, so times would mean nothing"
                )
        waiting = [functools.partial(lambda call: jax.block_until_ready(call()), call) for call in calls]
        result[what] = benchmark_peer.compare(*waiting, rounds)
    return result


def measure_compilation(config, depths: list[int], rounds: int) -> dict:
    """Times tracing, and tracing and compiling, of the training step at each depth, in turns after a warm-up."""
    from benchmark_measures import summarize

    compile_at(config, depths[0])
    turns = [[compile_at(config, depth) for depth in depths] for _ in range(rounds)]
    result = {}
    for depth, times in zip(depths, zip(*turns, strict=True), strict=True):
        parameters, traced, whole = zip(*times, strict=True)
        result[str(depth)] = {"parameters": parameters[0], "tracing": summarize(traced), "all": summarize(whole)}
    return result


def compile_at(config, depth: int) -> tuple[int, float, float]:
    """Returns (parameters, seconds of tracing, seconds of tracing and compiling) of the training step at a depth.

    Raises InputError if the config's network has no depth.
    """
    import jax

    config = config.copy_and_resolve_references()
    if (kind := config.model.network.kind) != "dit":
        raise InputError(f"model.network.kind={kind!r} must be 'dit' for --only compilation")
    config.model.network.depth = depth
    mesh, model, split, tx, state, _ = benchmark_step.plan(config)
    batch = benchmark_step.random_batch(config, model, mesh)
    step = benchmark_step.make_step(config, model, tx, mesh, config.accumulate)
    jax.clear_caches()
    _, traced, whole = benchmark_step.compile_step(step, state, batch, split.frozen)
    return sum(x.size for x in jax.tree.leaves(state.params)), traced, whole


def report(ours: str, other: str, result: dict) -> list[str]:
    """Returns the lines of a markdown table of times in turns."""
    lines = [f"\n| size | {ours} | {other} | ratio |", "|---|---|---|---|"]
    for size, rows in result.items():
        for what, times in rows.items():
            cells = " | ".join(f"{1e3 * times[who]['median']:.3g} ms" for who in ("ours", "peer"))
            ratio = "**{median:.2f}** ({min:.2f} to {max:.2f})".format(**times["ratio"])
            lines.append(f"| {size}: {what} | {cells} | {ratio} |")
    return lines


def report_compilation(result: dict) -> list[str]:
    """Returns the lines of a markdown table of compilations."""
    lines = ["\n| depth | parameters | tracing | tracing and compiling |", "|---|---|---|---|"]
    for depth, row in result.items():
        spread = ["{median:.1f} s ({min:.1f} to {max:.1f})".format(**row[what]) for what in ("tracing", "all")]
        lines.append(f"| {depth} | {row['parameters'] / 1e6:.3f} M | {' | '.join(spread)} |")
    return lines


if __name__ == "__main__":
    command.run(main)
