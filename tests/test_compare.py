"""calibrate compare: honest frames, a row for every kind whatever becomes of it, and words that follow."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers_recipe import write_recipe
from test_report import Tags, browse, chromium  # noqa: F401

from calibrate import cli
from calibrate.cli import main
from calibrate.compare_flags import SOON
from calibrate.compare_frames import Split, given_set, split
from calibrate.compare_page import write_page
from calibrate.compare_result import Compared, Comparison, Example, struck_figures
from calibrate.compare_tasks import Measure, Measured, Seen, Timed
from calibrate.compare_wanted import wanted_of
from calibrate.compare_words import advise
from calibrate.compare_worker import ENDING, ask, interruptible
from calibrate.evaluate import _cases
from calibrate.evaluation import GOOD, Evaluation, ImageScore, KindResult, Rate
from calibrate.images import frame_digest
from calibrate.options import MODELS, FitOptions
from calibrate.progress import Silent
from calibrate.synthetic import KINDS
from inspectord.errors import FitError, SourceError
from inspectord.recipe import load_recipe
from inspectord.sources.files import list_images, read_image
from inspectord.sources.parts import render_part

ROOT = Path(__file__).parent.parent


def write_parts(folder, count, first=0, width=64, height=48, defect_rate=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = render_part(1, number, width, height, defect_rate).pixels
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)
    return folder


def command(*arguments):
    return [sys.executable, "-m", "calibrate", "compare", "--threads", "1", *map(str, arguments)]


def refused(capsys, code, *arguments):
    """The one line on stderr of a comparison that must not begin."""
    try:
        found = main(["compare", *map(str, arguments)])
    except SystemExit as exit_:
        found = exit_.code
    said = capsys.readouterr().err
    assert found == code, said
    return said.splitlines()[-1]


def wait_for(happened, within_s=60):
    until = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)


# --- the command ---


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """padim and a kind that fails on the same 16 frames: folder, what was said, figures, page."""
    folder = tmp_path_factory.mktemp("compared")
    good = write_parts(folder / "good", 16)
    bad = write_parts(folder / "bad", 3, first=900, defect_rate=1.0)
    where = {
        "--defective": bad,
        "--json": folder / "f.json",
        "--html": folder / "p.html",
        "--keep": folder / "k",
    }
    (folder / "tmp").mkdir()
    done = subprocess.run(
        command(good, "--models", "padim,patchcore", "--precision", "bf16", *sum(where.items(), ())),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "f.json").read_text())


def test_a_kind_that_fails_is_a_row_with_its_reason_and_the_others_go_on(compared):
    _, done, figures = compared
    padim, patchcore = figures["rows"]
    assert padim["failed"] == ""
    assert "--precision f32, got bf16" in patchcore["failed"]
    assert "patchcore failed: --model patchcore needs --precision f32" in done.stdout
    assert figures["advice"]["kind"] == "padim"
    assert "Take padim" in done.stdout
    assert "--model padim`" in done.stdout


def test_the_figures_are_of_this_box_and_of_frames_that_no_kind_was_fitted_to(compared):
    folder, _, figures = compared
    assert figures["taught"] == 12
    assert len(figures["held_out"]) == 4
    assert all(Path(name).parent == folder / "good" for name in figures["held_out"])
    row = figures["rows"][0]
    timed = row["timed"]
    assert 0 < timed["p50_ms"] <= timed["p99_ms"]
    assert timed["frames"] >= 30
    assert 40 < timed["memory_mb"] < 1500
    assert row["clear"]["found"]["parts"] == row["faint"]["found"]["parts"] == figures["strikes"] == 60
    assert row["clear"]["auroc"] > 0.8
    assert row["false_rejects"]["parts"] == 4
    assert row["given"]["escapes"]["parts"] == 3


def test_the_recipes_that_are_kept_load_and_nothing_else_stays(compared):
    folder, _, figures = compared
    recipe = load_recipe(folder / "k" / "padim" / "0001")
    assert recipe.hash == figures["rows"][0]["samples"]["recipe_hash"]
    assert not (folder / "k" / "padim" / "active").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["bad", "f.json", "good", "k", "p.html", "tmp"]
    assert not list((folder / "tmp").iterdir())


def test_the_page_tells_the_same_as_the_terminal(compared):
    folder, done, figures = compared
    text = " ".join(Tags((folder / "p.html").read_text()).text.split())
    for said in (figures["advice"]["why"], figures["advice"]["evidence"], *figures["advice"]["changes"]):
        assert " ".join(said.split()) in text
        assert said in done.stdout


def test_a_damaged_mask_of_the_defective_set_costs_its_own_figures_alone(compared, tmp_path):
    folder, _, figures = compared
    for place in ("samples", "given"):
        write_parts(tmp_path / place / "test" / GOOD, 2)
    write_parts(tmp_path / "given" / "test" / "rust", 1)
    mask = tmp_path / "given" / "ground_truth" / "rust" / "000_mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no picture")
    timed = Timed(**figures["rows"][0]["timed"])
    recipe = folder / "k" / "padim" / "0001"
    found = Measure(recipe, 1, timed, tmp_path / "samples", tmp_path / "given", ()).run()
    assert found.given is None
    assert f"{mask} is no image" in found.given_failed
    assert len(found.samples.images) == 2


def processes_with(text):
    """Ids of running processes whose environment holds the text."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (place / "environ").read_bytes():
                found.append(place.name)
        except OSError:
            continue
    return found


