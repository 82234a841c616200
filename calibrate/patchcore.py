"""PatchCore: a bank of good patches from all positions, and how far a part's patches lie from it.

Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Patches are locally aware (3 x 3
means, layers brought together bilinearly: graph.feature_model), the bank is a greedy coreset of all good
patches, a patch's score its distance to the nearest member (eq. 6 without the weight of eq. 7: a frame's
score is the highest of the blurred map, as for every other kind).

Two departures, both bounded and both said in the recipe: the coreset is chosen from at most CANDIDATES
patches, drawn evenly from all frames, and unless asked for it has at most MEMBERS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.backbones import NAMES
from calibrate.bank import Bank
from calibrate.candidates import CORESET, MEMBERS, PROJECTED, Candidates, Sizes
from calibrate.folds import Indices
from calibrate.graph import Reduction
from calibrate.kinds import Cost, Learned
from calibrate.options import FitOptions
from calibrate.padim import reduce_dimensions
from calibrate.progress import Progress
from calibrate.spool import Spool
from inspectord.errors import FitError
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.fit import Plan

FOLDS = 20  # where frames can't be held out one by one: a bank that knows 95 % of them costs no more
FLOPS = 20e9  # a second, float32, one busy core
WORK_MB = 150  # blocks of distances, the gate's and the report's own needs


class PatchCore:
    """The kind `patchcore`.

    A squared distance is a small difference of large numbers: in bf16 three digits of these remain, and
    scores were off by 60 % (measured; OpenVINO keeps no single node in f32 under a bf16 or f16 hint).
    """

    name, locally_aware = "patchcore", True
    precisions: tuple[str, ...] = ("f32",)

    def layers(self, backbone: str) -> tuple[str, ...] | None:
        """The paper's second and third stage of a ResNet."""
        return ("layer2", "layer3") if backbone in NAMES and "resnet" in backbone else None

    def folds(self, how: str, frames: int) -> str:
        """Each frame alone where that is no more work than FOLDS groups."""
        return str(FOLDS) if how == "loo" and frames > FOLDS else how

    def reduction(self, channels: tuple[int, ...], options: FitOptions) -> Reduction:
        return reduce_dimensions(
            channels, options.dimensions or sum(channels), options.reduction, options.seed
        )

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where the bank can't be chosen, or memory would not do."""
        size = Sizes.of(plan)
        chosen_in = min(PROJECTED, size.dimensions) + 2 * bool(plan.options.position_weight)
        folds = len(np.unique(plan.folds.of_frame))
        recipe = 4 * size.members * size.dimensions
        frame = 4 * plan.positions * size.dimensions
        kept = 4 * size.candidates * (chosen_in + folds + 6) + 6 * recipe + 6 * frame
        # Members are chosen once for all frames, and about as many once more for all folds together.
        choosing = 2 * chosen_in * size.candidates * size.members * 2
        scoring = 2 * size.dimensions * plan.positions * plan.samples * size.members
        cost = Cost(
            recipe_mb=recipe / 1e6,
            disk_mb=4 * (plan.samples + 1) * plan.positions * (size.dimensions + 1) / 1e6,
            memory_mb=peak_mb + kept / 1e6 + WORK_MB,
            seconds=(choosing + scoring) / FLOPS + 5,
            about=size.words(),
        )
        if cost.memory_mb > plan.options.memory_mb:
            raise FitError(
                f"the fit would take {cost.memory_mb:.0f} MB ({peak_mb:.0f} of them for the network), "
                f"--memory-mb allows {plan.options.memory_mb}; give --memory-mb {math.ceil(cost.memory_mb)}, "
                f"a --coreset of fewer than {size.members:,} members, or fewer --folds"
            )
        return cost

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[Floats],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        size = Sizes.of(plan)
        spool = Spool(folder, plan.samples + 1, plan.positions, size.dimensions, plan.positions)
        candidates = Candidates(plan, size)
        for index, values in enumerate(embeddings):
            spool.write_frame(index, values)
            if index < plan.samples:
                candidates.take(index, values)
        chosen, per_fold = _choose(plan, candidates, size.members, progress)
        rows = candidates.rows(spool, np.concatenate([chosen, *per_fold.values()]))
        bank = candidates.bank(chosen, rows)

        away, checked = (
            Spool(folder, count, plan.positions, 1, plan.positions)
            for count in (int(plan.folds.measured.sum()), len(plan.checked))
        )
        number = np.cumsum(plan.folds.measured) - 1  # of a sample among the measured ones

        def measure(sample: int, by: Bank) -> Floats:
            return by.distances(spool.read_frame(sample)).astype(np.float32)[:, None]

        for fold in progress.track(list(per_fold), "measuring held-out frames"):
            without = candidates.bank(per_fold[fold], rows)
            for sample in np.flatnonzero((plan.folds.of_frame == fold) & plan.folds.measured).tolist():
                away.write_frame(int(number[sample]), measure(sample, without))
        for place, sample in enumerate(plan.checked.tolist()):
            checked.write_frame(place, measure(sample, bank))
        spool.close()
        return Learned(bank, away, checked, _parameters(plan, size, len(chosen)))


def _choose(
    plan: Plan, candidates: Candidates, count: int, progress: Progress
) -> tuple[Indices, dict[int, Indices]]:
    """Members of the bank, and of each fold's own."""
    cover = candidates.cover()
    first = int(np.random.default_rng(plan.options.seed).integers(len(cover.points)))
    for _ in progress.track(range(1), f"choosing {count:,} patches"):
        cover.grow(count, first)
    folds = np.unique(plan.folds.of_frame).tolist()
    per_fold = {
        fold: cover.without(fold) for fold in progress.track(folds, "choosing without the held-out frames")
    }
    return np.array(cover.members), per_fold


def _parameters(plan: Plan, size: Sizes, members: int) -> dict[str, Any]:
    asked = plan.options.coreset or f"{CORESET}, at most {MEMBERS}"
    found: dict[str, Any] = {"coreset": asked, "members": members, "candidates": size.candidates}
    if plan.options.position_weight:
        found["position_weight"] = plan.options.position_weight
    return found
