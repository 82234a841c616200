"""A bank of good patches inside the graph, and how far a part's patches lie from it.

|x - b|^2 = |x|^2 - 2 x b + |b|^2, so the search is a matrix product with the bank and a minimum, block by
block. Everything is centred first: what is subtracted is then as small as it can be, and float32 keeps
its digits. Of a patch that is a member itself none are left: its distance would be what rounding makes of 0,
on every processor something else. So no distance is less than a hundredth of what members usually have from
their centre.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.folds import Indices
from calibrate.pieces import in_blocks, largest_divisor
from calibrate.tiles import Doubles
from inspectord.inspect import Floats

MEMBERS_AT_ONCE = 512  # measured, 1024 positions x 4096 members x 64: 128 5.1 ms, 512 2.9, 4096 3.4
FLOOR = 0.01  # of the members' root mean square, where float32 leaves a distance some 0.3 %
# Floors, where it leaves 0.03 %; and where features are damped, which shortens some distances more than
# others (measured: 0.3 % of a score at 4 floors, 0.08 % at 10, less than 0.02 % at 14 to 26).
TOLD, TOLD_DAMPED = 4, 12
FILES = "members", "centre", "places"
LOOP_POSITIONS = 4096  # more at once would take more than 8 MB of distances


class Bank:
    """Members (m, d) around `centre` (features,), and their distance to embeddings (positions, features).

    places (positions, d - features) are constant coordinates that the positions have besides their features.
    """

    def __init__(self, members: Floats, centre: Floats, places: Floats) -> None:
        self.members, self.centre, self.places = members, centre, places

    def save(self, folder: Path) -> None:
        for name in FILES:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Bank:
        """What save() wrote."""
        return cls(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in FILES))

    @functools.cached_property
    def floor(self) -> float:
        """The least distance that is told."""
        return FLOOR * math.sqrt(float(_norms(self.members).mean()))

    def tells(self, away: npt.NDArray[np.floating], damped: bool = False) -> bool:
        """Whether float32 tells any of these held-out distances of good frames, of which some are needed."""
        return bool(away.max(initial=0) > (TOLD_DAMPED if damped else TOLD) * self.floor)

    def entered(self, embeddings: Floats) -> Floats:
        """Embeddings (positions, features) among the members, (positions, d)."""
        return np.hstack([embeddings - self.centre, self.places])

    def distances(self, embeddings: Floats) -> Doubles:
        """Euclidean distance of each position to its nearest member, (positions,), at least the floor.

        The nearest is found in float32, its distance computed in float64.
        """
        x = self.entered(embeddings)
        away = x.astype(np.float64) - self.members[self.nearest(x)]
        return np.asarray(np.maximum(np.linalg.norm(away, axis=1), self.floor))

    def nearest(self, x: Floats) -> Indices:
        """Number of the member nearest to each of x (n, d), (n,)."""
        found = [self._index(x[row : row + LOOP_POSITIONS]) for row in range(0, len(x), LOOP_POSITIONS)]
        return np.concatenate(found)

    def _index(self, x: Floats) -> Indices:
        best, nearest = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.int64)
        for start in range(0, len(self.members), MEMBERS_AT_ONCE):
            part = self.members[start : start + MEMBERS_AT_ONCE]
            squared = x @ (-2 * part).T + _norms(part)
            lowest = squared.argmin(axis=1)
            value = squared[np.arange(len(x)), lowest]
            closer = value < best
            best[closer], nearest[closer] = value[closer], start + lowest[closer]
        return nearest

    def build(self, embeddings: ov.Output) -> ov.Output:
        """The same in the graph, in float32."""
        x = self.enter(embeddings)
        positions, dimensions = x.get_shape()
        block = largest_divisor(positions, LOOP_POSITIONS)
        if block == positions:
            return self._nearest(x)
        inner = op.parameter([block, dimensions], ov.Type.f32)
        return in_blocks([(inner, x)], self._nearest(inner.output(0)), block)

    def enter(self, embeddings: ov.Output) -> ov.Output:
        """What entered() gives, in the graph."""
        x = op.subtract(embeddings, op.constant(self.centre)).output(0)
        if self.places.size:
            x = op.concat([x, op.constant(self.places).output(0)], 1).output(0)
        return x

    def _nearest(self, x: ov.Output) -> ov.Output:
        blocks = [op.reduce_min(block, op.constant([1]), False).output(0) for block in self.squared(x)]
        lowest = functools.reduce(lambda a, b: op.minimum(a, b).output(0), blocks)
        norms = op.reduce_sum(op.multiply(x, x), op.constant([1]), False)
        squared = op.maximum(op.add(norms, lowest), op.constant(np.float32(self.floor**2)))
        return op.sqrt(squared).output(0)

    def squared(self, x: ov.Output) -> list[ov.Output]:
        """|b|^2 - 2 x b of x (n, d) and each block of members, (n, members of the block)."""
        found = []
        for constant, part in zip(self._constants, self._parts(), strict=True):
            products = op.matmul(x, constant, False, True)
            found.append(op.add(products, op.constant(_norms(part)[None])).output(0))
        return found

    def whole(self) -> ov.Output:
        """All members in the graph, (m, d), from the constants that squared() multiplies with."""
        return op.multiply(op.concat(self._constants, 0), op.constant(np.float32(-0.5))).output(0)

    def _parts(self) -> list[Floats]:
        starts = range(0, len(self.members), MEMBERS_AT_ONCE)
        return [self.members[start : start + MEMBERS_AT_ONCE] for start in starts]

    @functools.cached_property
    def _constants(self) -> list[ov.Output]:
        """-2 b of each block, stored once however many places of a graph read it."""
        return [op.constant(-2 * part).output(0) for part in self._parts()]


def _norms(points: Floats) -> Floats:
    return np.asarray(np.einsum("ij,ij->i", points, points))
