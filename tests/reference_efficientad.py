"""EfficientAD's forward pass from the paper, in plain torch calls, written apart from calibrate."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

# Kernel, stride and padding of every convolution; after "pool" a 2 x 2 mean. All but the last have a ReLU.
SMALL = [(4, 128), "pool", (4, 256), "pool", (3, 256), (4, None)]
MEDIUM = [(4, 256), "pool", (4, 512), "pool", (1, 512), (3, 512), (4, None), (1, None)]


def imagenet(images):
    x = images.expand(-1, 3, -1, -1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None]


def weights_in(state):
    """Kernels and biases in the order in which a state dict has them."""
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    return iter([(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names])


def pdn(images, plan, state):
    x, left = imagenet(images), weights_in(state)
    for number, step in enumerate(plan):
        if step == "pool":
            x = F.avg_pool2d(x, 2, 2)
            continue
        kernel, bias = next(left)
        assert kernel.shape[2] == step[0]
        assert step[1] in (None, kernel.shape[0])
        x = F.conv2d(x, kernel, bias)
        if number < len(plan) - 1:
            x = F.relu(x)
    assert next(left, None) is None
    return x


def autoencoder_256(images, state):
    """Table 8 of the paper, with its own numbers; of 256 x 256 pixels."""
    x, left = imagenet(images), weights_in(state)
    for _ in range(5):
        kernel, bias = next(left)
        x = F.relu(F.conv2d(x, kernel, bias, stride=2, padding=1))
    kernel, bias = next(left)
    x = F.conv2d(x, kernel, bias)
    assert x.shape[1:] == (64, 1, 1)
    for side in (3, 8, 15, 32, 63, 127):
        x = F.interpolate(x, size=side, mode="bilinear")
        kernel, bias = next(left)
        x = F.relu(F.conv2d(x, kernel, bias, padding=2))
    x = F.interpolate(x, size=56, mode="bilinear")
    kernel, bias = next(left)
    x = F.relu(F.conv2d(x, kernel, bias, padding=1))
    kernel, bias = next(left)
    assert next(left, None) is None
    return F.conv2d(x, kernel, bias, padding=1)


def combined(teacher, student, autoencoder, mean, spread, quantiles):
    """Algorithm 2 of the paper from the networks' outputs; quantiles ((q_a, q_b) of ST, of AE)."""
    channels = teacher.shape[1]
    teacher = (teacher - mean.reshape(1, -1, 1, 1)) / spread.reshape(1, -1, 1, 1)
    maps = (
        ((teacher - student[:, :channels]) ** 2).mean(dim=1),
        ((autoencoder - student[:, channels:]) ** 2).mean(dim=1),
    )
    normal = [0.1 * (each - a) / (b - a) for each, (a, b) in zip(maps, quantiles, strict=True)]
    return 0.5 * normal[0] + 0.5 * normal[1]


def hard_loss(errors, quantile):
    """Equation 1."""
    bound = torch.quantile(errors.flatten(), quantile)
    return errors[errors >= bound].mean()


def folded_lite(images, state):
    """The bundled backbone's joined layer without 8-bit rounding, from its weights file."""
    x = (images.expand(-1, 3, -1, -1) - 127.5) / 64
    at = {}

    def unit(name, x, stride=1):
        kernel, bias = (torch.from_numpy(np.float32(state[f"{name}.{part}"])) for part in ("kernel", "bias"))
        return F.conv2d(x, kernel, bias, stride, 1)

    x = F.relu(unit("stem.1", F.relu(unit("stem.0", x, 2)), 2))
    at[1] = F.relu(x + unit("stage1.block.1", F.relu(unit("stage1.block.0", x))))
    x = F.relu(unit("stage2.down", at[1], 2))
    at[2] = F.relu(x + unit("stage2.block.1", F.relu(unit("stage2.block.0", x))))
    joined = torch.cat([F.avg_pool2d(at[1], 2), at[2]], 1)
    return joined / torch.from_numpy(state["joined.spread"])[:, None, None]
