"""What a distance means: in multiples of what good parts usually show.

A place where good parts always lie farther from their statistics than elsewhere (a printed date, a shiny
edge) counts by what is usual there, every other place by what is usual in the middle one. So a lively place
does not make the limit of all others, and no quiet one shouts. A frame's own level is left in: dividing by
it, as for other light, hides defects that cover much of a part. Like every statistic of a fit, nothing here
has seen a defect; what it does to made-up ones is in docs/research-log.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibrate.folds import Folds, Indices
from calibrate.kinds import Fitted, Learned
from calibrate.progress import Progress
from calibrate.spool import Spool
from calibrate.tiles import Doubles, Joiner

STILL = 0.25  # of the mean; stiller places, as of a bare background, have no say in which one is the middle
FOLDS = 50  # one by one, 5,000 frames would take minutes and tell the same: so many are put together


@dataclass(frozen=True)
class Usual:
    """By what each cell of the joined map counts, (map rows, map columns), above 0."""

    cells: Doubles

    @classmethod
    def of(cls, mean: Doubles, valid: npt.NDArray[np.bool_]) -> Usual:
        """From good frames' mean map and the cells that count."""
        lively = mean[valid & (mean >= STILL * mean[valid].mean())]
        return cls(np.maximum(mean, max(float(np.median(lively)), 1e-12)))

    def relative(self, joined: Doubles) -> Doubles:
        """What the graph makes of a joined map (map rows, map columns)."""
        return np.asarray(joined / self.cells)


def in_multiples(learned: Learned, joiner: Joiner, folds: Folds, progress: Progress) -> tuple[Usual, Fitted]:
    """What is usual, and the good frames' scores: of a held-out frame by what is usual without its fold.

    Of a held-out frame the others know how much of the places' difference is chance, and their own distances
    were made with it among the good ones: that makes its score hardly lower.
    """
    of_frame = parted(folds)
    frames = range(len(of_frame))
    total, squares = np.zeros((2, *joiner.geometry.map_shape))
    for joined in maps(learned.away, joiner, frames):
        total += joined
        squares += joined**2
    alike = _alike(total / len(frames), squares / len(frames), len(frames), joiner.valid)
    held_out = np.empty(len(frames))
    for fold in progress.track(np.unique(of_frame).tolist(), "scoring held-out frames"):
        inside = of_frame == fold
        members = np.flatnonzero(inside)
        rest = total - sum(maps(learned.away, joiner, members))
        others = Usual.of(alike(rest / np.count_nonzero(~inside)), joiner.valid)
        held_out[inside] = [
            joiner.score(others.relative(joined)) for joined in maps(learned.away, joiner, members)
        ]
    usual = Usual.of(alike(total / len(frames)), joiner.valid)
    checked = maps(learned.checked, joiner, range(learned.checked.shape[0]))
    known = np.array([joiner.score(usual.relative(joined)) for joined in checked])
    return usual, Fitted(held_out, known, learned.parameters)


def parted(folds: Folds) -> Indices:
    """Groups of the measured frames that are held out together where scores are made, (measured,)."""
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
    if learned.scored is not None:
        return Fitted(learned.scored.held_out, learned.scored.checked, learned.parameters)
    held_out, checked = (
        np.array([joiner.score(joined) for joined in maps(spool, joiner, range(spool.shape[0]))])
        for spool in (learned.away, learned.checked)
    )
    return Fitted(held_out, checked, learned.parameters)


def maps(spool: Spool, joiner: Joiner, frames: range | Indices) -> Iterator[Doubles]:
    return (joiner(spool.read_frame(int(frame))) for frame in frames)
