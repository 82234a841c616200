"""The re-weighted image score of PatchCore: how far the strangest patch lies, and how alone its nearest is.

Roth et al. 2022, eq. 6 and 7. Of the patch x farthest from the bank, with the nearest member m at distance s,
the score is s (1 - exp s / sum over N of exp |x - b|), b running over the N members nearest to m, with m
among them: a patch beside a rarely seen member counts for more than one as far from members that have
company. The weight lies between 1 - 1/N and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.bank import Bank
from inspectord.inspect import Floats


@dataclass(frozen=True)
class Reweighted:
    """Tile scores by a bank; of a tile as of an image of its own, and of a frame its highest tile.

    counting (tiles, positions of a tile) marks the patches that count.
    """

    bank: Bank
    counting: npt.NDArray[np.bool_]
    neighbours: int

    @property
    def _count(self) -> int:
        """A bank of fewer members has no more neighbours."""
        return min(self.neighbours, len(self.bank.members))

    def score(self, embeddings: Floats, distances: npt.NDArray[np.floating]) -> float:
        """Of one frame, from embeddings and their distances to the bank, both of all positions."""
        tiles, each = self.counting.shape
        farthest = np.where(self.counting, distances.reshape(tiles, each), 0.0).argmax(axis=1)
        at = farthest + each * np.arange(tiles)
        x, away = self.bank.entered(embeddings)[at], distances[at] * self.counting.any(axis=1)
        members = self.bank.members.astype(np.float64)
        scores = []
        for patch, s, nearest in zip(x, away, self.bank.nearest(x), strict=True):
            company = np.linalg.norm(members - members[nearest], axis=1)
            around = np.argpartition(company, self._count - 1)[: self._count]
            to = np.maximum(np.linalg.norm(members[around] - patch, axis=1), self.bank.floor)
            scores.append(s * (1 - np.exp(s - to.max()) / np.exp(to - to.max()).sum()))
        return float(max(scores))

    def build(self, embeddings: ov.Output, distances: ov.Output) -> ov.Output:
        """(tiles,) in the graph, from embeddings (positions, d) and distances (positions,)."""
        tiles, each = self.counting.shape
        by_tile = op.reshape(distances, op.constant([tiles, each]), False)
        counted = op.multiply(by_tile, op.constant(self.counting.astype(np.float32)))
        farthest = op.topk(counted, op.constant(np.int64(1)), 1, "max", "value", "i64")
        scores = op.reshape(farthest.output(0), op.constant([tiles]), False)
        first = op.constant(each * np.arange(tiles, dtype=np.int64))
        at = op.add(op.reshape(farthest.output(1), op.constant([tiles]), False), first)
        x = _rows(self.bank.enter(embeddings), at.output(0))
        nearest = self._lowest(x, 1)
        around = self._lowest(_rows(self.bank.whole(), _flat(nearest, tiles)), self._count)
        company = _rows(self.bank.whole(), around)  # (tiles, N, d); the nearest itself comes first
        gap = op.subtract(company, op.unsqueeze(x, op.constant([1])))
        to = op.sqrt(op.reduce_sum(op.multiply(gap, gap), op.constant([2]), False))
        to = op.maximum(to, op.constant(np.float32(self.bank.floor)))
        share = op.gather(op.softmax(to, 1), op.constant(np.int64(0)), op.constant(np.int64(1)))
        return op.multiply(scores, op.subtract(op.constant(np.float32(1)), share)).output(0)

    def _lowest(self, x: ov.Output, count: int) -> ov.Output:
        """Numbers of the `count` members nearest to each of x, (n, count), nearest first."""
        squared = op.concat(self.bank.squared(x), 1)
        return op.topk(squared, op.constant(np.int64(count)), 1, "min", "value", "i64").output(1)


def _rows(matrix: ov.Output, numbers: ov.Output) -> ov.Output:
    return op.gather(matrix, numbers, op.constant(np.int64(0))).output(0)


def _flat(numbers: ov.Output, count: int) -> ov.Output:
    return op.reshape(numbers, op.constant([count]), False).output(0)
