"""Large convolutions by fewer multiplications: Winograd's minimal filtering, written in the graph.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks": m x m outputs of an r x r kernel
come from a patch of n x n, n = m + r - 1, by n * n products a channel instead of m * m * r * r: with 4 x 4
outputs a quarter of them for 3 x 3, a fifth for 4 x 4. OpenVINO's CPU plugin has no such convolution.

In float32 results differ by about 2e-6 of their spread. In bf16 a convolution rounds by 1.5 % of it, where a
direct one rounds by 0.3 %, and four in a row by 1.1 and 0.4 %; so there a 4 x 4 kernel gives 3 x 3 outputs
(4 x 4 would round by 3.6 %), and it is done only where bf16 has no matrix unit (AMX), which makes direct
convolutions as fast as bringing patches to and fro. 8 bits keep direct convolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.pieces import LOOP, sliced
from calibrate.tiles import Doubles

OUTPUTS = {("f32", 3): 4, ("f32", 4): 4, ("bf16", 3): 4, ("bf16", 4): 3}  # m, by precision and kernel
# By n; infinity is the last. Of all eighths and quarters up to 3 those that round least, as do Barabasz et
# al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution".
POINTS = {6: (0, 0.625, -0.625, 1.5, -1.5), 7: (0, 0.375, -0.75, 1, -1.25, 2.5)}
# At least, of channels that go in and that come out; pairs of these; such pairs times an output's cells;
# these cells.
# Of direct time 3 x 3 kernels of 128 channels take 0.7 on 32 x 32 cells, 0.95 on 16 x 16, and in bf16 0.9
# anywhere; of 256 channels on 16 x 16 0.7 and 0.8, on 32 x 32 half in both; of 1,024 on 4 x 4 2.4 and 3.2.
CHANNELS, PAIRS, PRODUCTS, CELLS = 128, {"f32": 128 * 128, "bf16": 128 * 256}, 2**24, 256
MOST_CELLS = 256 * 256  # patches hold up to four times the numbers of the maps


def quickened(model: ov.Model, precision: str) -> ov.Model:
    """A copy whose large convolutions are Winograd's, those of its loops too, where this box gains by it."""
    copy = model.clone()
    if precision not in PAIRS or (precision == "bf16" and not bf16_by_vectors()):
        return copy
    bodies = [node.get_function() for node in copy.get_ops() if node.get_type_name() == LOOP]
    for graph in (copy, *bodies):
        for node in graph.get_ordered_ops():
            if gains(node, precision):
                found = _convolved(node, OUTPUTS[precision, node.input_value(1).get_shape()[2]])
                for reader in node.output(0).get_target_inputs():
                    reader.replace_source_output(found)
    return copy


def bf16_by_vectors() -> bool:
    """Whether this box's processor computes bf16, but by vectors alone."""
    flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def gains(node: Any, precision: str) -> bool:
    """Whether a node is a convolution that takes less time so."""
    if node.get_type_name() != "Convolution" or node.get_element_type() != ov.Type.f32:
        return False
    if not node.output(0).get_partial_shape().is_static:
        return False
    weights = node.input_value(1)
    how, (after, before, *kernel) = node.get_attributes(), weights.get_shape()
    cells = math.prod(node.output(0).get_shape()[2:])
    return (
        weights.get_node().get_type_name() == "Constant"
        and node.output(0).get_shape()[0] == 1
        and kernel in ([3, 3], [4, 4])
        and list(how["strides"]) == list(how["dilations"]) == [1, 1]
        and min(before, after) >= CHANNELS
        and before * after >= max(PAIRS[precision], PRODUCTS / cells)
        and CELLS <= cells <= MOST_CELLS
    )


