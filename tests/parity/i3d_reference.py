"""I3D in PyTorch, written from the paper (figure 3) and TensorFlow's definition of "SAME" padding, to compare with.

It takes the names of pytorch-i3d, and shares no code with the package.
"""

import torch
from torch.nn.functional import avg_pool3d, batch_norm, conv3d, max_pool3d, pad, relu


def same(x, kernel, stride, value=0.0):
    """TensorFlow: ceil(size / stride) outputs; the padding that this takes is halved, the odd one goes to the end."""
    sizes = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        sizes = [total // 2, total - total // 2, *sizes]  # `pad` begins with the last axis
    return pad(x, sizes, value=value)


def pool(x, kernel, stride):
    return max_pool3d(same(x, kernel, stride, -float("inf")), kernel, stride)


def unit(weights, name, x, stride=(1, 1, 1), epsilon=1e-3):
    kernel = weights[f"{name}.conv3d.weight"]
    x = conv3d(same(x, kernel.shape[2:], stride), kernel, stride=stride)
    mean, variance, scale, shift = (
        weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return relu(batch_norm(x, mean, variance, scale, shift, eps=epsilon))


def mixed(weights, name, x, epsilon):
    def step(branch, x):
        return unit(weights, f"{name}.{branch}", x, epsilon=epsilon)

    pooled = pool(x, (3, 3, 3), (1, 1, 1))
    return torch.cat([step("b0", x), step("b1b", step("b1a", x)), step("b2b", step("b2a", x)), step("b3b", pooled)], 1)


@torch.no_grad()
def i3d(weights, videos, epsilon=1e-3):
    """(logits, pooled features) of videos B T H W C."""
    weights = {name: torch.as_tensor(array) for name, array in weights.items()}
    x = torch.as_tensor(videos).permute(0, 4, 1, 2, 3)
    x = unit(weights, "Conv3d_1a_7x7", x, (2, 2, 2), epsilon)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(weights, "Conv3d_2b_1x1", x, epsilon=epsilon)
    x = unit(weights, "Conv3d_2c_3x3", x, epsilon=epsilon)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in ("3b", "3c"):
        x = mixed(weights, f"Mixed_{name}", x, epsilon)
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for name in ("4b", "4c", "4d", "4e", "4f"):
        x = mixed(weights, f"Mixed_{name}", x, epsilon)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    for name in ("5b", "5c"):
        x = mixed(weights, f"Mixed_{name}", x, epsilon)
    x = avg_pool3d(x, (2, 7, 7), (1, 1, 1))
    logits = conv3d(x, weights["logits.conv3d.weight"], weights["logits.conv3d.bias"])
    return logits[..., 0, 0].mean(2).numpy(), x[..., 0, 0].mean(2).numpy()
