"""PatchCore: the coreset is the paper's, held-out scores never know their frame, the graph says the same."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as op

from calibrate import bank as banks
from calibrate import candidates, coreset, patchcore
from calibrate.bank import Bank
from calibrate.candidates import Candidates, Ground, Sizes, members_of, projection
from calibrate.cli import main
from calibrate.coreset import Cover, room
from calibrate.fit import _embeddings, _joiner, _request, estimate, fit
from calibrate.graph import feature_model, position_cells
from calibrate.kinds import open_kind
from calibrate.levels import plain
from calibrate.options import FitOptions
from calibrate.padim import reduce_dimensions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.reweight import Reweighted
from calibrate.tiles import plan
from inspectord.errors import FitError
from inspectord.inspect import Inspector, check_golden, compile_model
from inspectord.recipe import FrameSpec
from inspectord.sources.files import read_image
from inspectord.sources.parts import render_part


def points_of(values):
    """values (n, d) in an array that Cover takes."""
    points = room(*values.shape)
    points[:, :-2] = values
    return points


def plain_greedy(values, count, first):
    """Roth et al. 2022, algorithm 1, one member after the other; members and the last radius."""
    x = values.astype(np.float64)
    away = np.linalg.norm(x - x[first], axis=1)
    members = [first]
    while len(members) < count:
        members.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(x - x[members[-1]], axis=1))
    return members, away.max()


@pytest.fixture
def values():
    """(1200, 6) in clumps of several sizes, far from zero."""
    rng = np.random.default_rng(3)
    clumps = rng.standard_normal((40, 6)) * 5 + 20
    return (clumps[rng.integers(0, 40, 1200)] + rng.standard_normal((1200, 6))).astype(np.float32)


@pytest.mark.parametrize("pool", [1, 7, 300, 5000])
def test_the_coreset_is_that_of_the_plain_algorithm_whatever_the_pool(values, pool, monkeypatch):
    monkeypatch.setattr(coreset, "POOL", pool)
    monkeypatch.setattr(coreset, "MEMBERS_AT_ONCE", 16)
    monkeypatch.setattr(coreset, "POINTS_AT_ONCE", 500)
    cover = Cover(points_of(values), np.arange(1200) % 3)
    cover.join(np.array([11]))
    cover.grow(150)
    members, radius = plain_greedy(values, 150, 11)
    assert cover.members == members
    assert np.isclose(np.sqrt(cover.radius()), radius, rtol=1e-4)


def test_no_patch_is_taken_twice_though_rounding_puts_it_away_from_itself(monkeypatch):
    monkeypatch.setattr(coreset, "ALIKE", 0.0)
    wide = np.random.default_rng(0).standard_normal((60, 300)).astype(np.float32)
    cover = Cover(points_of(np.repeat(wide, 2, axis=0)), np.zeros(120, np.int64))
    cover.join(np.array([5]))
    cover.grow(120)
    assert len(set(cover.members)) == len(cover.members) >= 60


def test_patches_that_repeat_themselves_are_taken_once():
    few = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    cover = Cover(points_of(np.repeat(few, 30, axis=0)), np.zeros(600, np.int64))
    cover.join(np.array([5]))
    cover.grow(100)
    assert len(cover.members) == 20


@pytest.mark.parametrize("pool", [16, 2048])
def test_without_a_fold_nothing_of_it_is_kept_and_all_others_are_covered_as_closely(
    values, pool, monkeypatch
):
    monkeypatch.setattr(coreset, "POOL", pool)
    group = np.arange(1200) // 300
    cover = Cover(points_of(values), group)
    cover.join(np.array([0]))
    cover.grow(100)
    radius = np.sqrt(cover.radius())
    for fold in range(4):
        members = cover.without(fold)
        assert not (group[members] == fold).any()
        assert len(set(members.tolist())) == len(members)
        others = values[group != fold]
        away = np.linalg.norm(others[:, None] - values[members][None], axis=2).min(axis=1)
        assert away.max() <= radius * 1.001
        # Proportional: neither starved nor padded.
        assert 60 <= len(members) <= 110


def test_a_fold_that_alone_holds_a_kind_of_patch_is_far_from_its_own_bank(values):
    strange = values.copy()
    strange[:40] += 50
    group = np.arange(1200) // 300
    cover = Cover(points_of(strange), group)
    cover.join(np.array([0]))
    cover.grow(100)
    without = strange[cover.without(0)]
    assert np.linalg.norm(strange[:40, None] - without[None], axis=2).min() > 20
    assert np.linalg.norm(strange[:40, None] - strange[cover.members][None], axis=2).min(axis=1).max() < 10


def test_projecting_keeps_distances():
    assert projection(128, 0) is None
    x = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    ratio = np.linalg.norm(x[1:] @ projection(1000, 0) - x[0] @ projection(1000, 0), axis=1)
    ratio /= np.linalg.norm(x[1:] - x[0], axis=1)
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.std() < 0.1


def test_the_size_of_the_coreset_is_a_share_rounded_up_or_a_number():
    assert members_of("10%", 1001) == 101
    assert members_of("0.5%", 1000) == 5
    assert members_of("77", 1000) == 77


# --- the head ---


def head_distances(bank, embeddings, precision="f32"):
    entry = op.parameter(list(embeddings.shape), ov.Type.f32)
    model = ov.Model([op.result(bank.build(entry.output(0)))], [entry], "head")
    return compile_model(model, "CPU", precision, threads=2)([embeddings])[0]


@pytest.mark.parametrize(("members_at_once", "positions_at_once"), [(512, 4096), (10, 4096), (10, 9)])
def test_the_graph_gives_the_float64_distances(members_at_once, positions_at_once, monkeypatch):
    monkeypatch.setattr(banks, "MEMBERS_AT_ONCE", members_at_once)
    monkeypatch.setattr(banks, "LOOP_POSITIONS", positions_at_once)
    rng = np.random.default_rng(1)
    members, places = rng.standard_normal((37, 8)), rng.standard_normal((36, 2))
    centre = np.full(6, 100.0, np.float32)
    bank = Bank(members.astype(np.float32), centre, places.astype(np.float32))
    embeddings = (rng.standard_normal((36, 6)) + 100).astype(np.float32)
    x = np.hstack([embeddings - centre, places])
    expected = np.linalg.norm(x[:, None] - members[None], axis=2).min(axis=1)
    assert np.allclose(head_distances(bank, embeddings), expected, rtol=1e-4)
    assert np.allclose(bank.distances(embeddings), expected, rtol=1e-6)


def test_a_patch_of_the_bank_itself_is_at_the_floor_in_the_graph_as_in_numpy():
    """Without a floor the graph has what rounding makes of 0: up to 0.02 here."""
    members = np.random.default_rng(0).standard_normal((64, 50)).astype(np.float32)
    bank = Bank(members, np.full(50, 7, np.float32), np.zeros((64, 0), np.float32))
    assert bank.floor == pytest.approx(0.01 * np.sqrt(50), rel=0.05)
    assert np.allclose(head_distances(bank, members + 7), bank.floor, rtol=1e-6)
    assert np.allclose(bank.distances(members + 7), bank.floor, rtol=1e-6)


HIDDEN = {"ignore_polygons": (((16, 16), (50, 16), (16, 60)),)}


@pytest.mark.parametrize("changes", [{}, HIDDEN])
@pytest.mark.parametrize("tiles", [{}, {"grid": (1, 2), "per_tile": True}])
def test_good_frames_that_show_the_same_picture_are_refused(tmp_path, changes, tiles):
    """Every place differs from the others, and no frame from another."""
    picture = np.random.default_rng(0).integers(0, 255, (80, 96), np.uint8)
    for number in range(12):
        picture[0, 0] = number  # outside the region
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    with pytest.raises(FitError, match="the same inside the region"):
        fit(prepared(tmp_path, tmp_path, roi=(16, 16, 80, 64), **changes, **tiles), Silent())


def test_where_good_frames_differ_by_a_little_noise_the_default_fits_padim_and_says_so(tmp_path):
    """A still part: float32 leaves no digits of such distances between patches, and Gaussians need none."""
    part = cv2.circle(np.full((96, 96), 60, np.uint8), (48, 48), 30, 180, -1)
    for number in range(12):
        noise = np.random.default_rng(number).normal(0, 0.5, part.shape)
        cv2.imwrite(str(tmp_path / f"{number}.png"), (part + noise).round().astype(np.uint8))
    with pytest.raises(FitError, match="so nearly that patchcore can't tell them apart; take --model padim"):
        run(tmp_path, tmp_path)
    told = Silent()
    recipe = fit(
        prepare(dataclasses.replace(prepared(tmp_path, tmp_path).options, model="usual"), told), told
    )
    assert recipe.spec.model.kind == "padim"
    assert any(note.startswith("warning: good frames are too alike for patchcore") for note in told.notes)
    assert "too alike for patchcore" in recipe.spec.model.parameters["chosen_because"]
    assert "too alike for patchcore" in (recipe.path / "report.html").read_text()


def test_patches_are_means_of_their_neighbours_brought_to_the_finest_grid():
    class TwoLayers:
        name, digest, layers = "two", "", ("fine", "coarse")

        def features(self, images, chosen):
            coarse = op.avg_pool(images, [2, 2], [0, 0], [0, 0], [2, 2], False).output(0)
            return [op.avg_pool(images, [1, 1], [0, 0], [0, 0], [1, 1], False).output(0), coarse]

    geometry = plan((0, 0, 16, 12), 1, 2)
    spec = FrameSpec(width=16, height=12, pixel_format="Mono8")
    everything = reduce_dimensions((1, 1), 2, "random", 0)
    frame = np.random.default_rng(0).integers(0, 256, (1, 12, 16, 1)).astype(np.uint8)
    graph = feature_model(spec, geometry, TwoLayers(), everything, None, locally_aware=True)
    found = compile_model(graph, "CPU", "f32")([frame])[0]
    fine = frame[0, ..., 0].astype(np.float32)
    coarse = fine.reshape(6, 2, 8, 2).mean(axis=(1, 3))
    fine, coarse = (cv2.blur(maps, (3, 3), borderType=cv2.BORDER_CONSTANT) for maps in (fine, coarse))
    expected = np.stack([fine, cv2.resize(coarse, (16, 12))], axis=2).reshape(-1, 2)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_positions_know_their_cell_in_the_joined_map():
    geometry = plan((0, 0, 48, 32), 4, 4, tile=32, overlap=16)
    cells = position_cells(geometry)
    assert len(cells) == geometry.tiles * 64
    assert cells[0].tolist() == [0, 0]
    assert cells[64].tolist() == [0, 4]
    assert cells[-1].tolist() == [7, 11]


# --- the fit ---


def prepared(folder, tmp_path, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder,),
        model="patchcore",
        threads=2,
        memory_mb=100_000,  # a test process has already had its peak, which is counted
    )
    return prepare(dataclasses.replace(base, **changes), Silent())


def run(folder, tmp_path, **changes):
    return fit(prepared(folder, tmp_path, **changes), Silent())


def learned(ready, folder):
    """The bank and its scores in distances, without a recipe, its gate and its report."""
    found = ready.kind.learn(ready, _embeddings(ready, Silent()), folder, Silent())
    return found.head, plain(found, _joiner(ready))


def scores(ready, head, frames):
    """Scores of frames by float64."""
    request, joiner = _request(ready), _joiner(ready)
    found = []
    for pixels in frames:
        request.infer([pixels[None]])
        found.append(joiner(head.distances(request.get_output_tensor(0).data)).max())
    return np.array(found)


def test_a_recipe_rejects_a_scratch_passes_good_parts_and_says_what_it_is(good, tmp_path):
    recipe = run(good, tmp_path)
    inspector, limit = Inspector(recipe, threads=2), recipe.spec.limits.score
    assert check_golden(inspector) <= recipe.spec.golden.tolerance
    fresh = [inspector.score(render_part(1, 500 + n, 96, 80, 0.0).pixels).score for n in range(10)]
    assert sum(score > limit for score in fresh) <= 1
    scratched = read_image(good / "000.png").copy()
    cv2.line(scratched, (30, 30), (60, 50), 255, 2)
    assert inspector.score(scratched).score > limit
    model = recipe.spec.model
    assert model.kind == "patchcore"
    assert model.parameters["coreset"] == "50%, at most 4096"
    patches = model.parameters["candidates"]
    assert patches == 24 * (96 // 8) * (80 // 8)
    assert model.parameters["members"] == patches // 2
    assert recipe.spec.limits.folds == "20 folds"


def test_tiles_masks_copies_places_and_projection_end_in_a_recipe_that_passed_its_gate(good, tmp_path):
    recipe = run(
        good,
        tmp_path,
        tile=32,
        overlap=16,
        ignore_polygons=(((10, 10), (30, 10), (30, 30)),),
        augment=1,
        folds="4",
        dimensions=144,
        reduction="semi-orthogonal",
        coreset="10%",
        position_weight=1.0,
        activate=False,  # 24 parts may leave the limit above a painted square
    )
    assert check_golden(Inspector(recipe, threads=2)) <= recipe.spec.golden.tolerance
    assert recipe.spec.model.parameters["position_weight"] == 1.0


def test_a_graph_that_disagrees_with_the_bank_is_never_published(good, tmp_path, monkeypatch):
    honest = Bank.squared
    monkeypatch.setattr(Bank, "squared", lambda self, x: honest(self, x)[:-1] or honest(self, x))
    with pytest.raises(FitError, match="differ"):
        run(good, tmp_path, coreset="600")
    assert not (tmp_path / "recipes" / "flange" / "0001").exists()


def test_the_same_frames_and_seed_give_the_same_whatever_the_memory(good, tmp_path):
    (bank, fitted), (same, same_fitted), (other, _) = (
        learned(prepared(good, tmp_path, coreset="100", **changes), tmp_path)
        for changes in ({}, {"memory_mb": 3000}, {"seed": 1})
    )
    assert np.array_equal(bank.members, same.members)
    assert np.array_equal(fitted.held_out, same_fitted.held_out)
    assert not np.array_equal(bank.members, other.members)


def test_held_out_scores_are_those_of_unseen_good_parts_and_not_of_the_banks_own(good, tmp_path):
    ready = prepared(good, tmp_path, coreset="50%")
    bank, fitted = learned(ready, tmp_path)
    inside = np.median(scores(ready, bank, [ready.good.read(n) for n in range(24)]))
    unseen = np.median(scores(ready, bank, [render_part(1, 900 + n, 96, 80, 0.0).pixels for n in range(200)]))
    assert inside < 0.7 * unseen
    assert 0.9 * unseen < np.median(fitted.held_out) < 1.15 * unseen


def test_what_is_ignored_teaches_nothing(good, tmp_path):
    """Only cells that see a pixel that counts have patches in the bank."""
    half = (((0, 0), (47, 0), (47, 79), (0, 79)),)
    ready = prepared(good, tmp_path, ignore_polygons=half, coreset="50%")
    drawn = Candidates(Ground.of(ready), Sizes.of(ready))
    for sample in range(24):
        drawn.take(sample, np.zeros((ready.positions, ready.reduction.dimensions), np.float32))
    columns = ready.geometry.map_shape[1]
    taught = position_cells(ready.geometry)[drawn.position.ravel(), 1]
    assert set(taught) == set(range(columns // 2, columns))
    assert Sizes.of(ready).members == 24 * ready.positions // 4


def test_of_too_many_patches_some_are_drawn_from_every_frame_and_the_operator_is_told(
    good, tmp_path, monkeypatch
):
    monkeypatch.setattr(candidates, "CANDIDATES", 24 * 50 + 5)
    ready = prepared(good, tmp_path, coreset="30")
    text = "\n".join(estimate(ready).lines())
    assert (
        f"a bank of 30 of {24 * ready.positions:,} good patches (1.04%), chosen from 1,200 drawn at random"
        in text
    )
    _, fitted = learned(ready, tmp_path)
    assert fitted.parameters == {"coreset": "30", "members": 30, "candidates": 1200}


def test_weighing_places_makes_a_bank_that_knows_where(good, tmp_path):
    """A good patch at another place is as good as any without the weight, and not with it."""
    moved = [np.roll(render_part(1, 900 + n, 96, 80, 0.0).pixels, 32, axis=1) for n in range(5)]
    away = {}
    for weight in (0.0, 5.0):
        ready = prepared(good, tmp_path, coreset="10%", position_weight=weight)
        bank, fitted = learned(ready, tmp_path)
        away[weight] = scores(ready, bank, moved).mean() / fitted.held_out.mean()
    assert away[5.0] > 1.5 * away[0.0]


def test_more_members_than_candidates_are_refused_with_the_numbers(good, tmp_path):
    with pytest.raises(FitError, match=r"asks for 9,000 patches of 2,880.*--coreset 288"):
        estimate(prepared(good, tmp_path, coreset="9000"))


def test_a_bank_of_every_good_patch_is_refused(good, tmp_path):
    """A good frame of its own bank would lie at distance 0, of which float32 keeps only rounding errors."""
    with pytest.raises(FitError, match="give --coreset 90% or less"):
        estimate(prepared(good, tmp_path, coreset="100%"))


def test_memory_is_foreseen_and_refused_with_the_numbers(good, tmp_path):
    with pytest.raises(FitError, match=r"would take \d+ MB, --memory-mb allows 100; give --memory-mb \d+"):
        estimate(prepared(good, tmp_path, memory_mb=100))


def test_a_precision_that_loses_the_distances_is_refused(good, tmp_path):
    with pytest.raises(FitError, match="--precision f32, got bf16"):
        prepared(good, tmp_path, precision="bf16")


def test_few_frames_are_held_out_one_by_one_and_many_in_groups():
    kind = patchcore.PatchCore()
    assert kind.folds("loo", 20) == "loo"
    assert kind.folds("loo", 21) == "20"
    assert kind.folds("run", 300) == "run"


def test_a_resnet_gives_its_second_and_third_stage_unless_asked_otherwise(tmp_path):
    def layers(kind, backbone):
        return open_kind(kind).layers(FitOptions("flange", tmp_path, (), backbone=backbone))

    assert layers("patchcore", "wide_resnet50_2") == ("layer2", "layer3")
    assert layers("patchcore", "bundled") is None
    assert layers("patchcore", "resnet18.onnx") is None
    assert layers("padim", "resnet18") is None


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(FitError, match="patchcore or padim"):
        open_kind("nearest")


# --- the re-weighted score ---


def plain_score(x, members, neighbours):
    """Roth et al. 2022, eq. 6 and 7, of patches x (n, d), with nothing but numpy."""
    away = np.linalg.norm(x[:, None] - members[None], axis=2)
    farthest = away.min(axis=1).argmax()
    nearest = away[farthest].argmin()
    company = np.argsort(np.linalg.norm(members - members[nearest], axis=1))[:neighbours]
    exponents = np.exp(away[farthest, company])
    return away[farthest, nearest] * (1 - np.exp(away[farthest, nearest]) / exponents.sum())


def head_scores(scorer, embeddings):
    entry = op.parameter(list(embeddings.shape), ov.Type.f32)
    scores = scorer.build(entry.output(0), scorer.bank.build(entry.output(0)))
    model = ov.Model([op.result(scores)], [entry], "scores")
    return compile_model(model, "CPU", "f32", threads=1)([embeddings])[0]


@pytest.mark.parametrize("neighbours", [2, 9, 500])
def test_the_reweighted_score_is_the_papers_tile_by_tile(neighbours, monkeypatch):
    monkeypatch.setattr(banks, "MEMBERS_AT_ONCE", 16)
    rng = np.random.default_rng(4)
    members = (0.4 * rng.standard_normal((50, 6))).astype(np.float32)
    centre = np.full(6, 30.0, np.float32)
    embeddings = (0.6 * rng.standard_normal((3 * 20, 6)) + 30).astype(np.float32)
    counting = np.ones((3, 20), bool)
    counting[0, 5:] = counting[2] = False
    scorer = Reweighted(Bank(members, centre, np.zeros((60, 0), np.float32)), counting, neighbours)
    x = embeddings.astype(np.float64) - centre
    expected = [plain_score(x[:5], members, neighbours), plain_score(x[20:40], members, neighbours), 0.0]
    assert np.allclose(head_scores(scorer, embeddings), expected, rtol=1e-4, atol=1e-6)
    found = scorer.score(embeddings, scorer.bank.distances(embeddings))
    assert np.isclose(found, max(expected), rtol=1e-6)


def test_a_patch_beside_a_lonely_member_counts_for_more():
    crowd = np.array([[0.0, 0], [0.1, 0], [0, 0.1], [0.1, 0.1], [9, 0]], np.float32)
    bank = Bank(crowd, np.zeros(2, np.float32), np.zeros((1, 0), np.float32))
    scorer = Reweighted(bank, np.ones((1, 1), bool), 4)
    beside = [np.array([[x, -0.5]], np.float32) for x in (0.0, 9.0)]
    crowded, lonely = (scorer.score(patch, bank.distances(patch)) for patch in beside)
    assert 0.75 * 0.5 <= crowded < 0.9 * lonely <= 0.5


def test_a_reweighted_recipe_passes_its_gate_and_its_map_peaks_at_the_score(good, tmp_path):
    recipe = run(good, tmp_path, absolute=True, reweight=9, tile=48)
    inspector = Inspector(recipe, threads=2)
    assert check_golden(inspector) <= recipe.spec.golden.tolerance
    result = inspector.score(read_image(good / "003.png"))
    assert result.anomaly_map.max() == pytest.approx(result.score, rel=1e-5)
    assert result.tile_scores.max() == result.score
    assert recipe.spec.model.parameters["reweight"] == 9


def test_reweighting_is_of_plain_distances_only(capsys):
    words = ["fit", "good", "--product", "p", "--model", "patchcore", "--reweight", "9"]
    assert main(words) != 0
    assert "give --absolute with it" in capsys.readouterr().err
