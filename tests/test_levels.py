"""Scores in multiples of what is usual: at its place, and in its frame as far as good frames go."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op
from scipy.ndimage import gaussian_filter

from calibrate import levels as module
from calibrate.fit import fit
from calibrate.folds import Folds
from calibrate.graph import levelled
from calibrate.kinds import Learned
from calibrate.levels import (
    BALANCED_AT,
    FEWEST,
    QUIET,
    SAMPLED,
    STILL,
    STRAY,
    WIDE_PX,
    Levels,
    Wide,
    level,
    plain,
    sample,
)
from calibrate.limits import find_limit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.spool import Spool
from calibrate.tiles import Blur, Joiner
from calibrate.tiles import plan as geometry_of
from inspectord.errors import FitError
from inspectord.inspect import Inspector, check_golden, compile_model
from inspectord.sources.parts import render_part

CELLS = (8, 10)


def good_maps(count=24, shape=CELLS, seed=0):
    """(count, rows, columns): some places loud, some frames brighter; every cell its own noise."""
    rng = np.random.default_rng(seed)
    place = 3 + rng.gamma(2, 2, shape)
    frame = rng.uniform(0.8, 1.25, (count, 1, 1))
    return frame * place * rng.uniform(0.7, 1.4, (count, *shape))


def levels_of(maps, valid=None):
    """By the whole set."""
    valid = np.ones(maps.shape[1:], bool) if valid is None else valid
    mean = maps.mean(axis=0)
    quiet = max(QUIET * mean[valid].mean(), 1e-12)
    sampled = sample(valid & (mean >= quiet))
    return Levels.of(mean, quiet, sampled, maps.reshape(len(maps), -1)[:, sampled])


def score_by(levels, joined):
    """The highest cell of what the graph makes of a joined map."""
    return float(levels.relative(joined).max())


def with_wide(levels, valid, share=1.0):
    return dataclasses.replace(levels, wide=Wide(Blur(valid, WIDE_PX / 8), share))


def small_part(cells, count=12, shape=(256, 256)):
    """Maps (count, rows, columns) that are zero but for a part of these (rows, columns) cells."""
    maps = np.zeros((count, *shape))
    top, left = (side // 2 + 3 for side in shape)
    maps[:, top : top + cells[0], left : left + cells[1]] = good_maps(count, cells)
    return maps


@pytest.fixture
def learn(tmp_path):
    """Learned and joiner for maps (frames, rows, columns); the joiner neither blurs nor blends."""
    spools = []

    def make(maps, checked=None, valid=None, cell=8):
        rows, columns = maps.shape[1:]
        roi = (0, 0, cell * columns, cell * rows)
        geometry = geometry_of(roi, cell, cell, resize=cell * min(rows, columns))
        joiner = Joiner(geometry, np.ones((rows, columns), bool) if valid is None else valid, 0.0)
        for frames in (maps, maps[:2] if checked is None else checked):
            spools.append(Spool(tmp_path, len(frames), rows * columns, 1, rows * columns // 11))
            for number, frame in enumerate(frames):
                spools[-1].write_frame(number, frame.reshape(-1, 1).astype(np.float32))
        return Learned(None, *spools[-2:], {"own": 1}), joiner

    yield make
    for spool in spools:
        spool.close()


def folds(of_frame, copies=0):
    of_frame = np.repeat(of_frame, 1 + copies)
    return Folds(of_frame, np.arange(len(of_frame)) % (1 + copies) == 0)


def scores(learned, joiner, of_frame, copies=0):
    return level(learned, joiner, folds(of_frame, copies), Silent())


def by_the_book(everyone, others, joined, valid, share):
    """A map's score by other good maps, where the wide map counts this share."""
    sharp, wide = both_by_the_book(everyone, others, joined, valid)
    return max(sharp, share * wide)


def both_by_the_book(everyone, others, joined, valid):
    """The highest of the sharp and of the wide map."""
    return tuple(float(found.max()) for found in maps_by_the_book(everyone, others, joined, valid))