def test_being_told_to_end_leaves_nothing_behind(tmp_path):
    good, work = write_parts(tmp_path / "good", 16), tmp_path / "tmp"
    work.mkdir()
    process = subprocess.Popen(
        command(good, "--models", "padim", "--keep", tmp_path / "keep"),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(work)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: process.poll() is not None or list(tmp_path.glob(".keep-*/recipes/padim")))
    assert process.poll() is None  # a worker is about to write
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir() if path.name != "good"] == ["tmp"]
    assert not list(work.iterdir())
    assert not processes_with(f"TMPDIR={work}")


@pytest.mark.parametrize("number", ENDING)
def test_being_told_to_end_is_an_interrupt_and_only_once(number):
    before = [signal.getsignal(each) for each in ENDING]
    cleared = []

    def work():
        with interruptible():
            assert signal.getsignal(number) is not signal.SIG_DFL  # it would end the tests
            try:
                signal.raise_signal(number)
            finally:
                cleared.extend(signal.raise_signal(each) for each in ENDING)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(cleared) == len(ENDING)
    assert [signal.getsignal(each) for each in ENDING] == before


def test_a_lost_terminal_that_is_to_be_ignored_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_worker_outlives_a_comparison_that_is_killed(tmp_path):
    code = """
import functools, pathlib, sys, types
from calibrate.compare_worker import ask

here = sys.argv[1] + "/here"
nap = f"import os, time; os.symlink(str(os.getpid()), {here!r}); time.sleep(60)"
ask(types.SimpleNamespace(run=functools.partial(exec, nap)), pathlib.Path(sys.argv[1]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    here = tmp_path / "here"
    wait_for(here.is_symlink)
    worker = Path("/proc") / here.readlink()
    assert worker.exists()
    process.kill()
    process.wait(timeout=10)
    wait_for(lambda: not worker.exists(), within_s=20)


class Bomb:
    """A task that ends its process while it is read."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (Bomb("__import__('os').kill(__import__('os').getpid(), 9)"), "most likely memory ran out"),
        (Bomb("__import__('os')._exit(3)"), "ended with code 3"),
        ("no task", "it broke: AttributeError"),
    ],
    ids=["killed", "gone", "broken"],
)
def test_a_worker_that_dies_costs_its_kind_alone(task, why, tmp_path):
    assert why in ask(task, tmp_path).why


def test_what_can_not_be_compared_is_refused_before_anything_is_fitted(tmp_path, capsys):
    good = write_parts(tmp_path / "good", 16)
    (tmp_path / "there").mkdir()
    for code, said, arguments in (
        (2, "is no list of different ones of padim", ["--models", "padim,padim"]),
        (2, "is no list of different ones of padim", ["--models", "rust"]),
        (78, "--coreset has no effect with --models padim", ["--models", "padim", "--coreset", "50"]),
        (73, "--keep", ["--keep", tmp_path / "there"]),
        (73, "give --html one in a folder that exists", ["--html", tmp_path / "no" / "p.html"]),
        (69, "no images in", ["--defective", tmp_path / "there"]),
        (65, "leaves the frame", ["--roi", "0,0,900,900"]),
    ):
        assert said in refused(capsys, code, good, *arguments)
    few = write_parts(tmp_path / "few", 12)
    assert "at least 13" in refused(capsys, 65, few)


