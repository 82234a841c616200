"""MobileNetV2 with torchvision's state-dict names (Sandler et al. 2018)."""

from __future__ import annotations

import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Chosen, layers_of
from calibrate.backbones.weights import State, convolve, folded, kept, norm_shapes, normalised, require

# expansion, output channels, repeats, stride of the first: table 2 of the paper
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _rows() -> list[tuple[int, int, int, int]]:
    """(expansion, input channels, output channels, stride) of features.1 to features.17."""
    rows, channels = [], 32
    for expansion, out, repeats, stride in TABLE:
        for index in range(repeats):
            rows.append((expansion, channels, out, stride if index == 0 else 1))
            channels = out
    return rows


class MobileNetV2:
    """Feature maps of features.1 to features.17; by default 3, 6 and 13, at strides 4, 8 and 16."""

    name = "mobilenet_v2"

    def __init__(self, state: State, digest: str, layers: tuple[str, ...] | None) -> None:
        self.digest = digest
        names = [f"features.{index}" for index in range(1, 18)]
        self.layers = layers_of(self.name, names, layers or ("features.3", "features.6", "features.13"))
        self._depth = names.index(self.layers[-1]) + 1
        self._state = state
        require(state, state_shapes(self._depth), self.name)

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        x = convolve(normalised(images), *folded(self._state, "features.0.0", "features.0.1"), stride=2)
        x = op.clamp(x, 0.0, 6.0).output(0)
        wanted = dict(zip(self.layers, chosen, strict=True))
        maps = []
        for index, row in enumerate(_rows()[: self._depth], 1):
            x = self._block(x, f"features.{index}.conv", *row)
            if f"features.{index}" in wanted:
                maps.append(kept(x, wanted[f"features.{index}"]))
        return maps

    def _block(
        self, x: ov.Output, at: str, expansion: int, channels: int, out: int, stride: int
    ) -> ov.Output:
        state, y, step = self._state, x, 0
        hidden = channels * expansion
        if expansion > 1:
            y = op.clamp(convolve(y, *folded(state, f"{at}.0.0", f"{at}.0.1"), stride=1), 0.0, 6.0).output(0)
            step = 1
        depthwise = folded(state, f"{at}.{step}.0", f"{at}.{step}.1")
        y = op.clamp(convolve(y, *depthwise, stride=stride, groups=hidden), 0.0, 6.0).output(0)
        y = convolve(y, *folded(state, f"{at}.{step + 1}", f"{at}.{step + 2}"), stride=1)
        return op.add(x, y).output(0) if stride == 1 and channels == out else y


def state_shapes(depth: int = 17) -> dict[str, tuple[int, ...]]:
    """Names and shapes of features.0 to features.<depth>, as torchvision publishes them."""
    shapes: dict[str, tuple[int, ...]] = {"features.0.0.weight": (32, 3, 3, 3)} | norm_shapes(
        "features.0.1", 32
    )
    for index, (expansion, channels, out, _) in enumerate(_rows()[:depth], 1):
        at, hidden, step = f"features.{index}.conv", channels * expansion, 0
        if expansion > 1:
            shapes |= {f"{at}.0.0.weight": (hidden, channels, 1, 1)} | norm_shapes(f"{at}.0.1", hidden)
            step = 1
        shapes |= {f"{at}.{step}.0.weight": (hidden, 1, 3, 3)} | norm_shapes(f"{at}.{step}.1", hidden)
        shapes |= {f"{at}.{step + 1}.weight": (out, hidden, 1, 1)} | norm_shapes(f"{at}.{step + 2}", out)
    return shapes
