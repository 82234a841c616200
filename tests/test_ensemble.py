"""Tile ensembles: a model for each tile's place, joined, and fitted the same wherever the work is done."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from calibrate import cluster as clusters
from calibrate.blind import Blind, Squares
from calibrate.candidates import Ground, Sizes
from calibrate.chosen import fit_options
from calibrate.cli import _parser, main
from calibrate.cluster import Cluster
from calibrate.efficientad import settings
from calibrate.efficientad.train import Training
from calibrate.ensemble import TileLevels, level_tiles
from calibrate.fit import estimate, fit, modelled
from calibrate.folds import Folds
from calibrate.golden import Scored
from calibrate.kinds import Learned
from calibrate.options import FitOptions
from calibrate.parallel import Here, Processes, alone, in_order, workers
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.spool import Spool
from calibrate.store import activate
from calibrate.tile_banks import fit_tile
from calibrate.tiles import Joiner, plan
from inspectord.errors import FitError, RecipeError
from inspectord.inspect import Inspector, compile_model
from inspectord.judge import regions
from inspectord.recipe import MARKED, load_recipe
from inspectord.sources.files import read_image
from inspectord.sources.parts import render_part
from tests.helpers_parts import write_parts

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LEFT = (0, 0, 48, 80)  # of the good frames, 96 x 80: what the first of 1 x 2 tiles sees


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of 32 good parts, 96 x 80: as many as a network needs."""
    return write_parts(tmp_path_factory.mktemp("good"), range(32))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(settings, "LITE", dataclasses.replace(settings.LITE, batch=2))


def wanted(folder, tmp_path, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder,),
        model="padim",
        layers=("joined",),  # so small a tile has few cells of 8 pixels, and none of 16 to spare
        grid=(1, 2),
        dimensions=12,
        threads=1,
        memory_mb=100_000,  # a test process has already had its peak, which is counted
        extendable=False,
    )
    return dataclasses.replace(base, **changes)


def learned(folder, tmp_path, progress=None, **changes):
    """The bytes of the graph's weights, the held-out scores, and the graph."""
    ready = prepare(wanted(folder, tmp_path, **changes), Silent())
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    with ready.kind.trained(ready, progress or Silent()) as known:
        model, fitted = modelled(known, scratch, progress or Silent())
    ov.serialize(model, scratch / "model.xml", scratch / "model.bin")
    return (scratch / "model.bin").read_bytes(), fitted.held_out, scratch / "model.xml"


def maps(xml, frames):
    compiled = compile_model(xml, "CPU", "f32", threads=1)
    return [compiled([pixels[None]])["anomaly_map"].copy() for pixels in frames]


PER_TILE = [
    {"model": "padim"},
    {"model": "patchcore", "per_tile": True, "coreset": "20%", "folds": "4", "grid": (2, 3)},
    {"model": "efficientad-lite", "per_tile": True, "steps": 3},
]


