"""What a model kind is to a fit: from embeddings of good frames to a graph's head and honest distances."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

from calibrate.backbones import Backbone, open_backbone
from calibrate.backbones.joined import POOLED
from calibrate.folds import Indices
from calibrate.graph import Head, Reduction, Scorer, feature_model
from calibrate.images import MINIMUM_GOOD_FRAMES
from calibrate.options import EFFICIENTAD, MODELS, TRAINED, FitOptions
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.tiles import Geometry
from calibrate.winograd import quickened
from inspectord.errors import FitError
from inspectord.recipe import FrameSpec

if TYPE_CHECKING:
    from calibrate.light import Light
    from calibrate.plan import Plan


# What a fit ends with where held-out good frames lie nowhere apart.
ALL_THE_SAME = (
    "all good frames are the same inside the region, so nothing can be learned there; choose another --roi "
    "or mask"
)


class TooAlikeError(FitError):
    """Good frames differ by less than the kind can tell, or not at all."""


@dataclass(frozen=True)
class Cost:
    """What a kind foresees of its part of a fit."""

    recipe_mb: float
    disk_mb: float
    memory_mb: float  # peak of the whole process
    seconds: float  # besides reading frames and their features
    about: str = ""  # what else an operator should know before it starts


def check_memory(what: str, takes_mb: float, allowed_mb: int, instead: str = "") -> None:
    """Raises FitError where a fit would take more memory than it may; instead: what one may give besides."""
    if takes_mb > allowed_mb:
        raise FitError(
            f"{what} would take {takes_mb:.0f} MB, --memory-mb allows {allowed_mb}; give --memory-mb "
            f"{math.ceil(takes_mb)}" + (f", {instead}" if instead else "")
        )


@dataclass(frozen=True)
class OwnScores:
    """Of a kind whose absolute score is not its map's highest cell."""

    scorer: Scorer
    held_out: npt.NDArray[np.float64]  # (measured good frames,)
    checked: npt.NDArray[np.float64]  # (golden frames and the marked one,)


@dataclass(frozen=True)
class Learned:
    """The graph's head, and distances by it, each spool (frames, positions, 1)."""

    head: Head
    away: Spool  # of the measured good frames, each held out
    checked: Spool  # of the golden frames and the marked one
    parameters: dict[str, Any]  # of the kind, for recipe.toml
    scored: OwnScores | None = None


@dataclass(frozen=True)
class Fitted:
    """What the statistics say before the compiled graph is asked."""

    held_out: npt.NDArray[np.float64]  # (frames,) scores of good parts, each held out
    checked: npt.NDArray[np.float64]  # (golden frames and the marked one,) what the graph must repeat
    maps: npt.NDArray[np.float32]  # the same frames' (map rows, map columns)
    parameters: dict[str, Any]  # for recipe.toml


class Kind(Protocol):
    """A kind has no state: all it knows comes with the plan. What most do alike is done here."""

    name: str
    locally_aware: bool  # which of graph.feature_model's two ways brings the layers together
    precisions: tuple[str, ...]  # in which its head still tells good from bad
    by_position: bool = False  # what it knows of a position is of that position alone, in any case
    by_distance: bool = False  # whether it compares patches by plain distance, see calibrate.damping
    # Whether its features are taken less what the patches around foretell, see calibrate.surroundings.
    surroundings: Literal["never", "where asked", "with ours"] = "never"
    relights: bool = True  # whether its frames are brought to the good frames' light, see calibrate.light
    fewest: int = MINIMUM_GOOD_FRAMES  # good frames, before folds are asked how many there must be

    def layers(self, options: FitOptions) -> tuple[str, ...] | None:
        """Layers where none were asked for; None: the backbone's own.

        Of lite that is joined, for speed; of tiles, which nothing enlarges, pooled takes less time as well.
        """
        return (POOLED,) if options.backbone == "lite" and (options.tile or options.grid) else None

    def backbone(self, options: FitOptions) -> Backbone:
        """What gives the features. Raises FitError where it can't."""
        layers = options.layers or self.layers(options)
        return open_backbone(options.backbone, options.weights, layers)

    def folds(self, how: str, frames: int) -> str:
        """How to hold out, given what was asked for: see folds.choose_folds."""
        return how

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        """Which features are kept of so many positions."""
        ...

    def apart(self, options: FitOptions) -> bool:
        """Whether the backbone holds networks for each tile's place, and has to see all tiles together."""
        return False

    def graph(
        self,
        frame: FrameSpec,
        geometry: Geometry,
        backbone: Backbone,
        reduction: Reduction,
        ignored: npt.NDArray[np.bool_] | None,
        options: FitOptions,
        light: Light | None = None,
        quick: bool = True,
    ) -> ov.Model:
        """The feature graph in the form that runs soonest where, and as precisely as, the options say; quick:
        with large convolutions as calibrate.winograd has them.
        """
        own = options.device == "CPU" and not self.apart(options)
        # An accelerator would rather have tiles together.
        how = self.locally_aware, own, light
        model = feature_model(frame, geometry, backbone, reduction, ignored, *how)
        # Of networks for each tile the transformed kernels would take too much memory.
        return quickened(model, options.precision) if own and quick else model

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Foresee the fit; peak_mb was taken so far. Raises FitError where it can't be done."""
        ...

    def kept_mb(self, plan: Plan) -> float:
        """What learn() writes to kept_in(folder) where plan.keeps; 0: frames can't be added to the kind."""
        return 0.0

    def trained(self, plan: Plan, progress: Progress) -> AbstractContextManager[Plan]:
        """The plan with a backbone that knows the part, where the kind trains one. Raises FitError.

        For as long as it is published: no other fit trains the same meanwhile.
        """
        return nullcontext(plan)

    def needs(self, plan: Plan) -> Indices:
        """Samples whose embeddings learn() takes, ascending."""
        return np.arange(plan.embedded)

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[npt.NDArray[np.float32]],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        """Fit. embeddings, each (positions, d), are of the samples of needs(), in order.

        A frame's held-out distances never know the frame: nothing of its fold may have taught them.
        folder takes temporary files, until the graph is saved. With plan.earlier, plan.fresh samples are
        added to what that recipe has learned.
        """
        ...

    def published(self, plan: Plan) -> None:
        """The recipe is stored: leave nothing behind that was kept in case the fit was killed."""
        return


def kept_in(scratch: Path) -> Path:
    """The folder below a fit's temporary one for what the recipe is to keep of it; see calibrate.learned."""
    folder = scratch / "learned"
    folder.mkdir(exist_ok=True)
    return folder


def open_kind(name: str) -> Kind:
    """A kind by name. Raises FitError for an unknown one."""
    if name == "padim":
        from calibrate.padim import Padim

        return Padim()
    if name == "patchcore":
        from calibrate.patchcore import PatchCore

        return PatchCore()
    if name in TRAINED:
        try:
            from calibrate.efficientad.kind import EfficientAD
            from calibrate.segmented.kinds import PadimSeg, PatchCoreSeg
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise FitError(f"--model {name} needs torch: `pip install 'inspectord[train]'`") from error
        if name in EFFICIENTAD:
            return EfficientAD(name)
        return PadimSeg() if name == "padim-seg" else PatchCoreSeg()
    raise FitError(f"unknown model {name!r}; use {' or '.join(MODELS)}")
