"""calibrate fit --model patchcore-seg or padim-seg, --adapt: taught by made-up defects, judged held out."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

torch = pytest.importorskip("torch")

from calibrate import adapt  # noqa: E402
from calibrate.bank import Bank  # noqa: E402
from calibrate.blind import Blind  # noqa: E402
from calibrate.candidates import counting  # noqa: E402
from calibrate.cli import main  # noqa: E402
from calibrate.extend import Wanted, prepare_extension  # noqa: E402
from calibrate.fit import estimate, fit  # noqa: E402
from calibrate.metrics import auroc  # noqa: E402
from calibrate.options import ADAPTED, FitOptions  # noqa: E402
from calibrate.plan import prepare  # noqa: E402
from calibrate.pretrain import defects  # noqa: E402
from calibrate.progress import Silent  # noqa: E402
from calibrate.segmented import kind, train  # noqa: E402
from calibrate.segmented.network import (  # noqa: E402
    Gaussians,
    Known,
    SegmentedHead,
    Segmenter,
    inverse_root,
    lengths,
)
from calibrate.segmented.strikes import Strikes, together  # noqa: E402
from calibrate.segmented.train import Check, Part, Seen, Training  # noqa: E402
from calibrate.sums import Sums  # noqa: E402
from inspectord.errors import FitError  # noqa: E402
from inspectord.inspect import Inspector, check_golden  # noqa: E402
from inspectord.recipe import active_recipe, load_recipe  # noqa: E402
from inspectord.sources.parts import render_part  # noqa: E402
from tests.helpers_parts import write_parts  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FRAMES = 80


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of good parts, 96 x 80."""
    return write_parts(tmp_path_factory.mktemp("parts"), range(FRAMES))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    monkeypatch.setattr(train, "batch", lambda positions: 4)


def options(folder, tmp_path, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder,),
        model="padim-seg",
        backbone="lite",
        dimensions=24,
        steps=3,
        threads=1,
        memory_mb=100_000,  # the tests before it have taken much
        activate=False,  # so little training may find nothing, and fit says so
    )
    return dataclasses.replace(base, **changes)


def run(folder, tmp_path, progress=None, **changes):
    progress = progress or Silent()
    return fit(prepare(options(folder, tmp_path, **changes), progress), progress)


@pytest.fixture(scope="module")
def plan(parts, tmp_path_factory):
    return prepare(options(parts, tmp_path_factory.mktemp("plan")), Silent())


@pytest.fixture(scope="module")
def known(plan, tmp_path_factory):
    """Gaussians of all good frames, which is enough where honesty is not asked about."""
    strikes, everything = Strikes(plan), np.arange(FRAMES)
    nothing = [0.0] * FRAMES
    x, _ = strikes.draw(everything, everything, np.random.default_rng(0), defects.FAMILIES, nothing)
    gaussians = Gaussians.empty(tmp_path_factory.mktemp("known"), plan.positions, plan.reduction.dimensions)
    gaussians.write(0, Sums.of(x.numpy().transpose(1, 0, 2).astype(np.float64)), 0.01)
    return Known(gaussians)


def test_the_root_is_symmetric_and_undoes_the_covariance():
    x = np.random.default_rng(1).standard_normal((3, 40, 6))
    covariance = x.transpose(0, 2, 1) @ x
    root = inverse_root(covariance)
    np.testing.assert_allclose(root, root.transpose(0, 2, 1), atol=1e-12)
    np.testing.assert_allclose(root @ covariance @ root, np.broadcast_to(np.eye(6), (3, 6, 6)), atol=1e-9)
    with pytest.raises(FitError, match="singular; give a larger --epsilon"):
        inverse_root(np.zeros((1, 2, 2)))


def test_residuals_of_what_taught_have_mean_0_and_variance_1_and_no_correlation(tmp_path):
    x = np.random.default_rng(2).standard_normal((5, 400, 4)) @ np.random.default_rng(3).random((4, 4))
    gaussians = Gaussians.empty(tmp_path, 5, 4)
    gaussians.write(0, Sums.of(x[:2]), 1e-9)
    gaussians.write(2, Sums.of(x[2:]), 1e-9)
    z = gaussians.residuals(torch.from_numpy(x.transpose(1, 0, 2).astype(np.float32))).numpy()
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    for position in range(5):
        np.testing.assert_allclose(np.cov(z[:, position].T), np.eye(4), atol=5e-3)