@pytest.mark.parametrize("kind", PER_TILE, ids=lambda kind: kind["model"])
def test_each_tile_has_the_model_that_its_place_alone_would_have(good, tmp_path, kind):
    """PaDiM too, without being asked: its statistics are of one position of one tile."""
    plainly = {**kind, "absolute": True, "smoothing_px": 0.0, "grid": (1, 2)}
    frames = [render_part(1, 500 + n, 96, 80, 0.5).pixels for n in range(3)]
    whole = maps(learned(good, tmp_path, **plainly)[2], frames)
    alone = {"grid": None, "roi": LEFT, "per_tile": False}
    left = maps(learned(good, tmp_path, **plainly | alone)[2], frames)
    for joined, expected in zip(whole, left, strict=True):
        assert np.allclose(joined[:, : expected.shape[1]], expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_one_bank_of_all_tiles_is_another_model_than_a_bank_a_tile(good, tmp_path):
    found = [learned(good, tmp_path, **PER_TILE[1] | {"per_tile": flag})[1] for flag in (True, False)]
    assert not np.allclose(*found, rtol=0.01)


def test_a_tile_where_nothing_counts_has_no_bank_and_is_never_strange(good, tmp_path):
    right = (((47, 0), (95, 0), (95, 79), (47, 79)),)
    kind = PER_TILE[1] | {"grid": (1, 2)}
    _, held_out, xml = learned(good, tmp_path, ignore_polygons=right, **kind)
    frame = render_part(1, 900, 96, 80, 0.0).pixels
    found = maps(xml, [frame])[0]
    assert found[:, : found.shape[1] // 2].max() > 0
    assert (found[:, found.shape[1] // 2 + 1 :] == 0).all()
    assert np.isfinite(held_out).all()


def test_of_a_tile_too_a_held_out_frame_is_measured_by_what_never_knew_it():
    features = np.random.default_rng(0).standard_normal((13, 9, 6)).astype(np.float32)
    features[4] += 50
    folds, every = np.arange(12) % 4, np.ones(12, bool)
    ground = Ground(np.ones(9, bool), np.zeros((9, 2)), folds, 0, 0.0)
    found = fit_tile(features, ground, Sizes.chosen(9, 12, 6, "50%"), every, np.array([4, 12]))
    assert (found.away[4] > 60).all()
    assert (np.delete(found.away, 4, axis=0) < 10).all()
    assert (found.checked < 10).all()


# --- joined to one score ---


@pytest.fixture(scope="module")
def recipe(good, tmp_path_factory):
    """PaDiM in 2 x 3 tiles that share pixels, normalised tile by tile; the score is the mean of two tiles."""
    options = wanted(
        good, tmp_path_factory.mktemp("top"), grid=(2, 3), overlap=8, top_tiles=2, normalise="tile"
    )
    return fit(prepare(options, Silent()), Silent())


def test_the_frames_score_is_the_mean_of_its_highest_tiles(recipe):
    """And the fit's own gate compared it with the statistics."""
    result = Inspector(recipe, threads=1).score(render_part(1, 700, 96, 80, 1.0).pixels)
    assert len(result.tile_scores) == 6
    assert result.score == pytest.approx(np.sort(result.tile_scores)[-2:].mean(), rel=1e-5)
    assert result.score < result.tile_scores.max()


def test_the_recipe_says_how_it_is_joined(recipe):
    parameters = recipe.spec.model.parameters
    assert (parameters["score"], parameters["normalise"]) == ("top-2", "tile")


def test_a_defect_across_a_seam_is_one_box(recipe):
    inspector = Inspector(recipe, threads=1)
    struck = render_part(1, 700, 96, 80, 0.0).pixels.copy()
    seams = recipe.spec.frame.width // 3, recipe.spec.frame.height // 2
    x, y = seams
    struck[y - 14 : y + 14, x - 14 : x + 14] = 255
    result = inspector.score(struck)
    assert result.score > recipe.spec.limits.score
    boxes = regions(result.anomaly_map, recipe.spec)
    left, top, width, height = boxes[0]
    assert left < x < left + width
    assert top < y < top + height
    assert len(boxes) == 1


def synthetic(tmp_path, each, frames=30):
    """Learned distances of 1 x 3 tiles, by number of the tile so much larger; and their joiner."""
    geometry = plan((0, 0, 96, 32), 8, 8, grid=(1, 3))
    rng = np.random.default_rng(0)
    positions = geometry.tiles * 16
    scale = np.repeat(np.array(each), 16)
    values = (1 + rng.random((frames, positions))) * scale
    spools = []
    for count in (frames, 3):
        spools.append(Spool(tmp_path, count, positions, 1, positions))
        for number in range(count):
            spools[-1].write_frame(number, values[number][:, None])
    joiner = Joiner(geometry, np.ones(geometry.map_shape, bool), 0.0)
    return Learned(None, *spools, {}), joiner, values


def each_alone(frames):
    return Folds(np.arange(frames), np.ones(frames, bool))


def test_normalised_by_tile_good_frames_score_alike_in_every_tile(tmp_path):
    """Without it, the tile whose distances are ten times as large would decide alone."""
    found, joiner, values = synthetic(tmp_path, (1.0, 10.0, 3.0))
    levels, fitted = level_tiles(found, joiner, each_alone(30), Silent())
    scores = np.array([joiner.tile_scores(joiner(levels.relative(frame))) for frame in values])
    assert np.allclose(scores.mean(axis=0)[1:], 1, rtol=0.01)
    assert np.allclose(fitted.checked, scores[:3].max(axis=1), rtol=1e-6)


def test_a_tile_where_hardly_anything_happens_is_not_blown_up(tmp_path):
    levels, _ = level_tiles(*synthetic(tmp_path, (1.0, 1e-6, 1.0))[:2], each_alone(30), Silent())
    assert levels.usual[1] > 0.2


def test_a_held_out_frame_is_scored_by_what_is_usual_without_it(tmp_path):
    found, joiner, values = synthetic(tmp_path, (1.0, 1.0, 1.0), frames=12)
    _, fitted = level_tiles(found, joiner, each_alone(12), Silent())
    tiles = np.array([joiner.tile_scores(joiner(frame)) for frame in values])
    others = TileLevels.of(np.delete(tiles, 5, axis=0))
    assert fitted.held_out[5] == pytest.approx((tiles[5] / others.usual).max(), rel=1e-6)


def test_of_tiles_that_disagree_the_blur_leaves_no_seam():
    geometry = plan((0, 0, 256, 64), 8, 8, grid=(1, 2))
    steps = np.repeat([0.0, 1.0], geometry.tile_grid[0] * geometry.tile_grid[1])
    sharp, soft = (Joiner(geometry, np.ones(geometry.map_shape, bool), sigma)(steps) for sigma in (0, 2))
    assert np.abs(np.diff(sharp)).max() == 1
    assert np.abs(np.diff(soft)).max() < 0.25


# --- whether it finds anything ---


def test_a_recipe_that_sees_a_square_in_the_middle_but_not_in_one_of_its_tiles_is_refused(tmp_path):
    """Whatever lies in the corner is good there, and the limit is of that corner."""
    folder, rng = tmp_path / "corner", np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        pixels = render_part(1, number, 96, 80, 0.0).pixels
        for _ in range(3):
            x, y, grey = rng.integers((72, 56, 0), (90, 74, 255)).tolist()
            cv2.rectangle(pixels, (x, y), (x + 6, y + 6), grey, -1)
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)
    blind = PER_TILE[1] | {"dimensions": None, "relight": False}
    with pytest.raises(FitError) as refused:
        fit(prepare(wanted(folder, tmp_path, **blind), Silent()), Silent())
    said = str(refused.value)
    assert "flange/0001 was stored but not activated" in said
    assert "passes in 1 of 6 tiles (row/column 2/3), so the recipe would find no defects there. " in said
    assert "leave --per-tile out" in said
    recipes = tmp_path / "recipes"
    stored = load_recipe(recipes / "flange" / "0001")
    marked = next(frame for frame in stored.golden() if frame.path.name == MARKED)
    assert marked.score > stored.spec.limits.score
    assert stored.spec.golden.blind_tiles == (5,)
    assert stored.is_blind
    with pytest.raises(RecipeError, match=r"passes in 1 of 6 tiles \(row/column 2/3\)"):
        activate(recipes, "flange")


def painted_in(recipe_plan, path):
    """The golden frame that an image is a copy of, and the tiles, of 2 x 3, in which it differs."""
    pixels = read_image(path)
    others = [(pixels != recipe_plan.good.read(int(index))).any(axis=2) for index in recipe_plan.golden]
    frame = int(np.argmin([changed.sum() for changed in others]))
    return frame, others[frame].reshape(2, 40, 3, 32).any(axis=(1, 3)).ravel()


@pytest.mark.parametrize(("top", "passed", "blind"), [(1, {2, 4, 5}, (2, 4)), (2, {1, 2, 4, 5}, (1, 2, 4))])
def test_a_tile_is_blind_where_the_square_passes_in_every_golden_frame(good, tmp_path, top, passed, blind):
    """And of a frame's score: the mean of two tiles hardly rises where only one of them is struck.

    Only where it passes in the first golden frame are the others painted.
    """
    ready = prepare(wanted(good, tmp_path, grid=(2, 3), top_tiles=top), Silent())
    found, never = [5.0, 2.5, 2.0, 5.0, np.nan, 1.0], [1.0, 2.5, 1.0, 1.0, 1.0, 1.0]
    by_frame, painted = [found, never, never, never, [1.0, 2.5, 1.0, 1.0, 1.0, 5.0]], []

    def score(paths):
        painted.append([painted_in(ready, path) for path in paths])
        rows = [np.where(tiles, by_frame[frame], 1.0) for frame, tiles in painted[-1]]
        return Scored(np.full(len(rows), 9.0), np.array(rows), np.empty(0))

    squares = Squares.of(ready)
    first = squares.write(tmp_path, [0])
    struck = score([square.image for square in first]).tile_scores
    tiles = np.vstack([np.ones((len(ready.checked), 6)), struck])
    scored = Scored(np.full(len(tiles), 9.0), tiles, np.empty(0))
    answer = Blind.of(2.0, scored, squares, first, tmp_path, score)
    assert (answer.middle, answer.tiles) == (False, blind)
    once, again = painted
    assert {frame for frame, _ in once} == {0}
    assert len(once) == 4
    assert {(frame, tile) for frame, struck in again for tile in np.flatnonzero(struck)} == {
        (frame, tile) for frame in range(1, 5) for tile in passed
    }


def test_where_every_tile_finds_its_square_nothing_more_is_scored(good, tmp_path):
    ready = prepare(wanted(good, tmp_path, grid=(2, 3)), Silent())
    squares = Squares.of(ready)
    first = squares.write(tmp_path, [0])
    tiles = np.vstack([np.ones((len(ready.checked), 6)), np.full((len(first), 6), 5.0)])
    scored = Scored(np.full(len(tiles), 9.0), tiles, np.empty(0))
    assert not Blind.of(2.0, scored, squares, first, tmp_path, lambda _: pytest.fail("scored again"))


def test_squares_lie_inside_every_tile_that_is_looked_at_and_nowhere_else(good, tmp_path):
    corner = (((0, 0), (31, 0), (31, 39), (0, 39)),)
    ready = prepare(wanted(good, tmp_path, grid=(2, 3), ignore_polygons=corner), Silent())
    squares = Squares.of(ready)
    assert not squares.note()
    copies = squares.write(tmp_path, range(5))
    assert {tile for square in copies for tile in square.tiles} == {1, 2, 3, 4, 5}
    for square in copies:
        frame, tiles = painted_in(ready, square.image)
        assert (frame, tuple(np.flatnonzero(tiles))) == (square.frame, square.tiles)
        changed = read_image(square.image) != ready.good.read(int(ready.golden[frame]))
        assert changed.any(axis=2).sum() == len(square.tiles) * 10 * 10


def test_a_tile_with_too_little_to_look_at_for_a_square_is_named(good, tmp_path):
    all_but_four_rows = (((0, 0), (31, 0), (31, 35), (0, 35)),)
    squares = Squares.of(
        prepare(wanted(good, tmp_path, grid=(2, 3), ignore_polygons=all_but_four_rows), Silent())
    )
    assert set(squares.boxes) == {1, 2, 3, 4, 5}
    assert "what is found in 1 of 6 tiles (row/column 1/1)" in " ".join(squares.note())


def test_squares_of_tiles_that_overlap_by_more_than_half_do_not_undo_each_other(good, tmp_path):
    """All that is looked at lies in many tiles, so that their squares meet in the same copy."""
    window = (
        ((0, 0), (95, 0), (95, 25), (0, 25)),
        ((0, 46), (95, 46), (95, 79), (0, 79)),
        ((0, 0), (25, 0), (25, 79), (0, 79)),
        ((46, 0), (95, 0), (95, 79), (46, 79)),
    )
    ready = prepare(wanted(good, tmp_path, grid=None, tile=48, overlap=36, ignore_polygons=window), Silent())
    squares = Squares.of(ready)
    met = [sorted(str(squares.boxes[tile]) for tile in each.tiles) for each in squares.write(tmp_path, [0])]
    assert any(len(set(boxes)) < len(boxes) for boxes in met)
    for copy in squares.write(tmp_path, [0, 3]):
        plain = ready.good.read(int(ready.golden[copy.frame]))
        changed = read_image(copy.image) - plain == 128
        assert copy.tiles
        assert all(changed[squares.boxes[tile]].all() for tile in copy.tiles)


@pytest.mark.parametrize(("overlap", "copies"), [(0, 4), (16, 9)])
def test_squares_of_one_copy_lie_in_tiles_that_do_not_touch(good, tmp_path, overlap, copies):
    """Or each would show in the wide map of the next."""
    ready = prepare(wanted(good, tmp_path, grid=None, tile=32, overlap=overlap), Silent())
    axes = ready.geometry.rows, ready.geometry.columns
    written = Squares.of(ready).write(tmp_path, [0])
    assert len(written) == copies
    for copy in written:
        places = [divmod(tile, len(axes[1].offsets)) for tile in copy.tiles]
        for axis, ats in zip(axes, zip(*places, strict=True), strict=True):
            starts = sorted({axis.offsets[at] for at in ats})
            assert all(later - first > axis.tile for first, later in pairwise(starts))


def test_a_reweighted_score_is_asked_in_every_tile_too(good, tmp_path):
    kind = PER_TILE[1] | {"per_tile": False, "absolute": True, "reweight": 3}
    xml = learned(good, tmp_path, **kind)[2]
    compiled = compile_model(xml, "CPU", "f32", threads=1)

    def scores(pixels):
        found = compiled([pixels[None]])
        assert found["score"].item() == found["tile_scores"].max()
        return found["tile_scores"].copy()

    ready = prepare(wanted(good, tmp_path, **kind), Silent())
    copies, plain = Squares.of(ready).write(tmp_path, [0]), scores(ready.good.read(0))
    assert {tile for copy in copies for tile in copy.tiles} == set(range(6))
    for copy in copies:
        rose = scores(read_image(copy.image)) > 1.5 * plain
        assert tuple(np.flatnonzero(rose)) == copy.tiles


# --- the work, wherever it is done ---


def square(number):
    return number * number


def test_units_are_drawn_only_a_few_ahead():
    drawn = []

    def units():
        for number in range(10):
            drawn.append(number)
            yield (number,)

    class Done:
        def __init__(self, value):
            self.value = value

        def result(self):
            return self.value

    results = in_order(lambda unit: Done(square(*unit)), units(), 3)
    assert next(results) == 0
    assert len(drawn) == 3
    assert list(results) == [number**2 for number in range(1, 10)]


@pytest.fixture(scope="module")
def one_after_the_other(good, tmp_path_factory):
    """What a fit without --jobs and --on gives, by the model's name."""
    found = {}

    def fitted(kind):
        name = kind["model"]
        if name not in found:
            found[name] = learned(good, tmp_path_factory.mktemp(name), **kind)
        return found[name]

    return fitted


@pytest.mark.parametrize("kind", PER_TILE, ids=lambda kind: kind["model"])
def test_fitted_in_processes_every_bit_is_as_one_after_the_other(
    good, tmp_path, kind, one_after_the_other, monkeypatch
):
    alone = one_after_the_other(kind)
    monkeypatch.setattr("calibrate.padim.block_width", lambda *_: 16)
    together = learned(good, tmp_path, **kind, jobs=2)
    assert alone[0] == together[0]
    assert np.array_equal(alone[1], together[1])


def test_of_networks_for_each_tile_a_fit_that_was_stopped_goes_on(
    good, tmp_path, one_after_the_other, monkeypatch
):
    class StopsAtTheFirst(Silent):
        def track(self, items, what, total=None):
            for item in items:
                yield item
                if what == "training tiles":
                    raise KeyboardInterrupt

    kind, learn, steps = PER_TILE[2], Training._learn, []
    with pytest.raises(KeyboardInterrupt):
        learned(good, tmp_path, StopsAtTheFirst(), **kind)
    monkeypatch.setattr(Training, "_learn", lambda *args: steps.append(args) or learn(*args))
    assert learned(good, tmp_path, **kind)[0] == one_after_the_other(kind)[0]
    assert len(steps) == kind["steps"]  # of the second tile


def test_a_process_that_is_killed_is_one_error_with_the_next_step():
    with pytest.raises(FitError, match="fewer --jobs"), Processes(2) as by:
        list(by.run(os._exit, [(1,), (1,)]))


def test_units_really_run_in_other_processes():
    with Processes(2) as by:
        assert os.getpid() not in set(by.run(os.getpid, [()] * 4))
    assert set(Here().run(os.getpid, [()])) == {os.getpid()}


def test_a_unit_has_one_thread_wherever_it_is_computed():
    """Two would give other bits, and take longer for small matrices."""
    with threadpool_limits(limits=2):
        before = [library["num_threads"] for library in threadpool_info()]
        here = next(Here().run(threadpool_info, [()]))
        assert [library["num_threads"] for library in threadpool_info()] == before
        there = alone(threadpool_info, ())
    for found in (here, there):
        assert {library["num_threads"] for library in found} == {1}
    assert 2 in before


def test_no_process_outlives_a_fit_that_is_killed(tmp_path):
    code = (
        "import time\nfrom calibrate.parallel import Processes\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    with Processes(1) as by:\n"
        "        units = by.run(time.sleep, [(0,), (60,)])\n"
        "        next(units)\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        next(units)\n"
    )
    script = tmp_path / "fit.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and _state(child) != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}") or _state(child) == "Z"


def _state(child):
    try:
        with open(f"/proc/{child}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


# --- on a cluster ---


@pytest.fixture(scope="module")
def local():
    """A scheduler and two workers, each a process of its own."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=":0"
    ) as found:
        yield found


def address(local):
    return "dask://" + local.scheduler_address.removeprefix("tcp://")


class KillsAWorker(Silent):
    """At the first result after which one is in the middle of something, that worker dies."""

    def __init__(self, local):
        super().__init__()
        self.local, self.killed = local, None

    def track(self, items, what, total=None):
        for item in items:
            yield item
            if what == "fitting tiles" and self.killed is None:
                busy = {ws.address for ws in self.local.scheduler.workers.values() if ws.processing}
                nannies = [each for each in self.local.workers.values() if each.worker_address in busy]
                if nannies:
                    self.killed = nannies[0].pid
                    os.kill(self.killed, signal.SIGKILL)


def test_a_cluster_fits_the_same_bits_though_a_worker_is_killed(good, tmp_path, local, one_after_the_other):
    kind, progress = PER_TILE[1], KillsAWorker(local)
    alone = one_after_the_other(kind)
    there = learned(good, tmp_path, progress, **kind, on=address(local))
    assert progress.killed is not None
    assert alone[0] == there[0]
    assert np.array_equal(alone[1], there[1])


def test_so_it_does_with_padim(good, tmp_path, local, one_after_the_other, monkeypatch):
    monkeypatch.setattr("calibrate.padim.block_width", lambda *_: 16)
    there = learned(good, tmp_path, **PER_TILE[0], on=address(local))
    assert there[0] == one_after_the_other(PER_TILE[0])[0]


def test_networks_trained_on_other_boxes_leave_no_checkpoint_there(
    good, tmp_path, one_after_the_other, monkeypatch
):
    """And are the same; the workers are this process here, for torch takes long to load in others."""
    kind, network = PER_TILE[2], one_after_the_other(PER_TILE[2])
    monkeypatch.setattr("calibrate.efficientad.per_tile.workers", lambda _: nullcontext(Here()))
    monkeypatch.setattr("calibrate.cluster.Cluster", lambda _: nullcontext())
    assert learned(good, tmp_path, **kind, on="dask://elsewhere:1")[0] == network[0]
    assert not list((tmp_path / "recipes").rglob("*.pt"))


def test_of_networks_for_each_tile_a_cluster_gives_the_recipe_of_one_box(good, tmp_path, local, monkeypatch):
    """The whole command: with the cluster's two processes, and one tile after the other."""

    def fitted(where, *more):
        recipes = tmp_path / where
        words = f"fit {good} --product flange --recipes {recipes} --model efficientad-lite --per-tile"
        words += " --grid 1x2 --steps 3 --threads 1 --memory-mb 100000 --no-activate"
        assert main([*words.split(), *more]) == 0
        return load_recipe(recipes / "flange" / "0001")

    monkeypatch.setattr("calibrate.efficientad.train.TIMED_S", 0.01)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(Training, "run", lambda _: pytest.fail("trained on this box"))
        there = fitted("there", "--on", address(local))
    here = fitted("here")
    assert there.spec.limits == here.spec.limits
    assert [frame.score for frame in there.golden()] == [frame.score for frame in here.golden()]
    weights = [recipe.model_path.with_suffix(".bin").read_bytes() for recipe in (there, here)]
    assert weights[0] == weights[1]
    assert there.hash == here.hash


def test_a_worker_of_another_version_is_refused(local, monkeypatch):
    monkeypatch.setattr(clusters, "__version__", "9.9.9")
    with (
        pytest.raises(FitError, match=r"has inspectord .* this box 9\.9\.9; install the same"),
        Cluster(address(local)),
    ):
        pass


def test_an_error_of_a_unit_comes_back_as_it_was(local):
    with Cluster(address(local)) as by, pytest.raises(ZeroDivisionError):
        list(by.run(divmod, [(1, 0)]))


def test_where_no_scheduler_answers_the_fit_says_so_before_any_work(good, tmp_path, monkeypatch):
    """In no time, though dask itself would try again and again; and before the frames are read."""
    monkeypatch.setattr("calibrate.plan.collect_good_frames", lambda *_: pytest.fail("frames were read"))
    began = time.monotonic()
    with pytest.raises(FitError, match=r"no dask scheduler answers at dask://127\.0\.0\.1:9; start one"):
        prepare(wanted(good, tmp_path, on="dask://127.0.0.1:9"), Silent())
    assert time.monotonic() - began < clusters.ANSWER_S / 2


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_what_answers_and_is_no_scheduler_is_told_from_one_in_a_few_seconds(says, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    callers.append(caller)
                    caller.sendall(says)

        callers = []
        threading.Thread(target=answer, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(FitError, match="no dask scheduler answers at dask://127"):
            Cluster(f"dask://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 5
        server.shutdown(socket.SHUT_RDWR)
    for caller in callers:
        caller.close()


def test_a_name_that_nobody_knows_keeps_no_fit_waiting(monkeypatch):
    pytest.importorskip("distributed")
    asked = threading.Event()
    monkeypatch.setattr(clusters, "ANSWER_S", 0.1)
    monkeypatch.setattr(clusters.socket, "create_connection", lambda *_: asked.wait(30))
    began = time.monotonic()
    with pytest.raises(FitError, match="no dask scheduler answers at dask://nohost:1"):
        Cluster("dask://nohost:1")
    asked.set()
    assert time.monotonic() - began < 5


class Busy:
    """In front of a scheduler: who calls first or second hears it so many seconds late."""

    def __init__(self, scheduler, late_s):
        self._scheduler, self._late_s = scheduler, [late_s, late_s]
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"dask://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=self._server.accept()[:1], daemon=True).start()

    def _answer(self, caller):
        host, _, port = self._scheduler.removeprefix("dask://").rpartition(":")
        time.sleep(self._late_s.pop() if self._late_s else 0.0)
        there = socket.create_connection((host, int(port)))
        threading.Thread(target=self._copy, args=(caller, there), daemon=True).start()
        self._copy(there, caller)

    @staticmethod
    def _copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_a_busy_scheduler_is_waited_for_and_longer_once_there_is_work_to_lose(local, monkeypatch):
    with Busy(address(local), late_s=2.2) as busy, Cluster(busy.address) as by:
        assert list(by.run(divmod, [(7, 2)])) == [(3, 1)]
    monkeypatch.setattr(clusters, "ANSWER_S", 0.2)
    with Busy(address(local), late_s=0.5) as busy, pytest.raises(FitError, match="no dask scheduler answers"):
        Cluster(busy.address)
    with (
        Busy(address(local), late_s=0.5) as busy,
        workers(FitOptions("flange", Path(), (), model="padim", on=busy.address)) as by,
    ):
        assert list(by.run(divmod, [(7, 2)])) == [(3, 1)]


def test_an_address_that_leads_nowhere_leaves_time_for_the_next(local, monkeypatch):
    """A name's first address is often an IPv6 one that no packet reaches."""
    connect, waited = socket.create_connection, []

    def second(where, timeout):
        time.sleep(timeout)
        waited.append(timeout)
        return connect(where, timeout)

    monkeypatch.setattr(clusters.socket, "create_connection", second)
    with Cluster(address(local)):
        assert waited == [2.0]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "Out of memory, on worker .*; free some there"),
        (OSError("no such graph"), "no such graph, on worker .*; mend it there"),
        (TimeoutError(), "TimeoutError, on worker .*; mend it there"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error, on worker .*; mend it there"),
    ],
)
def test_a_worker_says_what_went_wrong_and_only_memory_is_called_so(error, says):
    def fails():
        raise error

    with pytest.raises(FitError, match=f"^{says}, or leave that worker out$"):
        clusters.computed(clusters.installed(), fails, ())


def fails_on_its_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/calibrate-x1/checkpoint.pt.part")


def test_a_worker_whose_disk_is_full_is_named_and_not_its_temporary_files():
    with pytest.raises(FitError) as found:
        clusters.computed(clusters.installed(), fails_on_its_disk, ())
    assert str(found.value).startswith(f"No space left on device, on worker {platform.node()}; free some")
    assert "/tmp" not in str(found.value)


def test_a_network_that_fails_elsewhere_is_named_by_its_tile_and_not_by_a_temporary_file(
    good, tmp_path, monkeypatch
):
    monkeypatch.setattr("calibrate.efficientad.per_tile.workers", lambda _: nullcontext(Here()))
    monkeypatch.setattr("calibrate.cluster.Cluster", lambda _: nullcontext())
    monkeypatch.setattr("calibrate.efficientad.train.descend", lambda *_: False)
    with pytest.raises(FitError, match=r"^tile 1 of 2: .* not finite at step 0; fit with") as found:
        learned(good, tmp_path, **PER_TILE[2], on="dask://elsewhere:1")
    assert ".pt" not in str(found.value)
    assert not list((tmp_path / "recipes").rglob(".*.training"))


def test_a_scheduler_without_workers_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "ANSWER_S", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        pytest.raises(FitError, match=r"has no workers; start some with `dask worker"),
        Cluster(address(empty)),
    ):
        pass


# --- what does nothing is refused ---


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"per_tile": True}, "padim knows every position .* leave --per-tile out"),
        ({"model": "patchcore", "per_tile": True, "grid": None}, "give --tile or --grid"),
        ({"model": "patchcore", "jobs": 2}, "leave --jobs out, or give --per-tile"),
        ({"model": "patchcore", "on": "dask://a:1"}, "leave --on out, or give --per-tile"),
        ({"jobs": 2, "on": "dask://a:1"}, "exclude each other"),
        ({"top_tiles": 3}, "more tiles than the 2"),
        ({"normalise": "tile", "absolute": True}, "leave --normalise out"),
        ({"model": "patchcore", "absolute": True, "reweight": 3, "top_tiles": 2}, "one strangest patch"),
        ({"model": "patchcore", "per_tile": True, "extendable": True}, "no frames can be added"),
    ],
)
def test_what_would_do_nothing_is_refused_with_the_next_step(good, tmp_path, wish, says):
    with pytest.raises(FitError, match=says):
        prepare(wanted(good, tmp_path, **wish), Silent())


@pytest.mark.parametrize("kind", PER_TILE, ids=lambda kind: kind["model"])
def test_memory_for_all_processes_together_is_foreseen(good, tmp_path, kind):
    ready = prepare(wanted(good, tmp_path, **kind, jobs=8, memory_mb=800), Silent())
    with pytest.raises(FitError, match=r"--memory-mb \d+"):
        estimate(ready)


def test_the_flags_are_what_a_fit_takes():
    words = (
        "fit good --product p --model patchcore --tile 64 --per-tile --score top-3 --normalise tile --jobs 2"
    )
    options = fit_options(_parser().parse_args(words.split()))
    assert (options.per_tile, options.top_tiles, options.normalise, options.jobs) == (True, 3, "tile", 2)


@pytest.mark.parametrize("words", ["--score top-0", "--score 3", "--on 10.0.0.1:8786", "--on dask://host"])
def test_flags_that_say_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["fit", "good", "--product", "p", *words.split()])
    assert "give it as in" in capsys.readouterr().err
