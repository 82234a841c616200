"""What a distance means: against what is usual at its place, and in its frame.

Some places of good parts always lie further from their statistics than others, and whole frames do when the
light is another. So a cell counts by how many times farther it lies than held-out good frames do there, and
a frame by how far its strangest cell stands out from its own median. That median only corrects as far as
good frames go: a frame that is strange all over stays strange.

What is a little strange over a wide area stands out nowhere. So the same multiples, blurred and not over the
frame's median, are looked at beside them, each at its own scale (as Lindeberg 1998, "Feature Detection with
Automatic Scale Selection", takes the highest answer of several): a score is the higher of the two, weighed so
that good frames alone would give both the same limit.

Like every statistic of a fit, nothing here has seen a defect. On good frames with synthetic defects it tells
more of them than plain distances do; see docs/research-log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrate.folds import Folds, Indices
from calibrate.kinds import Fitted, Learned
from calibrate.limits import find_limit
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.tiles import Blur, Doubles, Joiner

QUIET = 0.5  # of the mean over all cells; what is usual less than this counts as this
STILL = 0.25  # of what is usual; a stiller frame counts as this, or little noise would become a large score
STRAY = 0.01  # of the good frames may be strange all over, at either end, without widening the bounds
FOLDS = 50  # one by one, 5,000 frames would take minutes and tell the same: so many are put together
SAMPLED = 512  # cells at most that give a frame's median: a longer sort would cost more than it tells
FEWEST = 32  # cells at least; of fewer a median is noise, and frames keep their own level
# Gaussian sigma of the wide map, the larger of these: in scaled pixels, in cells. Of cells of 8 pixels 1 to 3
# tell as much (docs/research-log.md).
WIDE_PX, WIDE_CELLS = 12.0, 1.5
BALANCED_AT = 0.001  # rate of false rejects at which good frames alone would give both maps the same limit


@dataclass(frozen=True)
class Wide:
    """How the multiples are blurred, and what that counts beside the sharp map."""

    blur: Blur
    share: float


@dataclass(frozen=True)
class Levels:
    """What is usual, and how far a frame's level may go."""

    usual: Doubles  # (map rows, map columns), above 0
    sampled: Indices  # cells of the flat map whose median is the frame's level
    low: float  # levels of good frames lie between these; equal, they are every frame's
    high: float
    wide: Wide | None = None

    @classmethod
    def of(cls, mean: Doubles, quiet: float, sampled: Indices, seen: npt.NDArray[np.float32]) -> Levels:
        """From good frames: their mean map, and what each has in the sampled cells, (frames, cells)."""
        usual = np.maximum(mean, quiet)
        if len(sampled) < FEWEST:
            return cls(usual, sampled, 1.0, 1.0)
        levels = np.sort(_medians(seen / usual.ravel()[sampled]))
        stray = int(STRAY * len(levels))
        low, high = float(levels[stray]), float(levels[len(levels) - 1 - stray])
        return cls(usual, sampled, max(low, STILL), max(high, STILL))

    @property
    def rank(self) -> int:
        """The median is the value of this rank from the top, counted from 1."""
        return len(self.sampled) // 2 + 1

    def relative(self, joined: Doubles) -> Doubles:
        """What the graph makes of a joined map (map rows, map columns)."""
        if self.wide is None:
            return self.sharp(joined)
        return np.maximum(self.sharp(joined), self.wide.share * self.wide.blur(joined / self.usual))

    def sharp(self, joined: Doubles) -> Doubles:
        """Over what is usual at the place, and over the frame's own level."""
        relative = np.asarray(joined / self.usual)
        if self.low == self.high:
            return relative / self.low
        level = float(_medians(relative.ravel()[None, self.sampled])[0])
        return relative / min(max(level, self.low), self.high)


def sample(lively: npt.NDArray[np.bool_]) -> Indices:
    """At most SAMPLED of these cells, flat and in order; drawn, for steps would fall into few columns."""
    cells = np.flatnonzero(lively)
    return np.sort(np.random.default_rng(0).permutation(cells)[:SAMPLED])


