"""The recipe's one graph: raw frame, tiles, backbone, statistics, joined map, scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as op

from calibrate.backbones import Backbone
from calibrate.light import Light, measured, seen_share
from calibrate.pieces import LOOP, bilinear, in_blocks, nearest, projected, sliced
from calibrate.region import FILL
from calibrate.tiles import Blur, Geometry, Joiner
from inspectord.recipe import FrameSpec

if TYPE_CHECKING:
    from calibrate.levels import Levels


@dataclass(frozen=True)
class Reduction:
    """From all D channels to d: chosen channels per layer, or a (D, d) matrix split by layer."""

    chosen: tuple[npt.NDArray[np.int64], ...]
    matrices: tuple[npt.NDArray[np.float32], ...] | None = None

    @property
    def dimensions(self) -> int:
        return self.matrices[0].shape[1] if self.matrices else sum(len(c) for c in self.chosen)


class Head(Protocol):
    """From embeddings (positions, d) to distances (positions,)."""

    def build(self, embeddings: ov.Output) -> ov.Output: ...


class Scorer(Protocol):
    """From embeddings (positions, d) and their distances (positions,) to tile scores (tiles,)."""

    def build(self, embeddings: ov.Output, distances: ov.Output) -> ov.Output: ...


def feature_model(
    frame: FrameSpec,
    geometry: Geometry,
    backbone: Backbone,
    reduction: Reduction,
    ignored: npt.NDArray[np.bool_] | None,
    locally_aware: bool = False,
    one_by_one: bool = False,
    light: Light | None = None,
) -> ov.Model:
    """Graph from a frame, uint8 (1, height, width, channels), to embeddings (positions, d).

    Positions run over tiles, then rows, then columns. ignored, bool (height, width), hides pixels.
    locally_aware brings the layers together as PatchCore does, instead of PaDiM's nearest neighbour.
    one_by_one takes several tiles in a loop: what the network makes of one then stays in a CPU's cache.
    light brings every frame to that of the good ones.
    """
    pixels = op.parameter([1, *frame.shape], ov.Type.u8, name="frame")
    planes = _seen(pixels.output(0), geometry, ignored)
    if light is not None:
        planes = light.even(planes, seen_share(geometry, ignored))
    tiles = _cut(planes, geometry)

    def embedded(images: ov.Output) -> ov.Output:
        return _embedded(images, geometry, backbone, reduction, locally_aware)

    if one_by_one and geometry.tiles > 1:
        tile = op.parameter([1, *tiles.get_shape()[1:]], ov.Type.f32)
        cells = in_blocks([(tile, tiles)], embedded(tile.output(0)), 1)
    else:
        cells = embedded(tiles)
    embeddings = op.reshape(cells, op.constant([-1, reduction.dimensions]), False).output(0)
    embeddings.get_tensor().set_names({"embeddings"})
    return named(ov.Model([op.result(embeddings)], [pixels], "features"))


def tile_model(frame: FrameSpec, geometry: Geometry, ignored: npt.NDArray[np.bool_] | None) -> ov.Model:
    """Graph from a frame to what the backbone takes: tiles (n, 1 or 3, height, width), float32, 0..255."""
    pixels = op.parameter([1, *frame.shape], ov.Type.u8, name="frame")
    planes = _seen(pixels.output(0), geometry, ignored)
    return ov.Model([op.result(_cut(planes, geometry))], [pixels], "tiles")


def light_model(frame: FrameSpec, geometry: Geometry, ignored: npt.NDArray[np.bool_] | None) -> ov.Model:
    """Graph from a frame to what light.measured() tells of it."""
    pixels = op.parameter([1, *frame.shape], ov.Type.u8, name="frame")
    planes = _seen(pixels.output(0), geometry, ignored)
    found = measured(planes, seen_share(geometry, ignored))
    return ov.Model([op.result(value) for value in found], [pixels], "light")


def recipe_model(
    features: ov.Model, head: Head, joiner: Joiner, levels: Levels | None, scorer: Scorer | None = None
) -> ov.Model:
    """The feature graph continued to outputs anomaly_map (rows, columns), tile_scores (tiles,) and score.

    Without a scorer, a tile's score is its highest cell; the frame's is the mean of the joiner's `top`
    highest tile scores. With one, the map is brought to the score's scale, its peak the score, so that a
    limit of scores holds for cells too.
    """
    embeddings = features.outputs[0].get_node().input_value(0)
    distances = head.build(embeddings)
    joined = joined_map(distances, joiner)
    if levels is not None:
        joined = levelled(joined, levels)
    tile_scores = scorer.build(embeddings, distances) if scorer else _tile_scores(joined, joiner.geometry)
    score = _frame_score(tile_scores, joiner.top)
    if scorer:
        joined = _scaled_to(joined, score)
    results = []
    for name, output in (("anomaly_map", joined), ("tile_scores", tile_scores), ("score", score)):
        output.get_tensor().set_names({name})
        results.append(op.result(output))
    return named(ov.Model(results, features.get_parameters(), "inspect"))


def _frame_score(tile_scores: ov.Output, top: int) -> ov.Output:
    first = op.constant([0])
    if top == 1:
        return op.reduce_max(tile_scores, first, False).output(0)
    highest = op.topk(tile_scores, op.constant(np.int64(top)), 0, "max", "none").output(0)
    return op.reduce_mean(highest, first, False).output(0)


def _scaled_to(joined: ov.Output, score: ov.Output) -> ov.Output:
    peak = op.maximum(op.reduce_max(joined, op.constant([0, 1]), False), op.constant(np.float32(1e-12)))
    return op.multiply(joined, op.divide(score, peak)).output(0)


def strides(backbone: Backbone, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(stride, channels) of each layer, probed on a 256 x 256 image."""
    probe = op.parameter([1, channels, 256, 256], ov.Type.f32)
    maps = backbone.features(probe.output(0), [None] * len(backbone.layers))
    shapes = [m.get_shape() for m in maps]
    return tuple(256 // s[2] for s in shapes), tuple(s[1] for s in shapes)


def _embedded(
    tiles: ov.Output, geometry: Geometry, backbone: Backbone, reduction: Reduction, locally_aware: bool
) -> ov.Output:
    """(n, rows, columns, d) of tiles (n, channels, height, width)."""
    maps = backbone.features(tiles, reduction.chosen)
    rows, columns = geometry.tile_grid
    if reduction.matrices:
        maps = [projected(m, matrix) for m, matrix in zip(maps, reduction.matrices, strict=True)]
    # Nearest neighbour is how the PaDiM paper aligns its layers.
    maps = [_aware(m, rows, columns) if locally_aware else nearest(m, rows, columns) for m in maps]
    if reduction.matrices:
        whole = functools.reduce(lambda a, b: op.add(a, b).output(0), maps)
    else:
        whole = op.concat(maps, 1).output(0)
    return op.transpose(whole, op.constant([0, 2, 3, 1])).output(0)


def _seen(pixels: ov.Output, geometry: Geometry, ignored: npt.NDArray[np.bool_] | None) -> ov.Output:
    """Hide what is ignored, look at the region alone, scale."""
    if ignored is not None and ignored.any():
        pixels = op.select(
            op.constant(ignored[None, :, :, None]), op.constant(np.uint8(FILL)), pixels
        ).output(0)
    return _scaled(_region(pixels, geometry), geometry)


def _region(pixels: ov.Output, geometry: Geometry) -> ov.Output:
    """Crop the region of interest; to float32 NCHW, colours as red, green, blue."""
    x, y, width, height = geometry.roi
    frame = pixels.get_shape()
    if (height, width) != (frame[1], frame[2]):
        pixels = sliced(pixels, [y, x], [y + height, x + width], [1, 2])
    planes = op.transpose(op.convert(pixels, ov.Type.f32), op.constant([0, 3, 1, 2])).output(0)
    if frame[3] == 3:
        planes = op.gather(planes, op.constant([2, 1, 0]), op.constant(np.int64(1))).output(0)
    return planes


def _scaled(planes: ov.Output, geometry: Geometry) -> ov.Output:
    """Shrink: average whole pixels first, so that nothing aliases, then interpolate the rest."""
    factor = int(1 / geometry.scale + 1e-9)
    if factor > 1:
        planes = op.avg_pool(
            planes, [factor] * 2, [0, 0], [0, 0], [factor] * 2, True, rounding_type="ceil"
        ).output(0)
    return bilinear(planes, geometry.rows.length, geometry.columns.length)


def _cut(planes: ov.Output, geometry: Geometry) -> ov.Output:
    """Pad to the canvas by repeating the edge, then cut into a batch of tiles, row by row."""
    rows, columns = geometry.rows, geometry.columns
    bottom, right = rows.canvas - rows.length, columns.canvas - columns.length
    if bottom or right:
        ends = op.constant([0, 0, bottom, right])
        planes = op.pad(planes, op.constant([0, 0, 0, 0]), ends, "edge").output(0)
    if geometry.tiles == 1:
        return planes
    cuts = [
        sliced(planes, [top, left], [top + rows.tile, left + columns.tile], [2, 3])
        for top in rows.offsets
        for left in columns.offsets
    ]
    return op.concat(cuts, 0).output(0)


def _aware(maps: ov.Output, rows: int, columns: int) -> ov.Output:
    """Mean of each 3 x 3 neighbourhood, zeros beyond the edge, then bilinear: Roth et al. 2022, section 3.1,
    in the form of its reference implementations.
    """
    means = op.avg_pool(maps, [1, 1], [1, 1], [1, 1], [3, 3], False).output(0)
    return bilinear(means, rows, columns)


def joined_map(distances: ov.Output, joiner: Joiner) -> ov.Output:
    """Tile distances (positions,) joined, masked and blurred to (map rows, map columns); see tiles.Joiner."""
    g = joiner.geometry
    tile_rows, tile_columns = len(g.rows.offsets), len(g.columns.offsets)
    cells = [tile_rows, tile_columns, *g.tile_grid]
    mosaic = op.reshape(distances, op.constant(cells), False)
    mosaic = op.transpose(mosaic, op.constant([0, 2, 1, 3]))
    x = op.reshape(mosaic, op.constant([cells[0] * cells[2], cells[1] * cells[3]]), False).output(0)
    if g.tiles > 1:
        x = _sandwich(joiner.join_rows, x, joiner.join_columns)
    if not joiner.valid.all():
        x = op.multiply(x, op.constant(joiner.valid.astype(np.float32))).output(0)
    return blurred(x, joiner.smooth)


def blurred(cells: ov.Output, blur: Blur) -> ov.Output:
    """A map (rows, columns) as tiles.Blur blurs it."""
    x = _sandwich(blur.rows, cells, blur.columns)
    return op.multiply(x, op.constant(blur.gain.astype(np.float32))).output(0)


def levelled(joined: ov.Output, levels: Levels) -> ov.Output:
    """What levels.Levels.relative makes of the joined map."""
    relative = op.multiply(joined, op.constant((1 / levels.usual).astype(np.float32))).output(0)
    sharp = _over_its_level(relative, levels)
    if levels.wide is None:
        return sharp
    share = op.constant(np.float32(levels.wide.share))
    return op.maximum(sharp, op.multiply(blurred(relative, levels.wide.blur), share)).output(0)


def _over_its_level(relative: ov.Output, levels: Levels) -> ov.Output:
    """Over the frame's bounded median."""
    low, high = (op.constant(np.float32(bound)) for bound in (levels.low, levels.high))
    if levels.low == levels.high:
        return op.divide(relative, low).output(0)
    flat = op.reshape(relative, op.constant([-1]), False)
    sampled = op.gather(flat, op.constant(levels.sampled), op.constant(np.int64(0)))
    highest = op.topk(sampled, op.constant(np.int64(levels.rank)), 0, "max", "none").output(0)
    median = op.reduce_min(highest, op.constant([0]), False)
    return op.divide(relative, op.minimum(op.maximum(median, low), high)).output(0)


def _sandwich(left: npt.NDArray[Any], x: ov.Output, right: npt.NDArray[Any]) -> ov.Output:
    """left @ x @ right.T"""
    halfway = op.matmul(op.constant(left.astype(np.float32)), x, False, False)
    return op.matmul(halfway, op.constant(right.astype(np.float32)), False, True).output(0)


def _tile_scores(joined: ov.Output, geometry: Geometry) -> ov.Output:
    """The highest cell of the joined map within each tile, (tiles,)."""
    rows, columns = geometry.tile_grid
    peaks = []
    for top in geometry.rows.offsets:
        for left in geometry.columns.offsets:
            start = [top // geometry.cell, left // geometry.cell]
            tile = sliced(joined, start, [start[0] + rows, start[1] + columns], [0, 1])
            peak = op.reduce_max(tile, op.constant([0, 1]), False)
            peaks.append(op.reshape(peak, op.constant([1]), False).output(0))
    return op.concat(peaks, 0).output(0)


def named(model: ov.Model) -> ov.Model:
    """Names by position, in loops too, so that the same recipe always has the same bytes."""
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
        if node.get_type_name() == LOOP:
            for inner in named(node.get_function()).get_ordered_ops():
                for output in inner.outputs():
                    output.get_tensor().set_names(set())  # OpenVINO's own count what a process has built
    return model


def position_cells(geometry: Geometry) -> npt.NDArray[np.int64]:
    """Row and column in the joined map of every position, (positions, 2)."""
    within = np.indices(geometry.tile_grid).reshape(2, -1).T
    corners = np.array([(top, left) for top in geometry.rows.offsets for left in geometry.columns.offsets])
    return (corners[:, None] // geometry.cell + within).reshape(-1, 2)


def valid_cells(geometry: Geometry, ignored: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """Map cells that see at least one pixel of the region that is neither ignored nor padding."""
    rows, columns = geometry.map_shape
    span = geometry.cell / geometry.scale
    x, y, width, height = geometry.roi
    seen = np.ones((height, width), np.bool_)
    if ignored is not None:
        seen = ~ignored[y : y + height, x : x + width]
    row_of = np.minimum((np.arange(height) / span).astype(int), rows - 1)
    column_of = np.minimum((np.arange(width) / span).astype(int), columns - 1)
    row_cells, row_starts = np.unique(row_of, return_index=True)
    column_cells, column_starts = np.unique(column_of, return_index=True)
    any_seen = np.logical_or.reduceat(np.logical_or.reduceat(seen, row_starts, axis=0), column_starts, axis=1)
    valid = np.zeros((rows, columns), np.bool_)
    valid[np.ix_(row_cells, column_cells)] = any_seen
    return valid
