"""Where to look: regions and masks are taken in frame pixels, and one without effect is an error."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibrate.augment import augmented
from calibrate.region import make_region, parse_polygon, parse_roi
from inspectord.errors import FitError, FrameError

SHAPE = (60, 80, 1)


def mask(tmp_path, pixels):
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), pixels)
    return path


def test_without_wishes_the_whole_frame_counts():
    region = make_region(SHAPE)
    assert region.roi == (0, 0, 80, 60)
    assert region.ignored.shape == (60, 80)
    assert region.ignored_fraction == 0


def test_white_in_the_mask_and_inside_the_polygons_is_ignored(tmp_path):
    pixels = np.zeros((60, 80), np.uint8)
    pixels[:, :20] = 255
    region = make_region(
        SHAPE, (0, 0, 80, 60), mask(tmp_path, pixels), [((60, 0), (79, 0), (79, 59), (60, 59))]
    )
    assert region.ignored[:, :20].all()
    assert region.ignored[:, 60:].all()
    assert not region.ignored[:, 20:60].any()
    assert region.ignored_fraction == pytest.approx(0.5)


def test_the_ignored_fraction_is_of_the_roi(tmp_path):
    pixels = np.zeros((60, 80), np.uint8)
    pixels[:30] = 255
    region = make_region(SHAPE, (0, 0, 80, 40), mask(tmp_path, pixels))
    assert region.crop().shape == (40, 80)
    assert region.ignored_fraction == pytest.approx(0.75)


def test_it_is_looked_at_what_lies_inside_the_roi_and_under_no_mask():
    region = make_region(SHAPE, (10, 20, 30, 25), polygons=[((0, 0), (79, 0), (79, 29), (0, 29))])
    looked_at = np.zeros((60, 80), bool)
    looked_at[30:45, 10:40] = True
    assert np.array_equal(region.looked_at(), looked_at)


def test_a_polygon_may_reach_over_the_edge():
    assert make_region(SHAPE, polygons=[((-50, -50), (40, -50), (40, 500), (-50, 500))]).ignored[:, :40].all()


@pytest.mark.parametrize("roi", [(0, 0, 81, 60), (-1, 0, 10, 10), (0, 0, 0, 10), (79, 59, 2, 1)])
def test_a_roi_outside_the_frame_is_refused(roi):
    with pytest.raises(FitError, match="leaves the frame, which is 80x60"):
        make_region(SHAPE, roi)


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(FitError, match="is 50x50, the frames are 80x60"):
        make_region(SHAPE, None, mask(tmp_path, np.full((50, 50), 255, np.uint8)))


def test_a_mask_that_is_no_image_is_refused(tmp_path):
    with pytest.raises(FrameError, match="can't read"):
        make_region(SHAPE, None, tmp_path / "none.png")


def test_masks_that_leave_nothing_are_refused(tmp_path):
    with pytest.raises(FitError, match="cover the whole region"):
        make_region(SHAPE, None, mask(tmp_path, np.full((60, 80), 255, np.uint8)))
    with pytest.raises(FitError, match="cover the whole region"):
        make_region(SHAPE, (0, 0, 10, 10), None, [((0, 0), (20, 0), (20, 20), (0, 20))])


def test_a_mask_or_polygon_that_ignores_nothing_is_refused(tmp_path):
    """The operator believes that something is masked; silence would leave it in."""
    with pytest.raises(FitError, match="no white pixel"):
        make_region(SHAPE, None, mask(tmp_path, np.full((60, 80), 100, np.uint8)))
    with pytest.raises(FitError, match="lies outside the frame, which is 80x60"):
        make_region(SHAPE, polygons=[((200, 200), (300, 200), (300, 300))])


def test_regions_and_polygons_are_read_from_text():
    assert parse_roi("40,0,560,480") == (40, 0, 560, 480)
    assert parse_polygon("0,0 80,0 0,80") == ((0, 0), (80, 0), (0, 80))


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1;2;3;4", "0,0,1,99999999999999"])
def test_a_wrong_region_says_what_was_expected(text):
    with pytest.raises(ValueError, match="give x,y,width,height"):
        parse_roi(text)


@pytest.mark.parametrize("text", ["", "0,0 1,1", "0,0 1,1 2", "0,0,0 1,1 2,2", "0,0 1,1 2,99999999999999"])
def test_a_wrong_polygon_says_what_was_expected(text):
    with pytest.raises(ValueError, match="three or more corners"):
        parse_polygon(text)


def test_what_is_ignored_can_not_be_moved_into_view():
    region = make_region((64, 64), polygons=[((20, 20), (40, 20), (40, 40), (20, 40))])
    frames = [np.full((64, 64, 1), 90, np.uint8) for _ in range(2)]
    frames[1][region.ignored] = 255
    first, second = (augmented(region.hidden(frame), "ab" * 32, 0, 0) for frame in frames)
    assert np.array_equal(first, second)
    assert frames[1].max() == 255