@pytest.mark.parametrize("tiling", [{}, {"tile": 64}])
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_graph_gives_the_networks_distances(parts, tmp_path, tiling, everywhere):
    plan = prepare(options(parts, tmp_path, **tiling), Silent())
    assert (plan.geometry.tiles > 1) == bool(tiling)
    p, d = plan.positions, plan.reduction.dimensions
    rng = np.random.default_rng(4)
    gaussians = Gaussians.empty(tmp_path, 1 if everywhere else p, d)
    gaussians.write(0, Sums.of(rng.standard_normal((len(gaussians.mean), 50, d))), 0.01)
    bank = None
    if everywhere:
        members = rng.standard_normal((30, d)).astype(np.float32)
        bank = Bank(members, np.ones(d, np.float32), np.empty((p, 0), np.float32))
    segmenters = []
    for seed in range(2):
        torch.manual_seed(seed)
        segmenters.append(Segmenter(plan.geometry, d, least=0.7))
        torch.nn.init.normal_(
            segmenters[-1].layers[-1].weight, std=5.0
        )  # it begins with zeros, which hide the rest
    head = SegmentedHead(Known(gaussians, bank), tuple(segmenters), 2.0, plan.geometry)
    embeddings = op.parameter([p, d], np.float32)
    compiled = ov.Core().compile_model(
        ov.Model([head.build(embeddings.output(0))], [embeddings]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for spread in (1, 30):  # within what the networks see, and beyond
        x = rng.standard_normal((p, d)).astype(np.float32) * spread
        found, expected = compiled([x])[0], head.distances(x)
        assert expected.std() > 0.1 * expected.mean()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_farther_from_good_the_larger_the_distance_without_end(plan):
    torch.manual_seed(0)
    segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0)
    z = torch.randn(1, plan.positions, plan.reduction.dimensions)
    with torch.no_grad():
        far, farther, farthest = (
            segmenter.distances(z * times, lengths(z * times) / 3) for times in (30, 300, 3000)
        )
    assert (farther > 5 * far).all()
    assert (farthest > 5 * farther).all()


def test_what_is_drawn_depends_on_the_generator_alone_and_nothing_of_a_defect_is_a_good_frame(plan):
    strikes, some = Strikes(plan), np.arange(6)

    def draw(seed, amounts):
        return strikes.draw(some, some[::-1].copy(), np.random.default_rng(seed), defects.FAMILIES, amounts)

    (x, cover), (again, _), (other, _) = draw(1, [1.0] * 6), draw(1, [1.0] * 6), draw(2, [1.0] * 6)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    good, nothing = draw(1, [0.0] * 6)
    assert not nothing.any()
    assert (cover.amax(1) > 0).sum() >= 4
    struck = (x - good).abs().amax(2) > 0.3  # elsewhere the light of the whole frame is a little another
    assert struck[cover > 0.5].float().mean() > 0.8  # where the mask says so, features differ
    assert cover[~struck].mean() < 0.05


def test_large_frames_are_struck_a_few_at_once_and_come_back_in_order(plan, monkeypatch):
    """All sixteen of a batch of 512x512 pixels at once took more memory than a fit may by default."""
    assert (together((0, 0, 300, 300)), together((9, 9, 5000, 4000))) == (17, 6)
    strikes, some, strike, at_once = Strikes(plan), np.arange(7), defects.strike, []

    def counted(good, *rest):
        at_once.append(len(good))
        return strike(good, *rest)

    monkeypatch.setattr(defects, "strike", counted)
    monkeypatch.setattr("calibrate.segmented.strikes.AT_ONCE", 3 * 96 * 80)

    x, cover = strikes.draw(some, some, np.random.default_rng(1), defects.FAMILIES, [1.0] + [0.0] * 6)
    assert at_once == [3, 3, 1]
    assert cover[0].any()
    assert not cover[1:].any()
    for number in range(1, 7):
        alone = strikes.draw(some[number:][:1], some[:1], np.random.default_rng(0), defects.FAMILIES, [0.0])
        assert torch.equal(x[number], alone[0][0])


def test_ignored_pixels_are_never_called_struck(parts, tmp_path):
    half = ((0, 0), (48, 0), (48, 80), (0, 80))
    plan = prepare(options(parts, tmp_path, ignore_polygons=(half,)), Silent())
    some = np.arange(12)
    _, cover = Strikes(plan).draw(some, some, np.random.default_rng(5), defects.FAMILIES, [1.0] * 12)
    maps = cover.reshape(12, *plan.geometry.map_shape)
    assert maps[:, :, 7:].any()
    assert not maps[:, :, :6].any()


def test_of_a_large_frame_a_window_is_struck_and_gross_rectangles_lie_within(monkeypatch, parts, tmp_path):
    monkeypatch.setattr("calibrate.segmented.strikes.WINDOW_PX", 40)
    plan = prepare(options(parts, tmp_path), Silent())
    some = np.arange(12)
    drawn = Strikes(plan).draw(some, some, np.random.default_rng(6), defects.FAMILIES, [1.0] * 12, gross=1.0)
    maps = drawn[1].reshape(12, *plan.geometry.map_shape)
    assert (maps.sum((1, 2)) > 0).all()
    for each in maps:
        rows, columns = np.nonzero(each.numpy() > 0)
        assert max(np.ptp(rows), np.ptp(columns)) <= 40 // 8
    assert len({(int(each.sum(1).argmax()), int(each.sum(0).argmax())) for each in maps}) > 4


def test_a_network_learns_to_tell_families_that_it_is_not_shown(plan, known):
    """Where nothing is learned, as with a rate of 0, all cells are alike to it: 0.5."""
    strikes, everything = Strikes(plan), np.arange(FRAMES)
    check = Check.of(strikes, [Part(everything[::2], known)], 40, (3,), 1.0)
    parts = [Part(everything[1::2], known)]
    torch.manual_seed(0)
    training = Training(
        Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0), strikes, parts, check, 100, (0,)
    )
    assert list(training.run())[-1] == 100
    rng, some = np.random.default_rng(9), everything[::2]
    x, cover = strikes.draw(some, np.roll(some, 1), rng, defects.HELD_OUT, [1.0] * len(some))
    with torch.no_grad():
        told = training.kept(known.gaussians.residuals(x))
    assert auroc(told[cover == 0].numpy(), told[cover > 0.5].numpy()) > 0.9
    assert check.found(training.kept) == training.found


