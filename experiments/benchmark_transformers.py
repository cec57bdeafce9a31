"""Compares published transformers and the causal autoencoder of videos with diffusers: `benchmark_published.py`."""

import functools
import tempfile

from benchmark_peer import check_same, compare, torch_device, wait

TOKENS, TEXT_WIDTH, CHANNELS, HEAD_SIZE = 77, 256, 16, 64
FAMILIES = ("Latte", "Wan")


def peer_transformer(family: str, frames: int, width: int, depth: int):
    """Returns diffusers' network of a family with random weights, for so many frames."""
    import diffusers

    common = dict(num_attention_heads=width // HEAD_SIZE, attention_head_dim=HEAD_SIZE, num_layers=depth)
    common |= dict(in_channels=CHANNELS)
    if family == "Latte":
        return diffusers.LatteTransformer3DModel(
            **common,
            out_channels=2 * CHANNELS,
            caption_channels=TEXT_WIDTH,
            cross_attention_dim=width,
            attention_bias=True,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            video_length=frames,
        )
    return diffusers.WanTransformer3DModel(**common, out_channels=CHANNELS, text_dim=TEXT_WIDTH, ffn_dim=4 * width)


def measure_transformer(
    family: str, shape: tuple[int, ...], width: int, depth: int, *, dtype: str, compile_peer: bool, rounds: int
) -> dict:
    """Times one call, and loss and gradients of all parameters. Raises InputError where the results differ."""
    import jax
    import numpy as np
    import torch
    from flax import nnx

    from vdm_jax.models.conditions import Conditions, Text
    from vdm_jax.pretrained.names import Part
    from vdm_jax.pretrained.networks import read_network, tensors_of

    torch.manual_seed(0)
    net = peer_transformer(family, shape[0], width, depth)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        part = read_network(folder, dtype=dtype, params_dtype=dtype)
    net = net.to(torch_device(), getattr(torch, dtype)).eval()
    rng = np.random.default_rng(0)
    z, target = rng.normal(size=(2, 1, *shape, CHANNELS)).astype(np.float32)
    text, time = rng.normal(size=(1, TOKENS, TEXT_WIDTH)).astype(np.float32), np.float32([500])

    # Ours.
    def call(params, z, time, conditions):
        return nnx.merge(part.graphdef, params)(z, time, conditions)

    def loss(params, target, *inputs):
        return ((call(params, *inputs) - target) ** 2).mean()

    forward, train = jax.jit(call), jax.jit(jax.value_and_grad(loss))
    conditions = Conditions(Text(text[:, None], np.ones((1, 1, TOKENS), bool), text[:, None, 0]))
    target, *inputs = jax.device_put((target, z, time, conditions))
    ours = functools.partial(forward, part.params, *inputs)
    our_train = functools.partial(train, part.params, target, *inputs)

    # The peer's.
    def to_torch(x):
        return torch.from_numpy(np.array(x)).to(net.device, net.dtype)

    network = torch.compile(net) if compile_peer else net
    peer_z, peer_target = (to_torch(np.moveaxis(x, -1, 1)) for x in (z, np.asarray(target)))
    arguments = peer_z, to_torch(time), to_torch(text)

    @torch.inference_mode()
    def peer():
        return wait(network(*arguments).sample[:, :CHANNELS])  # without Latte's variance

    def peer_train():
        net.zero_grad(set_to_none=True)
        value = torch.nn.functional.mse_loss(network(*arguments).sample[:, :CHANNELS].float(), peer_target.float())
        value.backward()
        return wait(value.detach())

    check_same(family, np.moveaxis(ours(), -1, 1), peer(), dtype)
    value, gradients = our_train()
    check_same(f"{family}: loss", value, peer_train(), dtype)
    gradients = tensors_of(Part(part.graphdef, gradients, part.config))
    peers = dict(net.named_parameters())
    # As one vector: the gradient of a bias of keys is 0 but for rounding, as the softmax does not depend on it.
    flat = np.concatenate([np.asarray(gradient, np.float32).ravel() for gradient in gradients.values()])
    peer_flat = torch.cat([peers.pop(name).grad.flatten() for name in gradients])
    assert not peers, f"ours has no {', '.join(peers)}"
    check_same(f"{family}: gradients", flat, peer_flat, dtype)
    return {
        "one call": compare(lambda: jax.block_until_ready(ours()), peer, rounds),
        "loss and gradients": compare(lambda: jax.block_until_ready(our_train()), peer_train, rounds),
    }


def measure_video_autoencoder(shape: tuple[int, ...], base: int, *, dtype: str, rounds: int) -> dict:
    """Times Wan's autoencoder, with `base` channels at the pixels, on 4 T - 3 frames, piece by piece.

    Raises InputError where the results differ.
    """
    import diffusers
    import jax
    import numpy as np
    import torch

    from vdm_jax.pretrained.load import load_codec

    torch.manual_seed(0)
    net = diffusers.AutoencoderKLWan(base_dim=base)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        codec, params = load_codec(folder, dtype=dtype, params_dtype=dtype)
    net = net.to(torch_device(), getattr(torch, dtype)).eval()
    frames, rows, columns = shape
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 4 * frames - 3, 8 * rows, 8 * columns, 3)).astype(np.float32)
    latents = rng.normal(size=(1, *shape, net.config.z_dim)).astype(np.float32)
    calls = [functools.partial(jax.jit(f), params, jax.device_put(x)) for f, x in
             ((codec.encode, video), (codec.decode, latents))]  # fmt: skip

    def to_torch(x):
        return torch.from_numpy(np.moveaxis(x, -1, 1)).to(net.device, net.dtype)

    numbers = (np.float32(net.config[key]).reshape(1, 1, 1, 1, -1) for key in ("latents_mean", "latents_std"))
    mean, std = map(to_torch, numbers)
    peer_video, peer_latents = to_torch(video), to_torch(latents) * std + mean

    @torch.inference_mode()
    def encode():
        return wait((net.encode(peer_video).latent_dist.mode() - mean) / std)

    @torch.inference_mode()
    def decode():
        return wait(net.decode(peer_latents).sample)

    result = {}
    for what, ours, peer in zip(("encoding", "decoding"), calls, (encode, decode), strict=True):
        check_same(f"autoencoder of Wan: {what}", np.moveaxis(ours(), -1, 1), peer(), dtype)
        result[what] = compare(lambda ours=ours: jax.block_until_ready(ours()), peer, rounds)
    return result
