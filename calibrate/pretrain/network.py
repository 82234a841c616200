"""The bundled backbones as torch sees them while they are trained, and the heads that only training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrate.backbones import standard
from calibrate.backbones.lite import JOINED, MEAN, SCALE, UNITS
from calibrate.backbones.weights import IMAGENET_MEAN, IMAGENET_STD

FIRST = UNITS["stem.0"][0]


class Unit(nn.Module):
    """A 3x3 convolution with its batch norm: one convolution once exported."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class Block(nn.Module):
    """Two units and a way around them (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([Unit(width, width), Unit(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.block[1](torch.relu(self.block[0](x)))
        return torch.relu(x + y)


class Down(Block):
    """Half the resolution, then a block."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.down = Unit(inputs, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.relu(self.down(x)))


class Lite(nn.Module):
    """Maps at strides 4 and 8 of images, float32 (n, 3, height, width), 0..255, red, green, blue."""

    widths = (*JOINED, 192)  # the last: of the stage that only training needs

    def __init__(self) -> None:
        super().__init__()
        first, second = JOINED
        self.stem = nn.ModuleList([Unit(3, FIRST, 2), Unit(FIRST, first, 2)])
        self.stage1 = Block(first)
        self.stage2 = Down(first, second)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images - MEAN) / SCALE
        for unit in self.stem:
            x = torch.relu(unit(x))
        fine: Tensor = self.stage1(x)
        return fine, self.stage2(fine)


class Basic(nn.Module):
    """Two 3x3 convolutions and a way around them, with torchvision's names (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        around = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(y + around)


def _layer(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(Basic(inputs, width, 1 if inputs == width else 2), Basic(width, width))


class Standard(nn.Module):
    """The first half of ResNet-18 at half width, with torchvision's names; maps and images as Lite's."""

    widths = (*standard.JOINED, 256)

    def __init__(self) -> None:
        super().__init__()
        first, second = standard.JOINED
        self.conv1 = nn.Conv2d(3, first, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1, self.layer2 = _layer(first, first), _layer(first, second)
        for name, value in (("mean", IMAGENET_MEAN), ("scale", IMAGENET_STD)):
            self.register_buffer(
                name, torch.tensor(value, dtype=torch.float32)[:, None, None], persistent=False
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn1(self.conv1((images - self.mean) / self.scale)))
        fine: Tensor = self.layer1(functional.max_pool2d(x, 3, 2, 1))
        return fine, self.layer2(fine)


NETWORKS: dict[str, type[Lite | Standard]] = {"lite": Lite, "standard": Standard}


class Trainee(nn.Module):
    """The backbone, a deeper stage, and what tells the classes from the mean of each stage's map.

    The earlier stages are what detects, so each must tell the classes itself (Lee et al. 2015,
    "Deeply-Supervised Nets"). singles: see train.singles.
    """

    def __init__(self, network: str, classes: int, singles: int) -> None:
        super().__init__()
        self.backbone = NETWORKS[network]()
        _, second, last = self.backbone.widths
        self.stage3 = (
            Down(second, last)
            if isinstance(self.backbone, Lite)
            else nn.Sequential(_layer(second, 2 * second), _layer(2 * second, last))
        )
        self.classes = nn.ModuleList([nn.Linear(width, classes) for width in self.backbone.widths])
        self.singles = nn.Linear(second, singles)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of the classes, from each of the three stages, and of the singles."""
        fine, middle = self.backbone(images)
        means = [stage.mean((2, 3)) for stage in (fine, middle, self.stage3(middle))]
        logits = [head(mean) for head, mean in zip(self.classes, means, strict=True)]
        return logits, self.singles(means[1])