def test_training_stops_in_time_and_where_it_finds_no_more(monkeypatch, plan, known):
    strikes, everything = Strikes(plan), np.arange(FRAMES)
    check = Check.of(strikes, [Part(everything, known)], 16, (3,), 1.0)
    parts = [Part(everything, known)]

    def training(until=math.inf):
        torch.manual_seed(0)
        segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0)
        return Training(segmenter, strikes, parts, check, 30, (0,), until)

    late = training(until=-math.inf)
    assert list(late.run()) == [1]
    assert late.kept_step == 1
    assert late.late
    monkeypatch.setattr(train, "CHECK_EVERY", 2)
    found = iter([0.7, 0.9, 0.88, 0.5, 0.5, 0.5])  # of two checks that differ by little the later is kept
    monkeypatch.setattr(Check, "found", lambda self, segmenter: next(found))
    stuck = training()
    assert list(stuck.run())[-1] == 6 + 2 * train.PATIENCE
    assert (stuck.kept_step, stuck.found) == (6, 0.88)
    assert not stuck.late


def test_a_loss_that_is_not_finite_ends_the_training_with_its_step(plan, known):
    broken = Known(Gaussians(known.gaussians.mean, known.gaussians.root * math.nan))
    everything = np.arange(FRAMES)
    strikes = Strikes(plan)
    check = Check.of(strikes, [Part(everything, known)], 16, (3,), 1.0)
    segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0)
    training = Training(segmenter, strikes, [Part(everything, broken)], check, 5, (0,))
    with pytest.raises(
        FitError, match="not finite at step 0; look at the good frames, or do without --adapt"
    ):
        list(training.run())


