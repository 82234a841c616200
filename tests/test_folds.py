"""Which frames are held out together: copies never teach what is said of their frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.folds import choose_folds
from calibrate.images import GoodFrame, GoodFrames
from inspectord.errors import FitError


def good(*runs):
    """So many frames of each run."""
    frames = [
        GoodFrame(Path(f"{run}/{i}.png"), f"{run}{i}", str(run))
        for run, n in enumerate(runs)
        for i in range(n)
    ]
    return GoodFrames(tuple(frames), (8, 8, 1), letterboxed=False, duplicates=0, skipped=())


@pytest.mark.parametrize("how", ["loo", "run", "3"])
@pytest.mark.parametrize("augment", [0, 2])
def test_copies_are_held_out_with_their_frame_and_only_frames_are_measured(how, augment):
    folds = choose_folds(good(12, 14), how, augment)
    by_frame = folds.of_frame.reshape(26, 1 + augment)
    assert (by_frame == by_frame[:, :1]).all()
    assert np.array_equal(np.flatnonzero(folds.measured), np.arange(26) * (1 + augment))


def test_leave_one_out_is_only_where_each_sample_is_alone():
    assert choose_folds(good(12), "loo", 0).leave_one_out
    assert choose_folds(good(12), "12", 0).leave_one_out
    assert not choose_folds(good(12), "loo", 1).leave_one_out


def test_a_run_is_one_fold():
    assert np.bincount(choose_folds(good(12, 14, 11), "run", 0).of_frame).tolist() == [12, 14, 11]


@pytest.mark.parametrize(
    ("runs", "how", "says"),
    [
        ((12,), "run", "two runs"),
        ((40, 1), "run", "leaves 1, at least 10"),
        ((40, 9), "run", "leaves 9, at least 10"),
        ((12,), "1", "a number from 2"),
        ((12,), "13", "a number from 2"),
    ],
)
def test_folds_that_leave_too_little_are_refused(runs, how, says):
    with pytest.raises(FitError, match=says):
        choose_folds(good(*runs), how, 0)


@pytest.mark.parametrize(("runs", "how"), [((10,), "2"), ((11,), "2"), ((5, 5), "run"), ((40, 10), "run")])
def test_halves_and_ten_are_enough(runs, how):
    choose_folds(good(*runs), how, 0)
