"""calibrate extend: what was learned stays, new frames are added exactly, and the limit is of all of them."""

from __future__ import annotations

import dataclasses
import shutil

import cv2
import numpy as np
import openvino as ov
import pytest
from helpers_recipe import rewrite_recipe, write_recipe
from openvino import opset15 as op

from calibrate import candidates, patchcore, publish
from calibrate.cli import main
from calibrate.extend import Wanted, prepare_extension
from calibrate.fit import estimate, fit
from calibrate.learned import LEARNED
from calibrate.light import EVENED, RELIT
from calibrate.options import FitOptions
from calibrate.plan import prepare
from calibrate.progress import Silent
from calibrate.sums import Sums
from inspectord.errors import FitError, FrameError
from inspectord.inspect import Inspector, check_golden
from inspectord.recipe import active_recipe, load_recipe
from inspectord.sources.parts import render_part
from tests.helpers_parts import write_parts

OLD, NEW = 24, 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of OLD frames, of NEW others, and of both."""
    place = tmp_path_factory.mktemp("runs")
    old = write_parts(place / "old", range(OLD))
    new = write_parts(place / "new", range(OLD, OLD + NEW))
    return old, new, write_parts(place / "both", range(OLD + NEW))


@pytest.fixture(autouse=True)
def one_gate(monkeypatch, request):
    """A process less for each recipe: the tests repeat golden scores themselves."""
    monkeypatch.setattr("calibrate.publish.check_in_fresh_process", lambda *_: None)


@pytest.fixture
def held_out(monkeypatch):
    """Held-out scores of every fit and extension of a test, in their order."""
    seen, find = [], publish.find_limit

    def noted(scores, rate):
        seen.append(scores)
        return find(scores, rate)

    monkeypatch.setattr(publish, "find_limit", noted)
    return seen


def fitted(folder, tmp_path, *more, **changes):
    base = FitOptions(
        product="flange",
        recipes_dir=tmp_path / "recipes",
        folders=(folder, *more),
        model="padim",
        relight=False,  # else a fit of all frames brings them to another light than an extension does
        threads=1,
        memory_mb=100_000,
    )
    return fit(prepare(dataclasses.replace(base, **changes), Silent()), Silent())


@pytest.fixture(scope="module")
def padim(runs, tmp_path_factory):
    """A folder with recipes/flange/0001, PaDiM of the OLD frames, to be copied."""
    place = tmp_path_factory.mktemp("padim")
    fitted(runs[0], place, dimensions=20)
    return place


@pytest.fixture
def flange(padim, tmp_path):
    return load_recipe(
        shutil.copytree(padim, tmp_path, dirs_exist_ok=True, symlinks=True) / "recipes/flange/0001"
    )


def extended(tmp_path, *folders, recipe="flange", **changes):
    """The new version, and what was said."""
    said = Silent()
    wanted = Wanted(recipe, tmp_path / "recipes", folders, threads=1, memory_mb=100_000, **changes)
    plan = prepare_extension(wanted, said)
    estimate(plan)
    return fit(plan, said), said.notes


def scores(recipe, numbers=range(500, 506)):
    inspector = Inspector(recipe, threads=1)
    assert check_golden(inspector) <= recipe.spec.golden.tolerance
    return [inspector.score(render_part(1, number, 96, 80, 0.0).pixels).score for number in numbers]


# --- sums ---


@pytest.fixture
def samples():
    """(positions, frames, d), far from zero."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((4, 40, 7)) @ rng.standard_normal((4, 7, 7)) + 30


@pytest.mark.parametrize("cut", [1, 2, 20, 39])
def test_sums_of_two_parts_are_those_of_the_whole_and_can_be_parted_again(samples, cut):
    first, second, whole = (Sums.of(x) for x in (samples[:, :cut], samples[:, cut:], samples))
    for found, expected in ((first.plus(second), whole), (whole.minus(second), first)):
        assert found.count == expected.count
        assert np.allclose(found.mean, expected.mean, rtol=1e-12)
        assert np.allclose(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)


