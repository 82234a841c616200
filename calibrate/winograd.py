"""Large convolutions by fewer multiplications: Winograd's minimal filtering, written in the graph.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks": 4 x 4 outputs of an r x r kernel
come from a patch of n x n, n = r + 3, by n * n products a channel instead of 16 * r * r: a quarter of them
for 3 x 3, a fifth for 4 x 4. OpenVINO's CPU plugin has no such convolution. In float32 results differ by
about 1e-5 of their range; with fewer digits little would be left of them, so it is for float32 alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.pieces import LOOP, sliced
from calibrate.tiles import Doubles

OUTPUTS = 4  # of a patch, along each side
POINTS = {3: (0, 1, -1, 2, -2), 4: (0, 1, -1, 2, -2, 0.5)}  # by the kernel's side; infinity is the last
# Measured on one core with AVX-512: 3 x 3 kernels of 128 channels take 0.7 of the time, of 256 or more half
# of it, 4 x 4 ones 0.4 to 0.6; of 64 channels, or on 16 x 16, bringing patches to and fro takes what is won.
CHANNELS, CELLS = 128, 1000  # at least, of what goes in and what comes out; of one output channel
MOST_CELLS = 256 * 256  # patches hold three times the numbers of the maps


def quickened(model: ov.Model) -> ov.Model:
    """A copy whose large convolutions are Winograd's, those of its loops too."""
    copy = model.clone()
    bodies = [node.get_function() for node in copy.get_ops() if node.get_type_name() == LOOP]
    for graph in (copy, *bodies):
        for node in graph.get_ordered_ops():
            if gains(node):
                found = _convolved(node)
                for reader in node.output(0).get_target_inputs():
                    reader.replace_source_output(found)
    return copy


def gains(node: Any) -> bool:
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
        and CELLS <= cells <= MOST_CELLS
    )


@dataclass(frozen=True)
class Transforms:
    """y = A' ((G g) * (B d)) along one side, of a kernel g and a patch d of n: eq. 5 of the paper."""

    outputs: Doubles  # A, (n, OUTPUTS)
    kernel: Doubles  # G, (n, r)
    patch: Doubles  # B, (n, n)

    @classmethod
    def of(cls, side: int) -> Transforms:
        """For a kernel of this side, by the polynomials' values at POINTS (Toom and Cook)."""
        n = side + OUTPUTS - 1
        patch = np.linalg.inv(_powers(side, n)).T
        size = np.abs(patch).max(axis=1, keepdims=True)  # moved to the kernel, which is known to more digits
        return cls(_powers(side, OUTPUTS), _powers(side, side) * size, patch / size)


def _powers(side: int, count: int) -> Doubles:
    """(n, count) of the points; of infinity the highest alone counts."""
    rows = [[float(point) ** power for power in range(count)] for point in POINTS[side]]
    return np.array([*rows, [0.0] * (count - 1) + [1.0]])


def _both_sides(matrix: Doubles) -> Doubles:
    """(a * a, b * b) for what matrix (a, b) does along each side."""
    return np.asarray(np.kron(matrix, matrix), np.float64)


def _convolved(node: Any) -> ov.Output:
    """What a convolution gives, (1, K, rows, columns)."""
    x, weights = node.input_value(0), node.input_value(1)
    after, before, side, _ = weights.get_shape()
    transforms, n = Transforms.of(side), side + OUTPUTS - 1
    _, _, rows, columns = node.output(0).get_shape()
    down, across = -(-rows // OUTPUTS), -(-columns // OUTPUTS)
    starts = list(node.get_attributes()["pads_begin"])
    ends = [
        OUTPUTS * patches + side - 1 - size - start
        for patches, size, start in zip((down, across), x.get_shape()[2:], starts, strict=True)
    ]
    # Every channel for itself: the patches of all places, n * n numbers each.
    planes = op.reshape(x, op.constant([before, 1, *x.get_shape()[2:]]), False)
    bank = op.constant(_both_sides(transforms.patch).reshape(n * n, 1, n, n).astype(np.float32))
    patches = op.convolution(planes, bank, [OUTPUTS] * 2, starts, ends, [1, 1])
    patches = op.reshape(patches, op.constant([before, n * n, down * across]), False)
    patches = op.transpose(patches, op.constant([1, 0, 2]))
    products = op.matmul(_kernels(weights, transforms), patches, False, False)
    flat = op.reshape(products, op.constant([n * n, after * down * across]), False)
    found = op.matmul(op.constant(_both_sides(transforms.outputs.T).astype(np.float32)), flat, False, False)
    blocks = op.reshape(found, op.constant([1, OUTPUTS**2 * after, down, across]), False)
    maps = op.depth_to_space(blocks, "blocks_first", OUTPUTS).output(0)
    return sliced(maps, (0, 0), (rows, columns), (2, 3))


def _kernels(weights: ov.Output, transforms: Transforms) -> ov.Output:
    """Transformed kernels, (n * n, K, C). OpenVINO folds this when it compiles; a recipe keeps small ones."""
    after, before, *kernel = weights.get_shape()
    flat = op.reshape(weights, op.constant([after * before, math.prod(kernel)]), False)
    both = op.constant(_both_sides(transforms.kernel).astype(np.float32))
    found = op.matmul(both, flat, False, True)
    return op.reshape(found, op.constant([-1, after, before]), False).output(0)
