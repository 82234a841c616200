"""PatchCore: a bank of good patches from all positions, and how far a part's patches lie from it.

Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection". Patches are locally aware (3 x 3
means, layers brought together bilinearly: graph.feature_model), the bank is a greedy coreset of all good
patches, a patch's score its distance to the nearest member. A frame's score is the highest of the blurred
map, as for every other kind; with --absolute --reweight it is the paper's, eq. 6 and 7: see
calibrate.reweight.

Two departures, both bounded and both said in the recipe: the coreset is chosen from at most CANDIDATES
patches, drawn evenly from all frames, and unless asked for it has at most MEMBERS.

`calibrate extend` continues the cover: old members stay, and new patches enter, farthest first, until all lie
as close to a member as those of the fit did. Frames of the fit that are
still at hand are held out as the new ones are: see calibrate.remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.backbones import NAMES
from calibrate.bank import Bank
from calibrate.candidates import CORESET, MEMBERS, PROJECTED, Candidates, Ground, Sizes, counting
from calibrate.folds import Indices
from calibrate.graph import Reduction
from calibrate.kinds import Cost, Kind, Learned, OwnScores, TooAlikeError, check_memory, kept_in
from calibrate.options import FitOptions
from calibrate.padim import reduce_dimensions
from calibrate.progress import Progress
from calibrate.remembered import keep_frames, known_away
from calibrate.reweight import Reweighted
from calibrate.spool import Spool
from calibrate.tile_banks import FLOPS, TOO_ALIKE, WORK_MB, foreseen_by_tile, learn_by_tile, position_weight
from calibrate.tiles import Doubles
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

FOLDS = 20  # where frames can't be held out one by one: a bank that knows 95 % of them costs no more
EXTENDED = ", then extended"
REACH = "reach.npy"  # the cover's squared radius, where it was chosen


class PatchCore(Kind):
    """The kind `patchcore`.

    A squared distance is a small difference of large numbers: in bf16 three digits of these remain, and
    scores were off by 60 % (measured; OpenVINO keeps no single node in f32 under a bf16 or f16 hint).
    """

    name, locally_aware = "patchcore", True
    by_distance, surroundings = True, "with ours"
    precisions: tuple[str, ...] = ("f32",)

    def layers(self, options: FitOptions) -> tuple[str, ...] | None:
        """Of a ResNet the paper's second and third stage."""
        if options.backbone in NAMES and "resnet" in options.backbone:
            return "layer2", "layer3"
        return super().layers(options)

    def folds(self, how: str, frames: int) -> str:
        """Each frame alone where that is no more work than FOLDS groups."""
        return str(FOLDS) if how == "loo" and frames > FOLDS else how

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        return reduce_dimensions(
            channels, options.dimensions or sum(channels), options.reduction, options.seed
        )

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where the bank can't be chosen, or memory would not do."""
        if plan.options.per_tile:
            return foreseen_by_tile(plan, peak_mb)
        cost = self.foreseen(plan, peak_mb)
        fewer = f"a --coreset of fewer than {Sizes.of(plan).members:,} members, or fewer --folds"
        check_memory(
            f"the fit (the network took {peak_mb:.0f} MB)",
            cost.memory_mb,
            plan.options.memory_mb,
            "or add fewer frames at a time" if plan.earlier else fewer,
        )
        return cost

    def foreseen(self, plan: Plan, peak_mb: float) -> Cost:
        """Of one bank of all tiles, whatever is allowed. Raises FitError where it can't be chosen."""
        size = Sizes.of(plan)
        chosen_in = min(PROJECTED, size.dimensions) + 2 * bool(plan.options.position_weight)
        folds = len(np.unique(plan.folds.of_frame))
        members = size.earlier + size.members
        recipe = 4 * members * size.dimensions
        frame = 4 * plan.positions * size.dimensions
        points = size.earlier + size.candidates
        kept = 4 * points * (chosen_in + folds + 6) + 6 * recipe + 6 * frame
        # Members are chosen once for all frames, and about as many once more for all folds together.
        choosing = 2 * chosen_in * points * members * 2
        scoring = 2 * size.dimensions * plan.positions * plan.samples * members
        return Cost(
            recipe_mb=recipe / 1e6,
            disk_mb=4 * plan.embedded * plan.positions * (size.dimensions + 1) / 1e6,
            memory_mb=peak_mb + max(kept, plan.damping_bytes) / 1e6 + WORK_MB,
            seconds=(choosing + scoring) / FLOPS + 5,
            about=size.words(),
        )

    def kept_mb(self, plan: Plan) -> float:
        if plan.options.per_tile:
            return 0.0
        size = Sizes.of(plan)
        distances = len(plan.taught) * plan.positions
        return 4 * ((size.earlier + size.members) * size.dimensions + distances) / 1e6

    def learn(
        self,
        plan: Plan,
        embeddings: Iterable[Floats],
        folder: Path,
        progress: Progress,
    ) -> Learned:
        if plan.options.per_tile:
            return learn_by_tile(plan, embeddings, folder, progress)
        size = Sizes.of(plan)
        spool = Spool(folder, plan.embedded, plan.positions, size.dimensions, plan.positions)
        candidates = Candidates(Ground.of(plan), size)
        for index, values in enumerate(embeddings):
            spool.write_frame(index, values)
            if index < plan.samples:
                candidates.take(index, values)
        members, per_fold = chosen(plan, candidates, size.members, folder, progress)
        rows = candidates.rows(spool.read_frame, np.concatenate([members, *per_fold.values()]))
        bank, copies = candidates.bank(members, rows), 1 + plan.options.augment
        away = Measures(plan, spool, folder, int(plan.folds.measured.sum()))
        checked = Measures(plan, spool, folder, len(plan.checked))
        number = np.cumsum(plan.folds.measured) - 1  # of a sample among the measured ones
        for fold in progress.track(list(per_fold), "measuring held-out frames"):
            without = candidates.bank(per_fold[fold], rows)
            for sample in np.flatnonzero((plan.folds.of_frame == fold) & plan.folds.measured).tolist():
                known = known_away(plan, plan.good.frames[sample // copies].digest)
                away.take(int(number[sample]), sample, without, known)
        if not bank.tells(away.farthest, plan.damps):
            raise TooAlikeError(TOO_ALIKE)
        for place, sample in enumerate(plan.checked.tolist()):
            checked.take(place, sample, bank)
        if plan.keeps:
            bank.save(kept_in(folder))
            keep_frames(plan, away.spool, candidates.samples(members), kept_in(folder))
        spool.close()
        scored = None
        if away.scores is not None and checked.scores is not None:
            scored = OwnScores(weighted(plan, bank), away.scores, checked.scores)
        return Learned(bank, away.spool, checked.spool, bank_parameters(plan, size, len(members)), scored)


class Measures:
    """Distances of some samples to banks, and their re-weighted scores where these were asked for."""

    def __init__(self, plan: Plan, embeddings: Spool, folder: Path, count: int) -> None:
        self._plan, self._embeddings = plan, embeddings
        self.spool = Spool(folder, count, plan.positions, 1, plan.positions)
        self.scores = np.empty(count) if plan.options.reweight else None
        self._counting, self.farthest = counting(plan), np.zeros(count)  # distance of each sample

    def take(self, place: int, sample: int, by: Bank, at_most: Doubles | None = None) -> None:
        """Distances to a bank, none over those known before."""
        embeddings = self._embeddings.read_frame(sample)
        away = by.distances(embeddings)
        if at_most is not None:
            away = np.minimum(away, at_most)
        self.farthest[place] = away[self._counting].max(initial=0)
        self.spool.write_frame(place, away.astype(np.float32)[:, None])
        if self.scores is not None:
            self.scores[place] = weighted(self._plan, by).score(embeddings, away)


def weighted(plan: Plan, bank: Bank) -> Reweighted:
    """How --reweight scores with this bank."""
    by_tile = counting(plan).reshape(plan.geometry.tiles, -1)
    return Reweighted(bank, by_tile, plan.options.reweight)


def chosen(
    plan: Plan, candidates: Candidates, count: int, folder: Path, progress: Progress
) -> tuple[Indices, dict[int, Indices]]:
    """Members of the bank, and of each fold's own; the reach of the cover goes to a file where it is kept."""
    cover, enough = candidates.cover(), 0.0
    earlier = len(cover.members)
    if plan.earlier is not None:
        enough = float(np.load(plan.earlier.folder / REACH, allow_pickle=False)[0])
    else:
        cover.join(np.random.default_rng(plan.options.seed).integers(len(cover.points), size=1))
    for _ in progress.track(range(1), f"choosing {count:,} patches"):
        cover.grow(earlier + count, enough)
    if plan.keeps:
        np.save(kept_in(folder) / REACH, np.array([enough or cover.radius()]))
    if earlier:
        grown = len(cover.members)
        longer = f": searching it takes {grown / earlier:.2g} times as long" if grown > earlier else ""
        progress.note(f"the bank grows from {earlier:,} patches to {grown:,}{longer}")
    folds = np.unique(plan.folds.of_frame).tolist()
    per_fold = {
        fold: cover.without(fold) for fold in progress.track(folds, "choosing without the held-out frames")
    }
    return np.array(cover.members), per_fold


def bank_parameters(plan: Plan, size: Sizes, members: int) -> dict[str, Any]:
    asked = plan.options.coreset or f"{CORESET}, at most {MEMBERS}"
    found: dict[str, Any] = {"coreset": asked, "members": members, "candidates": size.candidates}
    if plan.earlier is not None:  # these were of its first fit, and of the frames added last
        asked = str(plan.earlier.parameters["coreset"]).removesuffix(EXTENDED)
        found = {"coreset": asked + EXTENDED, "members": members, "added_from": size.candidates}
    if plan.options.reweight:
        found["reweight"] = plan.options.reweight
    return found | position_weight(plan.options)
