"""Compares a U-Net of ours with diffusers' UNet3DConditionModel of the same widths: `benchmark.py --peer diffusers`.

Both have in every layer a space convolution, a time convolution, space attention with cross-attention to the context,
and time attention. The peer's layers hold more, and none of it can be left out: four time convolutions instead of one;
a feed-forward network of four times the width after each attention; two attentions over time; 3×3 convolutions at the
stem, the head and between levels, where ours has linear maps; attention over time before the first level. Its layers
have 2 heads, ours heads of half the first width. So the table also has the time per GFLOP. XLA does not count the work
of a convolution on padding, and torch does (about 6 %, to our disadvantage). Both run without dropout, on mean squared
error and AdamW. Ours is compiled, the peer runs eagerly with fused kernels.
"""

import os
import time
from collections.abc import Callable
from importlib import util

from vdm_jax.errors import InputError

CHANNELS, TOKENS, TEXT_WIDTH, HEADS = 4, 64, 64, 2
AGREE = {"float32": 1e-4, "bfloat16": 0.1}  # relative L2 error of results
Runs = dict[str, Callable[[], None]]  # "forward" and "training step"; a call returns when its result is there


def check(
    shape: str, widths: list[str], *, prefix: str = "peer_", example: str = "4x8x16x16"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Parses the sizes of the comparison, as many as `example` has, and the widths of the levels.

    Raises:
        InputError: sizes or widths that do not fit. `prefix` is the beginning of the flags' names.
    """
    missing = [package for package in ("torch", "diffusers") if util.find_spec(package) is None]
    if missing:
        raise InputError(f"diffusers' networks need {' and '.join(missing)}: pip install vdm_jax[parity]")
    try:
        sizes, numbers = tuple(map(int, shape.split("x"))), tuple(map(int, widths))
    except ValueError:
        sizes, numbers = (), ()
    axes = ("batch", "frames", "height", "width")[-len(example.split("x")) :]
    if len(sizes) != len(axes) or min(sizes) < 1:
        raise InputError(f"--{prefix}shape={shape} must be {' x '.join(axes)}, such as {example}")
    if not numbers or min(numbers) < 32 or any(width % 32 or width % numbers[0] for width in numbers):
        raise InputError(f"--{prefix}widths={','.join(widths)} must be multiples of 32 and of the first of them")
    factor = 2 ** (len(numbers) - 1)
    if sizes[-2] % factor or sizes[-1] % factor:
        raise InputError(
            f"--{prefix}shape={shape}: height and width must be multiples of {factor} ({len(numbers)} levels)"
        )
    return sizes, numbers


def measure(shape: tuple[int, ...], widths: tuple[int, ...], rounds: int, dtype: str) -> dict:
    """Times both networks in turns; returns seconds, ratios, parameters and operations."""
    ours, our_counts = _ours(shape, widths, dtype)
    peer, peer_counts = _peer(shape, widths, dtype)
    result = {"shape": shape, "widths": widths, "dtype": dtype, "ours": our_counts, "peer": peer_counts}
    for name in ours:
        result[name] = compare(ours[name], peer[name], rounds)
    return result


def compare(ours: Callable[[], None], peer: Callable[[], None], rounds: int) -> dict:
    """Returns the seconds of both, and the ratio ours / peer over pairs of calls in turns, after a warm-up of two."""
    from benchmark_measures import summarize

    times = []
    for _ in range(2 + rounds):
        pair = []
        for call in (ours, peer):
            time.sleep(0.05)  # lets the other library's threads fall asleep
            start = time.perf_counter()
            call()
            pair.append(time.perf_counter() - start)
        times.append(pair)
    times = times[2:]
    return {
        "ours": summarize([ours for ours, _ in times]),
        "peer": summarize([peer for _, peer in times]),
        "ratio": summarize([ours / peer for ours, peer in times]),
    }


def check_same(name: str, ours, peers, dtype: str) -> None:
    """Raises InputError for an array and a tensor of one shape that differ."""
    import numpy as np

    ours, peers = np.asarray(ours, np.float32), peers.float().cpu().numpy()
    error = np.linalg.norm(ours - peers) / np.linalg.norm(peers)
    if ours.shape != peers.shape or not error < AGREE[dtype]:
        raise InputError(f"{name}: the results differ by {error:.1e} of their size, so times would mean nothing")


def torch_device():
    """Returns the device of the peer: the kind that JAX uses. Raises InputError if this torch cannot use it."""
    import jax
    import torch

    gpu = jax.default_backend() == "gpu"
    if gpu and not torch.cuda.is_available():
        raise InputError("JAX uses a GPU and this torch cannot; install torch with CUDA")
    torch.set_num_threads(os.cpu_count())
    torch.set_float32_matmul_precision("high")  # TF32 on GPU, which is JAX's default
    return torch.device("cuda" if gpu else "cpu")


def wait(x):
    """Returns the tensor when it is there."""
    import torch

    if x.is_cuda:
        torch.cuda.synchronize()
    return x


def _ours(shape, widths, dtype) -> tuple[Runs, dict]:
    import jax
    import jax.numpy as jnp
    import optax
    from benchmark_measures import flops_of, shapes_on_cpu
    from flax import nnx

    from vdm_jax.models.conditions import Conditions, Text
    from vdm_jax.models.unet import UNet

    def make(attention="auto"):
        return UNet(
            channels_in=CHANNELS,
            channels=widths[0],
            multipliers=[width // widths[0] for width in widths],
            blocks=1,
            time_conv=True,
            head_size=widths[0] // HEADS,
            text_width=TEXT_WIDTH,
            context="cross",
            dtype=dtype,
            attention=attention,
            rngs=nnx.Rngs(0),
        )

    graphdef = nnx.split(nnx.eval_shape(make))[0]
    params = jax.jit(lambda: nnx.to_pure_dict(nnx.split(make())[1]))()
    tx = optax.adamw(1e-4)
    state = (params, tx.init(params))
    z, target = jax.random.normal(jax.random.key(0), (2, *shape, CHANNELS))
    tokens = jax.random.normal(jax.random.key(1), (shape[0], 1, TOKENS, TEXT_WIDTH))
    text = Text(tokens, jnp.ones(tokens.shape[:3], bool), tokens[:, :, 0])
    inputs = (jnp.full(shape[0], 500.0), Conditions(text))

    def programs(graphdef, state, z, target, *inputs):
        def forward(params, z, time, conditions):
            return nnx.merge(graphdef, params)(z, time, conditions)

        def step(state, z, target, *inputs):
            loss = lambda params: jnp.mean((forward(params, z, *inputs) - target) ** 2)  # noqa: E731
            updates, moments = tx.update(jax.grad(loss)(state[0]), state[1], state[0])
            return optax.apply_updates(state[0], updates), moments

        lowered = jax.jit(forward).lower(state[0], z, *inputs)
        return lowered, jax.jit(step, donate_argnums=0).lower(state, z, target, *inputs)

    arguments, plain = (state, z, target, *inputs), nnx.split(nnx.eval_shape(lambda: make("xla")))[0]
    flops = [flops_of(lowered) for lowered in programs(plain, *shapes_on_cpu(arguments))]
    counts = {"parameters": sum(x.size for x in jax.tree.leaves(params))}
    counts |= dict(zip(("forward", "training step"), flops, strict=True))
    forward, step = (lowered.compile() for lowered in programs(graphdef, *arguments))
    held = [jax.tree.map(jnp.copy, state)]  # a step donates its state

    def train():
        held[0] = jax.block_until_ready(step(held[0], z, target, *inputs))

    return {
        "forward": lambda: forward(params, z, *inputs).block_until_ready(),
        "training step": train,
    }, counts


def _peer(shape, widths, dtype) -> tuple[Runs, dict]:
    import torch
    from diffusers import UNet3DConditionModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    device = torch_device()
    torch.manual_seed(0)
    net = UNet3DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock3D",) * len(widths),
        up_block_types=("CrossAttnUpBlock3D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # the number of heads, in spite of its name
    )
    net = net.to(device).eval()  # eval: without dropout
    batch, frames, height, width = shape
    z, target = torch.randn(2, batch, CHANNELS, frames, height, width, device=device)
    condition = (
        torch.full((batch,), 500.0, device=device),
        torch.randn(batch, TOKENS, TEXT_WIDTH, device=device),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward():
        with torch.inference_mode(), precision:
            wait(net(z, *condition).sample)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = torch.nn.functional.mse_loss(net(z, *condition).sample.float(), target)
        loss.backward()
        optimizer.step()
        wait(loss)

    counts = {"parameters": sum(p.numel() for p in net.parameters())}
    for name, call in (("forward", forward), ("training step", train)):
        # The counter does not count the fused attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops()
    return {"forward": forward, "training step": train}, counts


def report(result: dict) -> list[str]:
    """Returns the lines of a markdown table."""
    ours, peer = result["ours"], result["peer"]
    widths, shape = "-".join(map(str, result["widths"])), " × ".join(map(str, result["shape"]))
    sizes = [counts["parameters"] / 1e6 for counts in (ours, peer)]
    lines = [
        f"\n| widths {widths}, {shape}, {result['dtype']} | ours | UNet3DConditionModel | ours / peer |",
        "|---|---|---|---|",
        f"| parameters | {sizes[0]:.2f} M | {sizes[1]:.2f} M | {sizes[0] / sizes[1]:.2f} |",
    ]
    for name in ("forward", "training step"):
        times, ratio = result[name], result[name]["ratio"]
        work = ours[name] / peer[name]
        lines.append(f"| {name}: GFLOP | {ours[name] / 1e9:.1f} | {peer[name] / 1e9:.1f} | {work:.2f} |")
        cells = [f"{1e3 * times[who]['median']:.1f} ms" for who in ("ours", "peer")]
        spread = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(f"| {name}: time | {' | '.join(cells)} | {spread} |")
        cells = [f"{1e12 * times[who]['median'] / result[who][name]:.2f} ms/GFLOP" for who in ("ours", "peer")]
        lines.append(f"| {name}: time per GFLOP | {' | '.join(cells)} | **{ratio['median'] / work:.2f}** |")
    return lines