def test_the_kinds_compared_by_default_are_known_ones_that_need_no_training():
    assert set(SOON) == {"padim", "patchcore"}
    assert set(SOON) <= set(MODELS)


def wanted(*arguments):
    return wanted_of(cli._parser().parse_args(["compare", "good", *map(str, arguments)]))


def test_every_kind_gets_the_flags_that_it_takes_and_no_others():
    flags = (
        "--epsilon",
        0.5,
        "--coreset",
        "50",
        "--steps",
        7,
        "--backbone",
        "resnet18",
        "--weights",
        "w.pth",
    )
    padim, patchcore, trained = wanted(
        *flags, "--tile", 64, "--models", "padim,patchcore,efficientad-lite"
    ).kinds
    assert [each.tile for each in (padim, patchcore, trained)] == [64, 64, 64]
    assert [each.epsilon for each in (padim, patchcore)] == [0.5, FitOptions.epsilon]
    assert [each.coreset for each in (padim, patchcore)] == [None, "50"]
    assert [each.steps for each in (padim, trained)] == [None, 7]
    assert [each.backbone for each in (padim, trained)] == ["resnet18", FitOptions.backbone]
    assert [each.weights for each in (padim, trained)] == [Path("w.pth"), None]
    assert wanted("--models", "padim,efficientad-s", "--weights", "t.pth").kinds[1].weights == Path("t.pth")


# --- the frames ---


def options(*folders, **more):
    return FitOptions(product="p", recipes_dir=Path("none"), folders=folders, **more)


def digests(paths):
    return {frame_digest(read_image(path)) for path in paths}


@pytest.fixture
def few_strikes(monkeypatch):
    """Drawing takes most of a split's time."""
    monkeypatch.setattr("calibrate.compare_frames.STRIKES", len(KINDS))


@pytest.mark.usefixtures("few_strikes")
def test_no_held_out_frame_teaches_not_even_as_a_copy(tmp_path):
    first, second = write_parts(tmp_path / "a", 12), write_parts(tmp_path / "b", 8, first=50)
    for path in list_images(first):
        shutil.copy(path, second / f"copy_{path.name}")
    parted = split(options(first, second), 3, tmp_path / "work", Silent())
    taught = [path for folder in parted.teaching for path in list_images(folder)]
    assert len(taught) == parted.taught == 15
    assert len(parted.held_out) == 5
    assert digests(taught).isdisjoint(digests(parted.held_out))
    assert digests(list_images(parted.samples / "test" / GOOD)) == digests(parted.held_out)


@pytest.mark.usefixtures("few_strikes")
def test_runs_stay_apart_and_the_seed_decides_what_is_held_out(tmp_path):
    runs = write_parts(tmp_path / "a", 12), write_parts(tmp_path / "b", 12, first=50)
    seeds = (1, 1, 2)
    one, same, other = (
        split(options(*runs), seed, tmp_path / str(number), Silent()) for number, seed in enumerate(seeds)
    )
    assert len(one.teaching) == 2
    for folder in one.teaching:
        assert len({path.resolve().parent for path in list_images(folder)}) == 1
    assert one.held_out == same.held_out != other.held_out
    pictures = [
        {path.relative_to(part.samples): path.read_bytes() for path in list_images(part.samples)}
        for part in (one, same)
    ]
    assert pictures[0] == pictures[1]


def test_defects_lie_where_it_is_looked_and_every_family_is_drawn_alike(tmp_path):
    good = write_parts(tmp_path / "good", 16)
    parted = split(options(good, roi=(20, 10, 30, 30)), 0, tmp_path / "work", Silent())
    names = [path.name for path in (parted.samples / "test").iterdir()]
    assert sorted(names) == sorted([GOOD, *(f"{how}-{kind}" for how in ("clear", "faint") for kind in KINDS)])
    goods = [read_image(path).astype(int) for path in list_images(parted.samples / "test" / GOOD)]
    for name in set(names) - {GOOD}:
        struck = list_images(parted.samples / "test" / name)
        assert len(struck) == parted.strikes / len(KINDS) == 10
        for path in struck:
            pixels = read_image(path)
            mask = read_image(parted.samples / "ground_truth" / name / f"{path.stem}_mask.png")[..., 0] > 0
            changed = min((np.abs(pixels - frame).max(axis=2) > 0 for frame in goods), key=np.sum)
            assert np.array_equal(changed, mask)
            rows, columns = np.nonzero(mask)
            assert 10 <= rows.min() <= rows.max() < 40
            assert 20 <= columns.min() <= columns.max() < 50


