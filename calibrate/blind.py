"""Whether a recipe would find anything: a good frame with a square painted over must not pass, in any tile.

The marked golden frame asks in one place, the middle. But tiles share one limit, and each has patches and
usual distances of its own: where good parts vary much in one tile, nothing may reach the limit in the next.
(Measured with a bank for each of 2 x 3 tiles, 60 frames: found in the middle, passed in four of the six.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from calibrate.adapt import plain
from calibrate.augment import Box, box_around, deepest, half_of, painted
from calibrate.golden import Scored, write_frame
from calibrate.options import ADAPTED
from calibrate.region import Region
from calibrate.tiles import Axis
from inspectord.recipe import blind_words, tile_words

if TYPE_CHECKING:
    from calibrate.plan import Plan

Scores: TypeAlias = npt.NDArray[np.float64]

# Every second tile down and across is painted in the same copy, four copies for any grid; but every third
# where such tiles touch, for a square shows in the wide map of the next painted one: levels.Wide.
APART, APART_TOUCHING = 2, 3


@dataclass(frozen=True)
class Square:
    """A golden frame, by its place in plan.golden, and the tiles that are painted over in a copy of it."""

    frame: int
    tiles: tuple[int, ...]  # row by row
    image: Path


@dataclass(frozen=True)
class Squares:
    """Where each tile is painted over: as far as can be from ignored pixels and its border.

    A tile that sees nothing has no box. One that sees a little may have too little room for a square, and
    then nobody knows what it finds.
    """

    plan: Plan
    boxes: dict[int, Box]  # by tile
    too_small: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan) -> Squares:
        """None for a single tile, which the marked frame asks about."""
        boxes: dict[int, Box] = {}
        too_small = []
        for number, tile in enumerate(_regions(plan) if plan.geometry.tiles > 1 else []):
            if tile.crop().all():
                continue
            half = min(half_of(plan.region), min(tile.roi[2:]) // 4)
            place, depth = deepest(tile)
            if 0 < half <= depth:
                boxes[number] = box_around(tile, place, half)
            else:
                too_small.append(number)
        return cls(plan, boxes, tuple(too_small))

    def write(
        self, folder: Path, frames: Iterable[int], tiles: Collection[int] | None = None
    ) -> list[Square]:
        """Of these golden frames copies that have, together, a square inside each of the tiles.

        tiles: those that have a box where None. Raises FitError where the copies can't be written.
        """
        plan, columns = self.plan, len(self.plan.geometry.columns.offsets)
        wanted = [number for number in self.boxes if tiles is None or number in tiles]
        found: list[Square] = []
        apart = APART_TOUCHING if self._touch() else APART
        for first in np.ndindex(apart, apart):
            alike = [
                number for number in wanted if tuple(at % apart for at in divmod(number, columns)) == first
            ]
            for frame in frames if alike else ():
                pixels = plan.good.read(int(plan.golden[frame]))
                pixels = painted(pixels, [self.boxes[number] for number in alike])
                path = write_frame(folder / f"square_{len(found)}.png", pixels)
                found.append(Square(frame, tuple(alike), path))
        return found

    def _touch(self) -> bool:
        """Whether tiles that lie APART share a pixel or an edge."""
        return any(
            later - first <= axis.tile
            for axis in (self.plan.geometry.rows, self.plan.geometry.columns)
            for first, later in zip(axis.offsets, axis.offsets[APART:], strict=False)
        )

    def note(self) -> list[str]:
        """A line for the operator where a tile could not be asked."""
        if not self.too_small:
            return []
        where = tile_words(self.too_small, _grid(self.plan))
        return [
            f"it is not known what is found in {where}: too little is looked at there to paint a square in"
        ]


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


def _grid(plan: Plan) -> tuple[int, int]:
    return len(plan.geometry.rows.offsets), len(plan.geometry.columns.offsets)


@dataclass(frozen=True)
class Blind:
    """Where a square passes."""

    middle: bool  # in the marked golden frame
    tiles: tuple[int, ...]  # in all golden frames

    @classmethod
    def of(
        cls,
        limit: float,
        scored: Scored,
        squares: Squares,
        first: list[Square],
        folder: Path,
        score: Callable[[list[Path]], Scored],
    ) -> Blind:
        """scored are the golden frames, and last the `first` squares, those on one golden frame.

        The other golden frames are painted, in folder, and scored only in the tiles that passed there. Raises
        FitError where they can't be.
        """
        plan, golden = squares.plan, scored.tile_scores
        middle = not scored.scores[len(plan.checked) - 1] > limit
        top = plan.options.top_tiles
        tiles = _passing(limit, golden, first, golden[len(golden) - len(first) :], top)
        others = squares.write(folder, range(1, len(plan.golden)), tiles)
        if others:
            again = score([square.image for square in others]).tile_scores
            tiles = _passing(limit, golden, others, again, top)
        return cls(middle, tiles)

    def __bool__(self) -> bool:
        return self.middle or bool(self.tiles)

    def words(self, plan: Plan, suspects: list[str]) -> str:
        """What passes, and what to do; suspects are the good parts with the highest scores."""
        found = f"{blind_words(self.middle, self.tiles, _grid(plan))}. "
        if plan.folds.trained_once:
            return found + (
                "Its network learned too little: train longer with --minutes or --steps, give more good "
                "parts, or take --model patchcore"
            )
        more = "look closer with --tile or --roi" if self.middle else "leave out with --ignore what may vary"
        if plan.options.per_tile:
            more = "leave --per-tile out, for a tile alone has few patches to learn from"
        if plan.options.model == "padim":  # a Gaussian at each place is wide where parts lie anyhow
            more += ", or take --model patchcore where parts don't lie alike"
        elif plan.options.model in ADAPTED.values():
            more = f"take --model {plain(plan.options).model} without --adapt"
        return found + (
            f"The least usual good parts are {', '.join(suspects)}: are they really good? If so, teach more "
            f"alike parts, or {more}"
        )


def _passing(
    limit: float, golden: Scores, squares: list[Square], struck: Scores, top: int
) -> tuple[int, ...]:
    """Tiles that pass in every frame they are painted in.

    golden (golden frames and more, tiles) and struck (squares, tiles) are tile scores, a frame's score the
    mean of its `top` highest.
    """
    found: dict[int, bool] = {}
    for square, scores in zip(squares, struck, strict=True):
        for tile in square.tiles:
            alone = golden[square.frame].copy()
            alone[tile] = scores[tile]
            score = float(np.sort(alone)[-top:].mean())
            found[tile] = found.get(tile, False) or score > limit
    return tuple(tile for tile in sorted(found) if not found[tile])