@dataclass(frozen=True)
class Transforms:
    """y = A' ((G g) * (B d)) along one side, of a kernel g and a patch d of n: eq. 5 of the paper."""

    outputs: Doubles  # A, (n, m)
    kernel: Doubles  # G, (n, r)
    patch: Doubles  # B, (n, n)

    @classmethod
    def of(cls, side: int, outputs: int) -> Transforms:
        """For a kernel of this side, by the polynomials' values at POINTS (Toom and Cook)."""
        n = side + outputs - 1
        patch = np.linalg.inv(_powers(n, n)).T
        size = np.abs(patch).max(axis=1, keepdims=True)  # moved to the kernel, which is known to more digits
        return cls(_powers(n, outputs), _powers(n, side) * size, patch / size)


def _powers(n: int, count: int) -> Doubles:
    """(n, count) of the points; of infinity the highest alone counts."""
    rows = [[float(point) ** power for power in range(count)] for point in POINTS[n]]
    return np.array([*rows, [0.0] * (count - 1) + [1.0]])


def _both_sides(matrix: Doubles) -> ov.Node:
    """(a * a, b * b) for what matrix (a, b) does along each side."""
    return op.constant(np.kron(matrix, matrix).astype(np.float32))


def _convolved(node: Any, outputs: int) -> ov.Output:
    """What a convolution gives, (1, K, rows, columns)."""
    x, weights = node.input_value(0), node.input_value(1)
    after, before, side, _ = weights.get_shape()
    transforms, n = Transforms.of(side, outputs), side + outputs - 1
    size = np.array(node.output(0).get_shape()[2:])
    down, across = patches = -(-size // outputs)
    starts = np.array(node.get_attributes()["pads_begin"])
    ends = outputs * patches + side - 1 - x.get_shape()[2:] - starts
    # Channels last, so that every step but the first and the last is a product of matrices.
    last = op.transpose(x, op.constant([0, 2, 3, 1]))
    padded = op.pad(last, op.constant([0, *starts, 0]), op.constant([0, *ends, 0]), "constant", _zero())
    _, height, width, _ = padded.output(0).get_shape()
    rows, columns = (outputs * np.arange(count) + np.arange(n)[:, None] for count in patches)
    places = (width * rows[:, None, :, None] + columns[None, :, None, :]).astype(np.int32)
    flat = _shaped(padded, [height * width, before])
    found = _shaped(op.gather(flat, op.constant(places.ravel()), op.constant(0)), [n * n, -1])
    found = op.matmul(_unfolded(transforms.patch, x), found, False, False)
    found = _shaped(found, [n * n, down * across, before])
    found = op.matmul(found, _kernels(weights, transforms), False, True)
    found = op.matmul(_unfolded(transforms.outputs.T, x), _shaped(found, [n * n, -1]), False, False)
    blocks = _shaped(found, [outputs, outputs, down, across, after])
    maps = _shaped(
        op.transpose(blocks, op.constant([2, 0, 3, 1, 4])), [1, outputs * down, outputs * across, after]
    )
    return op.transpose(sliced(maps, (0, 0), size.tolist(), (1, 2)), op.constant([0, 3, 1, 2])).output(0)


def _shaped(x: ov.Node, shape: list[int]) -> ov.Output:
    return op.reshape(x, op.constant(shape), False).output(0)


def _zero() -> ov.Node:
    return op.constant(np.float32(0))


def _unfolded(matrix: Doubles, x: ov.Output) -> ov.Node:
    """_both_sides, plus 0 times the first number of x: a product whose first factor is a constant is computed
    in float32, whatever precision is asked for.
    """
    first = _shaped(sliced(x, (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 3)), [1, 1])
    return op.add(_both_sides(matrix), op.multiply(first, _zero()))


def _kernels(weights: ov.Output, transforms: Transforms) -> ov.Output:
    """Transformed kernels, (n * n, K, C). OpenVINO folds this when it compiles; a recipe keeps small ones."""
    after, before, *kernel = weights.get_shape()
    flat = op.reshape(weights, op.constant([after * before, math.prod(kernel)]), False)
    found = op.matmul(_both_sides(transforms.kernel), flat, False, True)
    return _shaped(found, [-1, after, before])