def test_defects_never_lie_in_the_padding_of_a_smaller_image(tmp_path):
    good = write_parts(tmp_path / "good", 16, width=64, height=32)
    parted = split(options(good, letterbox=(64, 64)), 0, tmp_path / "work", Silent())
    masks = [read_image(path)[..., 0] for path in list_images(parted.samples / "ground_truth")]
    rows = np.nonzero(np.max(masks, axis=0))[0]
    assert 16 <= rows.min() < rows.max() < 48


@pytest.mark.usefixtures("few_strikes")
def test_defective_frames_come_alone_by_kind_or_as_a_data_set(tmp_path):
    parted = split(options(write_parts(tmp_path / "good", 16)), 0, tmp_path / "work", Silent())
    bad = write_parts(tmp_path / "bad", 2)
    alone = given_set(bad, parted, tmp_path / "g1")
    assert sorted(path.name for path in (alone / "test").iterdir()) == ["defective", GOOD]
    assert len(list((alone / "test" / GOOD).iterdir())) == len(parted.held_out)
    write_parts(tmp_path / "kinds" / "scratch" / "deep", 1)
    write_parts(tmp_path / "kinds" / "rust", 2)
    kinds = given_set(tmp_path / "kinds", parted, tmp_path / "g2")
    assert {kind.name: len(list(kind.iterdir())) for kind in (kinds / "test").iterdir()} == {
        GOOD: 4,
        "scratch": 1,
        "rust": 2,
    }
    write_parts(tmp_path / "set" / "test" / GOOD, 1)
    assert given_set(tmp_path / "set", parted, tmp_path / "g3") == tmp_path / "set"
    write_parts(tmp_path / "kinds" / "OK", 1)
    with pytest.raises(SourceError, match="holds OK next to others"):
        given_set(tmp_path / "kinds", parted, tmp_path / "g4")


def held_out(folder):
    """A split that held two frames out, for what only links them."""
    write_parts(folder / "test" / GOOD, 2)
    return Split(teaching=(), taught=10, held_out=(), samples=folder, strikes=60)


@pytest.mark.parametrize("within", ["test", "."])
def test_masks_come_with_the_defective_frames_whatever_these_are_called_here(within, tmp_path):
    folder = tmp_path / "set"
    images = list_images(write_parts(folder / within / "scratch", 12))
    for image in images:
        mask = folder / "ground_truth" / "scratch" / f"{image.stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, mask)
    found = given_set(folder, held_out(tmp_path / "samples"), tmp_path / "given")
    assert {path.name for path in (found / "test").iterdir()} == {GOOD, "scratch"}
    cases = [case for case in _cases(found) if case.kind == "scratch"]
    assert [case.mask.resolve().stem for case in cases] == [f"{image.stem}_mask" for image in images]
    assert [case.path.resolve() for case in cases] == images


@pytest.mark.parametrize("place", ["2024/good", "test/scratch/OK/more", "test/normal"])
def test_good_frames_at_any_depth_are_not_taken_for_defective_ones(place, tmp_path):
    write_parts(tmp_path / "set" / "test" / GOOD, 1)
    if not place.startswith("test"):
        shutil.rmtree(tmp_path / "set" / "test")
    write_parts(tmp_path / "set" / place, 1)
    with pytest.raises(SourceError, match="next to others"):
        given_set(tmp_path / "set", held_out(tmp_path / "samples"), tmp_path / "given")


@pytest.mark.usefixtures("few_strikes")
def test_the_fewest_frames_that_can_be_compared_are_those_the_error_names(tmp_path):
    good = write_parts(tmp_path / "good", 13)
    parted = split(options(good), 0, tmp_path / "work", Silent())
    assert (parted.taught, len(parted.held_out)) == (10, 3)
    list_images(good)[0].unlink()
    with pytest.raises(FitError, match="12 different good images; a comparison needs at least 13"):
        split(options(good), 0, tmp_path / "again", Silent())


# --- the words ---


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipes"))).spec


