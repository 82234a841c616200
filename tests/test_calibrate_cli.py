"""calibrate as an operator meets it: what it says, what it refuses and how, and that nothing is ever lost."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_recipe import rewrite_recipe, write_recipe

from calibrate import cli
from calibrate.chosen import fit_options
from calibrate.cli import COMMANDS, main
from calibrate.options import FitOptions
from calibrate.show import fitted_lines
from inspectord import __version__
from inspectord.recipe import Recipe, active_recipe, load_recipe
from inspectord.sources.parts import render_part

ROOT = Path(__file__).parent.parent
PARTS = 14
ROOMY = ("--memory-mb", "100000")  # this process has already had its peak, which is counted


def write_parts(folder, count=PARTS, first=0, width=64, height=64, defect_rate=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = render_part(1, number, width, height, defect_rate).pixels
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts") / "good")


@pytest.fixture(scope="module")
def fitted(good, tmp_path_factory):
    """A recipes folder with flange/0001, fitted and active, and all that the fit said."""
    recipes = tmp_path_factory.mktemp("fitted") / "recipes"
    done = run("fit", good, "--product", "flange", "--recipes", recipes)
    assert done.returncode == 0, done.stderr
    return recipes, done


@pytest.fixture
def recipes(tmp_path):
    """flange with versions 0001 and 0002, of which the second is active."""
    for version in ("0001", "0002"):
        write_recipe(tmp_path / "recipes", "flange", version, activate=False)
        assert main(["activate", "flange", version, "--recipes", str(tmp_path / "recipes")]) == 0
    return tmp_path / "recipes"


def command(*arguments):
    return [sys.executable, "-m", "calibrate", *map(str, arguments)]


def run(*arguments, **more):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **more
    )


def calibrate(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, code, *arguments):
    """The one line on stderr of a command that must fail with this exit code."""
    capsys.readouterr()
    try:
        found = calibrate(*arguments)
    except SystemExit as exit_:
        found = exit_.code
    said = capsys.readouterr().err
    assert found == code, said
    lines = [line for line in said.splitlines() if line.startswith("calibrate: ")]
    assert len(lines) == 1
    assert said.endswith(lines[0] + "\n")
    return lines[0]


# --- help ---


def examples_of(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    return re.findall(r"^  calibrate (.*)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_a_commands_help_is_a_command_that_parses(name, capsys):
    examples = examples_of(name, capsys)
    assert examples
    for example in examples:
        parsed = cli._parser().parse_args(shlex.split(example))
        assert parsed.command is COMMANDS[name][0]


def test_help_and_version_come_without_loading_a_library():
    code = (
        "import sys, calibrate.cli as c\n"
        "try: c.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'cv2', 'openvino', 'scipy', 'rich', 'pydantic') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert run("--version").stdout.strip() == f"calibrate {__version__}"


def test_the_recipes_folder_comes_from_the_environment(recipes, monkeypatch, capsys):
    monkeypatch.setenv("INSPECTORD_RECIPES_DIR", str(recipes))
    assert calibrate("show", "flange") == 0
    assert "flange/0002, the active version" in capsys.readouterr().out


# --- fit ---


def test_fit_says_the_cost_the_limit_the_recipe_the_report_and_the_next_step(fitted):
    recipes, done = fitted
    assert "14 good frames; a map of" in done.stderr
    assert "MB of memory" in done.stderr
    assert "warning: 14 good parts can't prove 1 in 1,000" in done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("At this limit about 1 in ")
    assert "14 good parts prove at most" in said[0]
    assert said[1] == "recipe flange/0001 is active"
    assert Path(said[2].removeprefix("report: ")).is_file()
    assert f'recipes_dir = "{recipes}"' in said[3]
    assert "inspectord check" in said[3]


def test_every_field_of_the_options_has_a_flag_that_reaches_it(tmp_path):
    line = (
        f"fit a b --product p --recipes {tmp_path} --model patchcore --coreset 5% --position-weight 0.5 "
        "--reweight 9 --no-extendable --backbone resnet18 --weights w.pth --layers x,y "
        "--dimensions 7 --reduction semi-orthogonal --seed 3 --augment 2 --letterbox 64x48 --resize 40 "
        "--tile 32 --overlap 8 --grid 2x3 --roi 1,2,3,4 --ignore m.png --ignore-polygon '0,0 1,0 1,1' "
        "--ignore-polygon '5,5 6,5 6,6' --absolute --smoothing 0 --max-false-rejects 1/50 --folds 5 "
        "--device GPU --precision bf16 --threads 3 --skip-bad --no-activate --memory-mb 900 "
        "--surroundings --relight --per-tile --score top-3 --normalise tile --jobs 4 --on dask://here:8786"
    )
    options = fit_options(cli._parser().parse_args(shlex.split(line)))
    assert options == FitOptions(
        product="p",
        recipes_dir=tmp_path,
        folders=(Path("a"), Path("b")),
        model="patchcore",
        backbone="resnet18",
        weights=Path("w.pth"),
        layers=("x", "y"),
        dimensions=7,
        reduction="semi-orthogonal",
        seed=3,
        augment=2,
        letterbox=(64, 48),
        resize=40,
        tile=32,
        overlap=8,
        grid=(2, 3),
        per_tile=True,
        top_tiles=3,
        normalise="tile",
        roi=(1, 2, 3, 4),
        ignore_png=Path("m.png"),
        ignore_polygons=(((0, 0), (1, 0), (1, 1)), ((5, 5), (6, 5), (6, 6))),
        coreset="5%",
        position_weight=0.5,
        reweight=9,
        extendable=False,
        surroundings=True,
        relight=True,
        absolute=True,
        smoothing_px=0.0,
        max_false_reject_rate=0.02,
        folds="5",
        device="GPU",
        precision="bf16",
        threads=3,
        skip_bad=True,
        activate=False,
        memory_mb=900,
        jobs=4,
        on="dask://here:8786",
    )
    default = FitOptions("p", tmp_path, (Path("a"),))
    unlike = [
        f.name for f in dataclasses.fields(options) if getattr(options, f.name) == getattr(default, f.name)
    ]
    of_others = ["epsilon", "adapt", "steps", "minutes", "train_device", "max_int8_loss"]
    assert unlike == ["product", "recipes_dir", *of_others]  # models and precisions
    parsed = cli._parser().parse_args(shlex.split("fit a --product p --model padim --epsilon 0.5"))
    assert (fit_options(parsed).model, fit_options(parsed).epsilon) == ("padim", 0.5)


def test_flags_of_patchcore_stand_for_patchcore():
    for words in ("--coreset 5%", "--position-weight 1", "--absolute --reweight 9", "--tile 64 --per-tile"):
        asked = ["fit", "a", "--product", "p", *words.split()]
        assert fit_options(cli._parser().parse_args(asked)).model == "patchcore"


def test_without_flags_the_options_keep_their_own_defaults(tmp_path):
    parsed = cli._parser().parse_args(["fit", "a", "--product", "p", "--recipes", str(tmp_path)])
    assert fit_options(parsed) == FitOptions("p", tmp_path, (Path("a"),))


def test_no_activate_stores_the_recipe_and_says_how_to_go_on(good, tmp_path, capsys):
    assert calibrate("fit", good, "--product", "flange", "--recipes", tmp_path, "--no-activate", *ROOMY) == 0
    said = capsys.readouterr().out
    assert "recipe flange/0001 is stored, not active" in said
    assert "`calibrate activate flange 0001`" in said
    assert not (tmp_path / "flange" / "active").is_symlink()


def test_a_data_set_with_labelled_defects_teaches_only_its_good_training_images(tmp_path, good, fitted):
    root = tmp_path / "set"
    write_parts(root / "train" / "good")
    write_parts(root / "test" / "good", count=2, first=50)
    write_parts(root / "test" / "scratch", count=3, first=60, defect_rate=1.0)
    assert calibrate("fit", root, "--product", "flange", "--recipes", tmp_path / "recipes", *ROOMY) == 0
    # The same frames, so the same recipe to the last bit: nothing else was read.
    assert active_recipe(tmp_path / "recipes", "flange").hash == active_recipe(fitted[0], "flange").hash


def test_skip_bad_fits_from_the_rest_and_counts_what_it_left_out(tmp_path, capsys):
    folder = write_parts(tmp_path / "parts")
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:300])
    (folder / "001.png").write_bytes(b"no image")
    where = ("--product", "flange", "--recipes", tmp_path / "recipes")
    assert "2 bad images" in refused(capsys, 65, "fit", folder, *where)
    assert calibrate("fit", folder, *where, *ROOMY, "--skip-bad") == 0
    said = capsys.readouterr()
    assert "left out by --skip-bad: 2 bad images" in said.err
    assert active_recipe(tmp_path / "recipes", "flange").spec.limits.good_parts == PARTS - 2


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def missing(folder):
    folder.rename(folder.parent / "elsewhere")


def one(folder):
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def sixteen_bit(folder):
    cv2.imwrite(str(folder / "x.png"), np.arange(4096, dtype=np.uint16).reshape(64, 64))


def mixed_sizes(folder):
    write_parts(folder, count=1, first=80, width=80)


def mixed_channels(folder):
    cv2.imwrite(str(folder / "x.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def constant(folder):
    cv2.imwrite(str(folder / "x.png"), np.full((64, 64), 9, np.uint8))


def all_masked(folder):
    return ("--ignore-polygon", "0,0 64,0 64,64 0,64")


def roi_outside(folder):
    return ("--roi", "0,0,65,64")


def too_many_folds(folder):
    return ("--folds", "15")


def unknown_backbone(folder):
    return ("--backbone", "resnet19")


def no_weights(folder):
    return ("--backbone", "resnet18")


def tile_and_grid(folder):
    return ("--tile", "32", "--grid", "2x2")


def unknown_device(folder):
    return ("--device", "NPX")


# What makes a folder of parts, or the flags, unfit; the exit code, and what the operator reads.
UNFIT = [
    (empty, 69, "no images in"),
    (missing, 69, "no folder"),
    (one, 65, "1 different good image in"),
    (sixteen_bit, 65, "16 bits a channel; convert to 8 bit"),
    (mixed_sizes, 65, "--letterbox 80x64"),
    (mixed_channels, 65, "grey and colour images are mixed"),
    (constant, 65, "is blank: every pixel is 9"),
    (all_masked, 65, "the masks cover the whole region"),
    (roi_outside, 65, "--roi 0,0,65,64 leaves the frame, which is 64x64"),
    (too_many_folds, 65, "--folds is loo, run, or a number from 2 to the 14 frames"),
    (unknown_backbone, 65, "unknown backbone 'resnet19'; use bundled"),
    (no_weights, 65, "needs --weights FILE"),
    (tile_and_grid, 65, "--tile and --grid exclude each other"),
    (unknown_device, 65, "does not compile on NPX"),
]


@pytest.mark.parametrize(("spoil", "code", "hint"), UNFIT, ids=lambda value: getattr(value, "__name__", ""))
def test_what_makes_a_fit_impossible_is_one_line_and_changes_nothing(
    tmp_path, capsys, recipes, spoil, code, hint
):
    more = spoil(write_parts(tmp_path / "parts")) or ()
    before = sorted(recipes.rglob("*"))
    said = refused(
        capsys, code, "fit", tmp_path / "parts", "--product", "flange", "--recipes", recipes, *more
    )
    assert hint in said
    assert sorted(recipes.rglob("*")) == before
    assert active_recipe(recipes, "flange").path.name == "0002"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--max-false-rejects", "5"), "'5' is no rate between 0 and 1; give it as in 1/1000"),
        (("--max-false-rejects", "1/0"), "'1/0' is no rate"),
        (("--roi", "1,2,3"), "'1,2,3' is no region; give x,y,width,height"),
        (("--ignore-polygon", "0,0 1,1"), "give three or more corners"),
        (("--grid", "2"), "'2' is no pair of numbers"),
        (("--folds", "1"), "'1' is not loo, run or a number from 2 up"),
        (("--dimensions", "0"), "'0' is no whole number from 1 up"),
        (("--coreset", "0%"), "is no share or number of patches"),
        (("--smoothing", "nan"), "'nan' is no number from 0 up"),
        (("--layers", "a,,b"), "is no list of names"),
        (("--resise", "64"), "there is no --resise (did you mean --resize?); see `calibrate fit --help`"),
        (("--xyz=1",), "there is no --xyz; see"),
        (("-x",), "unrecognized arguments: -x"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line_with_what_was_expected(good, capsys, flags, hint):
    said = refused(capsys, 2, "fit", good, "--product", "flange", *flags)
    assert hint in said
    assert "--help`" in said


def test_a_misspelt_flag_is_told_before_the_one_that_lacks_because_of_it(good, capsys):
    assert "(did you mean --product?)" in refused(capsys, 2, "fit", good, "--prodcut", "flange")


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--overlap", "8"), "--tile or --grid"),
        (("--weights", "w.pth"), "--backbone by name"),
        (("--model", "padim", "--coreset", "1%"), "--model patchcore"),
        (("--model", "padim", "--position-weight", "1"), "--model patchcore"),
        (("--model", "padim-seg", "--coreset", "1%"), "--model patchcore or patchcore-seg"),
        (("--model", "padim-seg", "--adapt", "auto"), "--model patchcore or padim"),
        (("--model", "patchcore-seg", "--reduction", "random"), "--dimensions"),
        (("--epsilon", "1"), "--model padim"),
        (("--reduction", "random"), "--dimensions"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(good, capsys, flags, hint):
    assert hint in refused(capsys, 78, "fit", good, "--product", "flange", *flags)


def test_an_unwritable_recipes_folder_is_told_before_the_work(good, tmp_path, capsys):
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert calibrate("fit", good, "--product", "flange", "--recipes", tmp_path / "file" / "recipes") == 65
    said = capsys.readouterr().err
    assert "checking images" not in said
    assert "can't write" in said
    assert "--recipes" in said


def test_a_product_name_that_is_a_path_is_refused(good, tmp_path, capsys):
    said = refused(capsys, 65, "fit", good, "--product", "../x", "--recipes", tmp_path)
    assert "'../x' is no product name" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_fit_leaves_no_half_recipe_and_the_active_one_intact(good, recipes, tmp_path, number):
    flange = recipes / "flange"
    process = subprocess.Popen(
        command("fit", good, "--product", "flange", "--recipes", recipes),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(flange.glob(".*.staging/recipe.toml")):  # in the middle of writing
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert active_recipe(recipes, "flange").path.name == "0002"
    assert sorted(path.name for path in flange.iterdir() if path.name[0] != ".") == [
        "0001",
        "0002",
        "activations.log",
        "active",
    ]
    assert "0003" not in run("list", "--recipes", recipes).stdout


# --- show, list, activate, rollback ---


def test_show_tells_a_recipe_in_words(fitted, capsys):
    recipes, done = fitted
    assert calibrate("show", "flange", "--recipes", recipes) == 0
    said = capsys.readouterr().out
    assert done.stdout.splitlines()[0] in said
    for part in ("64x64 Mono8", "the whole frame", "patchcore on standard", "CPU in f32", "leave-one-out"):
        assert part in said
    assert active_recipe(recipes, "flange").hash in said


def test_show_of_a_hand_made_recipe_needs_no_provenance(recipes, capsys):
    assert calibrate("show", recipes / "flange" / "0001") == 0
    said = capsys.readouterr().out
    assert said.startswith("flange/0001: At this limit")
    assert "fitted:" not in said


def test_list_has_a_row_for_each_version_and_names_the_damaged_one(recipes, capsys):
    with (recipes / "flange" / "0001" / "model.bin").open("ab") as file:
        file.write(b"x")
    assert calibrate("list", "--recipes", recipes) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["flange", "0001", "damaged"]
    assert rows[2][:5] == ["flange", "0002", "yes", "0.3", "30"]
    assert rows[3][0] == "damaged:"
    assert "model.bin" in rows[3][1]


def test_list_marks_a_blind_version_and_activate_takes_it_only_anyway(recipes, capsys):
    rewrite_recipe(recipes / "flange" / "0001", golden={"blind_tiles": [3]})
    assert calibrate("list", "--recipes", recipes) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] == "blind" for line in said[1:3]] == [True, False]
    why = "a good frame with a large square painted over passes in 1 of 4 tiles (row/column 2/2)"
    assert said[3].startswith(f"blind: flange/0001: {why}")
    assert why in refused(capsys, 65, "activate", "flange", "0001", "--recipes", recipes)
    assert active_recipe(recipes, "flange").path.name == "0002"
    assert calibrate("activate", "flange", "0001", "--anyway", "--recipes", recipes) == 0
    assert f"warning: flange/0001 is blind: {why}" in capsys.readouterr().err
    assert active_recipe(recipes, "flange").path.name == "0001"
    lines = fitted_lines(active_recipe(recipes, "flange"), active=False)
    assert lines[-1].startswith(f"it is blind: {why}")
    assert lines[-1].endswith("`calibrate activate` takes it only with `--anyway`")
    assert calibrate("activate", "flange", "--recipes", recipes) == 0
    assert "warning" not in capsys.readouterr().err
    assert calibrate("rollback", "flange", "--recipes", recipes) == 0
    assert f"warning: flange/0001 is blind: {why}" in capsys.readouterr().err


def test_list_reads_the_golden_scores_of_a_version_once(recipes, monkeypatch):
    honest, read = Recipe.golden, []
    monkeypatch.setattr(Recipe, "golden", lambda self: read.append(self.id) or honest(self))
    assert calibrate("list", "--recipes", recipes) == 0
    assert read == ["flange/0001", "flange/0002"]


def test_list_of_nothing_says_how_to_begin(tmp_path, capsys):
    assert calibrate("list", "--recipes", tmp_path / "none") == 0
    assert "make one with `calibrate fit" in capsys.readouterr().out


def test_activate_and_rollback_change_what_the_daemon_loads(recipes, capsys):
    assert calibrate("rollback", "flange", "--recipes", recipes) == 0
    assert "recipe flange/0001 is active" in capsys.readouterr().out
    assert active_recipe(recipes, "flange").path.name == "0001"
    assert calibrate("activate", "flange", "--recipes", recipes) == 0
    assert active_recipe(recipes, "flange").path.name == "0002"


def test_a_tampered_or_newer_recipe_is_refused_everywhere(recipes, capsys):
    (recipes / "flange" / "0001" / "model.xml").write_text("<net/>")
    for name in ("show", "activate"):
        target = ["flange/0001"] if name == "show" else ["flange", "0001"]
        assert "model.xml was changed after fitting" in refused(
            capsys, 65, name, *target, "--recipes", recipes
        )
    rewrite_recipe(recipes / "flange" / "0002", schema_version=99)
    assert "has schema 99" in refused(capsys, 65, "show", "flange", "--recipes", recipes)


@pytest.mark.parametrize("name", ["show", "activate", "rollback"])
def test_an_unknown_product_names_those_there_are(recipes, capsys, name):
    said = refused(capsys, 65, name, "washer", "--recipes", recipes)
    assert "no recipes of 'washer'" in said
    assert "products there: flange" in said


def test_an_unwritable_disk_is_one_line(recipes, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calibrate.store.os.replace", full)
    assert "No space left on device" in refused(
        capsys, 74, "activate", "flange", "0001", "--recipes", recipes
    )
    assert active_recipe(recipes, "flange").path.name == "0002"


# --- evaluate ---


def test_evaluate_prints_a_table_and_writes_every_figure(fitted, tmp_path, capsys):
    write_parts(tmp_path / "set" / "test" / "good", count=3, first=100)
    write_parts(tmp_path / "set" / "test" / "defect", count=3, first=200, defect_rate=1.0)
    figures = tmp_path / "figures.json"
    arguments = ("evaluate", "flange", tmp_path / "set", "--recipes", fitted[0], "--json", figures)
    assert calibrate(*arguments, "--threads", 1) == 0
    said = capsys.readouterr().out
    assert "flange/0001" in said
    assert "defect" in said
    table = json.loads(figures.read_text())
    assert table["recipe_hash"] == load_recipe(fitted[0] / "flange" / "active").hash


def test_evaluate_says_what_its_folder_must_hold_and_where_figures_can_go(fitted, good, tmp_path, capsys):
    where = ("--recipes", fitted[0])
    assert "test/good" in refused(capsys, 69, "evaluate", "flange", good, *where)
    for place in (tmp_path / "no" / "f.json", tmp_path):
        said = refused(capsys, 73, "evaluate", "flange", good, *where, "--json", place)
        assert f"no file can be written at {place}" in said


def test_no_flag_is_without_help():
    commands = cli._parser()._subparsers._group_actions[0].choices
    for parser in commands.values():
        for action in parser._actions:
            assert action.help or action.metavar == "PRODUCT" or isinstance(action, argparse._HelpAction)
