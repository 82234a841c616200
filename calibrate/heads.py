"""The Gaussians inside the graph: whitening matrices as constants, and the distances they give.

W is lower triangular, so it is cut into bands of rows and the zeros right of each band are never
stored nor read: the head is bound by memory traffic, not by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.op import tensor_iterator

from calibrate.tiles import Doubles

PACK_ABOVE_BYTES = 512 * 2**20
LOOP_POSITIONS = 64  # at once in the packed head: their matrices stay in the processor's cache


@dataclass(frozen=True)
class Band:
    """Rows start to stop of W; they are zero from column stop on."""

    start: int
    stop: int


def bands(dimensions: int, packed: bool) -> list[Band]:
    """Few bands where speed counts, many where size does."""
    count = min(dimensions, max(4, dimensions // 50) if packed else 3)
    edges = [round(dimensions * index / count) for index in range(count + 1)]
    return [Band(a, b) for a, b in pairwise(edges)]


def stored_values(dimensions: int, packed: bool) -> int:
    """Numbers kept of one position's W."""
    return sum((band.stop - band.start) * band.stop for band in bands(dimensions, packed))


def is_packed(positions: int, dimensions: int) -> bool:
    return positions * stored_values(dimensions, packed=False) * 4 > PACK_ABOVE_BYTES


class WhiteningWriter:
    """Takes means and matrices block by block, and becomes the head of the graph.

    Packed matrices lie in files below `folder` until the graph is saved, never whole in memory.
    """

    def __init__(self, folder: Path, positions: int, dimensions: int) -> None:
        self.packed = is_packed(positions, dimensions)
        self.mean = np.empty((positions, dimensions), np.float32)
        self._bands = bands(dimensions, self.packed)
        self._plain: list[_Plain] = []
        self._packed: list[_Packed] = []
        for number, band in enumerate(self._bands):
            if self.packed:
                self._packed.append(_Packed(folder / f"band{number}", positions, band))
            else:
                self._plain.append(_Plain(positions, band))

    def write(self, start: int, mean: Doubles, whitening: Doubles) -> None:
        """mean (block, d) and whitening (block, d, d) of the positions from start."""
        self.mean[start : start + len(mean)] = mean
        stores: Sequence[_Plain | _Packed] = self._plain or self._packed
        for band, store in zip(self._bands, stores, strict=True):
            store.write(start, whitening[:, band.start : band.stop, : band.stop])

    def build(self, embeddings: ov.Output) -> ov.Output:
        """Distances (positions,) of embeddings (positions, d)."""
        positions, dimensions = self.mean.shape
        centred = op.subtract(embeddings, op.constant(self.mean, shared_memory=True))
        rows = op.reshape(centred, op.constant([positions, 1, dimensions]), False).output(0)
        if self.packed:
            return _loop(rows, self._bands, self._packed)
        squares = [
            _squared(_left(rows, band.stop, dimensions), store.constant())
            for band, store in zip(self._bands, self._plain, strict=True)
        ]
        return _root(squares)


class _Plain:
    """One band of all positions as float32 in memory, (positions, rows, columns)."""

    def __init__(self, positions: int, band: Band) -> None:
        self._values = np.empty((positions, band.stop - band.start, band.stop), np.float32)

    def write(self, start: int, values: Doubles) -> None:
        self._values[start : start + len(values)] = values

    def constant(self) -> ov.Output:
        return op.constant(self._values, shared_memory=True).output(0)


