"""calibrate fit: the same frames give the same recipe, and only a recipe that passed its gate appears."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from html import escape

import cv2
import numpy as np
import pytest
from openvino import opset15 as op
from safetensors.numpy import load_file, save_file

from calibrate import publish
from calibrate.backbones.standard import WEIGHTS
from calibrate.cli import main
from calibrate.fit import closer, estimate, fit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.store import activate
from inspectord.errors import FitError, FrameError, RecipeError
from inspectord.inspect import Inspector, check_golden
from inspectord.recipe import active_recipe, file_hash, load_recipe
from inspectord.sources.files import read_image
from inspectord.sources.parts import render_part


def options(folder, tmp_path, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder,),
        threads=2,
        memory_mb=100_000,  # a test process has already had its peak, which is counted
    )
    return dataclasses.replace(base, **changes)


def run(folder, tmp_path, **changes):
    return fit(prepare(options(folder, tmp_path, **changes), Silent()), Silent())


def test_a_fit_gives_an_active_recipe_that_repeats_its_golden_scores(good, tmp_path):
    recipe = run(good, tmp_path)
    active = load_recipe(tmp_path / "recipes" / "flange" / "active")
    assert active.hash == recipe.hash
    assert check_golden(Inspector(active, threads=2)) <= 1e-4
    assert (recipe.path / "report.html").is_file()


def test_the_recipe_rejects_a_scratch_and_passes_its_good_parts(good, tmp_path):
    recipe = run(good, tmp_path)
    inspector = Inspector(recipe, threads=2)
    limit = recipe.spec.limits.score
    pixels = read_image(good / "000.png")
    assert inspector.score(pixels).score <= limit
    scratched = pixels.copy()
    cv2.line(scratched, (30, 30), (60, 50), 255, 2)
    assert inspector.score(scratched).score > limit


@pytest.mark.parametrize("changes", [{}, {"model": "padim"}, {"model": "padim", "grid": (1, 2)}])
def test_names_order_and_memory_budget_do_not_change_the_hash(good, tmp_path, changes):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(good.iterdir(), reverse=True)):
        (renamed / f"part{number}.png").write_bytes(path.read_bytes())
    first = run(good, tmp_path, **changes)
    budget = {"memory_mb": 700} if changes else {}  # of which PatchCore has a need, not a budget
    second = run(renamed, tmp_path, **budget, **changes)
    assert first.hash == second.hash
    assert first.path != second.path


def test_another_seed_or_frame_changes_the_hash(good, tmp_path):
    first = run(good, tmp_path, dimensions=20)
    assert run(good, tmp_path, dimensions=20, seed=1).hash != first.hash


@pytest.mark.parametrize(
    "changes",
    [
        {"tile": 48, "overlap": 16},
        {"grid": (2, 2), "reduction": "semi-orthogonal", "dimensions": 12},
        {"augment": 2, "folds": "4"},
        {"roi": (8, 8, 64, 56), "ignore_polygons": (((10, 10), (30, 10), (30, 30)),)},
        {"model": "padim", "precision": "bf16"},
        {"model": "padim", "precision": "f16"},
        {"resize": 64, "layers": ("joined",)},
        {"resize": 48, "layers": ("joined",), "relight": False},  # with light such small frames are blind
    ],
)
def test_every_option_ends_in_a_recipe_that_passed_its_gate(good, tmp_path, changes):
    recipe = run(good, tmp_path, **changes)
    assert check_golden(Inspector(recipe, threads=2)) <= recipe.spec.golden.tolerance


@pytest.mark.parametrize(
    ("changes", "cells", "scale", "blur_px"),
    [
        ({}, 16, 2, 8),
        ({"smoothing_px": 3.0}, 16, 2, 3),
        ({"backbone": "steady"}, 16, 2, 8),
        ({"tile": 64}, 16, 1, 8),
        ({"layers": ("joined",)}, 8, 1, 4),
        ({"backbone": "lite"}, 8, 1, 4),
        ({"backbone": "lite", "layers": ("pooled",)}, 16, 2, 8),
        ({"backbone": "lite", "grid": (1, 2)}, 16, 1, 8),
    ],
)
def test_means_of_cells_are_taken_of_an_enlarged_frame(good, tmp_path, changes, cells, scale, blur_px):
    plan = prepare(options(good, tmp_path, **changes), Silent())
    assert (plan.geometry.cell, plan.geometry.scale) == (cells, scale)
    assert plan.smoothing_px == blur_px


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "1040x1024 pixels are looked at as 516x508: small defects .* --resize 1016, in about 4 times"),
        ({"roi": (8, 0, 1000, 1000)}, ""),  # a little more than half
        ({"resize": 400}, ""),
        ({"tile": 512}, ""),
        ({"backbone": "lite"}, "looked at as 258x254: .* --resize 508, in about 4 times"),
    ],
)
def test_a_frame_that_is_seen_at_half_its_pixels_or_less_says_so(tmp_path, changes, says):
    rng, folder = np.random.default_rng(0), tmp_path / "large"
    folder.mkdir()
    for number in range(10):
        cv2.imwrite(str(folder / f"{number}.bmp"), rng.integers(0, 256, (1024, 1040), np.uint8))
    said = closer(prepare(options(folder, tmp_path, **changes), Silent()))
    assert [bool(re.search(says, line)) for line in said] == ([True] if says else [])


def test_a_strip_narrower_than_a_tile_is_fitted_and_says_so(good, tmp_path):
    notes = Silent()
    strip = options(good, tmp_path, roi=(0, 20, 96, 40), tile=64, layers=("joined",))
    recipe = fit(prepare(strip, notes), notes)
    assert "96x40 pixels are looked at, and 40 are fewer than --tile 64: every tile is 64x40" in notes.notes
    assert (recipe.spec.tiles.width, recipe.spec.tiles.height) == (64, 40)
    assert check_golden(Inspector(recipe, threads=2)) <= recipe.spec.golden.tolerance


@pytest.mark.parametrize("hidden", [0, 32, 72])
def test_a_mask_that_hides_most_says_so(good, tmp_path, hidden):
    mask = np.zeros((80, 96), np.uint8)
    mask[0, 0], mask[:, :hidden] = 255, 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    notes = Silent()
    prepare(options(good, tmp_path, ignore_png=tmp_path / "mask.png"), notes)
    said = [note for note in notes.notes if "ignored" in note]
    wanted = "75% of the region is ignored; is the mask inverted? Its white pixels don't count"
    assert said == ([wanted] if hidden == 72 else [])


def test_folds_by_run_hold_a_whole_run_out(good, tmp_path):
    runs = []
    for name, numbers in (("monday", range(12)), ("tuesday", range(12, 24))):
        folder = tmp_path / name
        folder.mkdir()
        for number in numbers:
            path = good / f"{number:03d}.png"
            (folder / path.name).write_bytes(path.read_bytes())
        runs.append(folder)
    recipe = run(good, tmp_path, folders=tuple(runs), folds="run")
    assert recipe.spec.limits.folds == "one run at a time"


def test_folds_by_run_need_two_runs(good, tmp_path):
    with pytest.raises(FitError, match="two runs"):
        prepare(options(good, tmp_path, folds="run"), Silent())


def test_a_region_where_all_frames_are_the_same_teaches_nothing(tmp_path):
    folder = tmp_path / "still"
    folder.mkdir()
    for number in range(12):
        pixels = render_part(1, number, 96, 80, 0.0).pixels
        pixels[:, :32] = 90
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    for model, precision in (("patchcore", "f32"), ("padim", "f32"), ("padim", "bf16")):
        with pytest.raises(FitError, match="the same inside the region"):
            run(folder, tmp_path, roi=(0, 0, 32, 80), model=model, precision=precision)
    assert not list((tmp_path / "recipes").glob("*/*"))


def test_an_own_trainings_weights_take_the_place_of_the_bundled_ones(good, tmp_path):
    shipped, own = load_file(WEIGHTS["standard"]), tmp_path / "own.safetensors"
    save_file(shipped | {"joined.spread": 10 * shipped["joined.spread"]}, own)  # epsilon counts for more
    asked = (
        "--recipes",
        str(tmp_path / "recipes"),
        *["--product", "flange", "--threads", "1", "--memory-mb", "100000"],
    )
    assert (
        main(["fit", str(good), *asked, "--model", "padim", "--backbone", "bundled", "--weights", str(own)])
        == 0
    )
    recipe = active_recipe(tmp_path / "recipes", "flange")
    assert (recipe.spec.model.backbone, recipe.spec.model.backbone_hash) == ("standard", file_hash(own))
    plain = run(good, tmp_path, model="padim", threads=1, activate=False)
    frame = read_image(good / "000.png")
    ours, theirs = (Inspector(each, threads=1).score(frame).score for each in (recipe, plain))
    assert abs(ours - theirs) > 0.01 * theirs


def test_features_that_are_not_finite_stop_the_fit(good, tmp_path, monkeypatch):
    from calibrate.backbones.standard import Standard

    honest = Standard.features

    def broken(self, images, chosen):
        return [op.log(op.negative(maps)).output(0) for maps in honest(self, images, chosen)]

    monkeypatch.setattr(Standard, "features", broken)
    with pytest.raises(FitError, match="not finite"):
        run(good, tmp_path)


def test_images_of_mixed_sizes_are_fitted_letterboxed(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(12):
        width = 80 + 4 * number
        cv2.imwrite(str(folder / f"{number}.png"), render_part(1, number, width, 80, 0.0).pixels)
    with pytest.raises(FrameError, match="--letterbox"):
        prepare(options(folder, tmp_path), Silent())
    recipe = run(folder, tmp_path, letterbox=(96, 96), activate=False)
    assert recipe.spec.frame.letterbox
    assert recipe.spec.frame.shape == (96, 96, 1)


def test_colour_frames_are_fitted_as_bgr(tmp_path):
    folder = tmp_path / "colour"
    folder.mkdir()
    for number in range(12):
        grey = render_part(1, number, 64, 64, 0.0).pixels
        cv2.imwrite(str(folder / f"{number}.png"), np.concatenate([grey, grey // 2, grey // 3], axis=2))
    assert run(folder, tmp_path).spec.frame.pixel_format == "BGR8"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_graph_that_disagrees_with_the_statistics_is_never_published(
    good, tmp_path, monkeypatch, precision
):
    """The gate proves itself: a graph built on shifted statistics must be refused."""
    from calibrate.heads import WhiteningWriter

    honest = WhiteningWriter.write

    def shifted(self, start, mean, spread, whitening):
        honest(self, start, mean + 0.05, spread, whitening)

    monkeypatch.setattr(WhiteningWriter, "write", shifted)
    with pytest.raises(FitError, match="differ"):
        run(good, tmp_path, model="padim", precision=precision)
    assert not (tmp_path / "recipes" / "flange" / "0001").exists()
    assert not (tmp_path / "recipes" / "flange" / "active").exists()


@pytest.mark.parametrize("model", ["patchcore", "padim"])
def test_a_graph_whose_map_is_wrong_beside_its_peak_is_not_published(good, tmp_path, monkeypatch, model):
    """The scores are as they should be: one low cell of one golden frame's map alone is not."""
    honest = publish.score_in_fresh_process

    def altered(*asked):
        scored = honest(*asked)
        if len(scored.maps):
            lowest = np.unravel_index(scored.maps[1].argmin(), scored.maps[1].shape)
            scored.maps[1][lowest] = 0.9 * scored.maps[1].max()
        return scored

    monkeypatch.setattr(publish, "score_in_fresh_process", altered)
    with pytest.raises(FitError, match=r"the compiled graph's maps differ from the statistics by \d+"):
        run(good, tmp_path, model=model)
    assert not (tmp_path / "recipes" / "flange" / "0001").exists()


