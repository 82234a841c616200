"""Tile ensembles: a model for each tile's place, joined into one map.

As in anomalib's tiled ensemble, but in the recipe's one graph: the backbone sees all tiles in one pass,
tiles fade into each other where they overlap, the joined map is blurred across seams as it is everywhere,
and what lies over the limit gives boxes of the whole frame, so that a defect across a seam has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from calibrate.folds import Folds
from calibrate.graph import Head
from calibrate.kinds import Fitted, Learned
from calibrate.levels import QUIET, maps, parted, told
from calibrate.options import FitOptions
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.tiles import Doubles, Geometry, Joiner
from inspectord.errors import FitError

if TYPE_CHECKING:
    from calibrate.kinds import Kind


def check(options: FitOptions, kind: Kind, geometry: Geometry) -> None:
    """Raises FitError for what is asked of tiles and would do nothing, or can't be done."""
    if options.per_tile and kind.by_position:
        raise FitError(
            f"{kind.name} knows every position of every tile by itself in any case; leave --per-tile out"
        )
    if options.per_tile and geometry.tiles == 1:
        raise FitError("--per-tile needs several tiles and there is one; give --tile or --grid")
    if options.per_tile and options.extendable:
        raise FitError(
            "no frames can be added to models of single tiles; leave --extendable or --per-tile out"
        )
    if options.top_tiles > geometry.tiles:
        raise FitError(
            f"--score top-{options.top_tiles} takes more tiles than the {geometry.tiles} that there are; "
            "give fewer, or a smaller --tile"
        )
    if options.normalise == "tile" and options.absolute:
        raise FitError("--absolute scores plain distances, so nothing is normalised; leave --normalise out")
    if options.reweight and (options.per_tile or options.top_tiles > 1):
        raise FitError(
            "--reweight is the paper's score of the one strangest patch against one bank; leave --per-tile "
            "and --score out with it"
        )


def check_workers(options: FitOptions, kind: Kind) -> None:
    """The same for what is asked of workers; it needs no frames, so it is known before any are read."""
    if options.on and options.jobs > 1:
        raise FitError(
            "--on and --jobs exclude each other: the cluster's workers fit, or this box's processes"
        )
    if (options.on or options.jobs > 1) and not (options.per_tile or kind.by_position):
        raise FitError(
            f"{kind.name} learns one model of all tiles, in one piece: leave {_asked(options)} out, or give "
            "--per-tile (with --tile or --grid) or --model padim"
        )
    if options.on:
        from calibrate.cluster import Cluster

        with Cluster(options.on):
            pass


def _asked(options: FitOptions) -> str:
    return "--on" if options.on else "--jobs"


def parameters(options: FitOptions) -> dict[str, Any]:
    """What departs from the default, for recipe.toml."""
    found: dict[str, Any] = {}
    if options.per_tile:
        found["per_tile"] = True
    if options.top_tiles > 1:
        found["score"] = f"top-{options.top_tiles}"
    if options.normalise == "tile":
        found["normalise"] = "tile"
    return found


@dataclass(frozen=True)
class TileLevels:
    """Each tile's distances over the score that good frames usually have there, before tiles are joined.

    Nothing is done about frames that are strange all over: see levels.Levels, which does.
    """

    usual: Doubles  # (tiles,), above 0

    @classmethod
    def of(cls, scores: Doubles) -> TileLevels:
        """From tile scores of good frames, (frames, tiles)."""
        mean = scores.mean(axis=0)
        return cls(np.maximum(mean, max(QUIET * float(mean.mean()), 1e-12)))

    def relative(self, distances: Doubles) -> Doubles:
        """Of distances (positions, 1) or (positions,), as (tiles, positions of a tile)."""
        return np.asarray(distances.reshape(len(self.usual), -1) / self.usual[:, None])

    def over(self, head: Head) -> Head:
        """The head whose distances are relative."""
        return _Relative(head, (1 / self.usual).astype(np.float32))


@dataclass(frozen=True)
class _Relative:
    head: Head
    gain: np.ndarray[Any, np.dtype[np.float32]]  # (tiles,)

    def build(self, embeddings: ov.Output) -> ov.Output:
        tiles = op.reshape(self.head.build(embeddings), op.constant([len(self.gain), -1]), False)
        scaled = op.multiply(tiles, op.constant(self.gain[:, None]))
        return op.reshape(scaled, op.constant([-1]), False).output(0)


def level_tiles(
    learned: Learned, joiner: Joiner, folds: Folds, progress: Progress
) -> tuple[TileLevels, Fitted]:
    """What is usual in each tile, and the frames' scores: of a held-out frame by what is usual without it."""
    of_frame = parted(folds)
    every = range(len(of_frame))
    scores = np.array([joiner.tile_scores(joined) for joined in maps(learned.away, joiner, every)])
    held_out = np.empty(len(of_frame))
    for fold in progress.track(np.unique(of_frame).tolist(), "scoring held-out frames"):
        inside = of_frame == fold
        others = TileLevels.of(scores[~inside])
        inside_maps = _maps(learned.away, joiner, others, np.flatnonzero(inside).tolist())
        held_out[inside] = [joiner.score(joined) for joined in inside_maps]
    levels = TileLevels.of(scores)
    checked = _maps(learned.checked, joiner, levels, range(learned.checked.shape[0]))
    return levels, told(held_out, checked, joiner, learned.parameters)


def _maps(spool: Spool, joiner: Joiner, levels: TileLevels, frames: range | list[int]) -> Iterator[Doubles]:
    for frame in frames:
        yield joiner(levels.relative(spool.read_frame(frame).astype(np.float64)))
