"""Compares published families with diffusers: times the same network with the same weights, in turns.

python experiments/benchmark_published.py --widths 64,128 --shape 8x16x16 --out published.json

Each family is a network of its kind with fewer channels and random weights. diffusers writes it into a folder, and it
is loaded from there. The measurements are one call of it, ten steps of sampling with guidance from noise to latents,
and the decoding of the frames by an autoencoder with a quarter of Stable Diffusion's channels. Of Latte and Wan they
are one call, and loss and gradients of all parameters; of Wan's autoencoder encoding and decoding. Both libraries must
give the same results.
"""

import functools
import json
import os
import tempfile
import warnings

import benchmark_transformers as transformers
from absl import flags
from benchmark_peer import check, check_same, compare, torch_device, wait

from vdm_jax import command
from vdm_jax.files import write_text

WIDTHS = flags.DEFINE_list("widths", ["64", "128"], "Channels of each level, multiples of 32.")
WIDTH = flags.DEFINE_integer("transformer_width", 256, "Width of transformers, a multiple of 64.", lower_bound=64)
DEPTH = flags.DEFINE_integer("transformer_depth", 4, "Blocks of transformers, or pairs of blocks.", lower_bound=1)
BASE = flags.DEFINE_integer("autoencoder_base", 24, "Channels at the pixels of Wan's autoencoder.", lower_bound=1)
SHAPE = flags.DEFINE_string("shape", "8x16x16", "Frames x rows x columns of the latents of one video.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed turns, after a warm-up of two.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and computation, for both.")
COMPILE = flags.DEFINE_bool("compile_peer", False, "Compile the peer's networks with torch.compile.")
OUT = flags.DEFINE_string("out", None, "JSON file for the numbers.")

TOKENS, STEPS, GUIDANCE = 77, 10, 7.5
FAMILIES = ("ModelScope", "AnimateDiff", "Stable Video Diffusion")
NAMES = (*FAMILIES, "autoencoder", *transformers.FAMILIES, "autoencoder of Wan")
ONLY = flags.DEFINE_multi_enum("only", NAMES, NAMES, "What to measure.")


def main() -> None:
    """Checks the input, measures each family, prints a markdown table and writes the numbers."""
    shape, widths = check(SHAPE.value, WIDTHS.value, prefix="", example="8x16x16")
    command.check_out(OUT.value)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory of the GPU to the peer

    import jax

    from vdm_jax.parallel.machine import about_machine

    result = {"machine": about_machine(("torch", "diffusers")), "shape": shape, "widths": widths, "dtype": DTYPE.value}
    title = f"widths {'-'.join(WIDTHS.value)}, {SHAPE.value}, {DTYPE.value}"
    print(f"{result['machine']}\n\n| {title} | ours | diffusers | ratio |")
    print("|---|---|---|---|")
    options = dict(dtype=DTYPE.value, rounds=ROUNDS.value)
    measures = {family: functools.partial(measure_family, family, shape, widths) for family in FAMILIES}
    measures["autoencoder"] = functools.partial(measure_decoding, shape)
    for family in transformers.FAMILIES:
        sizes = dict(shape=shape, width=WIDTH.value, depth=DEPTH.value, compile_peer=COMPILE.value)
        measures[family] = functools.partial(transformers.measure_transformer, family, **sizes, **options)
    causal = functools.partial(transformers.measure_video_autoencoder, shape, BASE.value, **options)
    measures["autoencoder of Wan"] = causal
    for name in ONLY.value:
        with warnings.catch_warnings(action="ignore"):
            result[name] = measures[name]()
        for what, times in result[name].items():
            ours, peer = (f"{times[who]['median']:.3g} s" for who in ("ours", "peer"))
            ratio = "**{median:.2f}** ({min:.2f} to {max:.2f})".format(**times["ratio"])
            print(f"| {name}: {what} | {ours} | {peer} | {ratio} |", flush=True)
        jax.clear_caches()
    if OUT.value:
        write_text(OUT.value, json.dumps(result, indent=2) + "\n")


