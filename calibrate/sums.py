"""What is kept of frames once their features are gone: count, mean and scatter, to which more can be added.

Merging and parting are exact (Chan, Golub & LeVeque 1983): a Gaussian of 300 frames and then 50 is that of
all 350, to rounding in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.npy import RowWriter, read_rows
from calibrate.tiles import Doubles

COUNT, MEANS, SCATTERS = "count.npy", "means.npy", "scatters.npy"


@dataclass(frozen=True)
class Sums:
    """Of `count` frames: mean (positions, d), and scatter (positions, d, d) of what deviates from it."""

    count: int
    mean: Doubles
    scatter: Doubles

    @classmethod
    def of(cls, x: Doubles) -> Sums:
        """Of x (positions, frames, d)."""
        mean = x.mean(axis=1)
        centred = x - mean[:, None]
        return cls(x.shape[1], mean, centred.transpose(0, 2, 1) @ centred)

    def gaussian(self, epsilon: float) -> tuple[Doubles, Doubles]:
        """Mean (positions, d) and covariance (positions, d, d), epsilon added to its diagonal."""
        covariance = self.scatter / (self.count - 1)
        diagonal = np.arange(covariance.shape[1])
        covariance[:, diagonal, diagonal] += epsilon
        return self.mean, covariance

    def plus(self, more: Sums) -> Sums:
        """Of the frames of both."""
        count, apart = self.count + more.count, more.mean - self.mean
        shift = _outer(apart) * (self.count * more.count / count)
        return Sums(count, self.mean + apart * (more.count / count), self.scatter + more.scatter + shift)

    def minus(self, some: Sums) -> Sums:
        """Of the others, where `some` of the frames are among these."""
        count, apart = self.count - some.count, some.mean - self.mean
        shift = _outer(apart) * (self.count * some.count / count)
        return Sums(count, self.mean - apart * (some.count / count), self.scatter - some.scatter - shift)


def _outer(rows: Doubles) -> Doubles:
    return rows[:, :, None] * rows[:, None, :]


def kept_bytes(positions: int, dimensions: int) -> int:
    """Size of the files: a triangle of each scatter, and the means, in float64."""
    return 8 * positions * dimensions * (dimensions + 3) // 2


class SumsWriter:
    """Files of the sums of all positions, written in order of position; scatters as triangles."""

    def __init__(self, folder: Path, count: int, positions: int, dimensions: int) -> None:
        self._triangle = np.tril_indices(dimensions)
        self._means = RowWriter(folder / MEANS, (positions, dimensions), np.float64)
        self._scatters = RowWriter(folder / SCATTERS, (positions, len(self._triangle[0])), np.float64)
        np.save(folder / COUNT, np.array([count]))

    def write(self, sums: Sums) -> None:
        """Of the next positions."""
        self._means.write(sums.mean)
        self._scatters.write(sums.scatter[:, self._triangle[0], self._triangle[1]])

    def close(self) -> None:
        self._means.close()
        self._scatters.close()


def kept_count(folder: Path) -> int:
    """How many frames, copies included, the sums in these files are of."""
    return int(np.load(folder / COUNT, allow_pickle=False)[0])


def read_sums(folder: Path, start: int, width: int) -> Sums:
    """The sums of `width` positions from start, from the files of a SumsWriter."""
    mean = read_rows(folder / MEANS, start, width)
    rows, columns = np.tril_indices(mean.shape[1])
    scatter = np.empty((width, mean.shape[1], mean.shape[1]))
    packed = read_rows(folder / SCATTERS, start, width)
    scatter[:, rows, columns] = packed
    scatter[:, columns, rows] = packed
    return Sums(kept_count(folder), mean, scatter)
