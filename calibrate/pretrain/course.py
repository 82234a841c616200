"""A training in steps that survives a kill: what the trainings of a backbone have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from calibrate.pretrain import checkpoint
from calibrate.pretrain.descent import descend
from inspectord.errors import FitError

CHECKPOINT_EVERY = 200  # steps
WARM_UP = 200

Drawn = TypeVar("Drawn")


class Pace(Protocol):
    """How a course learns."""

    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def average(self) -> float:
        """Of the weights, per step."""


class Course(ABC, Generic[Drawn]):
    """One run: continues where its checkpoint ends."""

    diverged = "begin anew with a smaller --rate and another --out"  # what one may do then

    def __init__(
        self,
        trainee: nn.Module,
        pace: Pace,
        path: Path,
        identity: checkpoint.Identity,
        device: str,
        otherwise: str = "give another --out",
    ) -> None:
        """otherwise: what one may do where the checkpoint is another training's."""
        self._pace, self._checkpoint, self._identity = pace, path, identity
        self._device = torch.device(device)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self._trainee = trainee.to(self._device, **layout)
        self._average = torch.optim.swa_utils.AveragedModel(
            self._trainee,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(pace.average),
            use_buffers=True,
        )
        self._optimiser = torch.optim.AdamW(self._trainee.parameters(), lr=pace.rate, weight_decay=pace.decay)
        self._parts = {"trainee": self._trainee, "average": self._average, "optimiser": self._optimiser}
        self.step = checkpoint.restore(path, identity, self._parts, self._device, otherwise)

    def run(self) -> Iterator[dict[str, float]]:
        """Train to the end; give the losses of every step. Raises FitError where they stop being finite."""
        for drawn in self._ahead(self._draws(self.step)):
            losses = self._one(drawn)
            self.step += 1
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self._pace.steps:
                checkpoint.write(self._checkpoint, self.step, self._identity, self._parts)
            yield losses

    @abstractmethod
    def _draws(self, first: int) -> torch.utils.data.IterableDataset[Drawn]:
        """What the steps from `first` on train on."""

    @abstractmethod
    def _losses(self, drawn: Drawn) -> dict[str, Tensor]: ...

    @abstractmethod
    def _total(self, losses: dict[str, Tensor]) -> Tensor: ...

    def _ahead(self, draws: torch.utils.data.IterableDataset[Drawn]) -> Iterable[Drawn]:
        """A CPU draws in a process beside the training one."""
        if self._device.type != "cpu":
            on_device: Iterable[Drawn] = draws
            return on_device
        # Two drawn ahead are up to 35 MB of shared memory; of that a container often has 64 MB.
        loader: Iterable[Drawn] = torch.utils.data.DataLoader(
            draws, batch_size=None, num_workers=1, prefetch_factor=2
        )
        return loader

    def _one(self, drawn: Drawn) -> dict[str, float]:
        pace, step = self._pace, self.step
        for group in self._optimiser.param_groups:
            group["lr"] = pace.rate * schedule(step, pace.steps)
        self._trainee.train()
        losses = self._losses(drawn)
        if not descend(self._optimiser, self._trainee, self._total(losses), clip=5.0):
            raise FitError(f"the loss or its gradient is not finite at step {step}; {self.diverged}")
        self._average.update_parameters(self._trainee)
        return {name: float(value.detach()) for name, value in losses.items()}


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return 0.5 * (1 + float(np.cos(np.pi * done)))
