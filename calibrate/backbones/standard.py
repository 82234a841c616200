"""The bundled networks in ResNet-18's layout, at half width and cut after layer2, in floating point.

`steady` is `standard` after it has told places apart under other light (calibrate/pretrain/contrast.py). A
weights file holds torchvision's names, and `joined.spread`, by which the joined channels are divided.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import openvino as ov

from calibrate.backbones import Chosen, layers_of
from calibrate.backbones.joined import POOLED, Map, own
from calibrate.backbones.resnet import ResNet
from calibrate.backbones.resnet import state_shapes as resnet_shapes
from calibrate.backbones.weights import State, kept, own_or_bundled

WEIGHTS = {name: files("calibrate.backbones") / f"{name}_v1.safetensors" for name in ("standard", "steady")}
JOINED = (32, 64)  # channels of layer1 and layer2
STAGES = ("layer1", "layer2")
LAYERS = ("layer1", "joined", "layer2", POOLED)  # strides are 4, 8, 8 and 16


class Standard:
    """Layers layer1, layer2, joined (both at stride 8, every channel with a variance near 1) and, by default,
    pooled: the means of 2 x 2 cells of joined.

    Sides of images must be multiples of the layers' strides, as tiles' always are.
    """

    def __init__(self, name: str, state: State, digest: str, layers: tuple[str, ...] | None) -> None:
        self.name, self.digest = name, digest
        self.layers = layers_of(name, LAYERS, layers or (POOLED,))
        self._stages = ResNet("standard", state, digest, STAGES)
        self._spread = np.asarray(state["joined.spread"], np.float32)

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        maps = self._stages.features(images, [None, None])
        stages = dict(zip(STAGES, maps, strict=True))
        return [
            kept(stages[layer], channels)
            if layer in stages
            else own(layer, [Map(found) for found in maps], self._spread, channels)
            for layer, channels in zip(self.layers, chosen, strict=True)
        ]


def open_standard(
    layers: tuple[str, ...] | None, weights: Path | None = None, name: str = "standard"
) -> Standard:
    """The network of this name of WEIGHTS, with the package's weights or those of `calibrate pretrain`.

    Raises FitError where they are missing or damaged.
    """
    return Standard(name, *own_or_bundled(name, weights, WEIGHTS[name], state_shapes()), layers)


def state_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the network needs of the weights file, which may hold more."""
    return resnet_shapes("standard", len(STAGES)) | {"joined.spread": (sum(JOINED),)}
