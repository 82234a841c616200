"""Tiles cover the region, keep its aspect, and join without a seam."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from calibrate.tiles import Joiner, join_matrix, narrowed, plan, smoothing_matrix
from inspectord.errors import FitError

WISHES = [
    {},
    {"tile": 64},
    {"tile": 64, "overlap": 16},
    {"grid": (2, 3)},
    {"grid": (3, 2), "overlap": 8},
    {"resize": 100, "tile": 48, "overlap": 12},
    {"tile": 90},
]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("size", [(256, 256), (300, 197), (97, 1023)])
def test_tiles_cover_every_cell_and_lie_within_the_canvas(wish, size):
    geometry = plan((0, 0, *size), 4, 16, **wish)
    for axis in (geometry.rows, geometry.columns):
        covered = np.zeros(axis.canvas, bool)
        for offset in axis.offsets:
            assert offset % 4 == 0
            assert offset + axis.tile <= axis.canvas
            covered[offset : offset + axis.tile] = True
        assert covered.all()
        assert axis.tile % 16 == 0
        assert axis.canvas >= axis.length


@pytest.mark.parametrize("wish", WISHES)
def test_aspect_is_kept_to_a_pixel_and_nothing_is_enlarged_unless_asked_for(wish):
    geometry = plan((5, 7, 1000, 410), 4, 16, **wish)
    assert geometry.scale <= 1
    assert abs(geometry.columns.length - 1000 * geometry.scale) <= 0.5
    assert abs(geometry.rows.length - 410 * geometry.scale) <= 0.5


@pytest.mark.parametrize(
    ("size", "wish", "scale"),
    [
        ((512, 512), {}, 1),
        ((1024, 1024), {}, 0.5),
        ((2048, 512), {}, 0.5),
        ((300, 300), {}, 512 / 300),
        ((128, 512), {}, 2),
        ((64, 64), {}, 2),  # what no pixel shows is not looked for
        ((256, 256), {"tile": 128}, 1),
        ((256, 256), {"grid": (2, 2)}, 1),
        ((300, 300), {"resize": 512}, 1),
        ((300, 300), {"resize": 100}, 1 / 3),
    ],
)
def test_a_whole_region_is_enlarged_at_most_twice_for_networks_that_want_it(size, wish, scale):
    assert plan((0, 0, *size), 16, 16, side=512, **wish).scale == pytest.approx(scale)


@pytest.mark.parametrize("overlap", [1, 30, 32, 124])
@pytest.mark.parametrize("side", [400, 1000, 1021])
def test_tiles_share_at_least_the_overlap_asked_for(side, overlap):
    axis = plan((0, 0, 128, side), 4, 16, tile=128, overlap=overlap).rows
    assert all(a + axis.tile - b >= overlap for a, b in pairwise(axis.offsets))


@pytest.mark.parametrize("wish", WISHES)
def test_a_smooth_map_shows_no_seam(wish):
    geometry = plan((0, 0, 300, 200), 4, 16, **wish)
    rows, columns = geometry.map_shape
    y, x = np.mgrid[:rows, :columns]
    smooth = np.sin(y / 9) + np.cos(x / 7) + 0.01 * x * y
    height, width = geometry.tile_grid
    cut = [
        smooth[top // 4 : top // 4 + height, left // 4 : left // 4 + width]
        for top in geometry.rows.offsets
        for left in geometry.columns.offsets
    ]
    joined = Joiner(geometry, np.ones((rows, columns), bool), sigma_cells=0)(np.stack(cut))
    assert np.allclose(joined, smooth, atol=1e-12)


def test_tiles_that_disagree_fade_into_each_other():
    axis = plan((0, 0, 256, 256), 4, 16, tile=144, overlap=32).rows
    levels = np.repeat([0.0, 1.0], axis.tile // 4)
    steps = np.diff(join_matrix(axis, 4) @ levels)
    overlap_cells = (2 * axis.tile - axis.canvas) // 4
    assert steps.min() >= 0
    assert steps.max() < 2 / overlap_cells


def test_blur_keeps_a_constant_map_constant_up_to_masks_and_borders():
    geometry = plan((0, 0, 128, 128), 4, 16)
    valid = np.ones(geometry.map_shape, bool)
    valid[10:14, 3:9] = False
    joined = Joiner(geometry, valid, sigma_cells=1.5)(np.full(geometry.map_shape, 7.0))
    assert np.allclose(joined[valid], 7.0)
    assert (joined[~valid] == 0).all()


def test_blur_matrix_is_a_gaussian():
    kernel = smoothing_matrix(41, 2.0)[20]
    assert np.isclose(np.sqrt((kernel * (np.arange(41) - 20) ** 2).sum()), 2.0, rtol=0.01)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"tile": 64, "grid": (2, 2)}, "exclude"),
        ({"tile": 64, "overlap": 64}, "smaller"),
        ({"grid": (99, 1)}, "do not fit"),
        ({"tile": 512}, "larger than"),
    ],
)
def test_impossible_wishes_are_refused(wish, says):
    with pytest.raises(FitError, match=says):
        plan((0, 0, 128, 128), 4, 16, **wish)


@pytest.mark.parametrize(
    ("size", "wish", "says"),
    [
        ((600, 100), {"tile": 128}, "600x100 .*, and 100 are fewer than --tile 128: every tile is 128x112$"),
        ((50, 600), {"tile": 128, "overlap": 32}, "50x600 .*, and 50 are fewer .* every tile is 64x128$"),
        ((1200, 400), {"tile": 128, "resize": 100}, "300x100 .*, and 100 are fewer .* tile is 128x112$"),
        ((600, 128), {"tile": 128}, None),
        ((600, 100), {"grid": (1, 4)}, None),
        ((600, 100), {}, None),
    ],
)
def test_a_strip_narrower_than_a_tile_is_told_with_the_tile_it_gets(size, wish, says):
    said = narrowed(plan((0, 0, *size), 4, 16, **wish), wish.get("tile", 0))
    assert [bool(re.search(says, line)) for line in said] == ([True] if says else [])
