"""The tail of the good parts' scores: how often is a score exceeded that no part has reached yet?

Peaks over threshold: what exceeds a high score follows a generalised Pareto law (Coles 2001, chapter 4). Its
shape and scale are weighed by their likelihood over a grid, so nothing is random and no starting value
matters. Shape has the prior N(0, 0.2): distances of good parts have light tails, and 20 exceedances say
little about it. TAIL_CONFIDENCE is the lowest bound at which the false reject rate, averaged over the sets
of good parts one may happen to have, stays at the wanted rate for normal, chi, exponential, log-normal(0.5)
and Student-t(5) scores, 10 to 100,000 parts and a wanted rate of 1/1000 (tests/test_limits.py). Higher
bounds let more bad parts escape: with 200 parts a bound of 95 % lies 1.6 times as far from the median as the
true limit, this one 1.25 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]

TAIL_CONFIDENCE = 0.80
PLENTY = 100  # parts beyond the order statistic from which on nothing has to be extrapolated
SHAPES = np.linspace(-0.5, 0.95, 59)
SHAPE_PRIOR = -0.5 * (SHAPES / 0.2) ** 2
SCALES = np.geomspace(0.05, 5.0, 72)  # of the mean exceedance


@dataclass(frozen=True, slots=True)
class Tail:
    """Generalised Pareto laws of what exceeds `start`, each with its weight; arrays (shapes, scales)."""

    start: float
    share: float  # of parts that exceed start
    parts: int
    scale: Doubles
    weight: Doubles  # sums to 1

    @classmethod
    def fit(cls, scores: Doubles, rate: float) -> Tail | None:
        """The tail of ascending scores; None where nothing needs or allows extrapolation."""
        n = len(scores)
        parts = min(n // 2, max(20, round(n / 10)), 2000)
        if n * rate >= PLENTY or 2 * rate * n > parts:
            return None
        start = scores[n - parts - 1]
        excess = scores[n - parts :] - start
        if parts < 2 or not excess.max() > 1e-9 * max(1.0, abs(start)):
            return None
        scale = SCALES * excess.mean()
        logs = _log_likelihood(excess, scale) + SHAPE_PRIOR[:, None]
        weight = np.exp(logs - logs.max())
        return cls(float(start), parts / n, parts, scale, weight / weight.sum())

    def bound(self, rate: float) -> float:
        """The score that at most `rate` of parts exceed, for TAIL_CONFIDENCE of the weight and on average.

        The average is stricter for few parts only; without it, the estimate could miss what was asked for.
        """
        rarer = self.share / rate
        shapes = SHAPES[:, None]
        quantiles = self.scale * np.where(
            np.abs(shapes) < 1e-9, math.log(rarer), np.expm1(shapes * math.log(rarer)) / _no_zero(shapes)
        )
        order = np.argsort(quantiles, axis=None, kind="stable")
        reached = int(np.searchsorted(np.cumsum(self.weight.ravel()[order]), TAIL_CONFIDENCE))
        found = self.start + float(quantiles.ravel()[order[min(reached, order.size - 1)]])
        return found if self.rate(found) <= rate else self._on_average(rate, found)

    def _on_average(self, rate: float, low: float) -> float:
        """The score above `low` that `rate` of the parts exceed, averaged over the weights."""
        step = low - self.start
        while self.rate(low + step) > rate:
            step *= 2
        high = low + step
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.rate(middle) > rate else (low, middle)
        return high

    def rate(self, score: float) -> float:
        """Share of parts over `score` (at or beyond start), averaged over the weights."""
        shapes = SHAPES[:, None]
        base = np.maximum(1 + shapes * (score - self.start) / self.scale, 1e-300)
        over = np.where(
            np.abs(shapes) < 1e-9,
            np.exp(-(score - self.start) / self.scale),
            np.exp(-np.log(base) / _no_zero(shapes)) * (base > 1e-300),
        )
        return self.share * float((self.weight * over).sum())


def _log_likelihood(excess: Doubles, scale: Doubles) -> Doubles:
    """Of exceedances (k,) under every shape and scale, (shapes, scales); -inf beyond a law's end point."""
    logs = np.empty((len(SHAPES), len(scale)))
    scaled = excess[None, :] / scale[:, None]
    for row, shape in enumerate(SHAPES):
        if abs(shape) < 1e-9:
            logs[row] = -scaled.sum(axis=1)
            continue
        base = 1 + shape * scaled
        inside = (base > 0).all(axis=1)
        sums = np.log(np.where(inside[:, None], base, 1.0)).sum(axis=1)
        logs[row] = np.where(inside, -(1 + 1 / shape) * sums, -np.inf)
    return np.asarray(logs - len(excess) * np.log(scale))


def _no_zero(shapes: Doubles) -> Doubles:
    return np.where(np.abs(shapes) < 1e-9, 1.0, shapes)
