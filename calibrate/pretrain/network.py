"""The bundled backbone as torch sees it while it is trained, and the heads that only training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibrate.backbones.lite import JOINED, MEAN, SCALE, UNITS

FIRST = UNITS["stem.0"][0]
LAST = 192  # channels of the stage that only training needs


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


class Trainee(nn.Module):
    """The backbone, one deeper stage, and what tells the classes from the mean of each stage's map.

    The earlier stages are what detects, so each must tell the classes itself (Lee et al. 2015,
    "Deeply-Supervised Nets"). singles: see train.singles.
    """

    def __init__(self, classes: int, singles: int) -> None:
        super().__init__()
        self.backbone = Lite()
        self.stage3 = Down(JOINED[-1], LAST)
        self.classes = nn.ModuleList([nn.Linear(width, classes) for width in (*JOINED, LAST)])
        self.singles = nn.Linear(JOINED[-1], singles)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of the classes, from each of the three stages, and of the singles."""
        fine, middle = self.backbone(images)
        means = [stage.mean((2, 3)) for stage in (fine, middle, self.stage3(middle))]
        logits = [head(mean) for head, mean in zip(self.classes, means, strict=True)]
        return logits, self.singles(means[1])
