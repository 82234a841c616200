"""What a bank that can grow keeps of each frame, besides its members: held-out distances, and whose they are.

A frame of an earlier fit is held out from its own members too, and patches of all other frames at hand fill
the holes that these leave. Where frames that did so at its fit are gone, its distances of then are lower and
count: they knew as little of the frame.

    away.npy     float32 (frames, positions), held-out distances of each frame that ever taught the bank
    origin.npy   int64 (members,), the frame that each member is from, as a row of digests.npy
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.folds import Indices
from calibrate.npy import RowWriter, read_rows
from calibrate.spool import Spool
from calibrate.tiles import Doubles

if TYPE_CHECKING:
    from calibrate.plan import Plan

AWAY, ORIGIN = "away.npy", "origin.npy"


def known_away(plan: Plan, digest: str) -> Doubles | None:
    """Distances (positions,) that the extended recipe keeps of a frame; None of a new one."""
    if plan.earlier is None:
        return None
    digests = [frame.digest for frame in plan.earlier.frames]
    return read_rows(plan.earlier.folder / AWAY, digests.index(digest), 1)[0] if digest in digests else None


def folds_of_members(plan: Plan) -> Indices:
    """Fold of the frame that each member of the extended bank is from; frames that are gone share another."""
    if plan.earlier is None:
        return np.empty(0, np.int64)
    fold = plan.folds.of_frame[:: 1 + plan.options.augment].tolist()
    known = {frame.digest: fold[index] for index, frame in enumerate(plan.good.frames)}
    of_frame = [known.get(frame.digest, max(fold) + 1) for frame in plan.earlier.frames]
    return np.array(of_frame, np.int64)[_origin(plan)]


def keep_frames(plan: Plan, away: Spool, samples: Indices, folder: Path) -> None:
    """Write both files, of all plan.taught. away (measured frames, positions, 1); samples are those that the
    members are from which the bank has gained.
    """
    rows = RowWriter(folder / AWAY, (len(plan.taught), plan.positions), np.float32)
    for number in range(len(plan.good)):
        rows.write(away.read_frame(number)[:, 0])
    for frame in plan.taught[len(plan.good) :]:
        known = known_away(plan, frame.digest)
        assert known is not None  # it is absent, so it taught before
        rows.write(known)
    rows.close()
    origin = samples // (1 + plan.options.augment)
    if plan.earlier is not None:
        place = {frame.digest: index for index, frame in enumerate(plan.taught)}
        now = np.array([place[frame.digest] for frame in plan.earlier.frames], np.int64)
        origin = np.concatenate([now[_origin(plan)], origin])
    np.save(folder / ORIGIN, origin)


def _origin(plan: Plan) -> Indices:
    assert plan.earlier is not None
    found: Indices = np.load(plan.earlier.folder / ORIGIN, allow_pickle=False)
    return found
