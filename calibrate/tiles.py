"""Where the tiles lie in a frame, and how their anomaly maps are joined into one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from inspectord.errors import FitError

Doubles: TypeAlias = npt.NDArray[np.float64]

MOST_TILES = 1024
SIDE_PX = 256  # an untiled frame is scaled down to about the area of such a square


@dataclass(frozen=True)
class Axis:
    """One direction of the grid, in scaled pixels; offsets and canvas are multiples of the cell."""

    length: int  # of the scaled region
    canvas: int  # length rounded up to whole cells, at least one tile
    tile: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The path from the region of interest to tiles: scale, pad, cut.

    cell is the side of one map cell in scaled pixels (the finest layer's stride).
    """

    roi: tuple[int, int, int, int]  # x, y, width, height in frame pixels
    scale: float
    cell: int
    rows: Axis
    columns: Axis

    @property
    def tiles(self) -> int:
        return len(self.rows.offsets) * len(self.columns.offsets)

    @property
    def positions(self) -> int:
        """Cells of all tiles."""
        return self.tiles * math.prod(self.tile_grid)

    @property
    def map_shape(self) -> tuple[int, int]:
        return self.rows.canvas // self.cell, self.columns.canvas // self.cell

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Cells of one tile, (rows, columns)."""
        return self.rows.tile // self.cell, self.columns.tile // self.cell


def plan(
    roi: tuple[int, int, int, int],
    cell: int,
    multiple: int,
    *,
    resize: int | None = None,
    tile: int | None = None,
    overlap: int = 0,
    grid: tuple[int, int] | None = None,
    side: int = SIDE_PX,
) -> Geometry:
    """Choose scale and tiles for a region; aspect is always kept.

    resize is the shorter side in pixels; tile a square tile's side and grid (rows, columns), both in
    scaled pixels with at least `overlap` shared; tile sides become multiples of `multiple`. Without these
    three the region is scaled to about the area of a square of this side, up by no more than side / SIDE_PX.
    Raises FitError where the wishes exclude each other.
    """
    if tile and grid:
        raise FitError("--tile and --grid exclude each other; give one")
    if tile and overlap >= tile:
        raise FitError(f"--overlap {overlap} must be smaller than --tile {tile}")
    _, _, width, height = roi
    scale = _scale(width, height, resize, tiled=bool(tile or grid), side=side)
    scaled_h, scaled_w = max(1, round(height * scale)), max(1, round(width * scale))
    if tile and tile > max(scaled_h, scaled_w):
        raise FitError(
            f"--tile {tile} is larger than what is looked at, {scaled_w}x{scaled_h}; give a smaller one"
        )
    counts = grid or (None, None)
    geometry = Geometry(
        roi=roi,
        scale=scale,
        cell=cell,
        rows=_axis(scaled_h, cell, multiple, tile, overlap, counts[0]),
        columns=_axis(scaled_w, cell, multiple, tile, overlap, counts[1]),
    )
    if geometry.tiles > MOST_TILES:
        raise FitError(f"{geometry.tiles:,} tiles are too many; give a larger --tile or a smaller --overlap")
    return geometry


def narrowed(geometry: Geometry, tile: int) -> list[str]:
    """A line for who fits, where one side of what is looked at is less than the --tile asked for."""
    rows, columns = geometry.rows, geometry.columns
    shorter = min(rows.length, columns.length)
    if shorter >= tile:
        return []
    return [
        f"{columns.length}x{rows.length} pixels are looked at, and {shorter} are fewer than --tile {tile}: "
        f"every tile is {columns.tile}x{rows.tile}"
    ]


def _scale(width: int, height: int, resize: int | None, tiled: bool, side: int) -> float:
    if resize:
        return min(1.0, resize / min(width, height))
    if tiled:
        return 1.0
    return min(side / SIDE_PX, side / math.sqrt(width * height))


def _axis(length: int, cell: int, multiple: int, tile: int | None, overlap: int, count: int | None) -> Axis:
    if count is not None:
        tile = math.ceil((length + (count - 1) * overlap) / count)
    elif tile is not None:
        tile = min(tile, length)
    side = _round_up(tile or length, multiple)
    canvas = max(_round_up(length, cell), side)
    if count is None:
        step = max(cell, (side - overlap) // cell * cell)  # offsets are whole cells
        count = 1 + max(0, math.ceil((canvas - side) / step))
    spread = (canvas - side) / max(1, count - 1)
    offsets = tuple(cell * round(index * spread / cell) for index in range(count))
    if len(set(offsets)) < count:
        raise FitError(f"{count} tiles of {side} px do not fit into {length} px; ask for fewer")
    return Axis(length=length, canvas=canvas, tile=side, offsets=offsets)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def join_matrix(axis: Axis, cell: int) -> Doubles:
    """Weights that blend tiles along one axis, (map cells, tiles * tile cells); every row sums to 1.

    Tiles fade linearly into each other where they overlap, so what all tiles agree on shows no seam.
    """
    side = axis.tile // cell
    weights = np.zeros((axis.canvas // cell, len(axis.offsets) * side))
    fade = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    for index, offset in enumerate(axis.offsets):
        start = offset // cell
        rows = np.arange(start, start + side)
        weights[rows, index * side + np.arange(side)] = fade
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def smoothing_matrix(cells: int, sigma: float) -> Doubles:
    """Gaussian blur along one axis as a (cells, cells) matrix; rows sum to 1, cut at 4 sigma."""
    if sigma <= 0:
        return np.eye(cells)
    distance = np.arange(cells)[:, None] - np.arange(cells)[None, :]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= math.ceil(4 * sigma))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


class Blur:
    """Gaussian blur of a map that is 0 in invalid cells; the numpy twin of graph.blurred.

    valid (rows, columns) is False in cells that only ignored pixels or padding feed. gain undoes the loss
    into them: valid / blurred(valid).
    """

    def __init__(self, valid: npt.NDArray[np.bool_], sigma_cells: float) -> None:
        self.rows, self.columns = (smoothing_matrix(cells, sigma_cells) for cells in valid.shape)
        weight = self.rows @ valid @ self.columns.T
        self.gain: Doubles = np.where(valid, 1 / np.maximum(weight, 1e-12), 0.0)

    def __call__(self, cells: Doubles) -> Doubles:
        return np.asarray((self.rows @ cells @ self.columns.T) * self.gain)


class Joiner:
    """From (tiles, rows, columns) distances to one smoothed map; the numpy twin of graph.joined_map.

    valid, of the geometry's map_shape, as Blur has it. A frame's score is the mean of its `top` highest tile
    scores.
    """

    def __init__(
        self, geometry: Geometry, valid: npt.NDArray[np.bool_], sigma_cells: float, top: int = 1
    ) -> None:
        self.geometry, self.valid, self.top = geometry, valid, top
        self.join_rows = join_matrix(geometry.rows, geometry.cell)
        self.join_columns = join_matrix(geometry.columns, geometry.cell)
        self.smooth = Blur(valid, sigma_cells)

    def __call__(self, distances: npt.NDArray[np.floating]) -> Doubles:
        g = self.geometry
        tile_rows, tile_columns = len(g.rows.offsets), len(g.columns.offsets)
        cells = (tile_rows, tile_columns, *g.tile_grid)
        mosaic = distances.reshape(cells).transpose(0, 2, 1, 3).reshape(self.join_rows.shape[1], -1)
        return self.smooth((self.join_rows @ mosaic @ self.join_columns.T) * self.valid)

    def tile_scores(self, joined: Doubles) -> Doubles:
        """The highest cell of the joined map within each tile, (tiles,)."""
        g = self.geometry
        rows, columns = g.tile_grid
        corners = [(top // g.cell, left // g.cell) for top in g.rows.offsets for left in g.columns.offsets]
        return np.array([joined[top : top + rows, left : left + columns].max() for top, left in corners])

    def score(self, joined: Doubles) -> float:
        """The frame's, of its joined map."""
        return float(self.frame_scores(self.tile_scores(joined)))

    def frame_scores(self, tile_scores: Doubles) -> Doubles:
        """Of tile scores (..., tiles)."""
        return np.asarray(np.sort(tile_scores)[..., -self.top :].mean(axis=-1))
