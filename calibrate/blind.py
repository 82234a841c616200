"""Whether a recipe would find anything: a good frame with a square painted over must not pass, in any tile.

The marked golden frame asks in one place, the middle. But tiles share one limit, and each has patches and
usual distances of its own: where good parts vary much in one tile, nothing may reach the limit in the next.
(Measured with a bank for each of 2 x 3 tiles, 60 frames: found in the middle, passed in four of the six.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.augment import depth, half_of, painted
from calibrate.golden import Scored, write_frame
from calibrate.region import Region
from calibrate.tiles import Axis

if TYPE_CHECKING:
    from calibrate.plan import Plan

APART = 2  # every second tile down and across is painted in the same copy: four copies for any grid
NAMED = 6  # tiles named in a line


@dataclass(frozen=True)
class Square:
    """A golden frame, by its place in plan.golden, and the tiles that are painted over in a copy of it."""

    frame: int
    tiles: tuple[int, ...]  # row by row
    image: Path


def write_squares(plan: Plan, folder: Path) -> list[Square]:
    """Of every golden frame copies that have, together, a square inside each tile.

    None for a single tile, which the marked frame asks about, nor for a score that no tile has.
    Raises FitError where they can't be written.
    """
    if plan.geometry.tiles == 1 or plan.options.reweight:
        return []
    columns, regions = len(plan.geometry.columns.offsets), _regions(plan)
    found: list[Square] = []
    for first in np.ndindex(APART, APART):
        tiles = [
            number
            for number, region in enumerate(regions)
            if tuple(place % APART for place in divmod(number, columns)) == first
            and 0 < _half(plan, region) <= depth(region).max()
        ]
        for frame, index in enumerate(plan.golden.tolist() if tiles else []):
            pixels = plan.good.read(index)
            for number in tiles:
                pixels = painted(pixels, regions[number], _half(plan, regions[number]))
            path = write_frame(folder / f"square_{len(found)}.png", pixels)
            found.append(Square(frame, tuple(tiles), path))
    return found


def _half(plan: Plan, tile: Region) -> int:
    return min(half_of(plan.region), min(tile.roi[2:]) // 4)


def _regions(plan: Plan) -> list[Region]:
    """What each tile sees, as a region of the frame."""
    x, y, width, height = plan.region.roi
    rows, columns = (
        [_seen(axis, offset, plan.geometry.scale, length) for offset in axis.offsets]
        for axis, length in ((plan.geometry.rows, height), (plan.geometry.columns, width))
    )
    return [
        Region((x + left, y + top, right - left, bottom - top), plan.region.ignored)
        for top, bottom in rows
        for left, right in columns
    ]


def _seen(axis: Axis, offset: int, scale: float, length: int) -> tuple[int, int]:
    """Begin and end of a tile in frame pixels; what is beyond the region is padding."""
    return min(length, round(offset / scale)), min(length, round((offset + axis.tile) / scale))


@dataclass(frozen=True)
class Blind:
    """Where a square passes."""

    middle: bool  # in the marked golden frame
    tiles: tuple[int, ...]  # in all golden frames

    @classmethod
    def of(cls, plan: Plan, limit: float, scored: Scored, squares: list[Square]) -> Blind:
        """scored are the golden frames, and the squares last."""
        seen: dict[int, bool] = {}
        struck = scored.tile_scores[len(scored.scores) - len(squares) :]
        for square, scores in zip(squares, struck, strict=True):
            for tile in square.tiles:
                alone = scored.tile_scores[square.frame].copy()
                alone[tile] = scores[tile]
                score = float(np.sort(alone)[-plan.options.top_tiles :].mean())
                seen[tile] = seen.get(tile, False) or score > limit
        middle = not scored.scores[len(plan.checked) - 1] > limit
        return cls(middle, tuple(tile for tile in sorted(seen) if not seen[tile]))

    def __bool__(self) -> bool:
        return self.middle or bool(self.tiles)

    def words(self, plan: Plan, suspects: list[str]) -> str:
        """What passes, and what to do; suspects are the good parts with the highest scores."""
        found = "a frame with a square of an eighth of its side painted over still passes"
        if self.middle:
            found += ", so this recipe would find no defects. "
        else:
            where = _tiles(self.tiles, len(plan.geometry.columns.offsets))
            found += f" where that lies in {where}, so this recipe would find no defects there. "
        if plan.folds.trained_once:
            return found + (
                "Its network learned too little: train longer with --minutes or --steps, give more good "
                "parts, or take --model padim"
            )
        more = "look closer with --tile or --roi" if self.middle else "leave out with --ignore what may vary"
        if plan.options.per_tile:
            more = "leave --per-tile out, for a tile alone has few patches to learn from"
        return found + (
            f"The least usual good parts are {', '.join(suspects)}: are they really good? If so, teach more "
            f"alike parts, or {more}"
        )


def _tiles(numbers: tuple[int, ...], columns: int) -> str:
    """As 'tile 2 of row 1'."""
    named = [f"tile {number % columns + 1} of row {number // columns + 1}" for number in numbers[:NAMED]]
    return ", ".join(named) + (f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else "")