# --- padim ---


def test_an_extended_padim_is_a_fit_on_all_frames(runs, flange, tmp_path):
    _, new, both = runs
    recipe, _ = extended(tmp_path, new)
    whole = fitted(both, tmp_path, dimensions=20, activate=False)
    assert recipe.path.name == "0002"
    assert np.allclose(scores(recipe), scores(whole), rtol=1e-4)
    assert not np.allclose(scores(recipe), scores(flange), rtol=1e-3)
    ours, theirs = recipe.spec, whole.spec
    assert np.isclose(ours.limits.score, theirs.limits.score, rtol=1e-4)
    assert ours.limits.good_parts == theirs.limits.good_parts == OLD + NEW
    assert ours.limits.folds == theirs.limits.folds
    assert ours.golden.frames == theirs.golden.frames == 6
    assert ours.model.parameters["good_frames"] == theirs.model.parameters["good_frames"]


def test_the_light_that_frames_are_brought_to_stays_the_fits(runs, tmp_path):
    old, new, _ = runs
    first = fitted(old, tmp_path, dimensions=20, relight=True)
    recipe, _ = extended(tmp_path, new)
    told = {name: recipe.spec.model.parameters[name] for name in RELIT}
    assert told.items() <= first.spec.model.parameters.items()
    assert 0 < told["relight_brightness"] < 1
    plain = render_part(1, 500, 96, 80, 0.0).pixels
    darker = (plain * 0.9).astype(np.uint8)
    assert np.array_equal(evened(recipe, darker), evened(first, darker))
    assert 0.95 < evened(recipe, darker).mean() / plain.mean() < 1.05


def evened(recipe, pixels):
    """The frame as the recipe's graph shows it to the network."""
    model = ov.Core().read_model(recipe.model_path)
    (found,) = [o for each in model.get_ordered_ops() for o in each.outputs() if EVENED in o.get_names()]
    seen = ov.Model([op.result(found)], model.get_parameters(), "evened")
    return ov.Core().compile_model(seen, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels[None]])[0]


def test_copies_folds_tiles_masks_rates_and_precision_stay_those_of_the_recipe(runs, tmp_path):
    old, new, both = runs
    mask = {"ignore_polygons": (((10, 10), (40, 10), (40, 40)),)}
    wish = {"augment": 1, "folds": "4", "tile": 48, "overlap": 16, "max_false_reject_rate": 0.01, **mask}
    wish |= {"dimensions": 20, "precision": "bf16", "absolute": True}
    fitted(old, tmp_path, **wish)
    recipe, _ = extended(tmp_path, new)
    whole = fitted(both, tmp_path, activate=False, **wish)
    assert np.allclose(scores(recipe), scores(whole), rtol=1e-4)
    ours, theirs = recipe.spec, whole.spec
    assert (ours.frame, ours.region, ours.tiles) == (theirs.frame, theirs.region, theirs.tiles)
    assert ours.runtime == theirs.runtime
    assert ours.limits.wanted_false_reject_rate == 0.01
    assert ours.limits.folds == theirs.limits.folds == "4 folds"


def test_held_out_runs_are_measured_again_and_the_limit_is_that_of_a_fit_on_all_frames(runs, tmp_path):
    old, new, _ = runs
    first, second = tmp_path / "first", tmp_path / "second"
    for number, path in enumerate(sorted(old.iterdir())):
        run = (first, second)[number % 2] / "frames"
        run.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, run)
    for run in (first, second):
        (run / "run.toml").touch()
    wish = {"dimensions": 20, "folds": "run", "absolute": True}
    fitted(first, tmp_path, second, **wish)
    recipe, _ = extended(tmp_path, new)
    whole = fitted(first, tmp_path, second, new, activate=False, **wish)
    assert np.isclose(recipe.spec.limits.score, whole.spec.limits.score, rtol=1e-4)
    assert recipe.spec.limits.good_parts == OLD + NEW


