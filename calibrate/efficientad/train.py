"""EfficientAD's training: algorithm 1 of the paper, with checkpoints, a budget and an early end.

What a step draws depends on the seed and its number alone, so that a run of so many steps which was killed
ends as if it had not been: on a CPU bit by bit. A run of so many minutes goes by the clock on the wall: its
rate falls with the time that is left, and on a busy box it takes fewer steps instead of longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from calibrate.efficientad.detector import QUANTILES, Detector, Trained
from calibrate.efficientad.inputs import Others, recoloured
from calibrate.efficientad.settings import Settings
from calibrate.folds import Indices
from calibrate.pretrain import checkpoint
from calibrate.pretrain.descent import descend
from inspectord.errors import FitError

SAVE_EVERY_S = 15.0
NORMALISED_BY = 400  # tiles at most that give the teacher's mean and spread
CHECKED = 64  # held-out tiles at most that a check looks at
MEASURED = 512  # held-out tiles at most that give the quantiles
CHECKS = 20  # over the whole schedule
BETWEEN = 9.0  # times what the last check took, before the next one in a run of minutes
PATIENCE = 10  # checks without a better one that end the training; at a high rate errors go up and down
TIMED_S = 2.0  # of steps, to know how long one takes


class Source(Protocol):
    """inputs.Tiles, as far as training goes."""

    shape: list[int]  # of a tile: channels, height, width

    def read(self, numbers: Indices) -> Tensor: ...


@dataclass
class Course:
    """How far a training came: a part of its checkpoint."""

    begun: bool = False  # the teacher's mean and spread are known
    spent_s: float = 0.0  # of wall clock, in all runs
    check_s: float = 0.0  # that the last check took
    checked_s: float = 0.0  # spent_s when it was over
    checked_step: int = 0
    checked: int = 0  # parts of the schedule, of CHECKS, that were over by then
    best: float = math.inf  # error on held-out tiles, of student and autoencoder
    best_step: int = 0
    waited: int = 0  # checks since
    kept: dict[str, Any] = field(default_factory=dict)  # Trained's state at best_step

    @property
    def stopped(self) -> bool:
        return self.waited >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        vars(self).update(state_dict)


class Training:
    """One run. teaching and held_out are numbers of tiles."""

    def __init__(
        self,
        detector: Detector,
        tiles: Source,
        teaching: Indices,
        held_out: Indices,
        settings: Settings,
        device: torch.device,
    ) -> None:
        self._tiles, self._settings, self._device = tiles, settings, device
        self._teaching, self._held_out = teaching, held_out
        trained = detector.trained.to(device, memory_format=torch.channels_last)
        self.detector = Detector(detector.teacher.to(device), trained, detector.border)
        _, height, width = tiles.shape
        self._others = Others(height, width, settings.seed)
        kind = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
        self._optimiser = kind(trained.parameters(), lr=settings.rate, weight_decay=settings.decay)
        self._mixed = settings.mixed and computes_in_bfloat16(device)
        self.step, self.course = 0, Course()
        self._clock = time.monotonic()
        self._path: Path | None = None
        self._passing = False

    @property
    def trained(self) -> Trained:
        return self.detector.trained

    @property
    def _parts(self) -> dict[str, checkpoint.Part]:
        return {"trained": self.trained, "optimiser": self._optimiser, "course": self.course}

    def begin(self, path: Path, identity: checkpoint.Identity, passing: bool = False) -> None:
        """Take up the checkpoint at path, else make the first one there; it is kept from now on.

        passing: path is gone with the process, and no error is to name it.
        Raises FitError where it is damaged or another training's.
        """
        self._path, self._identity, self._passing = path, identity, passing
        otherwise = "give another --seed"
        self._clock = time.monotonic()
        self.step = checkpoint.restore(path, identity, self._parts, self._device, otherwise)
        if self.course.begun:
            return
        self._normalise()
        self.course.begun = True
        self.save()

    def save(self) -> None:
        assert self._path is not None
        self._tick()
        checkpoint.write(self._path, self.step, self._identity, self._parts)

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end; give the losses of every step. Raises FitError where they stop being finite."""
        saved = time.monotonic()
        while not self.step or (self.share < 1 and not self.course.stopped):
            losses = self._learn(*self._draw(), self._settings.rate_at(self.step, self.share))
            self.step += 1
            self._tick()
            if self._check_is_due():
                self._check()
            if time.monotonic() - saved >= SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
            yield losses
        if self.course.checked_step < self.step:
            self._check()
        self.save()

    @property
    def share(self) -> float:
        """Of the budget, 0 to 1: of the steps, or of the minutes, which keep what the last check takes."""
        if self._settings.steps is not None:
            return self.step / self._settings.steps
        left = 60 * (self._settings.minutes or 0.0) - self.course.check_s
        return min(1.0, self.course.spent_s / left) if left > 0 else 1.0

    def _check_is_due(self) -> bool:
        """After every part of the schedule; of minutes, checks take a tenth, besides first and last."""
        course = self.course
        if int(CHECKS * self.share) <= course.checked:
            return False
        by_steps = self._settings.steps is not None
        return by_steps or course.spent_s - course.checked_s >= BETWEEN * course.check_s

    def _tick(self) -> None:
        """Count what went by since the last time, whatever it went into."""
        now = time.monotonic()
        self.course.spent_s, self._clock = self.course.spent_s + now - self._clock, now

    def finish(self) -> None:
        """Take the best networks, and measure what normalises their errors."""
        self.trained.load_state_dict(self.course.kept)
        self.trained.eval()
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        with torch.no_grad():
            for images in self._batches(_spread(self._held_out, MEASURED)):
                for kept, errors in zip(found, self.detector.errors(images), strict=True):
                    kept.append(errors.flatten().cpu())
        rows = [np.quantile(torch.cat(kept).numpy(), QUANTILES) for kept in found]
        self.trained.quantiles.copy_(torch.from_numpy(np.array(rows)))
        self.trained.usual.fill_(1.0)
        weights = self.detector.weights.tolist()
        self.trained.usual.fill_(
            sum(w * float(torch.cat(k).mean()) for w, k in zip(weights, found, strict=True))
        )

    def seconds_a_step(self) -> float:
        """Of learning alone, for the scenes are drawn once; the networks are not the same afterwards."""
        taken: list[float] = []
        while len(taken) < 3 or sum(taken[1:]) < TIMED_S:
            drawn = self._draw()
            began = time.perf_counter()
            self._learn(*drawn, rate=0.0)
            taken.append(time.perf_counter() - began)
            self.step += 1
        return float(np.median(taken[1:]))

    def _normalise(self) -> None:
        """Mean and spread of the teacher's channels over good tiles; section 3.1."""
        sums = torch.zeros(2, len(self.trained.mean), dtype=torch.float64, device=self._device)
        count = 0
        for images in self._batches(_spread(self._teaching, NORMALISED_BY)):
            with torch.no_grad():
                features = self.detector.teacher(images).double().transpose(0, 1).flatten(1)
            sums += torch.stack([features.sum(1), features.square().sum(1)])
            count += features.shape[1]
        mean, square = sums / count
        spread = (square - mean.square()).clamp(min=0).sqrt()
        self.trained.mean.copy_(mean[:, None, None])
        # A channel that never moves would count for more than all others; in a still tile none does.
        least = max(1e-3 * float(spread.max()), 1e-3)
        self.trained.spread.copy_(spread.clamp(min=least)[:, None, None])

    def _batches(self, numbers: Indices) -> Iterator[Tensor]:
        size = self._settings.batch
        for start in range(0, len(numbers), size):
            yield self._tiles.read(numbers[start : start + size]).to(self._device)

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Good tiles, the same in other colours, and images of other things."""
        rng = np.random.default_rng((self._settings.seed, self.step))
        torch.manual_seed(int(rng.integers(2**62)))
        tiles = self._tiles.read(rng.choice(self._teaching, self._settings.batch))
        changed, others = recoloured(tiles, rng), self._others.draw(self._settings.batch, rng)
        return tiles.to(self._device), changed.to(self._device), others.to(self._device)

    def _learn(self, tiles: Tensor, changed: Tensor, others: Tensor, rate: float) -> dict[str, float]:
        self.trained.train()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        losses = self._losses(tiles, changed, others)
        total = torch.stack(list(losses.values())).sum()
        if not descend(self._optimiser, self.trained, total, self._settings.clip):
            self._stop()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _stop(self) -> None:
        nowhere = self._path is None or self._passing
        saved = "" if nowhere else f"; the last good checkpoint is {self._path}: remove it and"
        budget = "--minutes" if self._settings.steps is None else "--steps"
        raise FitError(
            f"the loss or its gradient is not finite at step {self.step}{saved or ';'} fit with another "
            f"--seed, or with fewer {budget}"
        )

    def _losses(self, tiles: Tensor, changed: Tensor, others: Tensor) -> dict[str, Tensor]:
        trained, settings = self.trained, self._settings
        local, global_ = self.detector.features(tiles), self.detector.features(changed)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._mixed):
            by_teacher, by_autoencoder = trained.student(torch.cat([tiles, changed])).chunk(2, 1)
            told = trained.autoencoder(changed)
            trained.student.eval()  # its batch norms, where it has any, are of good tiles alone
            strange = trained.student(others)[:, : local.shape[1]]
        by_teacher, by_autoencoder, told, strange = (
            each.float() for each in (by_teacher[: len(tiles)], by_autoencoder[len(tiles) :], told, strange)
        )
        errors = (local - by_teacher).square()
        return {
            "student": settings.hard_weight * hard_mean(errors, settings.hard)
            + settings.mean_weight * errors.mean(),
            "others": strange.square().mean(),
            "autoencoder": (global_ - told).square().mean(),
            "together": (told - by_autoencoder).square().mean(),
        }

    def _check(self) -> None:
        """Keep these networks if they err less on held-out tiles than before: a share less of the student's
        error counts as much as of the autoencoder's, which is many times as large and goes up and down by
        more than the student may have left to gain.
        """
        began = time.monotonic()
        self.course.checked, self.course.checked_step = int(CHECKS * self.share), self.step
        self.trained.eval()
        sums, count = np.zeros(2), 0
        with torch.no_grad():
            for images in self._batches(_spread(self._held_out, CHECKED)):
                misses = self.detector.misses(images)
                sums += [float(each.double().sum()) for each in misses]
                count += misses[0].numel()
        if not np.isfinite(sums).all():
            self._stop()
        error = math.sqrt(sums.prod()) / count
        if error < self.course.best:
            self.course.kept = {name: value.clone() for name, value in self.trained.state_dict().items()}
            self.course.best, self.course.best_step, self.course.waited = error, self.step, 0
        else:
            self.course.waited += 1
        self._tick()
        self.course.check_s, self.course.checked_s = self._clock - began, self.course.spent_s


def hard_mean(errors: Tensor, quantile: float) -> Tensor:
    """Mean of the errors that reach their quantile: equation 1 of the paper.

    By order instead of torch.quantile, which takes no more than 16 million numbers.
    """
    flat = errors.flatten()
    return flat.topk(len(flat) - math.ceil(quantile * (len(flat) - 1))).values.mean()


def _spread(numbers: Indices, most: int) -> Indices:
    """At most so many of them, evenly."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers)))
    return numbers[places.astype(np.int64)]


def computes_in_bfloat16(device: torch.device) -> bool:
    """Emulated, it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
