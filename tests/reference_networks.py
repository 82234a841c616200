"""Plain torch networks with torchvision's state-dict names, written apart from calibrate.backbones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


class Block(nn.Module):
    """BasicBlock or Bottleneck; the stride of a Bottleneck sits on its 3x3 convolution, as in torchvision."""

    def __init__(self, channels: int, width: int, out: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), _norm(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), _norm(width)
            self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), _norm(out)
        else:
            self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), _norm(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), _norm(out)
        self.bottleneck = bottleneck
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), _norm(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], bottleneck: bool, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm(64)
        channels = 64
        for stage, count in enumerate(blocks):
            out = (256 if bottleneck else 64) * 2**stage
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(channels, width * 2**stage, out, stride, bottleneck))
                channels = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = maps[name] = getattr(self, name)(x)
        return maps


class Inverted(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        parts: list[nn.Module] = []
        if expansion != 1:
            parts.append(nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), _norm(hidden), nn.ReLU6()))
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        parts.append(nn.Sequential(depthwise, _norm(hidden), nn.ReLU6()))
        parts += [nn.Conv2d(hidden, out, 1, bias=False), _norm(out)]
        self.conv = nn.Sequential(*parts)
        self.residual = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
        table += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU6())
        parts: list[nn.Module] = [stem]
        channels = 32
        for expansion, out, repeats, stride in table:
            for index in range(repeats):
                parts.append(Inverted(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        self.features = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for index, part in enumerate(self.features):
            x = maps[f"features.{index}"] = part(x)
        return maps


def shaken(network: nn.Module, seed: int) -> nn.Module:
    """Random weights and batch-norm statistics, so that a forgotten or swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    return network.eval()


def normalised(images: Any) -> torch.Tensor:
    """torchvision's transform for RGB images 0..255 of shape (n, 3, h, w)."""
    x = torch.as_tensor(images, dtype=torch.float32) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    return (x - mean) / std