@pytest.fixture
def row(spec):
    """A kind that finds the first so many, or those, of 60 clear and 60 faint; rejects of 20 good frames."""

    def make(kind, clear=60, faint=30, ms=10.0, rejects=0, blind=False, given=None, given_failed=""):
        images = [score(GOOD, number, number < rejects) for number in range(20)]
        for strength, found in (("clear", clear), ("faint", faint)):
            places = range(found) if isinstance(found, int) else found
            for number in range(60):
                images.append(score(f"{strength}-{KINDS[number // 10]}", number, number in places))
        samples = evaluation(tuple(images))
        return Compared(
            kind,
            fit_s=5.0,
            measured=Measured(
                spec=spec,
                blind=blind,
                timed=Timed(p50_ms=ms, p99_ms=1.5 * ms, frames=100, memory_mb=150.0),
                recipe_mb=3.0,
                samples=samples,
                given=given and replace(evaluation(()), image_auroc=given),
                given_failed=given_failed,
                seen=(Seen(0.5, np.full((8, 8), 0.5, np.float32)),),
            ),
            why="",
        )

    return make


def score(kind, number, rejected):
    return ImageScore(f"{kind}/{number:03d}.png", kind, float(rejected), "REJECT" if rejected else "PASS")


def evaluation(images):
    good = [image for image in images if image.kind == GOOD]
    kinds = sorted({image.kind for image in images} - {GOOD})
    escapes = {kind: [image.verdict == "PASS" for image in images if image.kind == kind] for kind in kinds}
    return Evaluation(
        recipe="r/1",
        recipe_hash="",
        limit=0.3,
        image_auroc=None,
        false_rejects=Rate.of(sum(image.verdict != "PASS" for image in good), len(good)),
        escapes=Rate.of(0, 0),
        kinds=tuple(
            KindResult(kind, None, Rate.of(sum(found), len(found))) for kind, found in escapes.items()
        ),
        pixels=None,
        images=images,
    )


def comparison(*rows, defective="", deadline_ms=None):
    return Comparison(
        folders=("good",),
        taught=60,
        held_out=("x",) * 20,
        seed=0,
        threads=1,
        strikes=60,
        defective=defective,
        deadline_ms=deadline_ms,
        rows=rows,
        examples=(Example("good, held out", np.full((64, 64, 1), 128, np.uint8), None),),
    )


def test_the_kind_that_surely_finds_more_is_taken_and_the_faster_one_named(row):
    advice = advise(comparison(row("quick", clear=40, faint=5, ms=2), row("keen", clear=60, faint=40, ms=20)))
    assert advice.kind == "keen"
    assert "surely more than quick" in advice.why
    assert any("If 30.0 ms a frame is too long: quick finds 40/60 clear" in text for text in advice.changes)


def test_of_kinds_that_find_the_same_but_for_chance_the_faster_is_taken(row):
    advice = advise(comparison(row("keen", faint=32, ms=20), row("quick", faint=30, ms=2)))
    assert advice.kind == "quick"
    assert "keen finds 60/60 clear and 32/60 faint" in advice.why
    assert "not surely more, and quick is 10.0 times as fast" in advice.why


def test_a_hardly_slower_kind_that_finds_a_little_more_is_not_passed_over(row):
    advice = advise(comparison(row("quick", faint=30, ms=10), row("keen", faint=33, ms=11)))
    assert advice.kind == "keen"
    assert "not surely more than quick, but no slower to speak of" in advice.why


def test_defective_frames_are_told_and_decide_nothing(row):
    for one, other in ((None, None), (0.99, 0.5), (0.5, 0.99)):
        rows = row("keen", faint=50, given=one), row("dull", faint=10, given=other)
        advice = advise(comparison(*rows, defective="bad" if one else ""))
        assert advice.kind == "keen"
        said = " ".join(advice.changes)
        assert ("They say the same: keen" in said) == (one == 0.99)
        assert ("There dull stands highest, not keen." in said) == (one == 0.5)


def test_a_kind_that_is_ruled_out_is_not_brought_back_by_defective_frames(row):
    rows = row("keen", given=0.5), row("blind", blind=True, given=0.99)
    said = " ".join(advise(comparison(*rows, defective="bad")).changes)
    assert "AUROC on them: keen 0.500." in said
    assert "blind is left out" in said
    assert "stands highest" not in said


def test_why_a_kind_has_no_figures_on_the_defective_frames_is_told(row):
    rows = row("keen", given=0.5), row("dull", given_failed="mask.png is no image")
    for some in (rows, rows[1:]):
        said = advise(comparison(*some, defective="bad")).changes
        assert "dull could not be measured on the defective frames: mask.png is no image." in said


