"""What a model kind is to a fit: from embeddings of good frames to a graph's head and honest distances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from calibrate.graph import Head, Reduction
from calibrate.options import MODELS, FitOptions
from calibrate.progress import Progress
from calibrate.spool import Spool
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.fit import Plan


@dataclass(frozen=True)
class Cost:
    """What a kind foresees of its part of a fit."""

    recipe_mb: float
    disk_mb: float
    memory_mb: float  # peak of the whole process
    seconds: float  # besides reading frames and their features
    about: str = ""  # what else an operator should know before it starts


@dataclass(frozen=True)
class Learned:
    """The graph's head, and distances by it, each spool (frames, positions, 1)."""

    head: Head
    away: Spool  # of the measured good frames, each held out
    checked: Spool  # of the golden frames and the marked one
    parameters: dict[str, Any]  # of the kind, for recipe.toml


@dataclass(frozen=True)
class Fitted:
    """What the statistics say before the compiled graph is asked."""

    held_out: npt.NDArray[np.float64]  # (frames,) scores of good parts, each held out
    checked: npt.NDArray[np.float64]  # (golden frames and the marked one,) what the graph must repeat
    parameters: dict[str, Any]  # for recipe.toml


class Kind(Protocol):
    """A kind has no state: all it knows comes with the plan."""

    name: str
    locally_aware: bool  # which of graph.feature_model's two ways brings the layers together
    precisions: tuple[str, ...]  # in which its head still tells good from bad

    def layers(self, backbone: str) -> tuple[str, ...] | None:
        """Layers where none were asked for; None: the backbone's own."""
        ...

    def folds(self, how: str, frames: int) -> str:
        """How to hold out, given what was asked for."""
        ...

    def reduction(self, channels: tuple[int, ...], options: FitOptions) -> Reduction:
        """Which features are kept."""
        ...

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Foresee the fit; peak_mb was taken so far. Raises FitError where it can't be done."""
        ...

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[npt.NDArray[np.float32]],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        """Fit. embeddings, each (positions, d), are of every sample in order, then of the marked frame.

        A frame's held-out distances never know the frame: nothing of its fold may have taught them.
        folder takes temporary files, until the graph is saved.
        """
        ...


def open_kind(name: str) -> Kind:
    """A kind by name. Raises FitError for an unknown one."""
    if name == "padim":
        from calibrate.padim import Padim

        return Padim()
    if name == "patchcore":
        from calibrate.patchcore import PatchCore

        return PatchCore()
    raise FitError(f"unknown model {name!r}; use {' or '.join(MODELS)}")
