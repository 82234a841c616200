"""A recipe: what was calibrated is what runs, or nothing runs. It is data only, inside its folder."""

import ast
import os
import re
import time
import tomllib
from pathlib import Path

import openvino as ov
import pytest
import tomli_w
from helpers_recipe import activate_version, rewrite_recipe, write_recipe
from structlog.testing import capture_logs

from inspectord.errors import ParityError, RecipeError
from inspectord.inspect import Inspector, check_golden
from inspectord.prepare import prepare
from inspectord.recipe import active_recipe, blind_words, content_hash, file_hash, load_recipe
from inspectord.settings import Camera, LineSource, Settings

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for package in ("inspectord", "calibrate") for path in (ROOT / package).rglob("*.py"))
# What can turn data into code, by the name that is called or imported.
UNSAFE_IMPORTS = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
}
UNSAFE_CALLS = {"eval", "exec", "__import__", "execfile", "add_extension", "unsafe_load"}


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


@pytest.mark.parametrize(
    "name", ["../other", "/etc/hostname", "golden/../../other", "./x", "a\\b", "", "a\0b", "a/" * 50 + "a"]
)
def test_a_recipe_that_names_files_outside_is_refused(folder, name):
    (folder.parent / "other").write_text("x")
    table = tomllib.loads((folder / "recipe.toml").read_text())
    table["files"][name] = file_hash(folder.parent / "other")
    table["content_hash"] = content_hash(table)
    (folder / "recipe.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(RecipeError, match="is no path inside a recipe"):
        load_recipe(folder)


@pytest.mark.parametrize("name", ["model.bin", "golden"])
def test_a_link_that_leads_outside_is_refused_though_its_hash_is_right(folder, name):
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(RecipeError, match="lies outside it; do not use"):
        load_recipe(folder)


@pytest.mark.parametrize(
    "name", ["../../outside.png", "/etc/hostname", "001.png/../../model.bin", "unlisted.png"]
)
def test_golden_frames_are_files_of_the_recipe(folder, name):
    (folder.parent.parent / "outside.png").write_bytes((folder / "golden" / "000.png").read_bytes())
    scores = folder / "golden" / "scores.json"
    scores.write_text(scores.read_text().replace("000.png", name))
    rewrite_recipe(folder)
    with pytest.raises(RecipeError, match=r"is damaged|is no file of it"):
        load_recipe(folder).golden()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"file": "000.png"}]',
        '[{"file": "000.png", "score": NaN, "tile_scores": [1]}]',
        '[{"file": "000.png", "score": 1, "tile_scores": [1, 2]}]',
        '[{"file": "000.png", "score": 1, "tile_scores": [1, 2, 3, 4]}]',
        "[" * 100_000,
        "\udc80",
    ],
)
def test_malformed_golden_scores_are_a_clear_error(folder, text):
    (folder / "golden" / "scores.json").write_text(text, errors="surrogateescape")
    rewrite_recipe(folder)
    with pytest.raises(RecipeError, match=r"damaged|tile scores|lacks golden frames"):
        load_recipe(folder).golden()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"frame": {"width": 60_000, "height": 60_000}}, "frame: 60000x60000 is over 160 megapixels"),
        ({"frame": {"width": 10**12}}, r"frame\.width"),
        ({"tiles": {"rows": 1000, "columns": 1000}}, "1000 x 1000 are more than 10000 tiles"),
        ({"tiles": {"scale": 1e9}}, r"tiles\.scale"),
        ({"region": {"roi": [0, 0, 65, 64]}}, "leaves the frame"),
        ({"region": {"roi": [-1, 0, 10, 10]}}, "no rectangle"),
        ({"golden": {"frames": 10**9}}, r"golden\.frames"),
        ({"product": "a" * 1000}, "product"),
        ({"model": {"layers": ["a"] * 1000}}, r"model\.layers"),
        ({"limits": {"method": "a" * 100_000}}, r"limits\.method"),
    ],
)
def test_absurd_numbers_are_refused(folder, changes, why):
    rewrite_recipe(folder, **changes)
    with pytest.raises(RecipeError, match=why):
        load_recipe(folder)


def test_an_endless_recipe_is_refused_before_it_is_parsed(folder):
    with (folder / "recipe.toml").open("ab") as file:
        file.truncate(20_000_000_000)  # a hole: it takes no disk
    began_s = time.monotonic()
    with pytest.raises(RecipeError, match="larger than 256 kB"):
        load_recipe(folder)
    assert time.monotonic() - began_s < 1


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder):
    for name in ("recipe.toml", "model.bin"):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        with pytest.raises(RecipeError, match=rf"{name}"):
            load_recipe(folder)
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


def settings_for(tmp_path):
    camera = Camera(name="cam1", recipe="demo", source=LineSource())
    return Settings(recipes_dir=tmp_path, cameras=[camera], inference={"threads": 1})


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "recipe.toml", "golden/scores.json"])
def test_the_model_is_parsed_only_after_the_hashes_are_checked(tmp_path, folder, name, monkeypatch):
    monkeypatch.setattr(ov.Core, "read_model", lambda *_: pytest.fail("parsed"))
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    with pytest.raises(RecipeError):
        prepare(active_recipe(tmp_path, "demo"), settings_for(tmp_path))