def test_frames_that_are_gone_teach_and_say_nothing_of_the_limit(runs, held_out, tmp_path):
    old, new, both = runs
    there = shutil.copytree(old, tmp_path / "old")
    fitted(there, tmp_path, dimensions=20, absolute=True)
    there.rename(tmp_path / "gone")
    recipe, said = extended(tmp_path, new)
    assert any(
        f"{OLD} are no longer where they were" in line and f"the {NEW} others" in line for line in said
    )
    whole = fitted(both, tmp_path, dimensions=20, absolute=True, activate=False)
    assert np.allclose(scores(recipe), scores(whole), rtol=1e-4)
    # Held out from all frames, gone ones too, the new ones lie exactly as far as in a fit on all.
    _, ours, theirs = held_out
    assert len(ours) == recipe.spec.limits.good_parts == NEW
    assert np.abs(ours[:, None] / theirs - 1).min(axis=1).max() < 1e-4
    assert recipe.spec.golden.frames == 11  # the old golden frames among them, without any old image
    with pytest.raises(FitError, match="have taught flange/0002 already"):
        extended(tmp_path, old)
    again, _ = extended(tmp_path, write_parts(tmp_path / "one", [700]), tmp_path / "gone")
    assert again.spec.limits.good_parts == OLD + NEW + 1  # given with the new ones, they are measured
    assert again.spec.golden.frames == 6


def test_too_few_frames_to_measure_are_refused_with_the_next_step(runs, tmp_path):
    there = shutil.copytree(runs[0], tmp_path / "old")
    fitted(there, tmp_path, dimensions=20)
    shutil.rmtree(there)
    with pytest.raises(FitError, match=r"needs 10 frames.*not 1; put the old images back"):
        extended(tmp_path, write_parts(tmp_path / "one", [700]))


# --- patchcore ---


def members_of(recipe):
    return np.load(recipe.path / LEARNED / "members.npy")


