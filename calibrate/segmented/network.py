"""The network that sees residuals, in torch while it learns, and as the head of the recipe's graph."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, nn
from torch.nn import functional

from calibrate.bank import Bank
from calibrate.efficientad.translate import translated
from calibrate.sums import Sums
from calibrate.tiles import Doubles, Geometry
from inspectord.errors import FitError
from inspectord.inspect import Floats

WIDTH = 48
# Beyond so many standard deviations a residual says nothing more, and what is cut off is brought near 1.
FARTHEST, FARTHEST_IN_ALL = 12.0, 20.0
BY, BY_IN_ALL = 1 / 3, 1 / 2
# Added to what the network gives, so that good patches, too, have distances that differ.
SHIFT = 4.0


@dataclass(frozen=True)
class Gaussians:
    """Mean (positions, d) of every position, or one of all (1, d); the inverse covariance's symmetric root.

    Unlike a triangular one it keeps the features apart, so that they mean the same at every position.
    """

    mean: Tensor
    root: Tensor  # (positions, d, d) or (1, d, d)

    @classmethod
    def empty(cls, folder: Path, positions: int, d: int) -> Gaussians:
        """To be written to: an unnamed file in folder, as much of it in memory as there is room for."""
        with TemporaryFile(dir=folder) as file:
            # Or a full disk would end the process where the mapping is written to.
            os.posix_fallocate(file.fileno(), 0, 4 * positions * d * d)
            roots = np.memmap(file, np.float32, "w+", shape=(positions, d, d))
        return cls(torch.empty(positions, d), torch.from_numpy(roots))

    def write(self, start: int, sums: Sums, epsilon: float) -> None:
        """Those of the positions from start."""
        mean, covariance = sums.gaussian(epsilon)
        part = slice(start, start + len(mean))
        self.mean[part] = torch.from_numpy(mean)
        self.root[part] = torch.from_numpy(inverse_root(covariance))

    def residuals(self, x: Tensor) -> Tensor:
        """Of embeddings (n, positions, d), likewise; of good parts each has a mean of 0, a variance of 1."""
        return ((x - self.mean).transpose(0, 1) @ self.root).transpose(0, 1)

    def build(self, embeddings: ov.Output) -> ov.Output:
        """The same of (positions, d) in the graph."""
        mean, root = (op.constant(part.numpy(), shared_memory=True) for part in (self.mean, self.root))
        centred = op.subtract(embeddings, mean)
        positions, d = embeddings.get_shape()
        rows = [1, positions, d] if len(self.mean) == 1 else [positions, 1, d]
        z = op.matmul(op.reshape(centred, op.constant(rows), False), root, False, False)
        return op.reshape(z, op.constant([positions, d]), False).output(0)


def inverse_root(covariance: Doubles) -> Doubles:
    """Symmetric R with R R = covariance^-1, of a batch (positions, d, d).

    Raises FitError where a covariance is not positive definite.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not values.min() > 0:
        raise FitError("a covariance is singular; give a larger --epsilon")
    return np.asarray((vectors / np.sqrt(values)[:, None]) @ vectors.transpose(0, 2, 1))


class Segmenter(nn.Module):
    """From residuals (n, positions, d) to what speaks for a defect at each position, (n, positions).

    least is a share of what is called far: a patch that lies nearer counts as if it lay there.
    """

    def __init__(self, geometry: Geometry, d: int, least: float) -> None:
        super().__init__()
        self.least = least
        self._grid = (geometry.tiles, *geometry.tile_grid)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * d + 1, WIDTH, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 1, 1),
        )
        last = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -3.0)  # most of a part is good

    def forward(self, residuals: Tensor) -> Tensor:
        n, positions, d = residuals.shape
        tiles, rows, columns = self._grid
        z = residuals.reshape(n * tiles, rows, columns, d).permute(0, 3, 1, 2)
        length = lengths(residuals).reshape(n * tiles, 1, rows, columns)
        seen = torch.cat(
            [
                z.clamp(-FARTHEST, FARTHEST) * BY,
                z.abs().clamp(max=FARTHEST) * BY,
                length.clamp(max=FARTHEST_IN_ALL) * BY_IN_ALL,
            ],
            1,
        )
        out: Tensor = self.layers(seen).reshape(n, positions)
        return out

    def distances(self, residuals: Tensor, away: Tensor) -> Tensor:
        """What forward gives, brought above 0, times how far the patches lie, (n, positions).

        away is in units of what is called far. A network's answer ends somewhere; that does not, so what is
        grossly wrong lies far off.
        """
        told: Tensor = functional.softplus(self(residuals) + SHIFT)
        return told * away.clamp(min=self.least)


