"""Times published families beside diffusers: the same network with the same weights, in turns.

python experiments/benchmark_published.py --widths 64,128 --shape 8x16x16 --out published.json

Each family is a network of its kind with fewer channels and random weights, written by diffusers into a folder and
loaded here. Measured are one call of it, ten steps of sampling with guidance from noise to latents, and the decoding of
the frames by an autoencoder of a quarter of Stable Diffusion's channels. Both must give the same answers.
"""

import functools
import json
import os
import tempfile
import warnings

import benchmark_peer
from absl import flags

from vdm_jax import command
from vdm_jax.errors import InputError
from vdm_jax.files import write_text

WIDTHS = flags.DEFINE_list("widths", ["64", "128"], "Channels of each level; multiples of 32.")
SHAPE = flags.DEFINE_string("shape", "8x16x16", "Frames x rows x columns of the latents of one video.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed turns, after a warm-up of two.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and computation, of both.")
COMPILE = flags.DEFINE_bool("compile_peer", False, "Runs torch.compile on the peer's networks.")
OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")

TOKENS, STEPS, GUIDANCE = 77, 10, 7.5
FAMILIES = ("ModelScope", "AnimateDiff", "Stable Video Diffusion")
AGREE = {"float32": 1e-4, "bfloat16": 0.1}  # relative L2 error of one call


def main() -> None:
    """Checks the input, measures each family, prints a markdown table and writes the figures."""
    shape, widths = benchmark_peer.check(SHAPE.value, WIDTHS.value, named="", example="8x16x16")
    command.check_out(OUT.value)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer its share of a GPU's memory

    import jax

    from vdm_jax.parallel.machine import about_machine

    result = {"machine": about_machine(("torch", "diffusers")), "shape": shape, "widths": widths, "dtype": DTYPE.value}
    title = f"widths {'-'.join(WIDTHS.value)}, {SHAPE.value}, {DTYPE.value}"
    print(f"{result['machine']}\n\n| {title} | ours | diffusers | ratio |")
    print("|---|---|---|---|")
    measures = {family: functools.partial(measure_family, family) for family in FAMILIES}
    for name, measure in (measures | {"autoencoder": measure_decoding}).items():
        with warnings.catch_warnings(action="ignore"):
            result[name] = measure(shape, widths)
        for what, times in result[name].items():
            ours, peer = (f"{times[who]['median']:.3g} s" for who in ("ours", "peer"))
            ratio = "**{median:.2f}** ({min:.2f} to {max:.2f})".format(**times["ratio"])
            print(f"| {name}: {what} | {ours} | {peer} | {ratio} |", flush=True)
        jax.clear_caches()
    if OUT.value:
        write_text(OUT.value, json.dumps(result, indent=2) + "\n")


