"""Which good frames are held out together when their scores are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibrate.images import MINIMUM_GOOD_FRAMES, GoodFrames
from inspectord.errors import FitError

Indices = npt.NDArray[np.int64]

TAUGHT, HELD_OUT = 20, MINIMUM_GOOD_FRAMES  # frames at least, of a kind that learns only once
LEVEL_FOLDS = 50  # that the frames held out from it are parted into, where they tell what is usual
GROUPED_FOLDS = 10  # where copies of one frame must be held out together


@dataclass(frozen=True)
class Folds:
    """Which frames are held out together: fold numbers (n,); measured (n,) marks what is scored held out, of
    frames never their augmented copies.
    """

    of_frame: Indices
    measured: npt.NDArray[np.bool_]
    trained_once: bool = False  # fold 0 teaches and is not measured, all others are held out from it together

    @property
    def leave_one_out(self) -> bool:
        return len(np.unique(self.of_frame)) == len(self.of_frame)


def choose_folds(good: GoodFrames, how: str, augment: int) -> Folds:
    """Number the folds; the `augment` copies of a frame stay with it. how is "loo", "run", a number, or as
    "1/5" the share of frames held out from a kind that learns only once.

    Raises FitError for what can't be parted so, or leaves too few frames to hold a fold against.
    """
    count = len(good)
    if how.startswith("1/"):
        return _held_out_once(count, how.removeprefix("1/"), 1 + augment)
    if how == "run":
        fold = _runs(good)
    elif how == "loo":
        fold = np.arange(count) % (GROUPED_FOLDS if augment else count)
    else:
        fold = np.arange(count) % _number(how, count)
    _enough_left(fold, how)
    repeat = 1 + augment
    measured = np.arange(count * repeat) % repeat == 0
    return Folds(of_frame=np.repeat(fold, repeat), measured=measured)


def _held_out_once(count: int, one_in: str, repeat: int) -> Folds:
    parts = _number(one_in, max(count, TAUGHT + HELD_OUT))
    held_out = max(HELD_OUT, count // parts)
    if count < TAUGHT + held_out:
        fewest = max(TAUGHT + HELD_OUT, (TAUGHT - 1) * parts // (parts - 1) + 1)
        raise FitError(
            f"{count} different good images are too few to train a network, at least {fewest} are needed "
            f"({TAUGHT} must teach it, and {fewest - TAUGHT} be held out to say when to stop and where the "
            "limit lies); grab more with `calibrate capture`, or take --model patchcore"
        )
    fold = np.zeros(count, np.int64)
    places = (np.arange(held_out) * count + count // 2) // held_out
    fold[places] = 1 + np.arange(held_out) % LEVEL_FOLDS
    of_frame = np.repeat(fold, repeat)
    measured = (of_frame > 0) & (np.arange(count * repeat) % repeat == 0)
    return Folds(of_frame, measured, trained_once=True)


def _runs(good: GoodFrames) -> Indices:
    runs = sorted({frame.run for frame in good.frames})
    if len(runs) < 2:
        raise FitError("--folds run needs good frames of two runs or more; give several folders")
    return np.array([runs.index(frame.run) for frame in good.frames])


def _number(text: str, frames: int) -> int:
    if not text.isdigit() or not 2 <= int(text) <= frames:
        raise FitError(f"--folds is loo, run, or a number from 2 to the {frames} frames, got {text!r}")
    return int(text)


def _enough_left(fold: Indices, how: str) -> None:
    """Against a handful of others every part looks strange, and the limit would let defects pass."""
    left, needed = len(fold) - int(np.bincount(fold).max()), min(MINIMUM_GOOD_FRAMES, len(fold) // 2)
    if left < needed:
        raise FitError(
            f"--folds {how} holds out {len(fold) - left} of {len(fold)} frames at once and leaves {left}, "
            f"at least {needed} are needed; use --folds loo, or give runs of more equal size"
        )


def evenly(indices: Indices, most: int) -> Indices:
    """At most so many of them, in order, spread over all."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, most).astype(np.int64))]