@pytest.mark.parametrize(("model", "augment"), [("padim-seg", 0), ("padim-seg", 1), ("patchcore-seg", 0)])
def test_a_frame_is_judged_by_what_knows_nothing_of_it(monkeypatch, parts, tmp_path, model, augment):
    """Fails where a network is asked of its own half, where it was chosen by a frame that it is asked of, or
    where Gaussians or a bank are not those without the frame's part."""
    known, chosen, asked, lying = [], [], [], []
    real_check, real_distances, real_away = kind.Check.of, kind.distances, Known.away_of

    def check_of(strikes, parts, *rest):
        chosen.append(set(np.concatenate([part.members for part in parts]).tolist()))
        return real_check(strikes, parts, *rest)

    class Watched(kind.Training):
        def __init__(self, segmenter, strikes, parts, *rest):
            super().__init__(segmenter, strikes, parts, *rest)
            known.append((set(np.concatenate([part.members for part in parts]).tolist()), self))

    def judged(gaussians, segmenters, away, embeddings):
        asked.append((gaussians, segmenters, away, embeddings))
        return real_distances(gaussians, segmenters, away, embeddings)

    def away_of(self, embeddings):
        found = real_away(self, embeddings)
        lying.append((self, found))
        return found

    monkeypatch.setattr(kind.Check, "of", check_of)
    monkeypatch.setattr(kind, "Training", Watched)
    monkeypatch.setattr(kind, "distances", judged)
    monkeypatch.setattr(Known, "away_of", away_of)
    plan = prepare(options(parts, tmp_path, model=model, augment=augment, steps=1), Silent())
    fit(plan, Silent())
    copies = 1 + augment
    frame_of = [
        {sample // copies for sample in taught | asked_of}
        for (taught, _), asked_of in zip(known, chosen, strict=True)
    ]
    assert frame_of == [{n for n in range(FRAMES) if n % 4 in half} for half in ((0, 1), (2, 3))]
    for (taught, _), asked_of in zip(known, chosen, strict=True):
        assert len(asked_of) == FRAMES // 8
        assert not {sample // copies for sample in taught} & {sample // copies for sample in asked_of}
    assert len(asked) == FRAMES
    x = np.stack([embeddings for *_, embeddings in asked]).transpose(1, 0, 2).astype(np.float64)
    farthest = [found[counting(plan)].max() for _, found in lying[:FRAMES]]
    for number, (gaussians, (segmenter,), away, _) in enumerate(asked):
        without, found = lying[number]
        (own,) = [index for index, (_, training) in enumerate(known) if training.kept is segmenter]
        assert number not in frame_of[own]
        assert gaussians is without.gaussians
        rest = [value for other, value in enumerate(farthest) if other % 4 != number % 4]
        np.testing.assert_allclose(away * np.quantile(rest, 0.99), found, rtol=1e-5)
        others = x[:, np.arange(FRAMES) % 4 != number % 4]
        if without.bank is not None:
            np.testing.assert_allclose(gaussians.mean[0], others.mean((0, 1)), rtol=1e-4, atol=1e-5)
            members = (without.bank.members + without.bank.centre)[:: len(without.bank.members) // 20]
            apart = np.linalg.norm(others.reshape(-1, 1, x.shape[2]) - members, axis=2).min(0)
            assert apart.max() < 1e-4
        elif not augment:
            np.testing.assert_allclose(gaussians.mean, others.mean(1), rtol=1e-4, atol=1e-5)
    if model == "padim-seg" and not augment:
        covariance = np.cov(x[0, np.arange(FRAMES) % 4 != 3].T) + 0.01 * np.eye(x.shape[2])
        root = inverse_root(covariance[None])[0]
        np.testing.assert_allclose(asked[3][0].root[0], root, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ADAPTED.values())
def test_a_fit_publishes_an_ordinary_recipe_and_repeats_itself(parts, tmp_path, model):
    progress = Silent()
    first = run(parts, tmp_path, progress, model=model)
    assert any("of made-up defects of kinds that" in note for note in progress.notes)
    spec = first.spec
    assert spec.model.kind == model
    assert spec.model.parameters["steps"] == "3, 3"
    assert spec.limits.good_parts == FRAMES
    assert spec.limits.folds == "4 folds, each judged by the network that learned on others"
    assert "networks that were shown made-up defects" in (first.path / "report.html").read_text()
    check_golden(Inspector(load_recipe(first.path), threads=1))
    assert run(parts, tmp_path, model=model).hash == first.hash
    assert run(parts, tmp_path, model=model, seed=1).hash != first.hash
    with pytest.raises(FitError, match=f"{model}, which can't be extended; fit again from all good frames"):
        prepare_extension(Wanted(first.id, tmp_path / "recipes", (parts,)), Silent())


def test_of_each_batch_that_is_drawn_several_steps_are_taken(monkeypatch, plan, known):
    """One with itself; the others with one of the latest, whichever the seed says."""
    strikes, everything, drawn, taken = Strikes(plan), np.arange(FRAMES), [], []
    check = Check.of(strikes, [Part(everything, known)], 16, (3,), 1.0)
    real_draw, real_loss = Strikes.draw, Training._loss

    def draw(self, *rest, **more):
        drawn.append(len(taken))
        return real_draw(self, *rest, **more)

    def loss(self, residuals, cover):
        taken.append(residuals)
        return real_loss(self, residuals, cover)

    monkeypatch.setattr(Strikes, "draw", draw)
    monkeypatch.setattr(Training, "_loss", loss)
    segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0)
    list(Training(segmenter, strikes, [Part(everything, known)], check, 10, (0,)).run())
    assert drawn == [0, 4, 8]
    fresh = [taken[step] for step in drawn]
    assert len({id(each) for each in taken}) == 3
    assert all(any(each is one for one in fresh[: 1 + step // 4]) for step, each in enumerate(taken))
    assert any(each is not fresh[step // 4] for step, each in enumerate(taken))


def test_progress_follows_the_steps_or_the_clock_whichever_is_ahead(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(kind.time, "monotonic", lambda: next(now))  # began at 0, then a second for each step

    class Steps:
        def run(self):
            yield from range(1, 6)

    assert len(list(kind._percents(Steps(), steps=50, until=10.0))) == 50  # five of ten seconds
    assert list(kind._percents(Steps(), steps=5, until=math.inf)) == list(range(1, 101))


@pytest.mark.parametrize("model", ADAPTED.values())
def test_what_is_ignored_neither_teaches_nor_judges_a_network(parts, tmp_path, model):
    """Patches of what is filled in lie farther than any other from a bank that never saw one."""
    half = ((0, 0), (48, 0), (48, 80), (0, 80))
    plan = prepare(options(parts, tmp_path, model=model, ignore_polygons=(half,)), Silent())
    strikes, counts = Strikes(plan), torch.from_numpy(counting(plan))
    assert 0 < counts.sum() < len(counts)
    residuals = torch.rand(2, plan.positions, plan.reduction.dimensions)
    away = torch.where(counts, 1.0, 100.0).expand(2, -1)
    seen = Seen(residuals, away)
    assert seen.image_scores(lambda _, away: away, strikes.counting).tolist() == [1.0, 1.0]
    segmenter = Segmenter(plan.geometry, plan.reduction.dimensions, least=1.0)
    check, some = Check(seen, (seen,), strikes.counting), [Part(np.arange(4), None)]
    training = Training(segmenter, strikes, some, check, 1, (0,))
    cover = torch.where(counts, 0.0, 1.0).expand(2, -1)
    assert training._loss(residuals, cover) == training._loss(residuals, torch.zeros_like(cover))


def test_frames_too_alike_for_patchcore_are_adapted_with_padim(tmp_path):
    part = cv2.circle(np.full((64, 64), 60, np.uint8), (32, 32), 20, 180, -1)
    for number in range(FRAMES):
        noise = np.random.default_rng(number).normal(0, 0.5, part.shape)
        cv2.imwrite(str(tmp_path / f"{number}.png"), (part + noise).round().astype(np.uint8))
    with pytest.raises(FitError, match="so nearly that patchcore can't tell them apart; take --model padim"):
        run(tmp_path, tmp_path, model="patchcore-seg")
    told = Silent()
    recipe = run(tmp_path, tmp_path, told, model="usual", adapt=0.01, steps=None)
    assert recipe.spec.model.kind == "padim-seg"
    assert any(note.startswith("warning: good frames are too alike for patchcore") for note in told.notes)


def test_a_blind_recipe_sends_its_operator_to_the_kind_without_networks(plan):
    assert "or take --model padim without --adapt" in Blind(True, ()).words(plan, ["a.png"])


def test_tiles_and_colour_and_16_bits_are_fitted_alike(tmp_path):
    """The graph must repeat what torch says, or nothing is published."""
    folder = tmp_path / "colour"
    folder.mkdir()
    for number in range(FRAMES):
        grey = render_part(1, number, 96, 80, 0.0).pixels
        colour = np.stack([grey[..., 0], grey[..., 0] // 2 + 60, 255 - grey[..., 0]], 2)
        cv2.imwrite(str(folder / f"{number:03d}.png"), colour)
    for precision in ("f32", "bf16"):
        recipe = run(folder, tmp_path, tile=64, steps=2, precision=precision)
        assert recipe.spec.tiles.rows * recipe.spec.tiles.columns > 1
        assert recipe.spec.frame.pixel_format == "BGR8"
        check_golden(Inspector(load_recipe(recipe.path), threads=1))


def test_of_a_small_region_most_defects_lie_within(parts, tmp_path):
    plan = prepare(options(parts, tmp_path, roi=(60, 40, 24, 24)), Silent())
    some = np.arange(40)
    _, cover = Strikes(plan).draw(some, some, np.random.default_rng(7), defects.FAMILIES, [1.0] * 40)
    assert (cover.amax(1) > 0).sum() > 30


def test_where_no_defect_can_be_made_up_the_fit_says_so(monkeypatch, plan, known):
    nowhere = Strikes(plan)
    nowhere._valid[:] = False
    with pytest.raises(FitError, match=r"no defect could be made up .* choose another --roi or mask"):
        Check.of(nowhere, [Part(np.arange(8), known)], 8, (0,), 1.0)


def test_frames_that_are_all_the_same_are_refused(monkeypatch, parts, tmp_path):
    plan = prepare(options(parts, tmp_path), Silent())
    monkeypatch.setattr(Known, "away_of", lambda known, x: np.zeros(len(x), np.float32))
    with pytest.raises(FitError, match="all good frames are the same inside the region"):
        fit(plan, Silent())


def test_a_full_disk_is_an_error_and_no_signal(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Gaussians.empty(tmp_path, 4, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int8"}, "--precision int8 can't be had with --model padim-seg"),
        ({"per_tile": True, "tile": 64}, "--per-tile can't be had"),
        ({"normalise": "tile", "tile": 64}, "--normalise tile can't be had"),
        ({"folds": "5"}, "holds its frames out in 4 parts; leave --folds 5 out"),
        ({"surroundings": True}, "padim-seg has a network that sees them"),
        ({"jobs": 2}, "--jobs 2 can't be had"),
    ],
)
def test_what_the_kind_has_nothing_for_is_refused_before_any_work(parts, tmp_path, changes, said):
    with pytest.raises(FitError, match=said):
        prepare(options(parts, tmp_path, **changes), Silent())


@pytest.mark.parametrize(("plain", "model"), ADAPTED.items())
def test_too_few_frames_are_refused_with_the_number_and_the_reason(tmp_path, plain, model):
    few = write_parts(tmp_path / "few", range(79))
    said = f"79 good images are too few for {model}, at least 80 .* --model {plain}$"
    with pytest.raises(FitError, match=said):
        prepare(options(few, tmp_path, model=model), Silent())


@pytest.mark.parametrize("model", ADAPTED.values())
def test_more_memory_than_allowed_is_refused_with_what_would_do(parts, tmp_path, model):
    plan = prepare(options(parts, tmp_path, model=model, memory_mb=1500), Silent())
    assert plan.kind.cost(plan, peak_mb=700).memory_mb < 1500
    with pytest.raises(FitError, match=r"would take \d+ MB, .* give --memory-mb \d+, fewer --dimensions"):
        plan.kind.cost(plan, peak_mb=1400)


def adapting(tmp_path, wanted, frames=FRAMES, model="padim", **changes):
    progress = Silent()
    asked = FitOptions("flange", tmp_path, (tmp_path,), model, adapt=wanted, **changes)
    return asked, adapt.adapted(asked, frames, progress), progress.notes


@pytest.mark.parametrize(("model", "adapted"), ADAPTED.items())
def test_adapt_chooses_the_adapted_kind_where_it_can_be_had(tmp_path, model, adapted):
    asked, found, notes = adapting(tmp_path, "auto", model=model)
    assert (found.model, found.minutes, notes) == (adapted, None, [])
    assert adapt.plain(found) == replace(asked, adapt="off")
    asked, found, notes = adapting(tmp_path, 2.5, model=model)
    assert (found.model, found.minutes, notes) == (adapted, 2.5, [])
    asked, found, notes = adapting(tmp_path, "off")
    assert found == asked


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"frames": 79}, "it takes 80 different good frames, and here are 79; grab more"),
        ({"precision": "int8"}, "--precision int8 does not go with it; leave one of the two out"),
        ({"normalise": "tile"}, "--normalise tile does not go"),
        ({"surroundings": True}, "--surroundings does not go"),
        ({"extendable": True}, "--extendable does not go"),
        ({"per_tile": True}, "--per-tile does not go"),
        ({"folds": "run"}, "--folds run does not go"),
        ({"jobs": 2}, "--jobs 2 does not go"),
        ({"on": "dask://a:1"}, "--on does not go"),
    ],
)
def test_auto_says_why_it_does_not_adapt_and_minutes_are_refused(tmp_path, changes, why):
    asked, found, notes = adapting(tmp_path, "auto", **changes)
    assert found == asked
    assert len(notes) == 1
    assert f"not adapted to the part: {why}" in notes[0]
    with pytest.raises(FitError, match=f"--adapt 3 can't be had: {why}"):
        adapting(tmp_path, 3.0, **changes)
    if "frames" not in changes:  # known before any is read
        with pytest.raises(FitError, match=f"--adapt 3 can't be had: {why}"):
            prepare(
                FitOptions("flange", tmp_path, (tmp_path / "none",), "padim", adapt=3.0, **changes), Silent()
            )


def test_adapting_another_kind_is_refused_before_any_frame_is_read(tmp_path):
    asked = FitOptions("flange", tmp_path, (tmp_path / "none",), "efficientad-lite", adapt=3.0)
    with pytest.raises(FitError, match=r"--adapt 3.0 goes with --model patchcore or padim only"):
        prepare(asked, Silent())


def test_auto_fits_plainly_where_memory_is_short_and_minutes_are_refused(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(kind, "LIBRARY_MB", 1e6)
    progress = Silent()
    plan = prepare(options(parts, tmp_path, model="padim", adapt="auto", steps=None), progress)
    assert plan.kind.name == "padim"
    refused = re.compile(r"not adapted to the part: padim-seg of .* would take \d+ MB")
    assert any(map(refused.search, progress.notes))
    plan = prepare(options(parts, tmp_path, model="padim", adapt=1.0, steps=None), progress)
    with pytest.raises(FitError, match=r"would take .* or take --model padim without --adapt"):
        estimate(plan)


def test_without_torch_auto_fits_plainly_and_minutes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    asked, found, notes = adapting(tmp_path, "auto")
    assert found == asked
    assert "pip install 'inspectord[train]'" in notes[0]
    with pytest.raises(FitError, match="needs torch"):
        adapting(tmp_path, 5.0)


@pytest.mark.parametrize(
    ("plain", "adapted", "gain"), [("padim", "padim-seg", 0.01), *((*each, 0.0) for each in ADAPTED.items())]
)
def test_auto_keeps_the_plain_kind_where_the_networks_find_no_more(
    monkeypatch, parts, tmp_path, plain, adapted, gain
):
    """Minutes keep what was asked for, and warn. What is no gain is found once: nothing is trained again."""
    asked = []
    monkeypatch.setattr(Check, "found", lambda self, segmenter: asked.append(1) or 0.7 + gain)
    monkeypatch.setattr(Check, "by_distance", lambda self: 0.7)
    monkeypatch.setattr(kind, "STEPS", 1)
    said = "defects of kinds that the networks were not shown they find, as image AUROC"
    for wanted, kept in (("auto", adapted if gain else plain), (1.0, adapted)):
        progress = Silent()
        asked.clear()
        recipe = run(parts, tmp_path, progress, model=plain, adapt=wanted, steps=None)
        assert len(asked) == 2
        assert recipe.spec.model.kind == kept
        (note,) = [note for note in progress.notes if said in note]
        assert note.startswith("warning: nothing is gained") == (not gain and wanted == 1.0)
        assert note.startswith(f"warning: plain {plain} is fitted, not adapted to the part") == (
            kept == plain
        )
    plainly = run(parts, tmp_path, model=plain, steps=None)
    assert recipe.hash != plainly.hash
    if not gain:
        recipe = run(parts, tmp_path, model=plain, adapt="auto", steps=None)
        assert recipe.hash == plainly.hash  # to the bit what was fitted without --adapt


def test_too_few_frames_for_a_comparison_are_refused_before_the_first_fit(tmp_path, capsys):
    few = write_parts(tmp_path / "few", range(90))
    assert main(["compare", str(few), "--models", "padim,padim-seg", "--threads", "1"]) == 65
    said = capsys.readouterr().err
    assert "padim-seg needs 80: give 107 good frames, or leave it out of --models" in said
    assert "padim, 1 of 2" not in said


def test_the_command_adapts_and_refuses_what_would_do_nothing(monkeypatch, parts, tmp_path, capsys):
    monkeypatch.setattr(kind, "STEPS", 2)
    place = ["--product", "flange", "--recipes", str(tmp_path / "recipes"), "--threads", "1"]
    place += ["--memory-mb", "100000"]
    assert main(["fit", str(parts), *place, "--adapt", "1", "--no-activate"]) == 0
    assert load_recipe(tmp_path / "recipes" / "flange" / "0001").spec.model.kind == "patchcore-seg"
    capsys.readouterr()
    for arguments, said in (
        (["--adapt", "never"], "'never' is neither auto nor off nor minutes"),
        (["--adapt", "0"], "neither auto nor off nor minutes"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", str(parts), *place, *arguments])
        assert said in capsys.readouterr().err
    for arguments, said in (
        (["--adapt", "5", "--model", "padim-seg"], "--adapt goes with --model patchcore or padim only"),
        (["--model", "padim-seg", "--steps", "5", "--minutes", "1"], "exclude each other"),
        (["--model", "padim-seg", "--extendable"], "no frames can be added"),
        (["--minutes", "5"], "--minutes goes with --model efficientad-... or patchcore-seg or"),
        (["--adapt", "5", "--minutes", "3"], "--adapt has its minutes itself, as in --adapt 15"),
    ):
        assert main(["fit", str(parts), *place, *arguments]) == 78
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_who_stops_it_while_the_networks_learn_keeps_what_is_active(parts, tmp_path, number):
    recipes, scratch = tmp_path / "recipes", tmp_path / "scratch"
    scratch.mkdir()
    run(parts, tmp_path, model="padim", steps=None, activate=True)
    words = ["fit", parts, "--product", "flange", "--recipes", recipes, "--adapt", "5", "--backbone", "lite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "calibrate", *map(str, words), "--threads", "1", "--memory-mb", "3000"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    while "showing made-up defects" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(number)
    said += process.communicate(timeout=20)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert active_recipe(recipes, "flange").path.name == "0001"
    assert [path.name for path in (recipes / "flange").iterdir() if path.name.isdigit()] == ["0001"]
    if number == signal.SIGINT:  # torch makes a folder of its own
        assert not [path for path in scratch.iterdir() if not path.name.startswith("torchinductor")]


def test_a_fully_trained_fit_activates_and_rejects_a_painted_part(parts, tmp_path):
    run(parts, tmp_path, steps=60, activate=True)  # raises where it finds nothing
    recipe = active_recipe(tmp_path / "recipes", "flange")
    assert not recipe.blindness
