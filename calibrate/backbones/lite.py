"""The light bundled network: seven plain 3x3 convolutions, and two resolutions side by side.

Its weights file holds, for each 3x3 convolution with its batch norm folded in, `NAME.kernel`, `NAME.bias`
and `NAME.range`: what its channels reach after the ReLU. Between zero and that range activations are
quantised to 8 bits, and kernels per output channel to 8 bits (Jacob et al. 2018, "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference"); the first convolution stays in
floating point, and without ranges everything does. The joined channels are divided by `joined.spread`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Chosen, layers_of
from calibrate.backbones.joined import POOLED, Map, own
from calibrate.backbones.weights import State, convolve, folded, kept, own_or_bundled
from inspectord.inspect import Floats

WEIGHTS = files("calibrate.backbones") / "lite_v1.safetensors"
MEAN, SCALE = 127.5, 64.0  # of the images
# Output channels, input channels and stride of each unit, in the order of computation.
UNITS = {
    "stem.0": (24, 3, 2),
    "stem.1": (48, 24, 2),
    "stage1.block.0": (48, 48, 1),
    "stage1.block.1": (48, 48, 1),
    "stage2.down": (96, 48, 2),
    "stage2.block.0": (96, 96, 1),
    "stage2.block.1": (96, 96, 1),
}
JOINED = (48, 96)  # channels of stage1 and stage2
LAYERS = {"stage1": 4, "joined": 7, "stage2": 7, POOLED: 7}  # units that each needs; strides: 4, 8, 8, 16


class Lite:
    """Layers stage1, stage2, pooled (the means of 2 x 2 cells of joined) and, by default, joined: both at
    stride 8, every channel with a variance near 1.

    Sides of images must be multiples of the layers' strides, as tiles' always are.
    """

    name = "lite"

    def __init__(self, state: State, digest: str, layers: tuple[str, ...] | None) -> None:
        self.digest, self.layers = digest, layers_of(self.name, list(LAYERS), layers or ("joined",))
        self._state = {name: np.asarray(value, np.float32) for name, value in state.items()}

    def features(self, images: ov.Output, chosen: Chosen) -> list[ov.Output]:
        maps = self.activations(images, max(LAYERS[layer] for layer in self.layers))
        stages = maps[3::3]  # the finer one first
        found = []
        for layer, channels in zip(self.layers, chosen, strict=True):
            if layer in ("stage1", "stage2"):
                stage = stages[LAYERS[layer] // 3 - 1]
                found.append(kept(stage.values, channels, stage.scale))
            else:
                found.append(own(layer, stages, self._state["joined.spread"], channels))
        return found

    def activations(self, images: ov.Output, units: int = len(UNITS)) -> list[Map]:
        """What the first units of UNITS give."""
        maps = [Map(_normalised(images))]
        for name in list(UNITS)[:units]:
            # A block's second unit adds what its first one took in.
            maps.append(self._unit(maps[-1], name, maps[-2] if name.endswith("block.1") else None))
        return maps[1:]

    def _unit(self, x: Map, name: str, around: Map | None) -> Map:
        """ReLU of the convolution of x and, where given, of what goes around it."""
        kernel, bias = self._state[f"{name}.kernel"], self._state[f"{name}.bias"]
        if name == "stem.0" and x.values.get_shape()[1] == 1:
            kernel = kernel.sum(1, keepdims=True)  # grey is three equal colours
        scale = self._state.get(f"{name}.range")
        if scale is not None:
            kernel, bias = kernel / scale[:, None, None, None], bias / scale
        y = _convolve(x, kernel, bias, UNITS[name][2])
        if around is not None:
            y = op.add(y, _in_units(around, scale)).output(0)
        return Map(op.relu(y).output(0) if scale is None else _quantised(y), scale)


def _normalised(images: ov.Output) -> ov.Output:
    centred = op.subtract(images, op.constant(np.float32(MEAN)))
    return op.multiply(centred, op.constant(np.float32(1 / SCALE))).output(0)


def _convolve(x: Map, kernel: Floats, bias: Floats, stride: int) -> ov.Output:
    if x.scale is None:
        return convolve(x.values, kernel, bias, stride)
    kernel = kernel * x.scale[None, :, None, None]
    step = np.maximum(np.abs(kernel).max((1, 2, 3), keepdims=True), 1e-12) / 127
    whole = op.convert(op.constant(np.rint(kernel / step).astype(np.int8)), ov.Type.f32)
    y = op.convolution(x.values, op.multiply(whole, op.constant(step)), [stride] * 2, [1, 1], [1, 1], [1, 1])
    return op.add(y, op.constant(bias[None, :, None, None])).output(0)


def _quantised(y: ov.Output) -> ov.Output:
    """y cut to 0..1 (which is its ReLU) and rounded to whole multiples of 1 / 255."""
    low, high = (op.constant(np.full((1, 1, 1, 1), edge, np.float32)) for edge in (0, 1))
    return op.fake_quantize(y, low, high, low, high, 256).output(0)


def _in_units(x: Map, scale: Floats | None) -> ov.Output:
    """values * x.scale / scale; both scales are there or neither."""
    if x.scale is None or scale is None:
        return x.values
    return op.multiply(x.values, op.constant((x.scale / scale)[None, :, None, None])).output(0)


def open_lite(layers: tuple[str, ...] | None, weights: Path | None = None) -> Lite:
    """The network with the package's weights, or those of `calibrate pretrain`.

    Raises FitError where they are missing or damaged.
    """
    return Lite(*own_or_bundled("lite", weights, WEIGHTS, state_shapes()), layers)


def state_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the network needs of the weights file, which may hold more."""
    shapes: dict[str, tuple[int, ...]] = {"joined.spread": (sum(JOINED),)}
    for name, (outputs, inputs, _) in UNITS.items():
        shapes[f"{name}.kernel"] = (outputs, inputs, 3, 3)
        shapes |= {f"{name}.bias": (outputs,), f"{name}.range": (outputs,)}
    return shapes


def fold_state(state: State) -> dict[str, Floats]:
    """Kernels and biases, without ranges, from the state of calibrate.pretrain.network.Lite."""
    plain = {}
    for name in UNITS:
        plain[f"{name}.kernel"], plain[f"{name}.bias"] = folded(state, f"{name}.conv", f"{name}.norm")
    return {name: np.asarray(value, np.float32) for name, value in plain.items()}


def with_ranges(state: State, images: Floats) -> dict[str, Floats]:
    """state with the ranges that its activations have on images, float32 (n, 3, height, width), 0..255."""
    entry = op.parameter([1, *images.shape[1:]], ov.Type.f32)
    plain = {name: value for name, value in state.items() if not name.endswith(".range")}
    maps = Lite(plain, "", None).activations(entry.output(0))
    model = ov.Model([op.result(x.values) for x in maps], [entry], "activations")
    request = (
        ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    )
    peaks: list[list[Floats]] = []
    for image in images:
        request.infer([image[None]])
        found = (tensor.data[0].reshape(len(tensor.data[0]), -1) for tensor in request.output_tensors)
        peaks.append([values.max(1) for values in found])
    ranges = {
        f"{name}.range": np.maximum(np.max(values, axis=0), 1e-3).astype(np.float32)
        for name, values in zip(UNITS, zip(*peaks, strict=True), strict=True)
    }
    return {name: np.asarray(value, np.float32) for name, value in (plain | ranges).items()}
