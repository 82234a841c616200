"""The judge: only a proven good part passes."""

import math

import numpy as np
import pytest
from helpers_recipe import write_recipe

from inspectord.frame import FrameStatus
from inspectord.inspect import Result
from inspectord.judge import REASON_OF_STATUS, judge, regions, sure_score
from inspectord.messages import Reason, Verdict
from inspectord.recipe import load_recipe

LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipes"), shape=(64, 96, 1), limit=0.3)).spec


def result(score=0.1, tile=0.1, cell=0.1):
    tiles, cells = np.full(4, 0.1, np.float32), np.full((8, 12), 0.1, np.float32)
    tiles[2], cells[3, 4] = tile, cell
    return Result(score, tiles, cells)


@pytest.mark.parametrize("score", [0.0, 0.3, -0.1])
def test_a_score_up_to_the_limit_passes(score):
    assert judge(score, 0.3) == (Verdict.PASS, Reason.WITHIN_LIMIT)


def test_a_score_above_the_limit_rejects():
    assert judge(0.3000001, 0.3) == (Verdict.REJECT, Reason.OVER_LIMIT)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, LOWEST, -LOWEST])
@pytest.mark.parametrize("limit", [0.3, -0.3, math.nan])
def test_a_score_that_is_no_number_never_passes(score, limit):
    assert judge(score, limit) == (Verdict.NOT_INSPECTED, Reason.NOT_FINITE)


def test_a_limit_that_is_no_number_never_passes():
    assert judge(0.0, math.nan)[0] is Verdict.NOT_INSPECTED


@pytest.mark.parametrize("value", [math.nan, LOWEST, -math.inf])
def test_one_bad_cell_or_tile_makes_the_score_doubtful(value):
    """A maximum may drop a NaN; OpenVINO's pooling makes -3.4e38 of it, which a plain comparison passes."""
    assert math.isnan(sure_score(result(cell=value)))
    assert math.isnan(sure_score(result(tile=value)))
    assert sure_score(result()) == 0.1


def test_every_fault_of_a_frame_has_its_reason():
    assert set(REASON_OF_STATUS) == set(FrameStatus) - {FrameStatus.OK}


def test_boxes_are_in_frame_pixels_largest_peak_first(spec):
    cells = np.zeros((8, 12), np.float32)
    cells[1, 2] = 0.5
    cells[5:7, 8:11] = 0.9
    assert regions(cells, spec) == [(64, 40, 24, 16), (16, 8, 8, 8)]


def test_nothing_over_the_limit_gives_no_box(spec):
    assert regions(np.full((8, 12), 0.3, np.float32), spec) == []


def test_boxes_are_bounded_in_number_and_by_the_frame(spec):
    cells = np.zeros((8, 12), np.float32)
    cells[::2, ::2] = 0.5 + np.arange(24, dtype=np.float32).reshape(4, 6) / 100
    cells[6, 10], cells[7, 11] = 0.0, 9.0
    found = regions(cells, spec)
    assert len(found) == 16
    assert found[0] == (88, 56, 8, 8)
    assert all(x + width <= 96 and y + height <= 64 for x, y, width, height in found)
