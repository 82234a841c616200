"""Eight bits for a network that takes tiles one by one, in a loop: NNCF looks into no loop, so the body is
quantised by itself, with tiles of the good frames, and put back.

NNCF knows no frames then, and tiles of mere background would make its ranges narrow. So they are found here:
what the tiles of a frame reach together, on average over the frames. It is the same where all tiles go
through a network at once, but takes the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.folds import evenly
from calibrate.pieces import LOOP, in_blocks
from inspectord.frame import Pixels
from inspectord.inspect import Floats

QUANTISED = "FakeQuantize"
SEEN = 128  # tiles at most that NNCF sees, for the errors of rounding that it makes good

# Of a model, numbers, and what to ask it with for each of these, the same in 8 bits.
Quantiser: TypeAlias = Callable[[ov.Model, Sequence[int], Callable[[int], Any]], ov.Model]


class Reached(NamedTuple):
    """The least and the most of an activation, each a number or in the shape of its range."""

    low: Floats
    high: Floats


def loops(model: ov.Model) -> list[Any]:
    """Those over one input, as pieces.in_blocks builds them."""
    return [
        node for node in model.get_ordered_ops() if node.get_type_name() == LOOP and len(node.inputs()) == 1
    ]


def in_loop(
    model: ov.Model,
    loop: Any,
    frames: Sequence[Pixels],
    quantiser: Quantiser,
    of_pixels: Callable[[ov.Model], set[str]],
) -> None:
    """Bring the body of a loop of the model to 8 bits; frames, uint8 (height, width, channels), are good.

    of_pixels names the nodes of a quantised body that round what is but scaled pixels: their range is right.
    """
    body: ov.Model = loop.get_function()
    tiles = _Tiles(model, loop, frames)
    shown = evenly(np.arange(len(frames) * tiles.blocks), SEEN).tolist()
    found = quantiser(body, shown, lambda number: tiles.read(*divmod(number, tiles.blocks)))
    known = {node.get_friendly_name() for node in _activations(body)} | of_pixels(found)
    new = [node for node in _activations(found) if node.get_friendly_name() not in known]
    for node, reached in zip(new, _ranges(found, new, tiles), strict=True):
        set_range(node, reached)
    parameter, result = found.get_parameters()[0], found.get_results()[0].input_value(0)
    after = in_blocks([(parameter, loop.input_value(0))], result, tiles.block)
    for reader in loop.output(0).get_target_inputs():
        reader.replace_source_output(after)


def set_range(node: Any, reached: Reached) -> None:
    """What a node rounds to 8 bits may reach so far: as in NNCF zero is a step, and steps are one size."""
    top = np.maximum(-reached.low, reached.high)
    bottom = np.where(reached.low >= 0, 0, -top * 128 / 127)
    for port, edge in zip(range(1, 5), (bottom, top) * 2, strict=True):
        shape = node.input_value(port).get_shape()
        constant = op.constant(np.broadcast_to(edge, shape).astype(np.float32))
        node.input(port).replace_source_output(constant.output(0))


class _Tiles:
    """What a loop's body takes, block by block, of each frame."""

    def __init__(self, model: ov.Model, loop: Any, frames: Sequence[Pixels]) -> None:
        self._frames, self._read = frames, (-1, np.empty(0, np.float32))
        self.block = int(loop.get_function().inputs[0].get_shape()[0])
        self.blocks = int(loop.input_value(0).get_shape()[0]) // self.block
        copy = model.clone()
        same = next(node for node in loops(copy) if node.get_friendly_name() == loop.get_friendly_name())
        self._request = compiled(ov.Model([op.result(same.input_value(0))], copy.get_parameters(), "tiles"))

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, frame: int, block: int) -> Floats:
        if self._read[0] != frame:
            self._read = frame, np.array(self._request.infer([self._frames[frame][None]])[0])
        return self._read[1][block * self.block :][: self.block].copy()  # a view would keep the whole frame


def _ranges(model: ov.Model, new: Sequence[Any], tiles: _Tiles) -> list[Reached]:
    """What reaches the nodes `new` of a quantised body, where nothing else is rounded but its weights."""
    copy, names = model.clone(), [node.get_friendly_name() for node in new]
    by_name = {node.get_friendly_name(): node for node in _activations(copy)}
    nodes = [by_name[name] for name in names]
    shapes = [list(node.input_value(1).get_shape()) for node in nodes]
    ends = []
    for node, shape in zip(nodes, shapes, strict=True):
        value = node.input_value(0)
        missing = len(value.get_shape()) - len(shape)
        axes = op.constant(np.flatnonzero(np.array([1] * missing + shape) == 1))
        ends += [op.reduce_min(value, axes, True), op.reduce_max(value, axes, True)]
    for node in nodes:
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(node.input_value(0))
    request = compiled(ov.Model([op.result(end) for end in ends], copy.get_parameters(), "reached"))
    low, high = ([np.zeros(shape, np.float32) for shape in shapes] for _ in range(2))
    for frame in range(len(tiles)):
        asked = [request.infer([tiles.read(frame, block)]) for block in range(tiles.blocks)]
        for number, shape in enumerate(shapes):
            least, most = (np.array([found[2 * number + end] for found in asked]) for end in (0, 1))
            low[number] += least.min(0).reshape(shape) / len(tiles)
            high[number] += most.max(0).reshape(shape) / len(tiles)
    return [Reached(*each) for each in zip(low, high, strict=True)]


def _activations(model: ov.Model) -> list[Any]:
    """The nodes that round to 8 bits what no constant is."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == QUANTISED and node.input_value(0).get_node().get_type_name() != "Constant"
    ]


def compiled(model: ov.Model) -> ov.InferRequest:
    """In float32, to measure with."""
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