def test_a_good_part_far_from_all_others_is_named(good, tmp_path):
    """One bad part among the good ones raises the limit, and the recipe still sees a square."""
    mixed = tmp_path / "mixed"
    shutil.copytree(good, mixed)
    pixels = cv2.imread(str(sorted(mixed.iterdir())[5]), cv2.IMREAD_UNCHANGED)
    cv2.line(pixels, (20, 20), (70, 60), 0, 2)
    cv2.imwrite(str(mixed / "bad.png"), pixels)
    said = []

    class Noted(Silent):
        def note(self, text):
            said.append(text)

    options = FitOptions("flange", tmp_path / "recipes", (mixed,), threads=1, activate=False)
    recipe = fit(prepare(options, Silent()), Noted())
    (named,) = [text for text in said if "stands far out" in text]
    assert named.startswith(f"warning: {mixed / 'bad.png'} stands far out from all other good parts.")
    assert escape(str(mixed / "bad.png")) in (recipe.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{}, {"model": "padim"}])
def test_a_recipe_that_finds_nothing_is_kept_for_a_look_and_never_activated_by_itself(
    good, tmp_path, changes
):
    """Bad parts among the good ones teach that anything is normal."""
    first = run(good, tmp_path)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    rng = np.random.default_rng(0)
    for path in good.iterdir():
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for _ in range(6):
            x, y, grey = rng.integers(0, (60, 60, 255)).tolist()
            cv2.rectangle(pixels, (x, y), (x + 25, y + 25), grey, -1)
        cv2.imwrite(str(mixed / path.name), pixels)
    notes, plan = Silent(), prepare(options(mixed, tmp_path, **changes), Silent())
    with pytest.raises(FitError, match=r"stored but not activated.*are they really good") as said:
        fit(plan, notes)
    assert any(note.startswith("warning: ") and "good parts can't prove" in note for note in notes.notes)
    assert ("take --model patchcore where parts don't lie alike" in str(said.value)) == bool(changes)
    assert load_recipe(tmp_path / "recipes" / "flange" / "active").hash == first.hash
    stored = load_recipe(tmp_path / "recipes" / "flange" / "0002")
    assert stored.is_blind
    assert not first.is_blind
    with pytest.raises(RecipeError, match=r"0002 was not activated.*--anyway"):
        activate(tmp_path / "recipes", "flange", "0002")