def maps_by_the_book(everyone, others, joined, valid):
    """The sharp and the wide map, cell by cell and in order; everyone's say what is quiet."""
    cells = [(r, c) for r in range(valid.shape[0]) for c in range(valid.shape[1]) if valid[r, c]]
    means = [np.mean([one[cell] for one in everyone]) for cell in cells]
    chance = np.mean([np.var([one[cell] for one in everyone], ddof=1) for cell in cells]) / len(everyone)
    share = chance / np.var(means)
    assert 0 < share < 0.9

    def alike(mean):
        return (1 - share) * mean + share * np.mean(means)

    quiet = QUIET * np.mean(means)
    lively = [cell for cell, mean in zip(cells, means, strict=True) if alike(mean) >= quiet]
    usual = {cell: max(alike(np.mean([other[cell] for other in others])), quiet) for cell in cells}
    assert FEWEST <= len(lively) <= SAMPLED

    def middle(frame):
        ordered = sorted(frame[cell] / usual[cell] for cell in lively)
        return ordered[(len(ordered) - 1) // 2]

    own = sorted(middle(other) for other in others)
    stray = int(STRAY * len(own))
    bounded = min(max(middle(joined), own[stray], STILL), max(own[-1 - stray], STILL))
    relative = np.zeros(valid.shape)
    for cell in cells:
        relative[cell] = joined[cell] / usual[cell]
    blurred, seen = (
        gaussian_filter(x, WIDE_PX / 8, mode="constant") for x in (relative, valid.astype(float))
    )
    return relative / bounded, np.where(valid, blurred / np.maximum(seen, 1e-12), 0.0)


# --- what a score means ---


def test_a_frame_in_other_light_keeps_its_score():
    maps = good_maps()
    levels, frame = levels_of(maps), maps[3] / levels_of(maps[3:4]).high
    brighter = [score_by(levels, frame * factor) for factor in np.linspace(levels.low, levels.high, 5)]
    assert levels.high > 1.2 * levels.low
    assert np.ptp(brighter) < 0.15 * brighter[0]


def test_light_within_the_good_frames_range_changes_nothing_at_all():
    levels = levels_of(good_maps())
    frame = levels.usual * np.random.default_rng(1).uniform(0.9, 1.1, CELLS)
    frame /= np.median(frame / levels.usual)
    middle = (levels.low + levels.high) / 2
    found = [score_by(levels, frame * factor) for factor in (1.02 * levels.low, middle, 0.98 * levels.high)]
    assert np.allclose(found, found[0], rtol=1e-9)


@pytest.mark.parametrize("share", [0.55, 0.8, 1.0])
def test_a_frame_that_is_strange_over_more_than_half_stays_strange(share):
    maps = good_maps()
    levels = levels_of(maps)
    strange = maps[0].copy()
    strange.ravel()[: int(share * strange.size)] *= 5
    highest = max(score_by(levels, joined) for joined in maps)
    assert score_by(levels, strange) > 2 * highest
    assert score_by(levels, 2 * strange) == pytest.approx(2 * score_by(levels, strange))


def test_a_defect_counts_by_its_multiple_wherever_it_lies():
    maps = good_maps()
    levels, frame = levels_of(maps), levels_of(maps).usual
    quiet_place, loud_place = frame.argmin(), frame.argmax()
    assert frame.flat[loud_place] > 2 * frame.flat[quiet_place]
    for place in (quiet_place, loud_place):
        struck = frame.copy()
        struck.flat[place] *= 6
        assert score_by(levels, struck) == pytest.approx(6, rel=1e-6)


def test_a_place_that_is_almost_always_still_does_not_shout():
    """A hundredth of the common distance, tripled, is nothing."""
    maps = good_maps()
    maps[:, 2, 2] *= 0.001
    levels, frame = levels_of(maps), maps[0].copy()
    before = score_by(levels, frame)
    frame[2, 2] *= 50
    assert score_by(levels, frame) == before


def test_a_stiller_frame_than_any_is_not_blown_up():
    maps = good_maps()
    levels = levels_of(maps)
    assert score_by(levels, maps[0] * 0.01) < 0.05


def test_where_many_distances_are_zero_little_noise_never_becomes_a_large_score():
    """As of PatchCore's banks: patches often lie on a member, and a frame's median may well be zero."""
    rng = np.random.default_rng(0)
    maps = rng.gamma(2, 2, (40, *CELLS)) * (rng.random((40, *CELLS)) < 0.58)
    assert 0 < np.mean(np.median(maps, axis=(1, 2)) == 0) < 0.3
    levels = levels_of(maps)
    found = np.array([score_by(levels, joined) for joined in maps])
    assert found.max() < 4 * np.median(found)
    assert levels.low == STILL


# --- which cells tell a frame's level ---


def test_the_sampled_cells_lie_all_over_the_map():
    sampled = sample(np.ones((256, 256), bool))
    assert len(np.unique(sampled)) == SAMPLED
    rows, columns = np.unravel_index(sampled, (256, 256))
    hits = np.zeros((8, 8), int)
    np.add.at(hits, (rows // 32, columns // 32), 1)
    assert hits.min() >= 1
    assert hits.max() < 3 * hits.mean()
    assert len(np.unique(rows)) > 200  # steps of even length would fall into few
    assert len(np.unique(columns)) > 200


def test_the_sampled_cells_are_lively_ones_and_the_same_every_time():
    lively = np.random.default_rng(0).random((61, 33)) < 0.5
    assert lively.ravel()[sample(lively)].all()
    assert np.array_equal(sample(lively), sample(lively))
    assert np.array_equal(sample(lively[:4]), np.flatnonzero(lively[:4]))


def test_a_small_part_on_a_still_background_scores_as_a_large_one(learn):
    maps = small_part((16, 16))
    levels, fitted = scores(*learn(maps), np.arange(12))
    peaks = (maps / levels.usual).max(axis=(1, 2))
    assert np.median(fitted.held_out) < 5
    assert np.all(np.abs(np.log(fitted.held_out / peaks)) < np.log(1.6))
    assert STILL < levels.low < 1 < levels.high
    for joined in maps[:2]:
        assert in_the_graph(levels, joined).max() == pytest.approx(score_by(levels, joined), rel=1e-5)


def test_of_fewer_cells_than_make_a_median_frames_keep_their_own_level(learn):
    maps = small_part((1, FEWEST - 1), shape=(48, 80))
    levels, fitted = scores(*learn(maps), np.arange(12))
    assert (levels.low, levels.high) == (1, 1)
    assert (fitted.parameters["level_low"], fitted.parameters["level_high"]) == (1, 1)
    assert 1 < np.median(fitted.held_out) < 5
    for factor in (0.0, 0.1, 1.0, 10.0):
        joined = factor * maps[0]
        assert levels.sharp(joined).max() == pytest.approx(factor * (maps[0] / levels.usual).max())
        assert in_the_graph(levels, joined).max() == pytest.approx(score_by(levels, joined), rel=1e-5)
    one_more = levels_of(small_part((1, FEWEST), shape=(48, 80)))
    assert one_more.low < 1 < one_more.high


def test_places_that_differ_by_chance_alone_count_alike(learn):
    """Of twelve frames the means differ by much; of real differences nothing is taken away."""
    noise = np.random.default_rng(2).gamma(4, 1, (12, 24, 24))
    levels, _ = scores(*learn(noise), np.arange(12))
    assert np.ptp(levels.usual) < 0.5 * np.ptp(noise.mean(axis=0))
    place = np.linspace(1, 9, 576).reshape(24, 24)  # times 4, the mean of the noise
    levels, _ = scores(*learn(noise * place), np.arange(12))
    lower, upper = levels.usual[:12].mean(), levels.usual[12:].mean()
    assert upper - lower > 0.8 * 4 * (place[12:].mean() - place[:12].mean())


@pytest.mark.parametrize(("cell", "cells"), [(4, 3.0), (8, 1.5), (16, 1.5), (32, 1.5)])
def test_the_wide_map_is_blurred_by_pixels_and_by_at_least_so_many_cells(learn, cell, cells):
    levels, _ = scores(*learn(good_maps(), cell=cell), np.arange(24))
    wanted = Blur(np.ones(CELLS, bool), cells)
    np.testing.assert_allclose(levels.wide.blur.rows, wanted.rows)
    np.testing.assert_allclose(levels.wide.blur.columns, wanted.columns)


# --- held-out scores ---


@pytest.mark.parametrize(
    ("of_frame", "copies"),
    [
        (np.arange(24), 0),
        (np.arange(24) % 10, 2),
        (np.arange(24) % 2, 0),
        (np.repeat([0, 1, 2], (5, 9, 10)), 1),
    ],
    ids=["one by one", "ten folds with copies", "halves", "runs with copies"],
)
def test_held_out_scores_are_by_the_other_folds_alone(learn, of_frame, copies):
    maps, valid = good_maps(), np.ones(CELLS, bool)
    maps[5] *= 6  # a stray one must count fully, and be no excuse for itself
    maps[:, :2] *= 0.1
    valid[3:5, 2:6] = False
    learned, joiner = learn(maps, valid=valid)
    _, fitted = scores(learned, joiner, of_frame, copies)
    share = fitted.parameters["wide_share"]
    for number, found in enumerate(fitted.held_out):
        others = maps[of_frame != of_frame[number]]
        assert found == pytest.approx(by_the_book(maps, others, maps[number], valid, share), rel=1e-5)
    assert len(fitted.held_out) == 24


def test_many_frames_held_out_one_by_one_are_still_each_unknown(learn, monkeypatch):
    monkeypatch.setattr(module, "FOLDS", 5)
    maps = good_maps()
    _, fitted = scores(*learn(maps), np.arange(24))
    for number, found in enumerate(fitted.held_out):
        others = maps[np.arange(24) % 5 != number % 5]
        share = fitted.parameters["wide_share"]
        expected = by_the_book(maps, others, maps[number], np.ones(CELLS, bool), share)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_stray_good_frame_does_not_excuse_itself(learn):
    maps = good_maps()
    maps[5] *= 6
    levels, fitted = scores(*learn(maps), np.arange(24))
    assert fitted.held_out[5] > 3 * np.median(fitted.held_out)
    assert fitted.held_out.argmax() == 5
    assert levels.sharp(maps[5]).max() < 0.5 * fitted.held_out[5]
    assert levels.high > 2 * levels_of(np.delete(maps, 5, axis=0)).high


@pytest.mark.parametrize("factor", [6, 1 / 3])
def test_one_stray_frame_of_many_does_not_widen_the_bounds(learn, factor):
    maps = good_maps(200)
    maps[5] *= factor
    levels, fitted = scores(*learn(maps), np.arange(200))
    alone = levels_of(np.delete(maps, 5, axis=0))
    assert levels.low == pytest.approx(alone.low, rel=0.05)
    assert levels.high == pytest.approx(alone.high, rel=0.05)
    assert score_by(levels, maps[5]) == pytest.approx(fitted.held_out[5], rel=0.1)
    assert (fitted.held_out.argmax() if factor > 1 else fitted.held_out.argmin()) == 5


def test_many_frames_scores_are_by_the_other_folds_without_their_strays(learn):
    maps = good_maps(220)
    maps[[5, 6]] *= 6
    _, fitted = scores(*learn(maps), np.arange(220) % 10)
    for number in (0, 5, 6, 107):
        others = maps[np.arange(220) % 10 != number % 10]
        share = fitted.parameters["wide_share"]
        expected = by_the_book(maps, others, maps[number], np.ones(CELLS, bool), share)
        assert fitted.held_out[number] == pytest.approx(expected, rel=1e-5)


def test_two_runs_in_very_different_light_are_as_far_apart_as_they_are_and_no_further(learn):
    maps = good_maps()
    maps[:12] *= 2
    _, fitted = scores(*learn(maps), np.repeat([0, 1], 12))
    bright, dark = np.median(fitted.held_out[:12]), np.median(fitted.held_out[12:])
    alike = np.median(scores(*learn(good_maps()), np.arange(24))[1].held_out)
    assert 1.3 * alike < bright < 2.2 * alike
    assert 0.4 * alike < dark < alike


def test_what_the_graph_must_repeat_is_by_all_frames(learn):
    maps, checked = good_maps(), good_maps(3, seed=9)
    levels, fitted = scores(*learn(maps, checked), np.arange(24))
    share = levels.wide.share
    expected = [by_the_book(maps, maps, joined, np.ones(CELLS, bool), share) for joined in checked]
    assert np.allclose(fitted.checked, expected, rtol=1e-5)
    kept = {"level_low": levels.low, "level_high": levels.high, "wide_share": share}
    assert fitted.parameters == {"own": 1} | kept


def test_good_frames_alone_would_give_both_maps_the_same_limit(learn):
    maps, valid = good_maps(40), np.ones(CELLS, bool)
    levels, fitted = scores(*learn(maps), np.arange(40))
    pairs = [both_by_the_book(maps, np.delete(maps, n, axis=0), maps[n], valid) for n in range(40)]
    sharp, wide = (find_limit(of_one, BALANCED_AT).score for of_one in zip(*pairs, strict=True))
    assert levels.wide.share * wide == pytest.approx(sharp, rel=1e-5)
    assert sharp <= find_limit(fitted.held_out, BALANCED_AT).score < 1.2 * sharp


def test_nothing_under_a_mask_is_in_the_wide_map(learn):
    maps, valid = good_maps(20, (16, 16)), np.ones((16, 16), bool)
    valid[:8] = False
    levels, _ = scores(*learn(maps, valid=valid), np.arange(20))
    assert not levels.wide.blur.gain[:8].any()
    frame = np.where(valid, levels.usual, 0.0)
    assert np.allclose(levels.wide.blur(frame / levels.usual)[8:], 1)  # beside it nothing is lost


def test_of_several_tiles_the_mean_of_the_highest_is_of_both_maps_together(learn):
    """One tile's highest cell is of the sharp map, another's of the wide one."""
    maps = good_maps(24, (16, 16))
    maps[:, :8, :8] *= np.where(np.random.default_rng(3).random((24, 8, 8)) < 0.05, 3, 1)
    learned, _ = learn(maps)
    geometry = geometry_of((0, 0, 128, 128), 8, 8, tile=64)
    joiner = Joiner(geometry, np.ones((16, 16), bool), 0.0, top=2)
    in_tiles = maps.reshape(24, 2, 8, 2, 8).transpose(0, 1, 3, 2, 4).reshape(24, -1)
    for number, frame in enumerate(in_tiles):
        learned.away.write_frame(number, frame[:, None].astype(np.float32))
    levels, fitted = scores(learned, joiner, np.arange(24))
    both = [np.empty((24, 4)), np.empty((24, 4))]
    for number in range(24):
        others = np.delete(maps, number, axis=0)
        of_maps = maps_by_the_book(maps, others, maps[number], np.ones((16, 16), bool))
        for found, of_map in zip(both, of_maps, strict=True):
            found[number] = [of_map[r : r + 8, c : c + 8].max() for r in (0, 8) for c in (0, 8)]
    sharp, wide = (np.sort(found)[:, -2:].mean(axis=1) for found in both)
    share = find_limit(sharp, BALANCED_AT).score / find_limit(wide, BALANCED_AT).score
    expected = np.sort(np.maximum(both[0], share * both[1]))[:, -2:].mean(axis=1)
    assert np.any(np.maximum(sharp, share * wide) < 0.999 * expected)
    assert levels.wide.share == pytest.approx(share, rel=1e-5)
    assert np.allclose(fitted.held_out, expected, rtol=1e-5)


def test_what_is_a_little_strange_over_a_wide_area_is_found_by_the_wide_map(learn):
    """Good frames have single cells as far away; a third of the frame at once they have not."""
    rng = np.random.default_rng(0)
    maps = np.where(rng.random((40, 24, 24)) < 0.02, 3.0, rng.uniform(0.8, 1.2, (40, 24, 24)))
    levels, fitted = scores(*learn(maps), np.arange(40))
    limit = find_limit(fitted.held_out, BALANCED_AT).score
    broad, single = np.ones((2, 24, 24))
    broad[6:18, 2:18] = 2.25
    single[12, 12] = 6.0
    assert levels.sharp(broad).max() < 0.85 * limit < limit < score_by(levels, broad)
    assert limit < score_by(levels, single) == levels.sharp(single).max()


def test_good_parts_score_a_little_over_one(learn):
    _, fitted = scores(*learn(good_maps()), np.arange(24))
    assert 1 < fitted.held_out.min() < fitted.held_out.max() < 3


def test_frames_that_are_all_the_same_score_zero(learn):
    maps = np.zeros((12, *CELLS))
    levels, fitted = scores(*learn(maps), np.arange(12))
    assert not fitted.held_out.any()
    assert not fitted.checked.any()
    assert (levels.usual > 0).all()


def test_plain_scores_are_the_highest_distances(learn):
    maps, checked = good_maps(), good_maps(3, seed=9)
    fitted = plain(*learn(maps, checked))
    assert np.allclose(fitted.held_out, maps.max(axis=(1, 2)), rtol=1e-6)
    assert np.allclose(fitted.checked, checked.max(axis=(1, 2)), rtol=1e-6)
    assert fitted.parameters == {"own": 1}


# --- the graph ---


def in_the_graph(levels, joined, precision="f32"):
    entry = op.parameter(list(joined.shape), ov.Type.f32)
    model = ov.Model([op.result(levelled(entry.output(0), levels))], [entry], "levels")
    return compile_model(model, "CPU", precision, threads=1)([joined.astype(np.float32)])[0]


@pytest.mark.parametrize(
    ("shape", "hidden"),
    [((1, 1), 0), ((1, 2), 0), ((7, 9), 0), ((8, 10), 0), ((8, 10), 13), ((30, 40), 0), ((61, 33), 500)],
)
def test_the_graph_gives_the_same_scores(shape, hidden):
    valid = np.ones(shape, bool)
    valid.ravel()[:hidden] = False
    maps = good_maps(12, shape) * valid
    levels = levels_of(maps, valid)
    assert len(sample(valid)) == min(SAMPLED, valid.sum())
    assert valid.ravel()[levels.sampled].all()
    for factor in (0.0, 0.1, 1.0, 10.0):  # below the bounds, within and above
        for joined in factor * maps[:2]:
            assert in_the_graph(levels, joined).max() == pytest.approx(score_by(levels, joined), rel=1e-5)


def test_the_graphs_map_is_the_higher_of_both():
    valid = np.ones((12, 20), bool)
    valid[:3, :5] = False
    maps = good_maps(12, valid.shape) * valid
    levels = with_wide(levels_of(maps, valid), valid, share=1.15)
    found, sharp = in_the_graph(levels, maps[0]), levels.sharp(maps[0])
    assert np.allclose(found, levels.relative(maps[0]), rtol=1e-5, atol=1e-6)
    assert 0.2 < np.mean(found[valid] > 1.001 * sharp[valid]) < 0.8


def test_the_graphs_map_is_zero_under_a_mask():
    valid = np.ones(CELLS, bool)
    valid[:3] = False
    maps = good_maps() * valid
    found = in_the_graph(with_wide(levels_of(maps, valid), valid), maps[0])
    assert not found[:3].any()
    assert (found[3:] > 0).all()


def test_a_map_that_is_not_finite_never_becomes_a_finite_score():
    levels = levels_of(good_maps())
    for wrong in (np.nan, np.inf):
        for each in (levels, with_wide(levels, np.ones(CELLS, bool))):
            assert not np.isfinite(in_the_graph(each, np.full(CELLS, wrong))).any()


# --- the whole fit ---


def run(folder, tmp_path, **changes):
    base = FitOptions("flange", tmp_path / "recipes", (folder,), "padim", threads=1, memory_mb=100_000)
    return fit(prepare(dataclasses.replace(base, dimensions=20, **changes), Silent()), Silent())


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_recipe_repeats_its_golden_scores_and_says_how_it_scores(good, tmp_path, precision, absolute):
    recipe = run(good, tmp_path, precision=precision, absolute=absolute)
    inspector = Inspector(recipe, threads=1)
    assert check_golden(inspector) <= recipe.spec.golden.tolerance
    parameters = recipe.spec.model.parameters
    assert parameters["absolute"] is absolute
    if absolute:
        assert "level_low" not in parameters  # the fit's own gate compares its scores with plain distances
    else:
        assert STILL <= parameters["level_low"] < 1 < parameters["level_high"] < 2
        assert 1 < inspector.score(render_part(1, 900, 96, 80, 0.0).pixels).score < 3


def test_good_parts_of_a_recipe_score_between_one_and_three(good, tmp_path, monkeypatch):
    found = {}

    def kept(plan, model, fitted, folder, progress):
        found[plan.kind.name] = fitted.held_out

    monkeypatch.setattr("calibrate.fit.publish", kept)
    run(good, tmp_path)
    run(good, tmp_path, model="patchcore", coreset="10%")
    assert all(1 < np.median(held_out) < 3 for held_out in found.values())
    assert found.keys() == {"padim", "patchcore"}


@pytest.mark.parametrize("model", ["padim", "patchcore"])
def test_frames_that_are_all_the_same_are_refused(tmp_path, model):
    folder = tmp_path / "still"
    folder.mkdir()
    frame = np.full((80, 96), 90, np.uint8)
    for number in range(12):
        frame[0, 0] = number  # outside the region
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    with pytest.raises(FitError, match="the same inside the region"):
        run(folder, tmp_path, model=model, roi=(32, 32, 48, 48))
