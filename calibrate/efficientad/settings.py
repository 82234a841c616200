"""What decides a training besides tiles and teacher, and how much of it a box can pay for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from calibrate.options import FitOptions

WARM_STEPS, WARM_SHARE = 50, 0.1  # of the cosine; whichever ends first


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's."""

    steps: int | None = 70_000
    minutes: float | None = None  # instead of steps: of wall clock, checks included
    seed: int = 0
    batch: int = 1
    rate: float = 1e-4
    decay: float = 1e-5
    decoupled: bool = False  # AdamW instead of Adam
    cosine: bool = False  # instead of a tenth of the rate after 95 % of the steps
    hard: float = 0.999  # share of the student's errors that teach nothing
    hard_weight: float = 1.0
    mean_weight: float = 0.0  # of all errors
    clip: float = math.inf  # of the gradient's norm
    mixed: bool = True  # the pupils in bfloat16 where the device computes in it; teacher and errors never are

    def rate_at(self, step: int, share: float) -> float:
        """Of learning, after so much of the budget; the paper's drop, or half a cosine after a warm-up."""
        if not self.cosine:
            return self.rate * (0.1 if share >= 0.95 else 1.0)
        warm = min(1.0, max((step + 1) / WARM_STEPS, share / WARM_SHARE))
        return self.rate * (warm * 0.5 * (1 + math.cos(math.pi * share)) + 0.005)

    @property
    def words(self) -> str:
        """The budget, as every line of a fit tells it."""
        if self.steps is not None:
            return f"{self.steps:,} steps"
        seconds = 60 * (self.minutes or 0.0)
        return f"{seconds:.0f} s" if seconds < 120 else f"{self.minutes:g} minutes"


LITE = Settings(
    steps=None,
    minutes=4.0,
    batch=8,
    rate=2e-3,
    decay=1e-2,
    decoupled=True,
    cosine=True,
    hard=0.99,
    hard_weight=0.5,
    mean_weight=1.0,
    clip=5.0,
)


def settings_of(options: FitOptions) -> Settings:
    """Of the model kind, with the steps or minutes asked for."""
    chosen = LITE if options.model == "efficientad-lite" else Settings()
    if options.steps is not None:
        chosen = dataclasses.replace(chosen, steps=options.steps, minutes=None)
    elif options.minutes is not None:
        chosen = dataclasses.replace(chosen, steps=None, minutes=options.minutes)
    return dataclasses.replace(chosen, seed=options.seed)
