"""The two kinds with networks: padim-seg, and patchcore-seg for parts that lie anyhow; see kind."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from calibrate.candidates import Candidates, Ground, Sizes, counting
from calibrate.graph import Reduction
from calibrate.kinds import Cost, TooAlikeError
from calibrate.options import FitOptions
from calibrate.padim import DIMENSIONS, READ_MB, reduce_dimensions
from calibrate.patchcore import PatchCore, bank_parameters, chosen
from calibrate.progress import Progress
from calibrate.segmented.kind import PARTS, Segmented
from calibrate.segmented.network import Gaussians, Known, inverse_root
from calibrate.spool import Spool
from calibrate.sums import Sums
from calibrate.tile_banks import TOO_ALIKE
from calibrate.tiles import Doubles
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

LEAST = 32  # features of a patch, where every frame's reading of all matrices would take long
BLOCK = 128  # positions whose features are in memory together
RIDGE = 1e-3  # of the features' mean variance, beside that of one Gaussian of all positions


class PadimSeg(Segmented):
    """With a Gaussian at every position."""

    name, locally_aware, plain = "padim-seg", False, "padim"
    least = 1.0  # of lengths that are less, 16 bits leave too little
    precisions: tuple[str, ...] = ("f32", "bf16", "f16")

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        readable = math.isqrt(int(READ_MB * 1e6 / (4 * positions)))
        dimensions = options.dimensions or min(DIMENSIONS, max(LEAST, readable))
        return reduce_dimensions(channels, dimensions, options.reduction, options.seed)

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where it would take more memory than it may."""
        p, d = plan.positions, plan.reduction.dimensions
        roots = 4 * p * d * (d + 1)
        block = 8 * min(BLOCK, p) * d * (3 * plan.samples + 6 * d)
        # Those of two parts while a network learns on them, or what the gate loads: compiled, and the file's.
        cost = Cost(
            recipe_mb=roots / 1e6,
            disk_mb=(4 * plan.embedded * p * d + (PARTS + 1) * roots) / 1e6,
            memory_mb=peak_mb + (2 * roots + block) / 1e6,
            seconds=p * d**3 * (PARTS + 1) * 3e-9 + 5,
        )
        return self.afforded(plan, peak_mb + 2 * roots / 1e6, cost)

    def known(
        self, plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress
    ) -> tuple[Spool, tuple[Known, ...], Known]:
        p, d, part_of = plan.positions, plan.reduction.dimensions, plan.folds.of_frame
        features = Spool(folder, plan.embedded, p, d, min(BLOCK, p))
        for index, values in enumerate(embeddings):
            features.write_frame(index, values)
        *parts, whole = (Gaussians.empty(folder, p, d) for _ in range(PARTS + 1))
        for start, width in progress.track(features.blocks(), "fitting positions"):
            x = features.read_block(start, width)[: len(part_of)].transpose(1, 0, 2).astype(np.float64)
            with threadpool_limits(limits=1):  # more are slower for matrices this small, and give other bits
                sums = Sums.of(x)
                whole.write(start, sums, plan.options.epsilon)
                for part, gaussians in enumerate(parts):
                    gaussians.write(start, sums.minus(Sums.of(x[:, part_of == part])), plan.options.epsilon)
        return features, tuple(map(Known, parts)), Known(whole)

    def parameters(self, plan: Plan, whole: Known) -> dict[str, Any]:
        return {"epsilon": plan.options.epsilon}


class PatchCoreSeg(Segmented):
    """With one Gaussian of all positions, and distances to a bank; features are PatchCore's."""

    name, locally_aware, plain = "patchcore-seg", True, "patchcore"
    least = 0.5  # measured: docs/research-log.md
    by_distance, surroundings = True, "with ours"
    precisions: tuple[str, ...] = PatchCore.precisions

    def layers(self, options: FitOptions) -> tuple[str, ...] | None:
        return PatchCore().layers(options)

    def reduction(self, channels: tuple[int, ...], positions: int, options: FitOptions) -> Reduction:
        return PatchCore().reduction(channels, positions, options)

    def cost(self, plan: Plan, peak_mb: float) -> Cost:
        """Raises FitError where the bank can't be chosen, or memory would not do."""
        recipe = 4 * Sizes.of(plan).members * plan.reduction.dimensions
        # While the networks learn there are the candidates no more, but every part's bank and its whole.
        learning = peak_mb + (PARTS + 2) * 2 * recipe / 1e6
        return self.afforded(plan, learning, PatchCore().foreseen(plan, peak_mb))

    def known(
        self, plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress
    ) -> tuple[Spool, tuple[Known, ...], Known]:
        size, part_of = Sizes.of(plan), plan.folds.of_frame
        features = Spool(folder, plan.embedded, plan.positions, size.dimensions, plan.positions)
        candidates, counts = Candidates(Ground.of(plan), size), counting(plan)
        sums: dict[int, Sums] = {}
        for index, values in enumerate(embeddings):
            features.write_frame(index, values)
            if index < plan.samples:
                candidates.take(index, values)
                of_frame, part = Sums.of(values[None, counts].astype(np.float64)), int(part_of[index])
                sums[part] = sums[part].plus(of_frame) if part in sums else of_frame
        everything = functools.reduce(Sums.plus, sums.values())
        members, per_part = chosen(plan, candidates, size.members, folder, progress)
        rows = candidates.rows(features.read_frame, np.concatenate([members, *per_part.values()]))
        parts = tuple(
            Known(_gaussian(everything.minus(sums[part])), candidates.bank(per_part[part], rows))
            for part in range(PARTS)
        )
        return features, parts, Known(_gaussian(everything), candidates.bank(members, rows))

    def check_told(self, plan: Plan, whole: Known, farthest: Doubles) -> None:
        if whole.bank is not None and not whole.bank.tells(farthest, plan.damps):
            raise TooAlikeError(TOO_ALIKE)

    def parameters(self, plan: Plan, whole: Known) -> dict[str, Any]:
        return bank_parameters(plan, Sizes.of(plan), 0 if whole.bank is None else len(whole.bank.members))


def _gaussian(sums: Sums) -> Gaussians:
    """One of all positions."""
    variance = float(np.trace(sums.scatter[0])) / (sums.count - 1) / sums.mean.shape[1]
    mean, covariance = sums.gaussian(max(RIDGE * variance, 1e-12))
    return Gaussians(torch.from_numpy(mean).float(), torch.from_numpy(inverse_root(covariance)).float())
