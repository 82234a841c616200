"""EfficientAD's networks as the paper's appendix has them: patch description networks and the autoencoder.

Patch description networks are not padded, as in the paper's reference implementations: of a tile with
m x n cells of 4 pixels come (m - 8) x (n - 8) features, each from 33 x 33 pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from calibrate.backbones.weights import IMAGENET_MEAN, IMAGENET_STD

TEACHER = 384  # channels of a teacher; a student gives twice as many
STRIDE, BORDER = 4, 4  # pixels of a cell; cells on each side that have no feature
SMALLEST = STRIDE * (2 * BORDER + 1)  # side of a tile with one feature


class Normalise(nn.Module):
    """Images, float32 (n, 1 or 3, height, width), 0..255, to three channels around 0."""

    def __init__(self, mean: list[float], spread: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("gain", 1 / torch.tensor(spread)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) * self.gain


def imagenet() -> Normalise:
    return Normalise(IMAGENET_MEAN.tolist(), IMAGENET_STD.tolist())


def pdn_small(outputs: int) -> nn.Sequential:
    """PDN-S; table 6 of the paper."""
    return nn.Sequential(
        imagenet(),
        *_narrowed(nn.Conv2d(3, 128, 4)),
        *_narrowed(nn.Conv2d(128, 256, 4)),
        *(nn.Conv2d(256, 256, 3), nn.ReLU()),
        nn.Conv2d(256, outputs, 4),
    )


def pdn_medium(outputs: int) -> nn.Sequential:
    """PDN-M; table 7 of the paper."""
    return nn.Sequential(
        imagenet(),
        *_narrowed(nn.Conv2d(3, 256, 4)),
        *_narrowed(nn.Conv2d(256, 512, 4)),
        *(nn.Conv2d(512, 512, 1), nn.ReLU()),
        *(nn.Conv2d(512, 512, 3), nn.ReLU()),
        *(nn.Conv2d(512, outputs, 4), nn.ReLU()),
        nn.Conv2d(outputs, outputs, 1),
    )


def _narrowed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.ReLU(), nn.AvgPool2d(2)


def autoencoder(height: int, width: int, outputs: int) -> nn.Sequential:
    """The autoencoder (table 8 of the paper) of tiles of this size; 64 numbers hold a whole tile.

    The paper's sizes are those of 256 x 256 pixels. Others follow the same rule, in anomalib's form: the
    decoder's steps are 1/64, 1/32 .. 1/2 of the tile, and its end is the size of the student's map.
    """
    widths, layers = (3, 32, 32, 64, 64, 64), [imagenet()]
    for inputs, width_ in pairwise(widths):
        layers += [nn.Conv2d(inputs, width_, 4, 2, 1), nn.ReLU()]
    layers.append(nn.Conv2d(64, 64, (height >> 5, width >> 5)))
    for shift, less in ((6, 1), (5, 0), (4, 1), (3, 0), (2, 1), (1, 1)):
        size = tuple(max(1, (side >> shift) - less) for side in (height, width))
        layers += [_upsample(size), nn.Conv2d(64, 64, 4, 1, 2), nn.ReLU(), nn.Dropout(0.2)]
    layers += [_upsample(map_size(height, width)), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, outputs, 3, 1, 1))


def _upsample(size: tuple[int, ...]) -> nn.Upsample:
    return nn.Upsample(size=size, mode="bilinear")


def map_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of what a patch description network gives of a tile."""
    return height // STRIDE - 2 * BORDER, width // STRIDE - 2 * BORDER