def striped(path, to):
    """The same part under stripes that few good parts have."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    pixels[::6] //= 3
    cv2.imwrite(str(to / path.name), pixels)


@pytest.fixture(scope="module")
def stripes(runs, tmp_path_factory):
    """Folders of OLD frames, two of them striped, of NEW striped ones, and of both."""
    old, new, _ = runs
    place = tmp_path_factory.mktemp("stripes")
    few, many = shutil.copytree(old, place / "few"), place / "many"
    many.mkdir()
    for number in range(2):
        striped(old / f"{number:03d}.png", few)
    for path in new.iterdir():
        striped(path, many)
    both = shutil.copytree(many, place / "both")
    return few, many, shutil.copytree(few, both, dirs_exist_ok=True)


@pytest.mark.parametrize(
    "changes", [{"absolute": True}, {"position_weight": 1.0, "absolute": True, "reweight": 5}]
)
def test_an_extended_bank_keeps_its_members_takes_in_what_is_new_and_lowers_the_limit(
    stripes, tmp_path, changes
):
    few, many, both = stripes
    first = fitted(few, tmp_path, activate=False, model="patchcore", **changes)
    recipe, said = extended(tmp_path, many, recipe="flange/0001", activate=False)
    before, after = members_of(first), members_of(recipe)
    assert np.array_equal(after[: len(before)], before)
    assert len(before) < len(after) <= len(before) + NEW * 60  # half of 120 positions each
    assert any(f"grows from {len(before):,} patches to {len(after):,}: searching" in line for line in said)
    assert recipe.spec.model.parameters["members"] == len(after)
    assert recipe.spec.model.parameters["coreset"] == "50%, at most 4096, then extended"  # as of the first
    assert recipe.spec.limits.good_parts == OLD + NEW
    pixels = cv2.imread(str(many / f"{OLD:03d}.png"), cv2.IMREAD_UNCHANGED)[..., None]
    strange, usual = (Inspector(each, threads=1).score(pixels).score for each in (first, recipe))
    assert usual < strange
    scores(recipe)
    # The two striped ones were far from all others, and are no more.
    whole = fitted(both, tmp_path, activate=False, model="patchcore", **changes)
    before, grown, anew = (each.spec.limits.score for each in (first, recipe, whole))
    # A fit of all frames may thin out the old members; what is kept of them leaves the limit a little higher.
    assert anew < before
    assert grown - anew < 0.25 * (before - anew), (before, grown, anew)


def test_an_extended_recipe_says_which_bank_its_own_fit_asked_for(stripes, tmp_path, monkeypatch):
    """Not what a fit of today would ask for."""
    few, many, _ = stripes
    with monkeypatch.context() as then:
        for module in (candidates, patchcore):
            then.setattr(module, "CORESET", "10%")
        fitted(few, tmp_path, activate=False, model="patchcore")
    recipe, _ = extended(tmp_path, many, recipe="flange/0001", activate=False)
    assert recipe.spec.model.parameters["coreset"] == "10%, at most 4096, then extended"


def test_frames_that_come_back_are_measured_by_what_others_taught_without_them(stripes, held_out, tmp_path):
    few, many, _ = stripes
    there = shutil.copytree(few, tmp_path / "few")
    fitted(there, tmp_path, activate=False, model="patchcore", absolute=True, layers=("joined",))
    there.rename(tmp_path / "gone")
    extended(tmp_path, many, recipe="flange/0001", activate=False)
    shutil.copytree(tmp_path / "gone", there)
    one = write_parts(tmp_path / "one", [700])
    extended(tmp_path, one, recipe="flange/0002", activate=False)
    first, without, again = held_out
    assert (len(without), len(again)) == (NEW, OLD + NEW + 1)
    assert again.max() < 0.9 * first.max(), (first.max(), again.max())


def test_new_frames_like_the_old_add_few_members_and_are_measured_by_those_of_others(runs, tmp_path):
    old, new, _ = runs
    first = fitted(old, tmp_path, model="patchcore", coreset="30%", absolute=True)
    recipe, _ = extended(tmp_path, new)
    members = len(members_of(first))
    assert len(members_of(recipe)) - members < 0.6 * members * NEW / OLD
    away = np.load(recipe.path / LEARNED / "away.npy")
    assert away.shape == (OLD + NEW, 12 * 10)
    earlier = {bytes(row) for row in np.load(first.path / LEARNED / "digests.npy")}
    is_new = np.array([bytes(row) not in earlier for row in np.load(recipe.path / LEARNED / "digests.npy")])
    # Like the old frames, of which none knew itself: a frame among its own members would lie far nearer.
    assert 0.85 < away[is_new].mean() / away[~is_new].mean() < 1.15


# --- what is refused, and what is said ---


def test_frames_that_taught_already_are_left_out_and_counted(runs, flange, tmp_path):
    old, new, _ = runs
    mixed = shutil.copytree(new, tmp_path / "mixed")
    shutil.copy(old / "003.png", mixed / "again.png")
    recipe, said = extended(tmp_path, mixed)
    words = (
        "taught flange/0001 already: 1 images (again.png); they teach nothing more, but are measured again"
    )
    assert any(words in line for line in said)
    assert recipe.spec.limits.good_parts == OLD + NEW
    with pytest.raises(FitError, match="all 24 images have taught flange/0002 already"):
        extended(tmp_path, old)


def test_a_recipe_without_its_statistics_is_refused_with_the_next_step(runs, tmp_path):
    old, new, _ = runs
    fitted(old, tmp_path, dimensions=20, extendable=False)
    with pytest.raises(FitError, match=r"keeps nothing.*fit again.*--extendable"):
        extended(tmp_path, new)
    write_recipe(tmp_path / "recipes", "other", "0001")
    with pytest.raises(FitError, match="keeps nothing"):
        extended(tmp_path, new, recipe="other")
    rewrite_recipe(tmp_path / "recipes" / "other" / "0001", model={"kind": "efficientad-lite"})
    with pytest.raises(FitError, match="of efficientad-lite, which can't be extended; fit again"):
        extended(tmp_path, new, recipe="other")


def test_the_daemon_does_without_the_statistics_and_an_extension_does_not(runs, flange, tmp_path):
    shutil.move(flange.path / LEARNED, tmp_path / "elsewhere")
    assert load_recipe(flange.path).hash == flange.hash
    with pytest.raises(FitError, match="lacks its folder learned/"):
        extended(tmp_path, runs[1])


def test_statistics_that_were_changed_are_refused(runs, flange, tmp_path):
    new = runs[1]
    path = flange.path / LEARNED / "means.npy"
    means = np.load(path)
    np.save(path, means + 1)
    with pytest.raises(FitError, match="was changed after fitting"):
        extended(tmp_path, new)
    np.save(path, means)
    (flange.path / LEARNED / ".ipynb_checkpoints").mkdir()
    with pytest.raises(FitError, match="was changed after fitting"):
        extended(tmp_path, new)


def test_frames_of_another_size_are_refused(flange, tmp_path):
    small = write_parts(tmp_path / "small", range(3), width=64)
    with pytest.raises(FrameError, match=r"are 64x80x1, those of recipe flange/0001 are 96x80x1"):
        extended(tmp_path, small)


def test_where_the_good_frames_come_from_names_the_old_folder_and_the_new_one(runs, flange, tmp_path, capsys):
    old, new, _ = runs
    one = write_parts(tmp_path / "one", [700])
    extended(tmp_path, one)
    recipe, _ = extended(tmp_path, new, old)
    assert main(["show", "flange", "--recipes", str(tmp_path / "recipes")]) == 0
    said = capsys.readouterr().out
    assert recipe.id in said
    assert f"from {one}, {new}, {old}\n" in said


def test_a_single_frame_is_enough(flange, tmp_path):
    recipe, _ = extended(tmp_path, write_parts(tmp_path / "one", [700]), activate=False)
    assert recipe.spec.limits.good_parts == OLD + 1
    assert active_recipe(tmp_path / "recipes", "flange").path.name == "0001"


def test_statistics_are_kept_unless_they_are_large_and_the_estimate_says_so(runs, tmp_path, monkeypatch):
    ready = prepare(
        FitOptions(product="flange", recipes_dir=tmp_path, folders=(runs[0],), memory_mb=100_000), Silent()
    )
    assert ready.keeps
    assert "MB that only `calibrate extend` needs" in "\n".join(estimate(ready).lines())
    monkeypatch.setattr("calibrate.plan.KEEP_MB", 0.001)
    assert not ready.keeps
    assert "calibrate extend" not in "\n".join(estimate(ready).lines())


def test_the_statistics_of_a_fit_do_not_depend_on_where_the_frames_lie(runs, flange, tmp_path):
    moved = shutil.copytree(runs[0], tmp_path / "moved")
    assert LEARNED in flange.spec.model.parameters
    assert fitted(moved, tmp_path, dimensions=20).hash == flange.hash


def test_the_command_makes_the_next_version_and_says_what_it_means(runs, flange, tmp_path, capsys):
    words = ["extend", "flange", str(runs[1]), "--recipes", str(tmp_path / "recipes"), "--threads", "1"]
    words += ["--memory-mb", "100000"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "recipe flange/0002 is active" in said.out
    assert f"{OLD + NEW} good frames" in said.err
    assert main(words) == FitError.exit_code
    assert "taught flange/0002 already; give new ones" in capsys.readouterr().err