def peer_network(family: str, widths: tuple[int, ...]):
    """(diffusers' network, its scheduler) of a family with the given channels, all attending."""
    import diffusers

    levels = len(widths)
    common = dict(block_out_channels=widths, layers_per_block=2, cross_attention_dim=4 * widths[0])
    betas = dict(beta_start=0.00085, beta_end=0.012)
    if family == "ModelScope":
        net = diffusers.UNet3DConditionModel(
            **common,
            down_block_types=("CrossAttnDownBlock3D",) * levels,
            up_block_types=("CrossAttnUpBlock3D",) * levels,
            attention_head_dim=32,
        )
        return net, diffusers.DDIMScheduler(**betas, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    if family == "AnimateDiff":
        net = diffusers.UNetMotionModel(
            **common,
            down_block_types=("CrossAttnDownBlockMotion",) * levels,
            up_block_types=("CrossAttnUpBlockMotion",) * levels,
        )
        spacing = dict(timestep_spacing="linspace", steps_offset=1)
        return net, diffusers.DDIMScheduler(**betas, beta_schedule="linear", clip_sample=False, **spacing)
    net = diffusers.UNetSpatioTemporalConditionModel(
        **common,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * levels,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * levels,
        num_attention_heads=tuple(width // 32 for width in widths),
    )
    karras = dict(use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous")
    spacing = dict(prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1)
    return net, diffusers.EulerDiscreteScheduler(**betas, beta_schedule="scaled_linear", **karras, **spacing)


def measure_family(family: str, shape: tuple[int, ...], widths: tuple[int, ...]) -> dict:
    """Times of one call and of ten guided steps; raises InputError where the two answer differently."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from flax import nnx

    from vdm_jax.diffusion.grids import make_grid
    from vdm_jax.diffusion.guidance import guided
    from vdm_jax.diffusion.sampler import sample
    from vdm_jax.pretrained.schedulers import schedule_of
    from vdm_jax.pretrained.unets import load_unet

    torch.manual_seed(0)
    net, scheduler = peer_network(family, widths)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        unet = load_unet(folder, dtype=DTYPE.value, params_dtype=DTYPE.value)
    device, dtype = _device(), getattr(torch, DTYPE.value)
    net = net.to(device, dtype).eval()
    rng, (frames, rows, columns) = np.random.default_rng(0), shape
    in_time = family == FAMILIES[2]
    channels, tokens = net.config.in_channels, 1 if in_time else TOKENS
    z = rng.normal(size=(1, frames, rows, columns, 4)).astype(np.float32)
    told = rng.normal(size=(1, frames, rows, columns, channels - 4)).astype(np.float32)
    context = rng.normal(size=(2, 1, tokens, net.config.cross_attention_dim)).astype(np.float32)
    added = np.float32([[6, 127, 0.02]] * 2) if in_time else None

    # Ours.
    def call(params, z, time, context, added, told):
        z = jnp.concatenate([z, jnp.concatenate([told] * (len(z) // len(told)))], -1)
        return nnx.merge(unet.graphdef, params)(z, time, context=context, added=added)

    schedule = schedule_of(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    times = make_grid(schedule.grid, STEPS, schedule.process, **dict(schedule.grid_options))

    @jax.jit
    def draw(params, z, context, added, told):
        def predict(z, time, drop):
            return call(params, z, time, context, added, told)

        denoise = guided(predict, schedule.process, schedule.prediction, weight=GUIDANCE)
        return sample(denoise, z, times, schedule.process, solver=schedule.solver)

    forward = jax.jit(call)
    half = None if added is None else added[:1]
    given = jax.device_put((z, np.float32([500]), context[:1], half, told))

    # The peer's.
    channel = 2 if in_time else 1  # its axis: frames come before it there, and after it in the others

    def theirs(x):
        return torch.from_numpy(np.moveaxis(x, -1, channel)).to(device, dtype)

    text = torch.from_numpy(context[:, 0]).to(device, dtype)
    extra = {"added_time_ids": torch.from_numpy(added).to(device, dtype)} if in_time else {}
    if family == "AnimateDiff":
        text = text.repeat_interleave(frames, 0)
    network = torch.compile(net) if COMPILE.value else net
    peer_z, peer_told = theirs(z), theirs(told)

    @torch.inference_mode()
    def peer_forward():
        part = {name: value[:1] for name, value in extra.items()}
        x = torch.cat([peer_z, peer_told], channel)
        return _wait(network(x, 500.0, encoder_hidden_states=text[: len(text) // 2], **part).sample)

    @torch.inference_mode()
    def peer_draw():
        scheduler.set_timesteps(STEPS, device=device)
        x = peer_z * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), time)
            both = torch.cat([both, torch.cat([peer_told] * 2)], channel)
            drop, keep = network(both, time, encoder_hidden_states=text, **extra).sample.chunk(2)
            x = scheduler.step(drop + GUIDANCE * (keep - drop), time, x).prev_sample
        return _wait(x)

    _check(family, forward(unet.params, *given), peer_forward(), channel)
    noise = jax.device_put((z * float(scheduler.init_noise_sigma), context, added, told))
    return {
        "one call": benchmark_peer.compare(
            lambda: forward(unet.params, *given).block_until_ready(), peer_forward, ROUNDS.value
        ),
        f"{STEPS} guided steps": benchmark_peer.compare(
            lambda: draw(unet.params, *noise).block_until_ready(), peer_draw, ROUNDS.value
        ),
    }


def measure_decoding(shape: tuple[int, ...], widths: tuple[int, ...]) -> dict:
    """Times of decoding the frames of a video, all at once."""
    import diffusers
    import jax
    import numpy as np
    import torch
    from flax import nnx

    from vdm_jax.pretrained.parts.autoencoders import load_autoencoder

    torch.manual_seed(0)
    net = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        autoencoder = load_autoencoder(folder, dtype=DTYPE.value, params_dtype=DTYPE.value)
    net = net.to(_device(), getattr(torch, DTYPE.value)).eval()
    z = np.random.default_rng(0).normal(size=(1, *shape, 4)).astype(np.float32)
    peer_z = torch.from_numpy(np.moveaxis(z[0], -1, 1)).to(_device(), net.dtype)
    decode = jax.jit(lambda params, z: nnx.merge(autoencoder.graphdef, params).decode(z))
    z = jax.device_put(z)

    @torch.inference_mode()
    def peer():
        return _wait(net.decode(peer_z).sample)

    _check("autoencoder", decode(autoencoder.params, z)[0], peer(), 1)
    ours = lambda: decode(autoencoder.params, z).block_until_ready()  # noqa: E731
    return {"decoding": benchmark_peer.compare(ours, peer, ROUNDS.value)}


def _check(name: str, ours, theirs, channels: int) -> None:
    import numpy as np

    ours, theirs = np.asarray(ours, np.float32), np.moveaxis(theirs.float().cpu().numpy(), channels, -1)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    if not error < AGREE[DTYPE.value]:
        raise InputError(f"{name}: the answers differ by {error:.1e} of their size; times would mean nothing")


def _device():
    import jax
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        raise InputError("JAX uses a GPU and this torch cannot; install torch with CUDA")
    torch.set_num_threads(os.cpu_count())
    torch.set_float32_matmul_precision("high")  # TF32 on GPU, as JAX does by itself
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def _wait(x):
    import torch

    if x.is_cuda:
        torch.cuda.synchronize()
    return x


if __name__ == "__main__":
    command.run(main)
