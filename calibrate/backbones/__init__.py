"""Feature extractors by name, each built straight into the recipe's OpenVINO graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate.backbones.joined import POOLED
from calibrate.tiles import SIDE_PX
from inspectord.errors import FitError

Chosen = Sequence[npt.NDArray[np.int64] | None]


class Backbone(Protocol):
    """Builds feature maps; digest is a SHA-256 over everything that decides them."""

    name: str
    digest: str
    layers: tuple[str, ...]

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        """One map of shape (n, channels, rows, columns) a layer, finest first.

        images is float32 of shape (n, 1 or 3, height, width), 0..255, colours in the order red, green,
        blue. chosen holds, a layer, the channels to keep in ascending order (None: all), so that what
        nobody reads is never computed.
        """
        ...


BUNDLED = ("lite", "standard", "steady")
DEFAULT = "standard"  # what bundled means
NAMES = ("bundled", *BUNDLED, "mobilenet_v2", "resnet18", "resnet34", "resnet50", "wide_resnet50_2")


def frame_side(backbone: Backbone) -> int:
    """Side in pixels of the square to whose area an untiled frame is scaled for it: see tiles.plan."""
    return 2 * SIDE_PX if backbone.name in BUNDLED and POOLED in backbone.layers else SIDE_PX


def layers_of(name: str, known: Sequence[str], asked: tuple[str, ...]) -> tuple[str, ...]:
    """asked. Raises FitError unless it is some of known, each once and in known's order."""
    if not asked or [layer for layer in known if layer in asked] != list(asked):
        raise FitError(
            f"--layers of {name} are some of {', '.join(known)} in this order, got {', '.join(asked)}"
        )
    return asked


def open_backbone(name: str, weights: Path | None, layers: tuple[str, ...] | None) -> Backbone:
    """A backbone by name, or from an ONNX/IR file with named layers.

    Raises FitError for an unknown name, missing or wrong weights, or unknown layers.
    """
    name = DEFAULT if name == "bundled" else name
    if name == "lite":
        from calibrate.backbones.lite import open_lite

        return open_lite(layers, weights)
    if name in ("standard", "steady"):
        from calibrate.backbones.standard import open_standard

        return open_standard(layers, weights, name)
    if Path(name).suffix in (".onnx", ".xml"):
        from calibrate.backbones.external import External

        return External(Path(name), layers)
    if name not in NAMES:
        raise FitError(f"unknown backbone {name!r}; use {', '.join(NAMES)} or an .onnx/.xml file")
    if weights is None:
        raise FitError(f"backbone {name} needs --weights FILE (.pth or .safetensors, torchvision's names)")
    from calibrate.backbones.weights import read_state

    state, digest = read_state(weights)
    if name == "mobilenet_v2":
        from calibrate.backbones.mobilenet import MobileNetV2

        return MobileNetV2(state, digest, layers)
    from calibrate.backbones.resnet import ResNet

    return ResNet(name, state, digest, layers)
