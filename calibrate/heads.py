"""The Gaussians inside the graph: whitening matrices as constants, and the distances they give.

W is lower triangular, so it is cut into bands of rows and the zeros right of each band are never
stored nor read: the head is bound by memory traffic, not by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.pieces import in_blocks, largest_divisor, sliced
from calibrate.tiles import Doubles

PACK_ABOVE_BYTES = 512 * 2**20
# At once in the packed head: so much of the matrices, unpacked, but so many positions at least. Measured with
# 32 to 550 features: with less the loop itself costs more, and more leaves the processor's cache.
LOOP_BYTES, LOOP_POSITIONS = 6 * 2**20, 32


@dataclass(frozen=True)
class Band:
    """Rows start to stop of W; they are zero from column stop on."""

    start: int
    stop: int


def bands(dimensions: int, packed: bool) -> list[Band]:
    """Few bands where speed counts, many where size does; for each is a product of its own."""
    count = min(dimensions, (2 if dimensions < 96 else max(4, dimensions // 32)) if packed else 3)
    edges = [round(dimensions * index / count) for index in range(count + 1)]
    return [Band(a, b) for a, b in pairwise(edges)]


def stored_values(dimensions: int, packed: bool) -> int:
    """Numbers kept of one position's W."""
    return sum((band.stop - band.start) * band.stop for band in bands(dimensions, packed))


def is_packed(positions: int, dimensions: int) -> bool:
    return positions * stored_values(dimensions, packed=False) * 4 > PACK_ABOVE_BYTES


class WhiteningWriter:
    """Takes means and matrices block by block, and becomes the head of the graph.

    Packed matrices lie in unnamed files in `folder` until the graph is saved, never whole in memory.
    """

    def __init__(self, folder: Path, positions: int, dimensions: int, halved: bool = False) -> None:
        """halved stores plain matrices in bf16: a graph that computes in it rounds them so in any case."""
        self.packed = is_packed(positions, dimensions)
        self.mean = np.empty((positions, dimensions), np.float32)
        self._unit = np.empty_like(self.mean) if self.packed else None
        self._bands = bands(dimensions, self.packed)
        self._plain: list[_Plain] = []
        self._packed: list[_Packed] = []
        for band in self._bands:
            if self.packed:
                self._packed.append(_Packed(folder, positions, band))
            else:
                self._plain.append(_Plain(positions, band, halved))

    def write(self, start: int, mean: Doubles, spread: Doubles, whitening: Doubles) -> None:
        """Mean and standard deviation (block, d), whitening (block, d, d) of the positions from start."""
        part = slice(start, start + len(mean))
        self.mean[part] = mean
        if self._unit is not None:
            # In units of their spread features are alike, and so are the columns of W that meet them.
            self._unit[part] = 1 / spread
            whitening = whitening / self._unit[part][:, None, :]
        stores: Sequence[_Plain | _Packed] = self._plain or self._packed
        for band, store in zip(self._bands, stores, strict=True):
            store.write(start, whitening[:, band.start : band.stop, : band.stop])

    def build(self, embeddings: ov.Output) -> ov.Output:
        """Distances (positions,) of embeddings (positions, d)."""
        positions, dimensions = self.mean.shape
        centred = op.subtract(embeddings, op.constant(self.mean, shared_memory=True))
        if self._unit is not None:
            centred = op.multiply(centred, op.constant(self._unit, shared_memory=True))
        rows = op.reshape(centred, op.constant([positions, 1, dimensions]), False).output(0)
        if self.packed:
            return _loop(rows, self._bands, self._packed)
        squares = [
            store.squared(columns_of(rows, 0, band.stop))
            for band, store in zip(self._bands, self._plain, strict=True)
        ]
        return root(squares)


class _Plain:
    """One band of all positions in memory, (positions, rows, columns): as float32, or halved as bf16."""

    def __init__(self, positions: int, band: Band, halved: bool) -> None:
        shape = (positions, band.stop - band.start, band.stop)
        # OpenVINO's memory, which a constant keeps alive and takes as it is: to make one of bf16 from floats
        # takes ten times their memory meanwhile.
        self._stored = ov.Tensor(ov.Type.bf16 if halved else ov.Type.f32, ov.Shape(shape))
        self._halved = halved

    def write(self, start: int, values: Doubles) -> None:
        part = self._stored.data[start : start + len(values)]
        if self._halved:
            part.view(np.uint16)[:] = _to_bf16(values)
        else:
            part[:] = values

    def squared(self, x: ov.Output) -> ov.Output:
        """|W x|^2 of x (positions, 1, columns)."""
        stored = ov.op.Constant(self._stored)
        matrix = (op.convert(stored, ov.Type.f32) if self._halved else stored).output(0)
        return sum_of_squares(op.matmul(x, matrix, False, True).output(0))


