"""Features damped along what other light does to them, where good parts differ less in it.

A distance between patches (PatchCore's) counts every direction of the feature space alike. What changes with
light, focus and noise says nothing of a part, so distances along it are shortened, the more the farther light
moves good patches there. Hatch, Kajarekar and Stolcke 2006, "Within-Class Covariance Normalization for
SVM-based Speaker Recognition", in the direction of copies of the good frames under other light
(augment.relit). Measured: docs/research-log.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.pieces import continued
from calibrate.tiles import Doubles
from inspectord.inspect import Floats

COUNTS = 3.0  # times the variance by light, beside that among good patches
LEAST = 1e-3  # of the most that light does in a direction; good patches that differ less count as this
MOST = 256  # features: a matrix product more of each patch, which would take too long of many


@dataclass(frozen=True)
class Damping:
    """A symmetric matrix (d, d) that embeddings (positions, d) are multiplied with."""

    matrix: Floats

    @classmethod
    def learn(cls, pairs: Iterable[tuple[Floats, Floats]]) -> Damping:
        """From embeddings (positions, d) of good frames, each with those of its copy under other light.

        The variance among good patches is that at each place, over the frames, in the mean of all features.
        Frames that are later held out take part, with no more than such a matrix of up to FRAMES frames.
        """
        origin: Floats | None = None  # the first frame: of frames that hardly differ rounding would be left
        count, total, squares, by_light = 0, np.zeros((1, 1)), 0.0, np.zeros((1, 1))
        for frame, lit in pairs:
            origin = frame if origin is None else origin
            moved, change = frame - origin, lit - frame
            count, total, squares = count + 1, total + moved, squares + float(np.vdot(moved, moved))
            by_light = by_light + (change.T @ change).astype(np.float64)
        among = (squares - float((total**2).sum()) / count) / (count * total.size)
        return cls.of(by_light / (count * len(total)), among)

    @classmethod
    def of(cls, by_light: Doubles, among: float) -> Damping:
        """From the covariance by light (d, d) and the variance among good patches."""
        lengths, axes = np.linalg.eigh(by_light)
        least = max(LEAST * float(lengths.max()), 1e-24)
        shares = 1 / np.sqrt(1 + COUNTS * np.maximum(lengths, 0) / max(among, least))
        return cls(((axes * shares) @ axes.T).astype(np.float32))

    def damp(self, features: ov.Model) -> ov.Model:
        """The feature graph continued: embeddings times the matrix."""
        return continued(features, lambda x: op.matmul(x, op.constant(self.matrix), False, False).output(0))