def peer_network(family: str, widths: tuple[int, ...]):
    """Returns (diffusers' network, its scheduler) of a family, with attention at all levels."""
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
    """Times one call and ten guided steps. Raises InputError where the two results differ."""
    import jax
    import numpy as np
    import torch
    from flax import nnx

    from vdm_jax.diffusion.grids import make_grid
    from vdm_jax.diffusion.guidance import guided
    from vdm_jax.diffusion.sampler import sample
    from vdm_jax.models.conditions import Conditions, Text
    from vdm_jax.pretrained.networks import read_network
    from vdm_jax.pretrained.schedulers import schedule_of

    torch.manual_seed(0)
    net, scheduler = peer_network(family, widths)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        unet = read_network(folder, dtype=DTYPE.value, params_dtype=DTYPE.value)
    device, dtype = torchtorch_device(), getattr(torch, DTYPE.value)
    net = net.to(device, dtype).eval()
    rng, (frames, rows, columns) = np.random.default_rng(0), shape
    in_time = family == FAMILIES[2]
    channels, tokens = net.config.in_channels, 1 if in_time else TOKENS
    z = rng.normal(size=(1, frames, rows, columns, 4)).astype(np.float32)
    known = rng.normal(size=(1, frames, rows, columns, channels - 4)).astype(np.float32)
    text = rng.normal(size=(2, 1, tokens, net.config.cross_attention_dim)).astype(np.float32)
    scalars = np.float32([[6, 127, 0.02]]) if in_time else None

    # Ours.
    def conditions_of(tokens):
        mask = np.ones(tokens.shape[:3], bool)
        return Conditions(Text(tokens, mask, tokens[:, :, 0]), known if channels > 4 else None, scalars)

    def call(params, z, time, conditions):
        return nnx.merge(unet.graphdef, params)(z, time, conditions)

    schedule = schedule_of(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    times = make_grid(schedule.grid, STEPS, schedule.process, **dict(schedule.grid_options))

    @jax.jit
    def draw(params, z, branches):
        predict = functools.partial(call, params)
        denoise = guided(predict, schedule.process, schedule.prediction, branches, [GUIDANCE])
        return sample(denoise, z, times, schedule.process, solver=schedule.solver, **schedule.solver_options)

    forward = jax.jit(call)
    branches = jax.device_put([conditions_of(text[:1]), conditions_of(text[1:])])
    arguments = jax.device_put((z, np.float32([500]), branches[0]))

    # The peer's.
    axis = 2 if in_time else 1  # of channels: frames come before it in Stable Video Diffusion, elsewhere after it

    def to_torch(x):
        return torch.from_numpy(np.moveaxis(x, -1, axis)).to(device, dtype)

    peer_text = torch.from_numpy(text[:, 0]).to(device, dtype)
    extra = {"added_time_ids": torch.from_numpy(scalars).to(device, dtype)} if in_time else {}
    if family == "AnimateDiff":
        peer_text = peer_text.repeat_interleave(frames, 0)
    network = torch.compile(net) if COMPILE.value else net
    peer_z, peer_known = to_torch(z), to_torch(known)

    @torch.inference_mode()
    def peer_forward():
        x = torch.cat([peer_z, peer_known], axis)
        return wait(network(x, 500.0, encoder_hidden_states=peer_text[: len(peer_text) // 2], **extra).sample)

    @torch.inference_mode()
    def peer_draw():
        scheduler.set_timesteps(STEPS, device=device)
        x = peer_z * scheduler.init_noise_sigma
        twice = {name: torch.cat([value] * 2) for name, value in extra.items()}
        for time in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), time)
            both = torch.cat([both, torch.cat([peer_known] * 2)], axis)
            null, full = network(both, time, encoder_hidden_states=peer_text, **twice).sample.chunk(2)
            x = scheduler.step(null + GUIDANCE * (full - null), time, x).prev_sample
        return wait(x)

    check_same(family, np.moveaxis(forward(unet.params, *arguments), -1, axis), peer_forward(), DTYPE.value)
    noise = jax.device_put(z * float(scheduler.init_noise_sigma))
    return {
        "one call": compare(lambda: forward(unet.params, *arguments).block_until_ready(), peer_forward, ROUNDS.value),
        f"{STEPS} guided steps": compare(
            lambda: draw(unet.params, noise, branches).block_until_ready(), peer_draw, ROUNDS.value
        ),
    }


def measure_decoding(shape: tuple[int, ...]) -> dict:
    """Times the decoding of the frames of a video, all at once."""
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
    net = net.to(torch_device(), getattr(torch, DTYPE.value)).eval()
    z = np.random.default_rng(0).normal(size=(1, *shape, 4)).astype(np.float32)
    peer_z = torch.from_numpy(np.moveaxis(z[0], -1, 1)).to(torch_device(), net.dtype)
    decode = jax.jit(lambda params, z: nnx.merge(autoencoder.graphdef, params).decode(z))
    z = jax.device_put(z)

    @torch.inference_mode()
    def peer():
        return wait(net.decode(peer_z).sample)

    check_same("autoencoder", np.moveaxis(decode(autoencoder.params, z)[0], -1, 1), peer(), DTYPE.value)
    ours = lambda: decode(autoencoder.params, z).block_until_ready()  # noqa: E731
    return {"decoding": compare(ours, peer, ROUNDS.value)}


if __name__ == "__main__":
    command.run(main)