def test_a_kind_that_another_surely_beats_is_not_taken_however_fast(row):
    quick = row("quick", faint=range(30), ms=2)
    keen, sure = row("keen", faint=range(10, 50), ms=20), row("sure", faint=range(38), ms=10)
    assert advise(comparison(quick, keen)).kind == "quick"  # 20 places more and 10 fewer may be chance
    assert advise(comparison(quick, keen, sure)).kind == "sure"
    near = row("sure", faint=range(38), ms=20)
    assert "not surely more than quick, which another kind beats" in advise(comparison(quick, keen, near)).why


def test_a_kind_that_finds_fewer_never_beats_one_that_finds_more(row):
    more = row("more", clear=60, faint=16)
    fewer = row("fewer", clear=range(16, 60), faint=range(16, 47))  # one more at 31 places, two fewer at 16
    assert advise(comparison(more, fewer)).kind == "more"
    assert advise(comparison(fewer, more)).kind == "more"


def test_a_deadline_false_rejects_or_blindness_rule_a_kind_out_and_say_so(row):
    best = {"clear": 60, "faint": 60}
    rows = (
        row("slow", **best, ms=40),
        row("harsh", **best, rejects=10),
        row("blind", **best, blind=True),
        row("poor", clear=29, faint=2),
        row("plain", clear=30, faint=2),
    )
    advice = advise(comparison(*rows, deadline_ms=50))
    assert advice.kind == "plain"
    said = " ".join(advice.changes)
    assert "slow is left out: one frame in a hundred takes 60.0 ms, over 50 ms" in said
    assert "harsh is left out: it rejected 10/20 held-out good frames" in said
    assert "blind is left out: a good frame with a large square painted over passes" in said
    assert "poor is left out: it finds 29/60 clear made-up defects, too few to rely on" in said


def test_where_no_kind_will_do_none_is_recommended(row):
    rows = row("blind", blind=True), row("poor", clear=0, faint=0)
    advice = advise(comparison(*rows, Compared("gone", 1.0, None, "torch is missing")))
    assert advice.kind is None
    assert "No kind can be recommended" in advice.why
    assert any("gone could not be compared" in text for text in advice.changes)


def test_the_words_say_on_what_they_rest(row):
    advice = advise(comparison(row("one")))
    assert "20 good frames that no kind was fitted to (of 80, seed 0)" in advice.evidence
    assert "60 made-up defects" in advice.evidence
    assert any("prove no more than at most 14 in 100" in text for text in advice.changes)


def test_a_defect_that_could_not_be_inspected_was_not_found(row, tmp_path):
    one = row("one")
    unseen = [
        replace(image, score=None, verdict="NOT_INSPECTED") if image.kind == "clear-spot" else image
        for image in one.measured.samples.images
    ]
    one = replace(one, measured=replace(one.measured, samples=evaluation(tuple(unseen))))
    assert struck_figures(one.measured)[0].found.events == 50
    write_page(tmp_path / "page.html", comparison(one), advise(comparison(one)))
    assert "<td>spot</td><td>0/10, " in (tmp_path / "page.html").read_text()


# --- the page ---


@pytest.fixture
def page(row, tmp_path):
    found = comparison(
        row("padim<b>", given=0.9),
        Compared("gone", 1.0, None, "<script>" + 30 * "torch is missing, "),
        defective="bad",
    )
    write_page(tmp_path / "page.html", found, advise(found))
    return tmp_path / "page.html"


def test_the_page_needs_nothing_from_elsewhere_and_names_are_text(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.open
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object", "base", "a", "b"})
    assert all(uri.startswith("data:image/") for uri in tags.pictures())
    assert "default-src 'none'" in text
    assert "padim<b>" in tags.text
    assert "failed: <script>torch is missing" in tags.text


def test_a_browser_shows_the_row_to_take_and_nothing_sticks_out(chromium, tmp_path, page):  # noqa: F811
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path, page, f"--screenshot={shot}", "--window-size=1000,2400")
    picture = cv2.imread(str(shot)).astype(int)
    assert np.count_nonzero((np.abs(picture - (0xEA, 0xF4, 0xE8)) <= 2).all(axis=2)) > 5000
    boxed = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    boxed = boxed.replace("<main>", '<div id="box" style="width: 400px; overflow: auto"><main>')
    measure = '<script>document.title = document.getElementById("box").scrollWidth</script>'
    copy = tmp_path / "copy.html"
    copy.write_text(boxed.replace("</main>", "</main></div>" + measure))
    seen = browse(chromium, tmp_path, copy, "--dump-dom")
    assert re.search(r"<title>(\d+)</title>", seen).group(1) == "400"
