"""How well scores part good from bad: by sorting, without thresholds or bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from scipy import stats

Floats: TypeAlias = npt.NDArray[np.floating]


def auroc(good: Floats, bad: Floats) -> float:
    """Probability that a bad score lies above a good one, ties counted half; both of shape (n,)."""
    return float(1 - _false_positive_rates(np.sort(good), bad).mean())


def pixel_auroc(good_sorted: Floats, regions: Sequence[Floats]) -> float:
    """AUROC of single pixels: sorted scores of defect-free ones against those of all defect regions."""
    return float(1 - _false_positive_rates(good_sorted, np.concatenate(regions)).mean())


def aupro(good_sorted: Floats, regions: Sequence[Floats], limit: float) -> float:
    """Area under per-region overlap over false-positive rate from 0 to limit, divided by limit.

    good_sorted: ascending scores of all defect-free pixels; regions: the scores in each connected defect
    region, every region counting the same whatever its size. A pixel of score v is found at every
    false-positive rate above FPR(v), so it adds limit - FPR(v) to the area: no thresholds are chosen, and
    only scores tied exactly at the limit are approximated.
    Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", section 4.2.
    """
    shares = [np.maximum(limit - _false_positive_rates(good_sorted, region), 0).mean() for region in regions]
    return float(np.mean(shares) / limit)


def _false_positive_rates(good_sorted: Floats, values: Floats) -> npt.NDArray[np.float64]:
    """Share of good scores above each value, equal ones counted half."""
    below = np.searchsorted(good_sorted, values, side="left")
    not_above = np.searchsorted(good_sorted, values, side="right")
    return np.asarray(1 - (below + not_above) / (2 * len(good_sorted)))


def defect_regions(scores: Floats, mask: npt.NDArray[np.bool_]) -> list[Floats]:
    """Scores (height, width) within each connected region of the mask, 8 neighbours."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [scores[labels == label] for label in range(1, count)]


def rate_interval(events: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a share (Clopper and Pearson 1934); (0, 1) where nothing was seen."""
    if of == 0:
        return 0.0, 1.0
    interval = stats.binomtest(events, of).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