def lengths(residuals: Tensor) -> Tensor:
    """(n, positions) of residuals (n, positions, d): PaDiM's distances over the root of d, near 1 if good."""
    return residuals.square().mean(2).sqrt()


@dataclass(frozen=True)
class Known:
    """What some good frames say: Gaussians, which give residuals, and where there is one a bank.

    How far a patch lies is its distance to the bank, else its residual's length.
    """

    gaussians: Gaussians
    bank: Bank | None = None

    def away(self, embeddings: Tensor, residuals: Tensor) -> Tensor:
        """(n, positions) of both, (n, positions, d)."""
        if self.bank is None:
            return lengths(residuals)
        found = np.array([self.bank.distances(each) for each in embeddings.numpy()], np.float32)
        return torch.from_numpy(found.reshape(embeddings.shape[:2]))

    def away_of(self, embeddings: Floats) -> Floats:
        """(positions,) of embeddings (positions, d)."""
        x = torch.from_numpy(embeddings)[None]
        found: Floats = self.away(x, self.gaussians.residuals(x) if self.bank is None else x)[0].numpy()
        return found


@dataclass(frozen=True)
class SegmentedHead:
    """What is known and networks as nodes of the recipe's graph: the mean of what the networks give."""

    known: Known
    segmenters: tuple[Segmenter, ...]
    far: float  # of Known.away; see Segmenter.distances
    geometry: Geometry

    def distances(self, embeddings: Floats) -> Floats:
        """(positions,) of embeddings (positions, d), by torch."""
        away = self.known.away_of(embeddings) / np.float32(self.far)
        return distances(self.known.gaussians, self.segmenters, away, embeddings)

    def build(self, embeddings: ov.Output) -> ov.Output:
        positions, d = embeddings.get_shape()
        tiles, (rows, columns) = self.geometry.tiles, self.geometry.tile_grid
        maps = op.reshape(
            self.known.gaussians.build(embeddings), op.constant([tiles, rows, columns, d]), False
        )
        z = op.transpose(maps, op.constant([0, 3, 1, 2]))
        length = op.sqrt(op.reduce_mean(op.multiply(z, z), op.constant([1]), True))
        seen = op.concat(
            [
                _scaled(op.clamp(z, -FARTHEST, FARTHEST), BY),
                _scaled(op.clamp(op.abs(z), 0.0, FARTHEST), BY),
                _scaled(op.clamp(length, 0.0, FARTHEST_IN_ALL), BY_IN_ALL),
            ],
            1,
        ).output(0)
        told = [_softplus(translated(segmenter.layers, seen)) for segmenter in self.segmenters]
        mean = op.reshape(
            _scaled(functools.reduce(op.add, told), 1 / len(told)), op.constant([positions]), False
        )
        if self.known.bank is None:
            away = op.reshape(length, op.constant([positions]), False).output(0)
        else:
            away = self.known.bank.build(embeddings)
        beyond = op.maximum(_scaled(away, 1 / self.far), op.constant(np.float32(self.segmenters[0].least)))
        return op.multiply(mean, beyond).output(0)


def distances(
    gaussians: Gaussians, segmenters: tuple[Segmenter, ...], away: Floats, embeddings: Floats
) -> Floats:
    """(positions,) of embeddings (positions, d), by torch: the mean of what the networks give.

    away (positions,) is in units of what is called far.
    """
    with torch.no_grad():
        residuals = gaussians.residuals(torch.from_numpy(embeddings)[None])
        beyond = torch.from_numpy(away)[None]
        given = [segmenter.distances(residuals, beyond)[0] for segmenter in segmenters]
        found: Floats = torch.stack(given).mean(0).numpy()
    return found


def _softplus(x: ov.Output) -> ov.Node:
    return op.softplus(op.add(x, op.constant(np.float32(SHIFT))))


def _scaled(x: ov.Node | ov.Output, by: float) -> ov.Output:
    return op.multiply(x, op.constant(np.float32(by))).output(0)
