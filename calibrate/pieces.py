"""Pieces of a graph that more than one module builds: maps of another size, rows taken block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.op import tensor_iterator

from inspectord.inspect import Floats

LOOP = "TensorIterator"  # OpenVINO's name of what in_blocks makes


def nearest(maps: ov.Output, rows: int, columns: int) -> ov.Output:
    """maps (n, channels, *, *) at rows x columns, each place as its nearest neighbour."""
    return _resized(
        maps, rows, columns, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def bilinear(maps: ov.Output, rows: int, columns: int) -> ov.Output:
    """maps (n, channels, *, *) at rows x columns, as torch interpolates without aligned corners."""
    return _resized(maps, rows, columns, mode="linear_onnx", coordinate_transformation_mode="half_pixel")


def _resized(maps: ov.Output, rows: int, columns: int, **how: str) -> ov.Output:
    if maps.get_shape()[2:] == [rows, columns]:
        return maps
    size, axes = op.constant([rows, columns]), op.constant([2, 3])
    return op.interpolate(maps, size, shape_calculation_mode="sizes", axes=axes, **how).output(0)


def projected(maps: ov.Output, matrix: Floats) -> ov.Output:
    """maps (n, D, rows, columns) times matrix (D, d) at every place, (n, d, rows, columns)."""
    kernel = np.ascontiguousarray(matrix.T)[:, :, None, None]
    return op.convolution(maps, op.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1]).output(0)


def sliced(x: ov.Output, start: Sequence[int], stop: Sequence[int], axes: Sequence[int]) -> ov.Output:
    """x from start to stop along these axes."""
    ones = op.constant([1] * len(axes))
    return op.slice(
        x, op.constant(list(start)), op.constant(list(stop)), ones, op.constant(list(axes))
    ).output(0)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of number that is at most `most`."""
    return next(size for size in range(min(most, number), 0, -1) if number % size == 0)


def continued(features: ov.Model, more: Callable[[ov.Output], ov.Output]) -> ov.Model:
    """A feature graph with something more behind its embeddings (positions, d)."""
    features = features.clone()
    before = features.outputs[0].get_node().input_value(0)
    embeddings = more(before)
    before.get_tensor().set_names(set())
    embeddings.get_tensor().set_names({"embeddings"})
    return ov.Model([op.result(embeddings)], features.get_parameters(), "features")


def in_blocks(inputs: Sequence[tuple[op.Parameter, ov.Output]], result: ov.Output, block: int) -> ov.Output:
    """A loop over the first axis, `block` rows at once; what result is for each block, one behind the other.

    inputs pairs each parameter that result is computed from, of `block` rows, with the whole it stands for.
    """
    end = op.result(result)
    body = ov.Model([end], [parameter for parameter, _ in inputs], "positions")
    loop = tensor_iterator()
    loop.set_body(body)
    for parameter, whole in inputs:
        loop.set_sliced_input(parameter, whole, 0, block, block, -1, 0)
    return loop.get_concatenated_slices(end.output(0), 0, block, block, -1, 0)
