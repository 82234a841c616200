"""calibrate evaluate: figures on a small data set, scored by the graph that the daemon runs."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibrate.evaluate import evaluate
from calibrate.evaluation import KindResult, Likeness, Rate
from calibrate.fit import fit
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from inspectord.errors import FrameError, SourceError
from inspectord.inspect import Inspector
from inspectord.recipe import MARKED, load_recipe
from inspectord.sources.files import read_image
from inspectord.sources.parts import render_part


def npy(shape, content: bytes) -> bytes:
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue() + content


# What a lost block may leave of digests.npy, besides less: a header of 28 TB, and no rows.
HUGE, SINGLE = npy((9 * 10**11, 32), b""), npy((), b"\x03")


def write(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Good parts, and parts with a known defect and its mask, 96 x 80."""
    folder, seen, number = tmp_path_factory.mktemp("data"), 0, 0
    for index in range(24):
        write(folder / f"train/good/{index:03d}.png", render_part(1, index, 96, 80, 0.0).pixels)
    for index in range(6):
        write(folder / f"test/good/{index:03d}.png", render_part(2, index, 96, 80, 0.0).pixels)
    while seen < 10:
        part = render_part(3, number, 96, 80, 1.0)
        number += 1
        if part.mask.any():
            seen += 1
            write(folder / f"test/{part.defect}/{number:03d}.png", part.pixels)
            mask = part.mask.astype(np.uint8) * 255
            write(folder / f"ground_truth/{part.defect}/{number:03d}_mask.png", mask)
    return folder


@pytest.fixture(scope="module")
def recipe(data, tmp_path_factory):
    options = FitOptions("flange", tmp_path_factory.mktemp("recipes"), (data,), threads=2)
    return fit(prepare(options, Silent()), Silent())


def test_figures_for_every_kind_and_every_image(data, recipe):
    result = evaluate(recipe, data, Silent(), threads=2)
    assert len(result.images) == 16
    assert {kind.kind for kind in result.kinds} == {p.name for p in (data / "test").iterdir()} - {"good"}
    assert result.image_auroc is not None
    assert result.image_auroc > 0.8
    assert result.pixels is not None
    assert result.pixels.auroc > 0.7
    assert 0 <= result.pixels.aupro_05 <= result.pixels.aupro_30 <= 1
    assert result.escapes.parts == 10


def test_scores_are_the_inspectors_own(data, recipe):
    inspector = Inspector(recipe, threads=2)
    for image in evaluate(recipe, data, Silent(), threads=2).images:
        assert image.score == inspector.score(read_image(data / "test" / image.file)).score


def printed(result):
    from rich.console import Console

    console = Console(record=True, width=120, file=io.StringIO())
    result.show(console)
    return console.export_text()


def test_good_parts_as_those_that_taught_are_called_alike(data, recipe):
    result = evaluate(recipe, data, Silent(), threads=2)
    assert result.likeness is not None
    assert result.likeness.alike
    assert result.likeness.above.parts == 6
    assert "note" not in printed(result)


def test_good_parts_under_other_light_are_noted_and_the_highest_named(data, recipe, tmp_path):
    """Six good parts, darker by a third: all score more than those that taught, which no chance explains."""
    for path in sorted((data / "test/good").iterdir()):
        write(tmp_path / "test/good" / path.name, (read_image(path) * 0.67).astype(np.uint8))
    result = evaluate(recipe, tmp_path, Silent(), threads=2)
    highest = max(result.images, key=lambda image: image.score)
    text = printed(result)
    assert "note: 6 of 6 good test parts score more than nine in ten" in text
    assert "by chance 0.72 would" in text  # 3 of 25 places lie above the 22nd of 24 parts
    assert f"Highest: {highest.file}, " in text
    assert json.loads(json.dumps(result.to_json()))["likeness"]["alike"] is False


def test_a_recipe_of_before_it_was_kept_says_nothing_of_likeness(data, recipe):
    of_old = recipe.spec.limits.model_copy(update={"nine_in_ten": None})
    assert Likeness.of(evaluate(recipe, data, Silent(), threads=2).images, of_old) is None
    assert Likeness.of([], recipe.spec.limits) is None


