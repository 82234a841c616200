"""Synthetic defects: inside the region, always visible, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from calibrate.synthetic import CLEAR, FAINT, KINDS, strike
from inspectord.errors import FitError

SIZE = 96, 128


def scene(name: str) -> np.ndarray:
    """(h, w, c): a part on a background, a frame of one grey level, stripes, black, white."""
    if name == "part":
        pixels = np.full((*SIZE, 3), (90, 110, 100), np.uint8)
        cv2.circle(pixels, (64, 48), 36, (170, 180, 175), -1)
        return pixels + np.random.default_rng(0).integers(0, 8, pixels.shape, np.uint8)
    if name == "stripes":
        return np.broadcast_to(np.arange(SIZE[1])[None, :, None] % 8 * 30, (*SIZE, 1)).astype(np.uint8)
    return np.full((*SIZE, 1), {"flat": 128, "black": 0, "white": 255}[name], np.uint8)


def everywhere() -> np.ndarray:
    return np.ones(SIZE, bool)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["part", "stripes", "flat", "black", "white"])
def test_a_clear_defect_is_seen_on_whatever_it_lies_and_a_faint_one_has_the_same_shape(name, kind):
    pixels = scene(name)
    before = pixels.copy()
    for seed in range(3):
        clear, where = strike(pixels, kind, CLEAR, seed, everywhere())
        faint, faintly = strike(pixels, kind, FAINT, seed, everywhere())
        assert clear.dtype == np.uint8
        assert clear.shape == pixels.shape
        assert np.array_equal(where, (clear != pixels).any(axis=2))
        change = np.abs(clear.astype(float) - pixels)
        assert change.max() >= 20
        assert 3 <= where.sum() <= 0.2 * where.size
        assert not (faintly & ~where).any()
        assert np.abs(faint.astype(float) - pixels).sum() == pytest.approx(FAINT * change.sum(), rel=0.12)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_outside_the_region_and_something_always_inside(kind):
    narrow, rows = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    narrow[40, 60] = True
    rows[::7] = True  # holes almost everywhere
    for region in (narrow, rows):
        for strength in (CLEAR, FAINT, 1e-6):
            for seed in range(3):
                _, mask = strike(scene("part"), kind, strength, seed, region)
                assert mask.any()
                assert not (mask & ~region).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_and_seeds_differ(kind):
    struck = [strike(scene("part"), kind, CLEAR, seed, everywhere())[0] for seed in (1, 1, 2, 3)]
    assert np.array_equal(struck[0], struck[1])
    assert not np.array_equal(struck[0], struck[2])
    assert not np.array_equal(struck[2], struck[3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_grows_with_the_region(kind):
    def changed(scale: int) -> float:
        pixels = np.kron(scene("part"), np.ones((scale, scale, 1), np.uint8))
        where = np.ones(pixels.shape[:2], bool)
        return float(np.mean([strike(pixels, kind, CLEAR, seed, where)[1].mean() for seed in range(8)]))

    assert changed(4) == pytest.approx(changed(2), rel=0.5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "rust"}, "no synthetic defect 'rust'; choose from spot"),
        ({"strength": 0.0}, "above 0 up to 1, got 0"),
        ({"strength": 1.5}, "above 0 up to 1, got 1.5"),
        ({"where": np.ones((4, 4), bool)}, r"the region \(4, 4\) is not of the frame's size"),
        ({"where": np.zeros(SIZE, bool)}, "no pixel is looked at"),
    ],
)
def test_what_can_not_be_drawn_is_one_clear_line(change, why):
    wanted = {"pixels": scene("part"), "kind": "spot", "strength": CLEAR, "seed": 0, "where": everywhere()}
    with pytest.raises(FitError, match=why):
        strike(**wanted | change)