def _to_bf16(values: Doubles) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bf16, ties to even, as OpenVINO rounds."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class _Packed:
    """One band as 16-bit fixed point with a scale per row, in two byte planes on disk; the diagonal, which
    outweighs the rest of its row, apart in float32.

    Signed high and unsigned low bytes: OpenVINO's CPU plugin keeps 8-bit constants as they are,
    where it would widen 16-bit ones to 32 when the model is compiled.
    """

    def __init__(self, folder: Path, positions: int, band: Band) -> None:
        rows = band.stop - band.start
        self._shape, self._start = (positions, rows, band.stop), band.start
        self._planes = TemporaryFile(dir=folder), TemporaryFile(dir=folder)
        self._scale = np.empty((positions, 1, rows), np.float32)
        self._diagonal = np.empty((positions, 1, rows), np.float32)

    def write(self, start: int, values: Doubles) -> None:
        """Blocks arrive in order of position."""
        part, rest = slice(start, start + len(values)), values.copy()
        rows = np.arange(values.shape[1])
        self._diagonal[part, 0] = values[:, rows, self._start + rows]
        rest[:, rows, self._start + rows] = 0
        scale = (np.maximum(np.abs(rest).max(axis=2), 1e-30) / 32767).astype(np.float32)
        self._scale[part, 0] = scale
        fixed = np.rint(rest / scale[..., None]).astype(np.int16)
        high, low = self._planes
        high.write((fixed >> 8).astype(np.int8).tobytes())
        low.write((fixed & 255).astype(np.uint8).tobytes())

    def constants(self) -> list[ov.Output]:
        """High and low bytes (mapped, not read), scales and diagonals of all positions."""
        for plane in self._planes:
            plane.flush()
        high, low = (
            np.memmap(plane, kind, "r+", 0, self._shape)
            for plane, kind in zip(self._planes, (np.int8, np.uint8), strict=True)
        )
        arrays = (high, low, self._scale, self._diagonal)
        return [op.constant(array, shared_memory=True).output(0) for array in arrays]

    def squared(self, x: ov.Output, block: int) -> tuple[list[op.Parameter], ov.Output]:
        """Parameters for one block's constants, and |W x|^2 of x (block, 1, columns) in float32."""
        _, rows, columns = self._shape
        high = op.parameter([block, rows, columns], ov.Type.i8)
        low = op.parameter([block, rows, columns], ov.Type.u8)
        scale = op.parameter([block, 1, rows], ov.Type.f32)
        diagonal = op.parameter([block, 1, rows], ov.Type.f32)
        coarse = op.multiply(op.convert(high, ov.Type.f32), op.constant(np.float32(256)))
        whole = op.add(coarse, op.convert(low, ov.Type.f32))
        rest = op.multiply(op.matmul(x, whole, False, True), scale)
        own = op.multiply(columns_of(x, self._start, columns), diagonal)
        return [high, low, scale, diagonal], sum_of_squares(op.add(rest, own).output(0))


def columns_of(rows: ov.Output, start: int, stop: int) -> ov.Output:
    """Columns start to stop of rows (positions, 1, columns)."""
    if (start, stop) == (0, rows.get_shape()[2]):
        return rows
    return sliced(rows, [start], [stop], [2])


def sum_of_squares(y: ov.Output) -> ov.Output:
    """(positions,) of y (positions, 1, rows)."""
    return op.reduce_sum(op.multiply(y, y), op.constant([1, 2]), False).output(0)


def root(squares: list[ov.Output]) -> ov.Output:
    total = squares[0]
    for square in squares[1:]:
        total = op.add(total, square).output(0)
    return op.sqrt(total).output(0)


def _loop(rows: ov.Output, cuts: list[Band], stores: list[_Packed]) -> ov.Output:
    """A loop over blocks of positions, each unpacked to float32 in the cache."""
    positions, _, dimensions = rows.get_shape()
    each = 4 * stored_values(dimensions, packed=True)
    block = largest_divisor(positions, max(LOOP_POSITIONS, LOOP_BYTES // each))
    inner_rows = op.parameter([block, 1, dimensions], ov.Type.f32)
    inputs: list[tuple[op.Parameter, ov.Output]] = [(inner_rows, rows)]
    squares = []
    for band, store in zip(cuts, stores, strict=True):
        parameters, square = store.squared(columns_of(inner_rows.output(0), 0, band.stop), block)
        inputs += list(zip(parameters, store.constants(), strict=True))
        squares.append(square)
    return in_blocks(inputs, root(squares), block)
