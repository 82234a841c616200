"""The figures are scikit-learn's where it has them, and the definition's where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from calibrate.metrics import aupro, auroc, defect_regions, pixel_auroc, rate_interval


@pytest.mark.parametrize("decimals", [1, 8])
def test_auroc_is_scikit_learns_with_and_without_ties(decimals):
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0, 1, 300).round(decimals), rng.normal(1, 1, 200).round(decimals)
    expected = roc_auc_score([0] * 300 + [1] * 200, [*good, *bad])
    assert np.isclose(auroc(good, bad), expected, atol=1e-12)


def test_auroc_of_equal_scores_is_a_half():
    assert auroc(np.ones(5), np.ones(7)) == 0.5


def plain_aupro(good, regions, limit):
    """The curve over all thresholds, integrated by trapezoids up to the limit."""
    thresholds = np.unique(np.concatenate([good, *regions]))[::-1]
    rates = np.array([0.0] + [(good >= t).mean() for t in thresholds])
    overlaps = np.array([0.0] + [np.mean([(r >= t).mean() for r in regions]) for t in thresholds])
    grid = np.linspace(0, limit, 20001)
    return np.trapezoid(np.interp(grid, rates, overlaps), grid) / limit


@pytest.mark.parametrize("limit", [0.30, 0.05])
def test_aupro_is_the_area_under_the_per_region_overlap_curve(limit):
    rng = np.random.default_rng(1)
    good = np.sort(rng.normal(0, 1, 4000))
    regions = [rng.normal(mean, 1, size) for mean, size in ((2, 5), (1, 300), (3, 40))]
    assert np.isclose(aupro(good, regions, limit), plain_aupro(good, regions, limit), atol=2e-3)


def test_every_region_counts_the_same_whatever_its_size():
    good = np.linspace(0, 1, 1000)
    found, missed = np.full(1000, 2.0), np.full(1, -1.0)
    assert np.isclose(aupro(good, [found, missed], 0.3), 0.5)


def test_perfect_and_useless_maps_score_one_and_zero():
    good = np.linspace(0, 1, 100)
    assert aupro(good, [np.full(5, 2.0)], 0.05) == 1.0
    assert aupro(good, [np.full(5, -2.0)], 0.3) == 0.0


def test_pixel_auroc_is_scikit_learns():
    rng = np.random.default_rng(2)
    good, regions = np.sort(rng.normal(0, 1, 2000)), [rng.normal(1, 1, 30), rng.normal(0.5, 1, 70)]
    labels = [0] * 2000 + [1] * 100
    assert np.isclose(pixel_auroc(good, regions), roc_auc_score(labels, [*good, *regions[0], *regions[1]]))


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    scores = np.arange(36.0).reshape(6, 6)
    assert [list(region) for region in defect_regions(scores, mask)] == [[7.0, 14.0], [35.0]]


def test_intervals_hold_what_clopper_and_pearson_say():
    low, high = rate_interval(0, 299)
    assert low == 0
    assert np.isclose(high, 1 - 0.025 ** (1 / 299))
    assert rate_interval(0, 0) == (0.0, 1.0)
