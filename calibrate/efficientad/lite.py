"""EfficientAD-Lite's networks: the lite backbone is the teacher, and plain 3x3 convolutions learn from it.

At stride 8, and padded: every cell of a tile has its feature. All three together take at most 3 GMAC of a
tile of 256 x 256 pixels.
"""

from __future__ import annotations

import math

from torch import nn

from calibrate.efficientad.networks import Normalise
from calibrate.pretrain.network import Block, Down, Unit

TEACHER = 144  # channels of the backbone's joined layer
STRIDE = 8
SMALLEST = 32  # side of a tile; below, the autoencoder's deepest map is empty
STUDENT = (24, 48, 96)  # channels at strides 2, 4 and 8
AUTOENCODER = (16, 32, 48, 64, 64)  # at strides 2 to 32


def student(outputs: int) -> nn.Sequential:
    first, second, third = STUDENT
    return nn.Sequential(
        _normalise(),
        *_unit(3, first, 2),
        *_unit(first, second, 2),
        Block(second),
        Down(second, third),
        nn.Conv2d(third, outputs, 1),
    )


def autoencoder(height: int, width: int, outputs: int) -> nn.Sequential:
    """A whole tile through as many numbers as its last width, as in the paper, and back to stride 8."""
    layers, inputs = [_normalise()], 3
    for channels in AUTOENCODER:
        layers += _unit(inputs, channels, 2)
        inputs = channels
    layers.append(nn.Conv2d(inputs, inputs, (math.ceil(height / 32), math.ceil(width / 32))))
    for shift in (5, 4, 3):
        size = tuple(math.ceil(side / 2**shift) for side in (height, width))
        layers += [nn.Upsample(size=size, mode="bilinear"), *_unit(inputs, inputs)]
    return nn.Sequential(*layers, nn.Conv2d(inputs, outputs, 3, 1, 1))


def _unit(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return Unit(inputs, outputs, stride), nn.ReLU()


def _normalise() -> Normalise:
    return Normalise([115.0] * 3, [60.0] * 3)
