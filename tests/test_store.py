"""Versions on disk: whole or not there, verified before they become active, and never lost by a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers_recipe import rewrite_recipe, write_recipe

from calibrate import store
from calibrate.store import (
    activate,
    active_version,
    check_place,
    new_version,
    products,
    resolve,
    rollback,
    versions,
)
from inspectord.errors import RecipeError
from inspectord.recipe import load_recipe

ROOT = Path(__file__).parent.parent
HOLD = (
    "import sys, time; from pathlib import Path; from calibrate.store import new_version\n"
    "with new_version(Path(sys.argv[1]), 'flange') as staging:\n"
    "    (staging.path / 'half').write_text('half'); print(staging.version, flush=True); time.sleep(60)\n"
)


@pytest.fixture
def recipes(tmp_path):
    """Three versions of flange, none active."""
    for number in range(1, 4):
        write_recipe(tmp_path / "recipes", "flange", f"{number:04d}", activate=False)
    return tmp_path / "recipes"


def holder(recipes):
    """A process in the middle of writing a version, and that version."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(recipes)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_a_version_that_is_published_while_another_counts_keeps_its_number(tmp_path, monkeypatch):
    """Both fits of a crowded box end. With the rename outside the lock the second one's failed."""
    counts = store._version_names

    def counted(folder):
        names = counts(folder)
        monkeypatch.setattr(store, "_version_names", counts)
        go.set()
        first.join(0.5)  # ends in between, if nothing holds it
        return names

    go, reserved = threading.Event(), threading.Event()

    def publish():
        with new_version(tmp_path, "flange") as staging:
            (staging.path / "first").write_text("")
            reserved.set()
            go.wait(10)

    first = threading.Thread(target=publish)
    first.start()
    assert reserved.wait(10)
    monkeypatch.setattr(store, "_version_names", counted)
    with new_version(tmp_path, "flange") as staging:
        (staging.path / "second").write_text("")
    first.join()
    found = {path.name: [file.name for file in path.iterdir()] for path in (tmp_path / "flange").iterdir()}
    assert found == {"0001": ["first"], "0002": ["second"]}


def test_a_version_appears_whole_when_the_block_ends(tmp_path):
    with new_version(tmp_path, "flange") as staging:
        (staging.path / "golden").mkdir()
        (staging.path / "golden" / "a").write_text("a")
        assert products(tmp_path) == []
    assert (tmp_path / "flange" / "0001" / "golden" / "a").read_text() == "a"
    assert [path.name for path in (tmp_path / "flange").iterdir()] == ["0001"]