def test_defects_that_a_lower_limit_would_stop_are_counted(data, recipe):
    result = evaluate(recipe, data, Silent(), threads=2)
    highest = max(image.score for image in result.images if image.kind == "good")
    defective = sorted(image.score for image in result.images if image.kind != "good")
    apart = [score for score in defective if score > highest]
    assert len(apart) > 2
    above = replace(result, limit=apart[-1], images=tuple(passing(image) for image in result.images))
    told = f"of these {len(apart)} score more than every good test part (up to {highest:.4g})"
    assert told in " ".join(printed(above).split())
    assert "a larger --max-false-rejects" in " ".join(printed(above).split())
    assert "of these" not in printed(replace(above, limit=highest))
    good_missing = tuple(image for image in above.images if image.kind != "good")
    assert "of these" not in printed(replace(above, images=good_missing))


def test_a_kind_that_scores_no_higher_than_good_parts_is_named(data, recipe):
    result = evaluate(recipe, data, Silent(), threads=2)
    assert not result.untold()
    hole = KindResult("missing_hole", 0.133, Rate.of(3, 3))
    found, caught = replace(hole, image_auroc=0.61), replace(hole, escapes=Rate.of(0, 3))
    above = replace(
        result, kinds=(hole, found, caught), images=tuple(passing(image) for image in result.images)
    )
    (told,) = above.untold()
    assert told.startswith("missing_hole: 3 of 3 escape, and they score hardly higher than good test parts")
    assert told in " ".join(printed(above).split())


def passing(image):
    return replace(image, verdict="PASS")


@pytest.mark.parametrize("damaged", [None, b"torn", b"", b"\x93NUMPY\x01\x00", HUGE, SINGLE])
def test_test_images_that_taught_the_recipe_are_named(data, recipe, tmp_path, damaged):
    """Good ones, and one that was taken for good; without what extend needs, golden frames are known."""
    shutil.copytree(recipe.path, tmp_path / "recipes/flange/0001")
    kept = damaged is None
    if not kept:
        (tmp_path / "recipes/flange/0001/learned/digests.npy").write_bytes(damaged)
    again = load_recipe(tmp_path / "recipes/flange/0001")
    copied(data, tmp_path, "good")
    (tmp_path / "test/scratch").mkdir()
    for index in range(24):
        kind = "good" if index else "scratch"
        shutil.copy(data / f"train/good/{index:03d}.png", tmp_path / f"test/{kind}/taught_{index}.png")
    result = evaluate(again, tmp_path, Silent(), threads=2)
    golden = len([frame for frame in again.golden() if frame.path.name != MARKED])
    found = result.taught.files
    assert len(found) == (24 if kept else golden)
    assert {Path(name).stem for name in found} <= {f"taught_{index}" for index in range(24)}
    assert not kept or "scratch/taught_0.png" in found
    words = f"warning: {'' if kept else 'at least '}{len(found)} of these 27 images taught the recipe"
    assert words in " ".join(printed(result).split())
    assert json.loads(json.dumps(result.to_json()))["taught"] == {"files": list(found), "all_known": kept}
    assert "images taught the recipe" not in printed(evaluate(recipe, data, Silent(), threads=2))


