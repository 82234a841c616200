"""The embedded default: fixed oriented filters, no learned weights.

An honest stand-in for a trained backbone: it sees edges, spots, brightness and texture energy at three
scales, needs no file, and finds plain defects on aligned parts; a trained backbone finds much more.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Chosen
from calibrate.backbones.weights import convolve, kept
from inspectord.errors import FitError

LAYERS = ("fine", "medium", "coarse")
ORIENTATIONS = 6
SIZE = 9  # pixels of a kernel's side
# In these units a whole grey level is 0.2, so PaDiM's epsilon of 0.01 is the square of half a level.
SCALE = 0.2


def kernels() -> npt.NDArray[np.float32]:
    """Gabor pairs, even then odd, (2 * ORIENTATIONS, 1, SIZE, SIZE); zero mean, unit absolute sum."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    window = np.exp(-(x**2 + y**2) / (2 * 2.0**2))
    bank = []
    for phase in (np.cos, np.sin):
        for angle in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
            wave = phase(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 5.0) * window
            wave -= window * wave.sum() / window.sum()
            bank.append(wave / np.abs(wave).sum())
    return np.stack(bank)[:, None].astype(np.float32)


class FilterBank:
    """Per scale: energy and response of each orientation, mean, contrast and, in colour, two chroma means."""

    name = "bundled"
    digest = hashlib.sha256(b"filterbank 1" + kernels().tobytes()).hexdigest()

    def __init__(self, layers: tuple[str, ...] | None) -> None:
        self.layers = layers or LAYERS
        if [layer for layer in LAYERS if layer in self.layers] != list(self.layers):
            raise FitError(f"--layers of bundled are some of {', '.join(LAYERS)} in this order, got {layers}")

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        x = op.multiply(images, op.constant(np.float32(SCALE))).output(0)
        wanted = dict(zip(self.layers, chosen, strict=True))
        maps = []
        for layer in LAYERS[: LAYERS.index(self.layers[-1]) + 1]:
            if layer in wanted:
                maps.append(kept(_scale(x), wanted[layer]))
            x = _mean(x, 2)
        return maps


def _scale(x: ov.Output) -> ov.Output:
    """Features of one scale at a quarter of its resolution."""
    grey = op.reduce_mean(x, op.constant([1]), True).output(0)
    edge = [SIZE // 2] * 2
    padded = op.pad(grey, op.constant([0, 0, *edge]), op.constant([0, 0, *edge]), "edge").output(0)
    response = op.convolution(padded, op.constant(kernels()), [1, 1], [0, 0], [0, 0], [1, 1]).output(0)
    even, odd = op.split(response, op.constant(1), 2).outputs()
    energy = op.sqrt(
        op.add(op.add(op.multiply(even, even), op.multiply(odd, odd)), op.constant(np.float32(1e-4)))
    )
    mean = _mean(grey, 4)
    spread = op.subtract(_mean(op.multiply(grey, grey).output(0), 4), op.multiply(mean, mean))
    contrast = op.sqrt(op.add(op.relu(spread), op.constant(np.float32(1e-4))))
    parts = [_mean(energy.output(0), 4), _mean(even, 4), mean, contrast]
    if x.get_partial_shape()[1].get_length() == 3:
        chroma = np.array([[1, -1, 0], [-0.5, -0.5, 1]], np.float32)[:, :, None, None]
        parts.append(_mean(convolve(x, chroma, None, stride=1), 4))
    return op.concat(parts, 1).output(0)


def _mean(x: ov.Output, side: int) -> ov.Output:
    return op.avg_pool(x, [side] * 2, [0, 0], [0, 0], [side] * 2, False).output(0)
