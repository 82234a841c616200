"""A recipe: what was calibrated is what runs, or nothing runs."""

import pytest
from helpers_recipe import activate_version, rewrite_recipe, write_recipe

from inspectord.errors import ParityError, RecipeError
from inspectord.inspect import Inspector, check_golden
from inspectord.recipe import active_recipe, load_recipe


@pytest.fixture
def folder(tmp_path):
    return write_recipe(tmp_path)


def test_a_recipe_is_verified_and_its_golden_scores_repeat(tmp_path, folder):
    recipe = active_recipe(tmp_path, "demo")
    assert recipe.id == "demo/v1"
    assert check_golden(Inspector(recipe, threads=1)) <= recipe.spec.golden.tolerance


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "golden/scores.json", "golden/000.png"])
def test_an_altered_file_is_named(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(RecipeError, match=rf"{name} was changed after fitting"):
        load_recipe(folder)


@pytest.mark.parametrize("name", ["recipe.toml", "model.bin", "golden/001.png"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RecipeError, match=name):
        load_recipe(folder)


def test_a_limit_raised_by_hand_is_refused(folder):
    path = folder / "recipe.toml"
    path.write_text(path.read_text().replace("score = 0.3", "score = 0.9"))
    with pytest.raises(RecipeError, match="changed after fitting"):
        load_recipe(folder)


def test_a_newer_schema_says_to_update(folder):
    rewrite_recipe(folder, schema_version=2)
    with pytest.raises(RecipeError, match=r"schema 2.*update inspectord"):
        load_recipe(folder)


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), float("-inf")])
def test_a_limit_that_is_no_number_is_refused(folder, limit):
    """An infinite limit would pass every part."""
    rewrite_recipe(folder, limits={"score": limit})
    with pytest.raises(RecipeError, match=r"limits\.score"):
        load_recipe(folder)


def test_a_recipe_that_names_files_outside_is_refused(folder):
    (folder.parent / "other").write_text("x")
    rewrite_recipe(folder)
    text = (folder / "recipe.toml").read_text().replace('"golden/000.png"', '"../other"')
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(folder)


def test_a_model_that_scores_otherwise_is_refused(tmp_path, folder):
    """Each file is sound and hashed, but the scores are of another model."""
    other = write_recipe(tmp_path, version="v2", work=1, activate=False)
    for name in ("model.xml", "model.bin"):
        (folder / name).write_bytes((other / name).read_bytes())
    scores = folder / "golden" / "scores.json"
    scores.write_text(scores.read_text().replace('"score": 0.', '"score": 0.9'))
    rewrite_recipe(folder)
    with pytest.raises(ParityError, match="its limit does not hold here"):
        check_golden(Inspector(load_recipe(folder), threads=1))


def test_without_an_active_recipe_the_next_step_is_told(tmp_path):
    with pytest.raises(RecipeError, match="calibrate fit --product nothing"):
        active_recipe(tmp_path, "nothing")


def test_the_active_version_can_be_changed(tmp_path, folder):
    write_recipe(tmp_path, version="v2", limit=0.4, activate=False)
    assert active_recipe(tmp_path, "demo").id == "demo/v1"
    activate_version(tmp_path, "demo", "v2")
    assert active_recipe(tmp_path, "demo").spec.limits.score == 0.4
