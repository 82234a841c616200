"""How the network learns: good frames, made-up defects on them, and held-out families to say when to stop."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibrate.folds import Indices, evenly
from calibrate.metrics import auroc
from calibrate.pretrain import defects
from calibrate.pretrain.descent import descend
from calibrate.segmented.network import Known, Segmenter
from calibrate.segmented.strikes import Strikes
from inspectord.errors import FitError

# Steps; how much less than the best one a check may find (of a few dozen frames its error is as large, and a
# later network is the better one unless it is clearly worse); clearly worse checks in a row that end it.
CHECK_EVERY, NOISE, PATIENCE = 200, 0.03, 2
# Steps with each batch that is drawn, one with itself and the others with one of the latest: drawing a batch
# takes ten times as long as a step (measured: of 60 batches, 4 for 1 find as much as twice the batches do).
STEPS_A_DRAW, LATEST = 4, 16
FAINT = 0.35  # how much of a defect remains where it is faint
STRUCK, GROSS, AMOUNTS, CHANCES = 0.75, 0.15, (1.0, 0.6, FAINT), (0.5, 0.25, 0.25)
CLEAR = 0.15  # share of a cell that makes it defective; cells with less are left out
RATE, WARM, DECAY, AVERAGE = 2e-3, 30, 0.05, 0.97
FOCUS = 1.5  # Lin et al. 2017, "Focal Loss for Dense Object Detection": what is known already teaches little


def batch(positions: int) -> int:
    """Frames that a step is taken with; of many tiles fewer tell as much."""
    return min(16, max(2, 16 * 1024 // positions))


def checked(positions: int) -> int:
    """Frames at most that say when to stop."""
    return min(48, max(16, 48 * 1024 // positions))


@dataclass(frozen=True)
class Part:
    """Samples, and what is known without them."""

    members: Indices
    known: Known


@dataclass(frozen=True)
class Seen:
    """Frames as a network is asked of them: residuals (n, positions, d), and how far off, (n, positions)."""

    residuals: Tensor
    away: Tensor  # in units of what is called far

    def image_scores(self, judged: Callable[[Tensor, Tensor], Tensor], counting: Tensor) -> Tensor:
        """(n,) the highest of what is judged, from both, where it counts; of a batch at once."""
        few = batch(self.away.shape[1])
        pairs = zip(self.residuals.split(few), self.away.split(few), strict=True)
        return torch.cat([judged(*pair)[:, counting].amax(1) for pair in pairs])


@dataclass(frozen=True)
class Check:
    """Held-out good frames, and the same with defects of held-out families, strong and faint."""

    good: Seen
    struck: tuple[Seen, ...]
    counting: Tensor  # positions whose cell counts, (positions,)

    @classmethod
    def of(
        cls, strikes: Strikes, parts: Sequence[Part], most: int, seed: tuple[int, ...], far: float
    ) -> Check:
        """Of so many samples at most. Raises FitError where no defect lies within what the recipe sees."""
        rng = np.random.default_rng((*seed, 1))
        found: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
        for part in parts:
            samples = evenly(part.members, most // len(parts))
            few = batch(len(strikes.counting))
            for first, (kept, amount) in product(
                range(0, len(samples), few), zip(found, (0.0, 1.0, FAINT), strict=True)
            ):
                some, others = (each[first : first + few] for each in (samples, np.roll(samples, 1)))
                drawn, cover = strikes.draw(some, others, rng, defects.HELD_OUT, [amount] * len(some))
                drawn = drawn[cover.amax(1) > 0] if amount else drawn
                residuals = part.known.gaussians.residuals(drawn)
                kept.append((residuals, part.known.away(drawn, residuals) / far))
        good, *struck = (Seen(*map(torch.cat, zip(*each, strict=True))) for each in found)
        if not all(len(each.away) for each in struck):
            raise FitError(
                "no defect could be made up where the recipe looks; choose another --roi or mask, or do "
                "without --adapt"
            )
        return cls(good, tuple(struck), strikes.counting)

    def found(self, segmenter: Segmenter) -> float:
        """Image AUROC, mean of strong and faint defects."""
        return self._mean(segmenter.distances)

    def by_distance(self) -> float:
        """The same of how far patches lie alone, which is what the kind without networks has."""
        return self._mean(lambda _, away: away)

    def _mean(self, judged: Callable[[Tensor, Tensor], Tensor]) -> float:
        with torch.no_grad():
            good, *struck = (
                each.image_scores(judged, self.counting).numpy() for each in (self.good, *self.struck)
            )
        return float(np.mean([auroc(good, each) for each in struck]))


@dataclass(frozen=True)
class Trained:
    """What is kept of a training: a network, after which step, and what it finds for what distances find."""

    network: Segmenter
    step: int
    found: float
    by_distance: float


class Training:
    """One run of at most so many steps. What a step draws depends on the seed and its number alone."""

    def __init__(
        self,
        segmenter: Segmenter,
        strikes: Strikes,
        parts: Sequence[Part],
        check: Check,
        steps: int,
        seed: tuple[int, ...],
        until: float = math.inf,
    ) -> None:
        """until, on the monotonic clock, ends it before: then the same seed may give another result."""
        self._segmenter, self._strikes, self._parts, self._check = segmenter, strikes, parts, check
        self._steps, self._seed, self._until = steps, seed, until
        self._by_distance = check.by_distance()
        self._everything = np.concatenate([part.members for part in parts])
        self._latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=LATEST)
        self._average = torch.optim.swa_utils.AveragedModel(
            segmenter, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)
        )
        self._optimiser = torch.optim.AdamW(segmenter.parameters(), lr=RATE, weight_decay=DECAY)
        self.kept, self.kept_step, self.found, self.late = copy.deepcopy(segmenter), 0, 0.0, False

    @property
    def trained(self) -> Trained:
        """The network that was kept, once it has run."""
        return Trained(self.kept, self.kept_step, self.found, self._by_distance)

    def run(self) -> Iterator[int]:
        """Train, and give the number of steps done. Raises FitError where the loss stops being finite."""
        best, worse = 0.0, 0
        for step in range(self._steps):
            self._one(step)
            last = step + 1 == self._steps
            self.late = not last and time.monotonic() > self._until
            if last or self.late or (step + 1) % CHECK_EVERY == 0:
                found = self._check.found(self._average.module)
                best, worse = max(best, found), worse + 1
                if found >= best - NOISE:
                    self.kept, self.kept_step, self.found = (
                        copy.deepcopy(self._average.module),
                        step + 1,
                        found,
                    )
                    worse = 0
            yield step + 1
            if self.late or worse == PATIENCE:
                return

    def _one(self, step: int) -> None:
        if step % STEPS_A_DRAW == 0:
            self._latest.append(self._drawn(step))
            residuals, cover = self._latest[-1]
        else:
            rng = np.random.default_rng((*self._seed, 2, step))
            residuals, cover = self._latest[int(rng.integers(len(self._latest)))]
        loss = self._loss(residuals, cover)
        for group in self._optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM)
        if not descend(self._optimiser, self._segmenter, loss, clip=1.0):
            raise FitError(
                f"the loss is not finite at step {step}; look at the good frames, or do without --adapt"
            )
        self._average.update_parameters(self._segmenter)

    def _drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """Residuals of a batch, some of it struck, and what share of every cell is."""
        rng = np.random.default_rng((*self._seed, 0, step))
        part = self._parts[int(rng.integers(len(self._parts)))]
        count = min(batch(len(self._strikes.counting)), len(part.members))
        samples = rng.choice(part.members, count, replace=False)
        sources = rng.choice(self._everything, count)
        amounts = rng.choice(AMOUNTS, count, p=CHANCES) * (rng.random(count) < STRUCK)
        drawn, cover = self._strikes.draw(samples, sources, rng, defects.FAMILIES, amounts.tolist(), GROSS)
        return part.known.gaussians.residuals(drawn), cover

    def _loss(self, residuals: Tensor, cover: Tensor) -> Tensor:
        logits, defective = self._segmenter(residuals), (cover > CLEAR).float()
        told = ((cover > CLEAR) | (cover == 0)) & self._strikes.counting
        missing = (defective - torch.sigmoid(logits)).abs() ** FOCUS
        each = functional.binary_cross_entropy_with_logits(logits, defective, reduction="none")
        return (each * missing * told).sum() / ((defective * told).sum() + 20)
