"""PatchCore with a bank for each tile's place: what is good there, from the good frames' patches there.

For parts that lie alike, but not so alike that PaDiM's position by position would do. All tiles share one
pass of the backbone; a patch is searched in its own tile's bank only, so a frame takes no longer than with
one bank of that size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.bank import Bank
from calibrate.candidates import CORESET, MEMBERS, MOST, PROJECTED, Candidates, Ground, Sizes, counting
from calibrate.folds import Indices
from calibrate.kinds import Cost, Learned, TooAlikeError, check_memory
from calibrate.options import FitOptions
from calibrate.parallel import PROCESS_MB, Unit, together, workers
from calibrate.progress import Progress
from calibrate.spool import Spool
from inspectord.inspect import Floats

if TYPE_CHECKING:
    from calibrate.plan import Plan

FLOPS = 20e9  # a second, float32, one busy core
TOO_ALIKE = (
    "all good frames are the same inside the region, or so nearly that patchcore can't tell them apart; take "
    "--model padim without patchcore's options, or choose another --roi or mask"
)
WORK_MB = 150  # blocks of distances, the gate's and the report's own needs


@dataclass(frozen=True)
class TileBank:
    """What is fitted of a tile. Where nothing counts there is no bank, and all distances are 0."""

    bank: Bank | None
    away: Floats  # held-out distances, (measured samples, positions)
    checked: Floats  # (checked samples, positions)


def fit_tile(
    features: Floats, ground: Ground, size: Sizes, measured: npt.NDArray[np.bool_], checked: Indices
) -> TileBank:
    """Fit a bank to a tile's features (samples, positions, d); what comes behind ground's samples is checked.

    A held-out sample's distances are to a bank that never knew its fold.
    """
    shape = features.shape[1]
    away, repeated = (
        np.zeros((int(measured.sum()), shape), np.float32),
        np.zeros((len(checked), shape), np.float32),
    )
    if not ground.counting.any():
        return TileBank(None, away, repeated)
    candidates = Candidates(ground, size)
    for sample in range(len(ground.of_frame)):
        candidates.take(sample, features[sample])
    cover = candidates.cover()
    cover.join(np.random.default_rng(ground.seed).integers(len(cover.points), size=1))
    cover.grow(size.members)
    chosen = np.array(cover.members)
    per_fold = {fold: cover.without(fold) for fold in np.unique(ground.of_frame).tolist()}
    rows = candidates.rows(features.__getitem__, np.concatenate([chosen, *per_fold.values()]))
    bank, number = candidates.bank(chosen, rows), np.cumsum(measured) - 1
    for fold, members in per_fold.items():
        without = candidates.bank(members, rows)
        for sample in np.flatnonzero((ground.of_frame == fold) & measured).tolist():
            away[number[sample]] = without.distances(features[sample])
    for place, sample in enumerate(checked.tolist()):
        repeated[place] = bank.distances(features[sample])
    return TileBank(bank, away, repeated)


def position_weight(options: FitOptions) -> dict[str, float]:
    """For recipe.toml, where it is not 0."""
    return {"position_weight": options.position_weight} if options.position_weight else {}


class TileBanks:
    """The head of the graph: embeddings (positions, d), tile after tile, each against its own bank."""

    def __init__(self, banks: list[Bank | None]) -> None:
        self._banks = banks

    def build(self, embeddings: ov.Output) -> ov.Output:
        tiles = op.split(embeddings, op.constant(np.int64(0)), len(self._banks)).outputs()
        found = [
            _nothing(tile) if bank is None else bank.build(tile)
            for tile, bank in zip(tiles, self._banks, strict=True)
        ]
        return op.concat(found, 0).output(0)


def _nothing(tile: ov.Output) -> ov.Output:
    return op.constant(np.zeros(tile.get_shape()[0], np.float32)).output(0)


def tile_sizes(plan: Plan) -> list[Sizes]:
    """Of each tile's bank, none with more members than good patches allow. Raises FitError where even the
    largest tile has too few patches for what is asked.
    """
    counted = counting(plan).reshape(plan.geometry.tiles, -1).sum(axis=1).tolist()
    asked = (plan.samples, plan.reduction.dimensions, plan.options.coreset)
    largest = Sizes.chosen(max(counted), *asked)
    found = []
    for count in counted:
        patches, candidates = count * plan.samples, min(largest.candidates, count * plan.samples)
        members = largest.members
        if plan.options.coreset is None or plan.options.coreset.endswith("%"):
            members = math.ceil(members * count / max(counted))
        most = min(candidates, max(1, int(MOST * patches)))
        found.append(Sizes(patches, candidates, min(members, most), largest.dimensions))
    return found


def foreseen_by_tile(plan: Plan, peak_mb: float) -> Cost:
    """Raises FitError where memory would not do for the tiles that are fitted together."""
    sizes, options = tile_sizes(plan), plan.options
    largest, members = max(sizes, key=lambda size: size.candidates), sum(size.members for size in sizes)
    d, each = largest.dimensions, plan.positions // plan.geometry.tiles
    chosen_in = min(PROJECTED, d) + 2 * bool(options.position_weight)
    folds = len(np.unique(plan.folds.of_frame))
    features = 4 * (plan.samples + 1) * each * d
    # The features once more while they are sent; each fold's members once more while it is measured.
    unit = 2 * features + 4 * largest.candidates * (chosen_in + folds + 6) + 6 * 4 * largest.members * d
    count = together(options)
    processes = 0 if count == 1 else count * PROCESS_MB
    fitting = processes + (count * unit + 8 * members * d) / 1e6
    memory = peak_mb + WORK_MB + max(fitting, plan.damping_bytes / 1e6)
    check_memory(
        f"the fit ({unit / 1e6:.0f} MB for each tile in memory, {count} at a time)",
        memory,
        options.memory_mb,
        "fewer --jobs, or a smaller --tile or --coreset",
    )
    choosing = sum(2 * chosen_in * size.candidates * size.members * 2 for size in sizes)
    scoring = sum(2 * d * size.patches * size.members for size in sizes)
    return Cost(
        recipe_mb=4 * members * d / 1e6,
        disk_mb=4 * (plan.samples + 1) * plan.positions * (d + 1) / 1e6,
        memory_mb=memory,
        seconds=(choosing + scoring) / FLOPS / options.jobs + 5,
        about=f"a bank for each of {plan.geometry.tiles} tiles, {members:,} patches in all, at most "
        f"{largest.members:,} of {largest.patches:,} good ones in a tile",
    )


def learn_by_tile(plan: Plan, embeddings: Iterable[Floats], folder: Path, progress: Progress) -> Learned:
    """As kinds.Kind.learn, with a bank for each tile."""
    sizes, tiles = tile_sizes(plan), plan.geometry.tiles
    each, whole = plan.positions // tiles, Ground.of(plan)
    spool = Spool(folder, plan.samples + 1, plan.positions, sizes[0].dimensions, each)
    for index, values in enumerate(embeddings):
        spool.write_frame(index, values)
    away = Spool(folder, int(plan.folds.measured.sum()), plan.positions, 1, each)
    checked = Spool(folder, len(plan.checked), plan.positions, 1, each)

    def units() -> Iterator[Unit]:
        for tile, (start, width) in enumerate(spool.blocks()):
            ground = whole.tile(tile, tiles)
            yield spool.read_block(start, width), ground, sizes[tile], plan.folds.measured, plan.checked

    banks, told, counted = [], False, counting(plan)
    blocks = progress.track(spool.blocks(), "fitting tiles")
    with workers(plan.options) as by:
        for (start, _), found in zip(blocks, by.run(fit_tile, units()), strict=True):
            banks.append(found.bank)
            told = told or (
                found.bank is not None
                and found.bank.tells(found.away[:, counted[start : start + each]], plan.damps)
            )
            away.write_block(start, found.away[..., None])
            checked.write_block(start, found.checked[..., None])
    spool.close()
    if not told:
        raise TooAlikeError(TOO_ALIKE)
    members = sum(len(bank.members) for bank in banks if bank is not None)
    asked = plan.options.coreset or f"{CORESET}, at most {MEMBERS}"
    facts = {"coreset": f"{asked}, of each tile", "members": members, **position_weight(plan.options)}
    return Learned(TileBanks(banks), away, checked, facts)
