"""The verdict: a pure function of score and limit. Doubt means reject."""

from __future__ import annotations

import math

import cv2
import numpy as np

from inspectord.frame import FrameStatus
from inspectord.inspect import Floats, Result
from inspectord.messages import Reason, Verdict
from inspectord.recipe import RecipeToml

REASON_OF_STATUS = {
    FrameStatus.INCOMPLETE: Reason.INCOMPLETE,
    FrameStatus.LOST: Reason.FRAME_LOST,
    FrameStatus.DISPLACED: Reason.DISPLACED,
    FrameStatus.WRONG_SHAPE: Reason.WRONG_SHAPE,
    FrameStatus.UNREADABLE: Reason.UNREADABLE,
    FrameStatus.CAMERA_LOST: Reason.CAMERA_LOST,
}


# No score is so large; but OpenVINO's pooling and maxima turn a NaN into -3.4e38, which would pass.
ABSURD = 1e30


def judge(score: float, limit: float) -> tuple[Verdict, Reason]:
    """PASS only a proven good part; NaN compares false, so it is never passed."""
    if score <= limit and abs(score) < ABSURD:
        return Verdict.PASS, Reason.WITHIN_LIMIT
    if score > limit and abs(score) < ABSURD:
        return Verdict.REJECT, Reason.OVER_LIMIT
    return Verdict.NOT_INSPECTED, Reason.NOT_FINITE


def sure_score(result: Result) -> float:
    """The score, or NaN where any tile or cell is none: a maximum over them may have dropped it silently."""
    # min() carries NaN along, and finds what became of one in a pooling.
    sure = result.tile_scores.min() > -ABSURD and result.anomaly_map.min() > -ABSURD
    return result.score if sure else math.nan


def regions(anomaly_map: Floats, spec: RecipeToml, most: int = 16) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) in frame pixels around what lies over the limit, largest peak first.

    anomaly_map is float32 of shape (rows, columns).
    """
    over = (anomaly_map > spec.limits.score).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(over, connectivity=8)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels.ravel(), anomaly_map.ravel())
    order = 1 + np.argsort(-peaks[1:], kind="stable")  # label 0 is the background
    left, top, roi_width, roi_height = spec.region.roi
    cell = spec.tiles.cell_px
    boxes = []
    for label in order[:most]:
        column, row, columns, rows = (int(value) for value in stats[label][:4])
        x, y = min(roi_width - 1, int(column * cell)), min(roi_height - 1, int(row * cell))
        right = min(roi_width, round((column + columns) * cell))
        bottom = min(roi_height, round((row + rows) * cell))
        boxes.append((left + x, top + y, max(1, right - x), max(1, bottom - y)))
    return boxes
