"""The bundled backbone as torch sees it while it is trained, and the heads that only training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibrate.backbones.lite import DIMENSIONS, MEAN, SCALE

WIDTHS = (24, 48, 96, 192)


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
    """Maps at strides 4, 8 and 16, and at stride 8 the embedding in which distances mean something.

    Images are float32 (n, 3, height, width), 0..255, red, green, blue.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.stem = nn.ModuleList([Unit(3, first, 2), Unit(first, second, 2)])
        self.stage1 = Block(second)
        self.stage2 = Down(second, third)
        self.stage3 = Down(third, fourth)
        self.metric = nn.Conv2d(second + third + fourth, DIMENSIONS, 1)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps of the three stages."""
        x = (images - MEAN) / SCALE
        for unit in self.stem:
            x = torch.relu(unit(x))
        first = self.stage1(x)
        second = self.stage2(first)
        return [first, second, self.stage3(second)]

    def embed(self, stages: list[Tensor]) -> Tensor:
        """Embedding (n, DIMENSIONS, height / 8, width / 8)."""
        out: Tensor = self.metric(aligned(stages))
        return out

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(self.stages(images))


def aligned(stages: list[Tensor]) -> Tensor:
    """All stages at stride 8: the first averaged, the last interpolated, joined along the channels."""
    first, second, third = stages
    coarse = nn.functional.interpolate(third, size=second.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([nn.functional.avg_pool2d(first, 2), second, coarse], 1)


class Segmenter(nn.Module):
    """Where is a defect? From embeddings and their residuals: what separates them from the nearest good one.

    Residuals make parts alike (Yao et al. 2024, "ResAD"), so that one segmenter serves parts it never saw.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([Unit(2 * DIMENSIONS, DIMENSIONS), Unit(DIMENSIONS, DIMENSIONS)])
        self.logit = nn.Conv2d(DIMENSIONS, 1, 1)

    def forward(self, embedding: Tensor, residual: Tensor) -> Tensor:
        """Logits (n, rows, columns) of maps (n, DIMENSIONS, rows, columns)."""
        x = torch.cat([embedding, residual], 1)
        for unit in self.hidden:
            x = torch.relu(unit(x))
        out: Tensor = self.logit(x)[:, 0]
        return out