def test_images_that_taught_are_known_before_they_are_letterboxed(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(12):
        noise = rng.normal(120, 4, (60 + index, 120)).clip(0, 255).astype(np.uint8)
        write(tmp_path / f"train/good/{index}.png", noise)
    shutil.copytree(tmp_path / "train/good", tmp_path / "test/good")
    options = FitOptions("noise", tmp_path / "recipes", (tmp_path,), letterbox=(128, 96), threads=2)
    recipe = fit(prepare(options, Silent()), Silent())
    assert len(evaluate(recipe, tmp_path, Silent(), threads=2).taught.files) == 12
    shutil.rmtree(recipe.path / "learned")
    golden = len([frame for frame in recipe.golden() if frame.path.name != MARKED])
    assert len(evaluate(recipe, tmp_path, Silent(), threads=2).taught.files) == golden


def test_json_holds_everything_and_is_json(data, recipe):
    table = json.loads(json.dumps(evaluate(recipe, data, Silent(), threads=2).to_json()))
    assert len(table["images"]) == 16
    assert table["false_rejects"]["parts"] == 6


def test_a_table_for_people(data, recipe):
    text = printed(evaluate(recipe, data, Silent(), threads=2))
    assert "all defects" in text
    assert "AUPRO at 0.30" in text


def copied(data, folder, *kinds):
    for kind in kinds:
        for path in sorted((data / "test" / kind).iterdir())[:3]:
            write(folder / "test" / kind / path.name, read_image(path))


def test_images_that_do_not_fit_are_named_and_not_inspected(data, recipe, tmp_path):
    copied(data, tmp_path, "good")
    write(tmp_path / "test/good/large.png", np.zeros((100, 100), np.uint8) + 9)
    (tmp_path / "test/good/torn.png").write_bytes(b"\x89PNG broken")
    result = evaluate(recipe, tmp_path, Silent(), threads=2)
    missed = {image.file: image.why for image in result.images if image.verdict == "NOT_INSPECTED"}
    assert set(missed) == {"good/large.png", "good/torn.png"}
    assert result.false_rejects.events >= 2


def test_where_no_image_fits_there_is_no_table_of_escapes(recipe, tmp_path):
    for place in ("good", "scratch"):
        write(tmp_path / "test" / place / "large.png", np.zeros((100, 100), np.uint8) + 9)
    with pytest.raises(FrameError, match=r"none of the 2 images could be inspected: good/large.png: the"):
        evaluate(recipe, tmp_path, Silent(), threads=2)


def test_without_masks_there_are_no_pixel_figures(data, recipe, tmp_path):
    kind = next(p.name for p in (data / "test").iterdir() if p.name != "good")
    copied(data, tmp_path, "good", kind)
    assert evaluate(recipe, tmp_path, Silent(), threads=2).pixels is None


def test_a_folder_of_another_layout_is_a_clear_error(recipe, tmp_path):
    with pytest.raises(SourceError, match="has no test/good"):
        evaluate(recipe, tmp_path, Silent())
    with pytest.raises(SourceError, match=r"there is no folder .*misspelt"):
        evaluate(recipe, tmp_path / "misspelt", Silent())


def test_letterboxed_masks_lie_where_the_defect_lies(tmp_path):
    """A spot in a corner of images of mixed sizes: map and mask must meet there."""
    rng = np.random.default_rng(0)
    for index in range(14):
        size = (64 + index, 128 - 2 * index)
        write(tmp_path / f"train/good/{index}.png", rng.normal(120, 4, size).clip(0, 255).astype(np.uint8))
    for index in range(4):
        size = (60 + 10 * index, 120)
        image = rng.normal(120, 4, size).clip(0, 255).astype(np.uint8)
        write(tmp_path / f"test/good/{index}.png", image)
        mask = np.zeros(size, np.uint8)
        cv2.rectangle(mask, (4, 4), (24, 20), 255, -1)
        write(tmp_path / f"test/spot/{index}.png", np.where(mask > 0, np.uint8(200), image))
        write(tmp_path / f"ground_truth/spot/{index}_mask.png", mask)
    options = FitOptions("noise", tmp_path / "recipes", (tmp_path,), letterbox=(128, 96), threads=2)
    recipe = fit(prepare(options, Silent()), Silent())
    result = evaluate(recipe, tmp_path, Silent(), threads=2)
    assert result.pixels is not None
    assert result.pixels.auroc > 0.97
    assert result.image_auroc == 1.0


def test_defective_images_without_a_mask_are_counted_and_left_out_of_pixel_figures(data, recipe, tmp_path):
    kind = next(p.name for p in sorted((data / "test").iterdir()) if p.name != "good")
    copied(data, tmp_path, "good", kind)
    names = sorted(path.name for path in (tmp_path / "test" / kind).iterdir())
    mask = f"{Path(names[0]).stem}_mask.png"
    write(tmp_path / "ground_truth" / kind / mask, read_image(data / "ground_truth" / kind / mask))
    pixels = evaluate(recipe, tmp_path, Silent(), threads=2).pixels
    assert pixels is not None
    assert (pixels.images, pixels.images_without_mask) == (1, len(names) - 1)


def test_pixels_beyond_the_memory_allowed_are_thinned_and_it_is_said(data, recipe, monkeypatch):
    whole = evaluate(recipe, data, Silent(), threads=2).pixels
    monkeypatch.setattr("calibrate.evaluate.MOST_PIXELS", 40_000)
    thinned = evaluate(recipe, data, Silent(), threads=2).pixels
    assert whole is not None
    assert thinned is not None
    assert (whole.good_pixel_step, thinned.good_pixel_step) == (1, 4)
    assert thinned.auroc == pytest.approx(whole.auroc, abs=0.01)
