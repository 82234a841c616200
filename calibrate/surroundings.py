"""Each patch's features less what its surroundings lead to expect: what a place has of its own.

Neighbouring patches share light, grain and pattern, and good parts vary in these. What four places above,
below, left and right of a patch foretell of its features, by a linear regression that the part's good frames
teach and that is the same everywhere, is taken away before any statistic sees them. The patch itself and
those next to it don't take part, so that a small defect can't foretell itself (but in the outermost two rows
of a tile, where the edge is repeated); of one that covers a whole neighbourhood the rim remains. In the
manner of the conditional means of a Gaussian Markov random field (Besag 1974, "Spatial Interaction and the
Statistical Analysis of Lattice Systems").
Measured on good frames with synthetic defects: docs/research-log.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.pieces import continued, projected, sliced
from calibrate.tiles import Doubles, Geometry
from inspectord.inspect import Floats

BLOCK, AWAY = 3, 3  # cells: the side of a neighbouring block, and how far its centre lies
REACH = AWAY + BLOCK // 2  # cells that a patch looks to each side
NEIGHBOURS = 4
RIDGE = 0.01  # of the mean variance of what foretells
# For each feature that foretells: the frames that taught are then foretold up to 1.1 times better (in
# variance) than others, their held-out scores too low by the root of it; of 20 frames of 32 x 32 cells 1.2.
PATCHES = 100
MOST = 256  # features: the products of all that foretells and is foretold take (5 * MOST) ** 2 numbers
FRAMES = 64  # that teach, at most, unless so many have too few patches


def fewest(dimensions: int) -> int:
    """Patches of good frames that are needed."""
    return PATCHES * NEIGHBOURS * dimensions


def teaching(dimensions: int, geometry: Geometry) -> int:
    """Good frames that teach, at most."""
    return max(FRAMES, math.ceil(fewest(dimensions) / geometry.positions))


def lacking(frames: int, dimensions: int, geometry: Geometry) -> str:
    """Why so many good frames can't teach it, and what would help; empty where they can."""
    cells, patches = min(geometry.tile_grid), frames * geometry.positions
    if dimensions > MOST:
        return f"there are {dimensions} features, and {MOST} are the most; give --dimensions"
    if cells < 2 * REACH:
        narrow = f"tiles are {cells} cells wide, and {2 * REACH} are needed"
        return f"{narrow}; give a larger --tile, or --layers of smaller cells"
    if patches < fewest(dimensions):
        needed = math.ceil(fewest(dimensions) / geometry.positions)
        return (
            f"it takes {needed} good frames of this size, and there are {frames}; give more good frames, or "
            "do without"
        )
    return ""


@dataclass(frozen=True)
class Surroundings:
    """What is foretold of d features by those of the neighbours, weights (NEIGHBOURS * d, d)."""

    weights: Floats

    @classmethod
    def learn(cls, frames: Iterable[Floats], geometry: Geometry) -> Surroundings:
        """By ridge regression, from embeddings (positions, d) of good frames, less the mean at each place.

        Frames that are later held out take part: see PATCHES for how little that tells of them.
        """
        origin: Floats | None = None  # the first frame: of frames that hardly differ rounding would be left
        count, total, both = 0, np.zeros((1, 1)), np.zeros((1, 1))
        for frame in frames:
            origin = frame.copy() if origin is None else origin
            moved = frame - origin
            count, total, both = count + 1, total + moved, both + _products(moved, geometry)
        mean = (total / count).astype(np.float32)
        both -= count * _products(mean, geometry)
        known = NEIGHBOURS * mean.shape[1]
        inner, outer = both[:known, :known], both[:known, known:]
        # Above 0, for where nothing varies nothing is foretold.
        ridge = max(RIDGE * float(np.trace(inner)) / known, 1e-12)
        weights = np.linalg.solve(inner + ridge * np.eye(known), outer)
        return cls(weights.astype(np.float32))

    def less(self, features: ov.Model, geometry: Geometry) -> ov.Model:
        """The feature graph continued: embeddings (positions, d) less what is foretold."""
        rows, columns = geometry.tile_grid

        def beyond(flat: ov.Output) -> ov.Output:
            d = flat.get_shape()[1]
            cells = op.reshape(flat, op.constant([-1, rows, columns, d]), False)
            maps = op.transpose(cells, op.constant([0, 3, 1, 2])).output(0)
            foretold = projected(_around(maps, rows, columns), self.weights)
            last = op.transpose(op.subtract(maps, foretold), op.constant([0, 2, 3, 1]))
            return op.reshape(last, op.constant([-1, d]), False).output(0)

        return continued(features, beyond)


def blocks(tile: Floats) -> Floats:
    """Means of the four neighbouring blocks of every cell of (rows, columns, d), beyond the edge as at the
    edge: (rows, columns, NEIGHBOURS * d), in the order above, below, left, right.
    """
    rows, columns, _ = tile.shape
    padded = np.pad(tile, ((REACH, REACH), (REACH, REACH), (0, 0)), "edge")
    sums = np.lib.stride_tricks.sliding_window_view(padded, (BLOCK, BLOCK), (0, 1)).mean((-2, -1))
    return np.concatenate([sums[y : y + rows, x : x + columns] for y, x in _OFFSETS], -1)


_OFFSETS = ((0, AWAY), (2 * AWAY, AWAY), (AWAY, 0), (AWAY, 2 * AWAY))


def _products(embeddings: Floats, geometry: Geometry) -> Doubles:
    """Sums over the positions of all products of neighbours and own features, (5 d, 5 d)."""
    total = np.zeros((1, 1))
    for tile in embeddings.reshape(geometry.tiles, *geometry.tile_grid, -1):
        side_by_side = np.concatenate([blocks(tile), tile], -1).reshape(-1, (NEIGHBOURS + 1) * tile.shape[-1])
        total = total + (side_by_side.T @ side_by_side).astype(np.float64)
    return total


def _around(maps: ov.Output, rows: int, columns: int) -> ov.Output:
    """blocks() of (n, d, rows, columns) in the graph."""
    ends = op.constant([0, 0, REACH, REACH])
    padded = op.pad(maps, ends, ends, "edge")
    means = op.avg_pool(padded, [1, 1], [0, 0], [0, 0], [BLOCK, BLOCK], False).output(0)
    parts = [sliced(means, (y, x), (y + rows, x + columns), (2, 3)) for y, x in _OFFSETS]
    return op.concat(parts, 1).output(0)