def test_a_model_changed_since_it_was_verified_is_not_compiled_again(tmp_path, folder, monkeypatch):
    """As when inference hung hours after the start and the model is compiled once more."""
    recipe = active_recipe(tmp_path, "demo")
    prepare(recipe, settings_for(tmp_path))
    monkeypatch.setattr(ov.Core, "read_model", lambda *_: pytest.fail("parsed"))
    (folder / "model.bin").write_bytes(bytes((folder / "model.bin").stat().st_size))
    with pytest.raises(RecipeError, match=r"model\.bin was changed"):
        prepare(recipe, settings_for(tmp_path))


@pytest.mark.parametrize(
    ("middle", "tiles", "said"),
    [
        (False, (), ""),
        (True, (), "passes, so the recipe would find no defects"),
        (
            False,
            (2, 5),
            "passes in 2 of 6 tiles (row/column 1/3, 2/3), so the recipe would find no defects there",
        ),
        (
            True,
            (5,),
            "passes, in the middle and in 1 of 6 tiles (row/column 2/3), so the recipe would find no defects",
        ),
    ],
)
def test_what_passes_is_said_of_the_middle_first_and_of_tiles_besides(middle, tiles, said):
    words = blind_words(middle, tiles, (2, 3))
    assert words == (said and f"a good frame with a large square painted over {said}")


def test_of_many_blind_tiles_the_first_are_named():
    assert "7 of 8 tiles (row/column 1/1, 1/2, 1/3, 1/4, 2/1, 2/2 and so on)" in blind_words(
        False, tuple(range(7)), (2, 4)
    )


def test_a_recipe_that_is_blind_in_a_tile_is_used_and_logged_with_the_tile(tmp_path, folder):
    def warnings():
        with capture_logs() as logs:
            prepare(active_recipe(tmp_path, "demo"), settings_for(tmp_path))
        return [entry for entry in logs if entry["log_level"] == "warning"]

    assert not active_recipe(tmp_path, "demo").is_blind
    assert warnings() == []
    rewrite_recipe(folder, golden={"blind_tiles": [3]})
    assert active_recipe(tmp_path, "demo").is_blind
    (said,) = warnings()
    assert said["event"] == "this recipe is blind"
    assert "passes in 1 of 4 tiles (row/column 2/2)" in said["why"]


def test_a_recipe_that_was_only_touched_is_compiled_again(tmp_path, folder):
    recipe = active_recipe(tmp_path, "demo")
    os.utime(folder / "model.bin")
    assert prepare(recipe, settings_for(tmp_path)).recipe.hash == recipe.hash


def test_a_model_swapped_while_it_is_read_is_refused(tmp_path, folder, monkeypatch):
    """Also where the sound file is put back before anybody looks."""
    read, path = ov.Core.read_model, folder / "model.bin"

    def swapping(core, model):
        sound = path.read_bytes()
        path.write_bytes(sound[:-4] + b"\0\0\0\0")
        found = read(core, model)
        path.write_bytes(sound)
        return found

    monkeypatch.setattr(ov.Core, "read_model", swapping)
    with pytest.raises(RecipeError, match=r"changed while it was read|golden"):
        prepare(active_recipe(tmp_path, "demo"), settings_for(tmp_path))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("offset", "999999999"),
        ("offset", str(2**63 - 8)),
        ("offset", "-8"),
        ("size", "99999999999"),
        ("size", "1"),
    ],
)
def test_weights_outside_the_weights_file_are_refused(tmp_path, folder, attribute, value):
    path = folder / "model.xml"
    path.write_text(
        re.sub(rf'(<data [^>]*){attribute}="\d+"', rf'\g<1>{attribute}="{value}"', path.read_text(), count=1)
    )
    rewrite_recipe(folder)
    with pytest.raises(RecipeError, match="does not compile"):
        prepare(active_recipe(tmp_path, "demo"), settings_for(tmp_path))


def test_a_model_of_another_format_is_refused(tmp_path, folder):
    """OpenVINO reads ONNX under any name, and ONNX may refer to further files."""
    (folder / "model.xml").write_bytes(b"\x08\x07\x12\x04onnx")
    rewrite_recipe(folder)
    with pytest.raises(RecipeError, match="is no OpenVINO model"):
        load_recipe(folder)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_turns_data_into_code(path):
    found = unsafe(ast.parse(path.read_text(encoding="utf-8")))
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "builtins.exec(text)",
        "pandas.read_pickle(path)",
        "core.add_extension(path)",
        "np.load(path, **more)",
    ],
)
def test_that_check_sees_what_it_looks_for(code):
    assert unsafe(ast.parse(code))


def unsafe(tree: ast.Module) -> list[str]:
    """What in a module could run code that came as data, with its line."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in UNSAFE_IMPORTS]
        if isinstance(node, ast.Call) and _is_unsafe(node):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def _is_unsafe(call: ast.Call) -> bool:
    whole = ast.unparse(call.func)
    owner, _, name = whole.rpartition(".")
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "load" and owner in ("np", "numpy"):
        return given.get("allow_pickle") != "False"
    if name == "load" and owner == "torch":
        return given.get("weights_only") != "True"
    return name == "read_pickle" or (name in UNSAFE_CALLS and owner in ("", "builtins", "core", "yaml"))


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
