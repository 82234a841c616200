"""The verdict: a pure function of score and limit. Doubt means reject."""

from __future__ import annotations

import math
from enum import StrEnum

import cv2
import numpy as np

from inspectord.frame import FrameStatus
from inspectord.inspect import Floats
from inspectord.recipe import RecipeToml


class Verdict(StrEnum):
    PASS = "PASS"
    REJECT = "REJECT"
    NOT_INSPECTED = "NOT_INSPECTED"


class Reason(StrEnum):
    """Why; one word that a PLC program can compare."""

    WITHIN_LIMIT = "within_limit"
    OVER_LIMIT = "over_limit"
    LATE = "late"
    NOT_FINITE = "not_finite"
    INFERENCE_FAILED = "inference_failed"
    INCOMPLETE = "incomplete"
    FRAME_LOST = "frame_lost"
    DISPLACED = "displaced"
    WRONG_SHAPE = "wrong_shape"
    UNREADABLE = "unreadable"
    CAMERA_LOST = "camera_lost"
    STOPPING = "stopping"


REASON_OF_STATUS = {
    FrameStatus.INCOMPLETE: Reason.INCOMPLETE,
    FrameStatus.LOST: Reason.FRAME_LOST,
    FrameStatus.DISPLACED: Reason.DISPLACED,
    FrameStatus.WRONG_SHAPE: Reason.WRONG_SHAPE,
    FrameStatus.UNREADABLE: Reason.UNREADABLE,
    FrameStatus.CAMERA_LOST: Reason.CAMERA_LOST,
}


def judge(score: float, limit: float) -> tuple[Verdict, Reason]:
    """PASS only a proven good part; NaN compares false, so it is never passed."""
    if score <= limit and math.isfinite(score):
        return Verdict.PASS, Reason.WITHIN_LIMIT
    if score > limit and math.isfinite(score):
        return Verdict.REJECT, Reason.OVER_LIMIT
    return Verdict.NOT_INSPECTED, Reason.NOT_FINITE


def regions(anomaly_map: Floats, spec: RecipeToml, most: int = 16) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) in frame pixels around what lies over the limit, largest peak first.

    anomaly_map is float32 of shape (rows, columns).
    """
    over = (anomaly_map > spec.limits.score).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(over, connectivity=8)
    peaks = [(float(anomaly_map[labels == label].max()), label) for label in range(1, count)]
    left, top, roi_width, roi_height = spec.region.roi
    cell = spec.tiles.cell_px
    boxes = []
    for _, label in sorted(peaks, reverse=True)[:most]:
        column, row, columns, rows = (int(value) for value in stats[label][:4])
        x, y = int(column * cell), int(row * cell)
        right = min(roi_width, round((column + columns) * cell))
        bottom = min(roi_height, round((row + rows) * cell))
        boxes.append((left + x, top + y, max(1, right - x), max(1, bottom - y)))
    return boxes