def test_an_error_in_the_block_leaves_nothing(tmp_path):
    def write():
        with new_version(tmp_path, "flange") as staging:
            (staging.path / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert list((tmp_path / "flange").iterdir()) == []


def test_a_killed_writer_leaves_no_version_and_its_remains_go_with_the_next(recipes):
    process, version = holder(recipes)
    assert version == "0004"
    process.kill()
    process.wait()
    assert versions(recipes, "flange") == ["0001", "0002", "0003"]
    with new_version(recipes, "flange") as staging:
        assert staging.version == "0004"
        assert not (staging.path / "half").exists()
    assert not list((recipes / "flange").glob(".*"))


def test_two_writers_at_once_get_versions_of_their_own(recipes):
    process, version = holder(recipes)
    with new_version(recipes, "flange") as staging:
        assert (version, staging.version) == ("0004", "0005")
        assert (recipes / "flange" / ".0004.staging" / "half").exists()
    process.kill()
    process.wait()


def test_versions_count_on_beyond_9999(tmp_path):
    write_recipe(tmp_path, "flange", "9999", activate=False)
    with new_version(tmp_path, "flange") as staging:
        assert staging.version == "10000"
    assert versions(tmp_path, "flange") == ["9999", "10000"]


def test_activate_takes_the_newest_or_the_one_named(recipes):
    assert active_version(recipes, "flange") is None
    assert activate(recipes, "flange").id == "flange/0003"
    assert activate(recipes, "flange", "2").id == "flange/0002"
    assert activate(recipes, "flange", "0001").id == "flange/0001"
    assert os.readlink(recipes / "flange" / "active") == "0001"


def test_a_tampered_version_is_not_activated_and_the_active_one_stays(recipes):
    activate(recipes, "flange", "0001")
    with (recipes / "flange" / "0003" / "model.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RecipeError, match=r"model\.bin was changed after fitting"):
        activate(recipes, "flange")
    assert active_version(recipes, "flange") == "0001"


def test_a_recipe_of_a_newer_schema_is_not_activated(recipes):
    rewrite_recipe(recipes / "flange" / "0003", schema_version=2)
    with pytest.raises(RecipeError, match="has schema 2, this inspectord reads up to 1"):
        activate(recipes, "flange", "0003")


def test_a_recipe_of_another_product_is_not_activated(recipes):
    (recipes / "flange").rename(recipes / "washer")
    with pytest.raises(RecipeError, match="is a recipe of 'flange', not of 'washer'"):
        activate(recipes, "washer")


def make_blind(recipe, tiles=(1, 2)):
    rewrite_recipe(recipe, golden={"blind_tiles": list(tiles)})


def test_a_blind_version_is_refused_with_why_and_what_to_do_and_the_active_one_stays(recipes):
    activate(recipes, "flange", "0001")
    make_blind(recipes / "flange" / "0003")
    with pytest.raises(RecipeError) as refused:
        activate(recipes, "flange")
    said = str(refused.value)
    assert said.startswith(
        "flange/0003 was not activated: a good frame with a large square painted over passes"
    )
    assert "in 2 of 4 tiles (row/column 1/2, 2/1)" in said
    assert all(step in said for step in ("report.html", "more good parts", "--anyway"))
    assert active_version(recipes, "flange") == "0001"


def test_a_blind_version_can_be_activated_anyway_and_the_history_says_so(recipes):
    for number in (1, 2):
        make_blind(recipes / "flange" / f"000{number}", (number,))
    activate(recipes, "flange", "0001", anyway=True)
    activate(recipes, "flange", "0003", anyway=True)
    activate(recipes, "flange", "0002", anyway=True)
    log = (recipes / "flange" / "activations.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in log] == [
        "activate 0001 anyway",
        "activate 0003",
        "activate 0002 anyway",
    ]


def test_rollback_takes_a_blind_version_in_an_emergency_and_the_history_says_so(recipes):
    make_blind(recipes / "flange" / "0001")
    activate(recipes, "flange", "0001", anyway=True)
    for version in ("0002", "0003"):
        activate(recipes, "flange", version)
    assert not rollback(recipes, "flange").is_blind
    back = rollback(recipes, "flange")
    assert back.id == "flange/0001"
    assert "in 2 of 4 tiles" in back.blindness
    assert active_version(recipes, "flange") == "0001"
    log = (recipes / "flange" / "activations.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in log[-2:]] == ["rollback 0002", "rollback 0001 anyway"]
    with pytest.raises(RecipeError, match="no version of flange was active before 0001"):
        rollback(recipes, "flange")


def test_rollback_goes_back_step_by_step(recipes):
    for version in ("0001", "0003", "0002"):
        activate(recipes, "flange", version)
    assert rollback(recipes, "flange").id == "flange/0003"
    assert rollback(recipes, "flange").id == "flange/0001"
    with pytest.raises(RecipeError, match="no version of flange was active before 0001"):
        rollback(recipes, "flange")
    assert active_version(recipes, "flange") == "0001"


def test_rollback_passes_over_versions_that_were_deleted(recipes):
    for version in ("0001", "0002", "0003"):
        activate(recipes, "flange", version)
    (recipes / "flange" / "0002").rename(recipes / "gone")
    assert rollback(recipes, "flange").id == "flange/0001"


def test_rollback_survives_half_a_line_in_its_history(recipes):
    for version in ("0001", "0002"):
        activate(recipes, "flange", version)
    with (recipes / "flange" / "activations.log").open("a") as file:
        file.write("2026-01-01T00:00:00Z rollback")
    assert rollback(recipes, "flange").id == "flange/0001"
    with pytest.raises(RecipeError, match="no version of flange was active before 0001"):
        rollback(recipes, "flange")


def test_rollback_to_a_tampered_version_keeps_the_active_one(recipes):
    for version in ("0001", "0002"):
        activate(recipes, "flange", version)
    (recipes / "flange" / "0001" / "model.xml").write_text("<net/>")
    with pytest.raises(RecipeError, match="changed after fitting"):
        rollback(recipes, "flange")
    assert active_version(recipes, "flange") == "0002"


def test_a_daemon_never_finds_the_active_link_missing(recipes):
    """Swapped a hundred times while another process loads through it."""
    activate(recipes, "flange", "0001")
    code = (
        "import sys; from pathlib import Path; from inspectord.recipe import active_recipe\n"
        "print(flush=True)\n"
        "while True: active_recipe(Path(sys.argv[1]), 'flange')\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, str(recipes)], cwd=ROOT, stdout=subprocess.PIPE)
    reader.stdout.readline()
    for number in range(100):
        activate(recipes, "flange", f"000{1 + number % 3}")
    time.sleep(0.1)
    assert reader.poll() is None
    reader.send_signal(signal.SIGKILL)
    reader.wait()


def test_resolve_takes_a_product_a_version_or_a_folder(recipes):
    activate(recipes, "flange", "0002")
    assert resolve(recipes, "flange").path.name == "0002"
    assert resolve(recipes, "flange/0003").path.name == resolve(recipes, "flange/3").path.name == "0003"
    assert resolve(recipes, str(recipes / "flange" / "0001")).path.name == "0001"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("washer", r"no recipes of 'washer' .*products there: flange"),
        ("flange/0009", r"no version '0009'; it has 0001, 0002, 0003"),
        ("flange", "no active recipe for 'flange'"),
        ("/nowhere/flange/0001", "no recipe folder /nowhere/flange/0001"),
        ("../flange", r"no recipe folder \.\./flange"),
    ],
)
def test_an_unknown_recipe_says_what_there_is(recipes, name, hint):
    with pytest.raises(RecipeError, match=hint):
        resolve(recipes, name)


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for check in (check_place, lambda *place: new_version(*place).__enter__()):
        with pytest.raises(RecipeError, match=r"can't write .*--recipes"):
            check(tmp_path / "file" / "recipes", "flange")
    with pytest.raises(RecipeError, match="no product name"):
        check_place(tmp_path, "../flange")
    check_place(tmp_path / "not" / "yet", "flange")
    assert not (tmp_path / "not").exists()


def test_a_fresh_version_loads(recipes):
    assert load_recipe(recipes / "flange" / "0001").spec.product == "flange"
