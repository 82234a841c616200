"""ResNet and WideResNet with torchvision's state-dict names (He et al. 2016; Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Chosen, layers_of
from calibrate.backbones.weights import State, convolve, folded, kept, norm_shapes, normalised, require


@dataclass(frozen=True)
class Layout:
    blocks: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64  # of the inner convolutions in layer1
    base: int = 64  # channels of the first convolution


LAYOUTS = {
    "standard": Layout((2, 2, 2, 2), bottleneck=False, base=32),
    "resnet18": Layout((2, 2, 2, 2), bottleneck=False),
    "resnet34": Layout((3, 4, 6, 3), bottleneck=False),
    "resnet50": Layout((3, 4, 6, 3), bottleneck=True),
    "wide_resnet50_2": Layout((3, 4, 6, 3), bottleneck=True, width=128),
}
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResNet:
    """Feature maps of layer1 to layer4, at strides 4, 8, 16 and 32."""

    def __init__(self, name: str, state: State, digest: str, layers: tuple[str, ...] | None) -> None:
        self.name, self.digest = name, digest
        self.layers = layers_of(name, LAYERS, layers or LAYERS[:3])
        self._layout, self._state = LAYOUTS[name], state
        require(state, state_shapes(name, LAYERS.index(self.layers[-1]) + 1), name)

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        x = convolve(normalised(images), *folded(self._state, "conv1", "bn1"), stride=2)
        x = op.max_pool(op.relu(x), [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
        wanted = dict(zip(self.layers, chosen, strict=True))
        maps = []
        for stage, layer in enumerate(LAYERS[: LAYERS.index(self.layers[-1]) + 1]):
            last = layer == self.layers[-1]
            x = self._stage(x, stage, layer, wanted[layer] if last else None)
            if layer in wanted:
                maps.append(x if last else kept(x, wanted[layer]))
        return maps

    def _stage(self, x: ov.Output, stage: int, layer: str, keep: npt.NDArray[np.int64] | None) -> ov.Output:
        blocks = self._layout.blocks[stage]
        for index in range(blocks):
            stride = 2 if index == 0 and stage > 0 else 1
            x = self._block(x, f"{layer}.{index}", stride, keep if index == blocks - 1 else None)
        return x

    def _block(self, x: ov.Output, at: str, stride: int, keep: npt.NDArray[np.int64] | None) -> ov.Output:
        state, y = self._state, x
        convolutions = 3 if self._layout.bottleneck else 2
        strided = 2 if self._layout.bottleneck else 1
        for number in range(1, convolutions + 1):
            last = number == convolutions
            weights = folded(state, f"{at}.conv{number}", f"{at}.bn{number}", keep if last else None)
            y = convolve(y, *weights, stride=stride if number == strided else 1)
            y = y if last else op.relu(y).output(0)
        if f"{at}.downsample.0.weight" in state:
            x = convolve(x, *folded(state, f"{at}.downsample.0", f"{at}.downsample.1", keep), stride=stride)
        else:
            x = kept(x, keep)
        return op.relu(op.add(y, x)).output(0)


def state_shapes(name: str, stages: int = 4) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the first `stages` stages need, as torchvision publishes them."""
    layout = LAYOUTS[name]
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (layout.base, 3, 7, 7)} | norm_shapes(
        "bn1", layout.base
    )
    channels = layout.base
    for stage in range(stages):
        width = layout.width * 2**stage
        out = layout.base * (4 if layout.bottleneck else 1) * 2**stage
        for index in range(layout.blocks[stage]):
            at = f"layer{stage + 1}.{index}"
            shapes |= _block_shapes(at, layout.bottleneck, channels, width, out)
            if index == 0 and (stage > 0 or channels != out):
                shapes |= {f"{at}.downsample.0.weight": (out, channels, 1, 1)}
                shapes |= norm_shapes(f"{at}.downsample.1", out)
            channels = out
    return shapes


def _block_shapes(
    at: str, bottleneck: bool, channels: int, width: int, out: int
) -> dict[str, tuple[int, ...]]:
    kernels = (
        [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
        if bottleneck
        else [(out, channels, 3, 3), (out, out, 3, 3)]
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for number, kernel in enumerate(kernels, 1):
        shapes |= {f"{at}.conv{number}.weight": kernel} | norm_shapes(f"{at}.bn{number}", kernel[0])
    return shapes