def test_a_gate_that_fails_keeps_what_was_active(good, tmp_path, monkeypatch):
    first = run(good, tmp_path)
    monkeypatch.setattr(publish, "PARITY_F32", -1.0)
    with pytest.raises(FitError):
        run(good, tmp_path, seed=1)
    assert load_recipe(tmp_path / "recipes" / "flange" / "active").hash == first.hash


def test_in_bf16_the_limit_is_of_what_runs_in_bf16(good, tmp_path):
    """New good parts pass and a marked one does not, although both features and distances are rounded."""
    recipe = run(good, tmp_path, model="padim", precision="bf16")
    inspector, limit = Inspector(recipe, threads=2), recipe.spec.limits.score
    scores = [inspector.score(render_part(9, number, 96, 80, 0.0).pixels).score for number in range(20)]
    assert sum(score > limit for score in scores) <= 1
    assert inspector.score(read_image(recipe.path / "golden" / "marked.png")).score > limit


def test_the_estimate_says_frames_time_memory_and_the_size_of_a_map_cell(good, tmp_path):
    text = "\n".join(estimate(prepare(options(good, tmp_path), Silent())).lines())
    assert "24 good frames" in text
    assert "MB of memory" in text
    assert "every 8 pixels" in text


def test_a_fit_needs_no_torch(good, tmp_path):
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from pathlib import Path\n"
        "from calibrate.fit import fit\n"
        "from calibrate.plan import prepare\n"
        "from calibrate.options import FitOptions\n"
        "from calibrate.progress import Silent\n"
        f"o = FitOptions(product='p', recipes_dir=Path({str(tmp_path)!r}), folders=(Path({str(good)!r}),))\n"
        "print(fit(prepare(o, Silent()), Silent()).id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "p/0001"
