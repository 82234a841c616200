"""Scores in multiples of what good parts usually show, at places where that is more than elsewhere."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import usual as module
from calibrate.fit import fit
from calibrate.folds import Folds
from calibrate.graph import relative
from calibrate.kinds import Learned
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.spool import Spool
from calibrate.tiles import Joiner
from calibrate.tiles import plan as geometry_of
from calibrate.usual import STILL, Usual, in_multiples, plain
from inspectord.errors import FitError
from inspectord.inspect import Inspector, check_golden, compile_model
from inspectord.sources.parts import render_part

CELLS = (8, 10)
EVERYWHERE = np.ones(CELLS, bool)


def good_maps(count=24, shape=CELLS, seed=0):
    """(count, rows, columns): some places loud, some frames brighter; every cell its own noise."""
    rng = np.random.default_rng(seed)
    place = 3 + rng.gamma(2, 2, shape)
    frame = rng.uniform(0.8, 1.25, (count, 1, 1))
    return frame * place * rng.uniform(0.7, 1.4, (count, *shape))


def score_by(usual, joined):
    """The highest cell of what the graph makes of a joined map."""
    return float(usual.relative(joined).max())


@pytest.fixture
def learn(tmp_path):
    """Learned and joiner for maps (frames, rows, columns); the joiner neither blurs nor blends."""
    spools = []

    def make(maps, checked=None, valid=None):
        rows, columns = maps.shape[1:]
        geometry = geometry_of((0, 0, 8 * columns, 8 * rows), 8, 8, resize=8 * min(rows, columns))
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
    return in_multiples(learned, joiner, folds(of_frame, copies), Silent())


def by_the_book(everyone, others, joined, valid):
    """A map's score by other good maps, cell by cell; everyone's say how much of a difference is chance."""
    cells = [(r, c) for r in range(valid.shape[0]) for c in range(valid.shape[1]) if valid[r, c]]
    means = [np.mean([one[cell] for one in everyone]) for cell in cells]
    chance = np.mean([np.var([one[cell] for one in everyone], ddof=1) for cell in cells]) / len(everyone)
    share = chance / np.var(means)
    assert 0 < share < 0.9
    usual = {
        cell: (1 - share) * np.mean([other[cell] for other in others]) + share * np.mean(means)
        for cell in cells
    }
    lively = [value for value in usual.values() if value >= STILL * np.mean(list(usual.values()))]
    return max(joined[cell] / max(usual[cell], np.median(lively)) for cell in cells)


# --- what a score means ---


def test_a_defect_counts_by_its_multiple_where_good_parts_vary_and_fully_elsewhere():
    """So a lively place does not make the limit of all others: its good extremes count as theirs do."""
    mean = np.full(CELLS, 2.0)
    mean[:2, :6], mean[5, 5] = 20.0, 0.2
    usual = Usual.of(mean, EVERYWHERE)
    for place, counts_by in (((1, 2), 20.0), ((5, 5), 2.0), ((7, 0), 2.0)):
        struck = mean.copy()
        struck[place] += 100
        assert score_by(usual, struck) == pytest.approx((mean[place] + 100) / counts_by)


def test_a_place_that_is_almost_always_still_does_not_shout():
    """A hundredth of the common distance, tripled, is nothing."""
    maps = good_maps()
    maps[:, 2, 2] *= 0.001
    usual, frame = Usual.of(maps.mean(0), EVERYWHERE), maps[0].copy()
    before = score_by(usual, frame)
    frame[2, 2] *= 50
    assert score_by(usual, frame) == before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 1.0])
def test_a_frame_stays_strange_however_much_of_it_is(share):
    """Over its own median, as scores once were, the strangest half of a part hid itself."""
    maps = good_maps()
    usual = Usual.of(maps.mean(0), EVERYWHERE)
    strange = maps[0].copy()
    strange.ravel()[: int(share * strange.size)] *= 5
    assert score_by(usual, strange) > 2 * max(score_by(usual, joined) for joined in maps)


def test_ignored_cells_have_no_part_in_the_average():
    mean, valid = np.full(CELLS, 2.0), EVERYWHERE.copy()
    valid[:4] = False
    mean[:4] = 0
    assert (Usual.of(mean, valid).cells == 2).all()


def test_places_that_differ_by_chance_alone_count_alike(learn):
    """Of twelve frames the means differ by much; of real differences nothing is taken away."""
    noise = np.random.default_rng(2).gamma(4, 1, (12, 24, 24))
    usual, _ = scores(*learn(noise), np.arange(12))
    assert np.ptp(usual.cells) < 0.5 * np.ptp(noise.mean(axis=0))
    place = np.linspace(1, 9, 576).reshape(24, 24)  # times 4, the mean of the noise
    usual, _ = scores(*learn(noise * place), np.arange(12))
    middle = noise.mean() * 5
    assert usual.cells[:10].mean() == pytest.approx(middle, rel=0.05)
    assert usual.cells[18:].mean() > middle + 0.8 * 4 * (place[18:].mean() - 5)


def test_a_small_part_on_a_still_background_scores_as_a_large_one(learn):
    maps = np.zeros((12, 64, 64))
    maps[:, 30:38, 20:30] = good_maps(12)
    _, small = scores(*learn(maps), np.arange(12))
    _, large = scores(*learn(good_maps(12)), np.arange(12))
    assert 0.8 < np.median(small.held_out) / np.median(large.held_out) < 1.25


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
    maps, valid = good_maps(), EVERYWHERE.copy()
    maps[5] *= 6  # a stray one must count fully, and be no excuse for itself
    maps[:, :2] *= 0.1
    valid[3:5, 2:6] = False
    learned, joiner = learn(maps, valid=valid)
    _, fitted = scores(learned, joiner, of_frame, copies)
    for number, found in enumerate(fitted.held_out):
        others = maps[of_frame != of_frame[number]]
        assert found == pytest.approx(by_the_book(maps, others, maps[number], valid), rel=1e-5)
    assert len(fitted.held_out) == 24


def test_many_frames_held_out_one_by_one_are_still_each_unknown(learn, monkeypatch):
    monkeypatch.setattr(module, "FOLDS", 5)
    maps = good_maps()
    _, fitted = scores(*learn(maps), np.arange(24))
    for number, found in enumerate(fitted.held_out):
        others = maps[np.arange(24) % 5 != number % 5]
        assert found == pytest.approx(by_the_book(maps, others, maps[number], EVERYWHERE), rel=1e-5)


def test_a_stray_good_frame_does_not_excuse_itself(learn):
    maps = good_maps()
    maps[5] *= 6
    usual, fitted = scores(*learn(maps), np.arange(24))
    assert fitted.held_out[5] > 3 * np.median(fitted.held_out)
    assert fitted.held_out.argmax() == 5
    assert score_by(usual, maps[5]) < 0.95 * fitted.held_out[5]


def test_what_the_graph_must_repeat_is_by_all_frames(learn):
    maps, checked = good_maps(), good_maps(3, seed=9)
    _, fitted = scores(*learn(maps, checked), np.arange(24))
    expected = [by_the_book(maps, maps, joined, EVERYWHERE) for joined in checked]
    assert np.allclose(fitted.checked, expected, rtol=1e-5)
    assert fitted.parameters == {"own": 1}


def test_good_parts_score_a_little_over_one(learn):
    _, fitted = scores(*learn(good_maps()), np.arange(24))
    assert 1 < fitted.held_out.min() < fitted.held_out.max() < 3


def test_frames_that_are_all_the_same_score_zero(learn):
    usual, fitted = scores(*learn(np.zeros((12, *CELLS))), np.arange(12))
    assert not fitted.held_out.any()
    assert not fitted.checked.any()
    assert (usual.cells > 0).all()


def test_plain_scores_are_the_highest_distances(learn):
    maps, checked = good_maps(), good_maps(3, seed=9)
    fitted = plain(*learn(maps, checked))
    assert np.allclose(fitted.held_out, maps.max(axis=(1, 2)), rtol=1e-6)
    assert np.allclose(fitted.checked, checked.max(axis=(1, 2)), rtol=1e-6)
    assert fitted.parameters == {"own": 1}


# --- the graph ---


def in_the_graph(usual, joined):
    entry = op.parameter(list(joined.shape), ov.Type.f32)
    model = ov.Model([op.result(relative(entry.output(0), usual))], [entry], "usual")
    return compile_model(model, "CPU", "f32", threads=1)([joined.astype(np.float32)])[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 9), (61, 33)])
def test_the_graph_gives_the_same_map(shape):
    maps = good_maps(12, shape)
    usual = Usual.of(maps.mean(0), np.ones(shape, bool))
    assert np.allclose(in_the_graph(usual, maps[0]), usual.relative(maps[0]), rtol=1e-5)


def test_the_graphs_map_is_zero_under_a_mask():
    valid = EVERYWHERE.copy()
    valid[:3] = False
    maps = good_maps() * valid
    found = in_the_graph(Usual.of(maps.mean(0), valid), maps[0])
    assert not found[:3].any()
    assert (found[3:] > 0).all()


def test_a_map_that_is_not_finite_never_becomes_a_finite_score():
    usual = Usual.of(good_maps().mean(0), EVERYWHERE)
    for wrong in (np.nan, np.inf):
        assert not np.isfinite(in_the_graph(usual, np.full(CELLS, wrong))).any()


# --- the whole fit ---


def run(folder, tmp_path, **changes):
    base = FitOptions("flange", tmp_path / "recipes", (folder,), threads=1, memory_mb=100_000)
    return fit(prepare(dataclasses.replace(base, dimensions=20, **changes), Silent()), Silent())


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_recipe_repeats_its_golden_scores_and_says_how_it_scores(good, tmp_path, precision, absolute):
    recipe = run(good, tmp_path, precision=precision, absolute=absolute)
    inspector = Inspector(recipe, threads=1)
    assert check_golden(inspector) <= recipe.spec.golden.tolerance
    parameters = recipe.spec.model.parameters
    assert parameters["absolute"] is absolute
    if not absolute:  # the fit's own gate compares a recipe's scores with plain distances
        assert 0.5 < inspector.score(render_part(1, 900, 96, 80, 0.0).pixels).score < 3


def test_good_parts_of_a_recipe_score_around_one_and_below_three(good, tmp_path, monkeypatch):
    found = {}

    def kept(plan, model, fitted, folder, progress):
        found[plan.kind.name] = fitted.held_out

    monkeypatch.setattr("calibrate.fit.publish", kept)
    run(good, tmp_path)
    run(good, tmp_path, model="patchcore", coreset="10%")
    assert all(0.7 < np.median(held_out) < 3 for held_out in found.values())
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
