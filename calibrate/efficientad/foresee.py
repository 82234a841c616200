"""What a training will take of this box, before it starts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from calibrate.efficientad.backbone import device_of
from calibrate.efficientad.detector import Detector
from calibrate.efficientad.settings import settings_of
from calibrate.efficientad.train import computes_in_bfloat16
from calibrate.folds import Indices
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.plan import Plan

# Of the activations that two networks give, measured and a little more: what torch and oneDNN hold besides;
# and the share that is left of it where the pupils are computed in bfloat16.
OVERHEAD, HALVED = 1.6, 0.75
COPIES = 6  # of the weights: gradients, two moments, the best ones, a checkpoint being written
THREADS_MB = 120  # of torch's threads
LIBRARY_MB = 150  # of torch itself, in a process that has not loaded it yet


class Noise:
    """Tiles of nothing, to time a training by."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def read(self, numbers: Indices) -> Tensor:
        return torch.rand(len(numbers), *self.shape) * 255


def host_mb(plan: Plan, detector: Detector, shape: list[int]) -> float:
    """Memory of this box that a training takes, besides the process that runs it and has loaded torch: on an
    accelerator not its activations, but the checkpoint still.
    """
    if device_of(plan).type == "cpu":
        return training_mb(plan, detector, shape) + THREADS_MB
    return COPIES * 4 * _weights(detector) / 1e6 + THREADS_MB + LIBRARY_MB  # the driver's as large as torch


def check_accelerator(plan: Plan, detector: Detector, shape: list[int]) -> None:
    """Raises FitError where the trainings that run together would not fit into what is free on it."""
    options, device = plan.options, device_of(plan)
    if device.type == "cpu" or options.on:
        return
    jobs = min(options.jobs, plan.geometry.tiles)
    needed_mb = jobs * training_mb(plan, detector, shape)
    free_mb = torch.cuda.mem_get_info(device)[0] / 1e6
    if needed_mb > free_mb:
        raise FitError(
            f"training on tiles of {shape[2]}x{shape[1]} pixels would take {needed_mb:.0f} MB of the CUDA "
            f"device, {free_mb:.0f} are free there; give a smaller --tile or --resize, fewer --jobs, or no "
            "--train-device"
        )


def training_mb(plan: Plan, detector: Detector, shape: list[int]) -> float:
    """What a training takes where it computes."""
    _, height, width = shape
    trained, settings = detector.trained, settings_of(plan.options)
    batch, halved = settings.batch, settings.mixed and computes_in_bfloat16(device_of(plan))
    # The student sees good tiles, the same recoloured, and other scenes.
    numbers = 3 * _activations(trained.student, batch, height, width)
    numbers += _activations(trained.autoencoder, batch, height, width)
    overhead = OVERHEAD * (HALVED if halved else 1)
    return float(overhead * numbers + COPIES * _weights(detector)) * 4 / 1e6


def _weights(detector: Detector) -> int:
    return sum(value.numel() for value in detector.trained.state_dict().values())


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