def _medians(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Of each row; the lower middle one of an even number."""
    middle = (values.shape[1] - 1) // 2
    return np.asarray(np.partition(values, middle, axis=1)[:, middle])


def level(learned: Learned, joiner: Joiner, folds: Folds, progress: Progress) -> tuple[Levels, Fitted]:
    """Levels of the good frames, and their scores: of a held-out frame by the levels of the other folds.

    Of a held-out frame the others know which cells are quiet or sampled, how much of the places' difference
    is chance and what the wide map counts, and their own distances were made with it among the good ones:
    that makes them look more usual, and its score hardly lower.
    """
    of_frame = parted(folds)
    frames = range(len(of_frame))
    total, squares = np.zeros((2, *joiner.geometry.map_shape))
    for joined in maps(learned.away, joiner, frames):
        total += joined
        squares += joined**2
    alike = _alike(total / len(frames), squares / len(frames), len(frames), joiner.valid)
    mean = alike(total / len(frames))
    quiet = max(QUIET * float(mean[joiner.valid].mean()), 1e-12)
    sampled = sample(joiner.valid & (mean >= quiet))
    seen = np.array([joined.ravel()[sampled] for joined in maps(learned.away, joiner, frames)], np.float32)
    blur = Blur(joiner.valid, wide_cells(joiner.geometry.cell))
    sharp, wide = np.empty((2, len(frames), joiner.geometry.tiles))
    for fold in progress.track(np.unique(of_frame).tolist(), "scoring held-out frames"):
        inside = of_frame == fold
        members = np.flatnonzero(inside)
        rest = total - sum(maps(learned.away, joiner, members))
        others = Levels.of(alike(rest / np.count_nonzero(~inside)), quiet, sampled, seen[~inside])
        for member, joined in zip(members, maps(learned.away, joiner, members), strict=True):
            sharp[member] = joiner.tile_scores(others.sharp(joined))
            wide[member] = joiner.tile_scores(blur(joined / others.usual))
    share = _balance(joiner.frame_scores(sharp), joiner.frame_scores(wide))
    held_out = joiner.frame_scores(np.maximum(sharp, share * wide))
    levels = replace(Levels.of(mean, quiet, sampled, seen), wide=Wide(blur, share))
    checked = (levels.relative(joined) for joined in every_map(learned.checked, joiner))
    parameters = learned.parameters | {
        "level_low": levels.low,
        "level_high": levels.high,
        "wide_share": share,
    }
    return levels, told(held_out, checked, joiner, parameters)


def wide_cells(cell: int) -> float:
    """Sigma of the wide map in cells of this side in scaled pixels."""
    return max(WIDE_PX / cell, WIDE_CELLS)


def _balance(sharp: Doubles, wide: Doubles) -> float:
    """What the wide map counts, given held-out scores of both; 0 where good frames lie nowhere apart."""
    of_sharp, of_wide = (find_limit(scores, BALANCED_AT).score for scores in (sharp, wide))
    return of_sharp / of_wide if of_wide else 0.0


def parted(folds: Folds) -> Indices:
    """Groups of the measured frames that are held out together where levels are made, (measured,)."""
    return folds.of_frame[folds.measured] % (FOLDS if folds.leave_one_out else folds.of_frame.max() + 1)


def _alike(
    mean: Doubles, square: Doubles, frames: int, valid: npt.NDArray[np.bool_]
) -> Callable[[Doubles], Doubles]:
    """Means of few frames differ from place to place by chance too: draws them together by that share of
    their variance (James & Stein 1961, "Estimation with Quadratic Loss", in its empirical Bayes form).
    """
    chance = max(float((square - mean**2)[valid].mean()), 0.0) / max(frames - 1, 1)
    share = min(1.0, chance / max(float(mean[valid].var()), 1e-24))
    centre = float(mean[valid].mean())
    return lambda means: means + share * (centre - means)


def plain(learned: Learned, joiner: Joiner) -> Fitted:
    """The same scores in distances, as the methods' papers have them."""
    checked = every_map(learned.checked, joiner)
    if learned.scored is None:
        held_out = np.array([joiner.score(joined) for joined in every_map(learned.away, joiner)])
        return told(held_out, checked, joiner, learned.parameters)
    found = told(learned.scored.held_out, checked, joiner, learned.parameters)
    scores = learned.scored.checked
    scale = scores / np.maximum(found.maps.max((1, 2)), 1e-12)  # the graph's map peaks at the score
    scaled = (found.maps * scale[:, None, None]).astype(np.float32)
    return replace(found, checked=scores, maps=scaled)


def told(held_out: Doubles, checked: Iterable[Doubles], joiner: Joiner, parameters: dict[str, Any]) -> Fitted:
    """The scores of held-out frames, and what the graph must repeat: those of the checked maps, and these."""
    found = list(checked)
    scores = np.array([joiner.score(joined) for joined in found])
    return Fitted(held_out, scores, np.array(found, np.float32), parameters)


def every_map(spool: Spool, joiner: Joiner) -> Iterator[Doubles]:
    return maps(spool, joiner, range(spool.shape[0]))


def maps(spool: Spool, joiner: Joiner, frames: range | Indices) -> Iterator[Doubles]:
    return (joiner(spool.read_frame(int(frame))) for frame in frames)
