"""What a training will take of this box, before it starts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from calibrate.efficientad.detector import Detector
from calibrate.folds import Indices

# Of the activations that two networks give, measured: what torch and oneDNN hold besides.
OVERHEAD = 1.5
COPIES = 6  # of the weights: gradients, two moments, the best ones, a checkpoint being written
TORCH_MB = 250  # of the library and its threads


class Noise:
    """Tiles of nothing, to time a training by."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def read(self, numbers: Indices) -> Tensor:
        return torch.rand(len(numbers), *self.shape) * 255


def training_mb(detector: Detector, shape: list[int], batch: int) -> float:
    """Memory that a training takes on a CPU, besides the process that runs it."""
    _, height, width = shape
    trained = detector.trained
    # The student sees good tiles, the same recoloured, and other scenes.
    numbers = 3 * _activations(trained.student, batch, height, width)
    numbers += _activations(trained.autoencoder, batch, height, width)
    weights = sum(value.numel() for value in trained.state_dict().values())
    return float(OVERHEAD * numbers + COPIES * weights) * 4 / 1e6 + TORCH_MB


def _activations(network: nn.Module, batch: int, height: int, width: int) -> int:
    """Numbers that all layers give for a batch of tiles; computes none of them."""
    counted = 0

    def count(_: nn.Module, __: Any, given: Tensor) -> None:
        nonlocal counted
        counted += given.numel()

    shadow = copy.deepcopy(network).to("meta")
    for layer in shadow.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    shadow(torch.empty(batch, 3, height, width, device="meta"))
    return counted