class _Packed:
    """One band as 16-bit fixed point with a scale per row, in two byte planes on disk.

    Signed high and unsigned low bytes: OpenVINO's CPU plugin keeps 8-bit constants as they are,
    where it would widen 16-bit ones to 32 when the model is compiled.
    """

    def __init__(self, path: Path, positions: int, band: Band) -> None:
        self._shape = (positions, band.stop - band.start, band.stop)
        self._paths = path.with_suffix(".high"), path.with_suffix(".low")
        self._scale = np.empty((positions, 1, band.stop - band.start), np.float32)

    def write(self, start: int, values: Doubles) -> None:
        """Blocks arrive in order of position."""
        scale = (np.maximum(np.abs(values).max(axis=2), 1e-30) / 32767).astype(np.float32)
        fixed = np.rint(values / scale[..., None]).astype(np.int16)
        self._scale[start : start + len(values), 0] = scale
        planes = (fixed >> 8).astype(np.int8), (fixed & 255).astype(np.uint8)
        for path, plane in zip(self._paths, planes, strict=True):
            with path.open("ab") as file:
                file.write(plane.tobytes())

    def constants(self) -> list[ov.Output]:
        """High bytes, low bytes and scales of all positions; the planes are mapped, not read."""
        kinds = (np.int8, np.uint8)
        maps = [
            np.memmap(path, kind, "r+", 0, self._shape) for path, kind in zip(self._paths, kinds, strict=True)
        ]
        return [op.constant(a, shared_memory=True).output(0) for a in (*maps, self._scale)]

    def unpacked(self, block: int) -> tuple[list[op.Parameter], ov.Output]:
        """Parameters for one block's constants, and its matrices in float32."""
        _, rows, columns = self._shape
        high = op.parameter([block, rows, columns], ov.Type.i8)
        low = op.parameter([block, rows, columns], ov.Type.u8)
        scale = op.parameter([block, 1, rows], ov.Type.f32)
        coarse = op.multiply(op.convert(high, ov.Type.f32), op.constant(np.float32(256)))
        whole = op.add(coarse, op.convert(low, ov.Type.f32))
        by_row = op.reshape(scale, op.constant([block, rows, 1]), False)
        return [high, low, scale], op.multiply(whole, by_row).output(0)


def _left(rows: ov.Output, columns: int, of: int) -> ov.Output:
    """The first columns of rows (positions, 1, of)."""
    if columns == of:
        return rows
    one, last = op.constant([1]), op.constant([2])
    return op.slice(rows, op.constant([0]), op.constant([columns]), one, last).output(0)


def _squared(x: ov.Output, matrix: ov.Output) -> ov.Output:
    """|W x|^2 for every position: x (positions, 1, columns), matrix (positions, rows, columns)."""
    y = op.matmul(x, matrix, False, True)
    return op.reduce_sum(op.multiply(y, y), op.constant([1, 2]), False).output(0)


def _root(squares: list[ov.Output]) -> ov.Output:
    total = squares[0]
    for square in squares[1:]:
        total = op.add(total, square).output(0)
    return op.sqrt(total).output(0)


def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(most, number), 0, -1) if number % size == 0)


def _loop(rows: ov.Output, cuts: list[Band], stores: list[_Packed]) -> ov.Output:
    """A loop over blocks of positions, each unpacked to float32 in the cache."""
    positions, _, dimensions = rows.get_shape()
    block = _divisor(positions, LOOP_POSITIONS)
    inner_rows = op.parameter([block, 1, dimensions], ov.Type.f32)
    inputs: list[tuple[op.Parameter, ov.Output]] = [(inner_rows, rows)]
    squares = []
    for band, store in zip(cuts, stores, strict=True):
        parameters, unpacked = store.unpacked(block)
        inputs += list(zip(parameters, store.constants(), strict=True))
        squares.append(_squared(_left(inner_rows.output(0), band.stop, dimensions), unpacked))
    result = op.result(_root(squares))
    body = ov.Model([result], [parameter for parameter, _ in inputs], "positions")
    for number, node in enumerate(body.get_ordered_ops()):
        node.set_friendly_name(f"body_{number}")
    loop = tensor_iterator()
    loop.set_body(body)
    for parameter, value in inputs:
        loop.set_sliced_input(parameter, value, 0, block, block, -1, 0)
    return loop.get_concatenated_slices(result.output(0), 0, block, block, -1, 0)
