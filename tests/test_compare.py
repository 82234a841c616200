"""calibrate compare: honest frames, and a row for every kind whatever becomes of it."""

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
from test_report import Tags

from calibrate import cli
from calibrate.cli import main
from calibrate.compare import _Bench, _Fitted
from calibrate.compare_flags import SOON
from calibrate.compare_frames import Split, given_set, split
from calibrate.compare_tasks import Failed, Fit, Measure, Timed
from calibrate.compare_wanted import wanted_of
from calibrate.compare_worker import ENDING, ask, interruptible
from calibrate.evaluate import _cases
from calibrate.evaluation import GOOD
from calibrate.images import GoodFrames, frame_digest
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
    assert row["given"]["image_auroc"] > 0.8


def test_the_recipes_that_are_kept_load_and_nothing_else_stays(compared):
    folder, _, figures = compared
    recipe = load_recipe(folder / "k" / "padim" / "0001")
    assert recipe.hash == figures["rows"][0]["samples"]["recipe_hash"]
    assert not (folder / "k" / "padim" / "active").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["bad", "f.json", "good", "k", "p.html", "tmp"]
    assert not list((folder / "tmp").iterdir())


def test_of_two_kinds_that_work_the_surely_better_one_is_taken_in_the_figures_of_the_table(tmp_path):
    """Parts that lie alike, of which PaDiM knows every place; its times decide nothing then."""
    good = write_parts(tmp_path / "good", 40)
    done = subprocess.run(
        command(good, "--models", "patchcore,padim"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    row = r"^{}  .* ([\d.]+) / ([\d.]+) +(\d+) MB +[\d.]+ MB +(\d+/60) +(\d+/60) "
    asked = (row.format(kind) for kind in ("patchcore", "padim"))
    rows = [re.search(pattern, done.stdout, re.MULTILINE).groups() for pattern in asked]
    p50_ms, p99_ms, memory_mb, clear, faint = rows[1]
    assert (
        f"Take padim: it finds {clear} clear and {faint} faint made-up defects in {p50_ms} ms a frame "
        f"(99 of 100 frames within {p99_ms} ms), with {memory_mb} MB of memory. "
        "That is surely more than patchcore. A kind must find 30 of the 60 clear"
    ) in done.stdout
    assert "left out" not in done.stdout
    found = [[int(share.partition("/")[0]) for share in each[3:]] for each in rows]
    assert all(theirs >= 30 for theirs, _ in found)
    assert sum(found[1]) > sum(found[0]) + 10


def test_a_kind_with_networks_is_compared_to_its_end(tmp_path):
    pytest.importorskip("torch")
    good = write_parts(tmp_path / "good", 107)  # the fewest, of which a quarter is held out
    few = ("--backbone", "lite", "--dimensions", 24, "--steps", 4, "--memory-mb", 3000)
    done = subprocess.run(
        command(good, "--models", "patchcore-seg", *few),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(r"^(patchcore-seg)  .* \d+/60 +\d+/60 ", done.stdout, re.MULTILINE)
    assert rows == ["patchcore-seg"], done.stdout
    assert "could not be compared" not in done.stdout


def test_the_page_tells_the_same_as_the_terminal(compared):
    folder, done, figures = compared
    text = " ".join(Tags((folder / "p.html").read_text()).text.split())
    for said in (figures["advice"]["why"], figures["advice"]["evidence"], *figures["advice"]["changes"]):
        assert " ".join(said.split()) in text
        assert said in done.stdout


def test_a_damaged_mask_of_the_defective_set_costs_its_own_figures_alone(compared, tmp_path):
    folder, _, _ = compared
    for place in ("samples", "given"):
        write_parts(tmp_path / place / "test" / GOOD, 2)
    write_parts(tmp_path / "given" / "test" / "rust", 1)
    mask = tmp_path / "given" / "ground_truth" / "rust" / "000_mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no picture")
    recipe = folder / "k" / "padim" / "0001"
    found = Measure(recipe, 1, tmp_path / "samples", tmp_path / "given", ()).run()
    assert found.given is None
    assert f"{mask} is no image" in found.given_failed
    assert len(found.samples.images) == 2


def test_a_damaged_mask_is_named_as_the_operator_has_it_and_not_as_a_link(compared, tmp_path):
    folder, _, _ = compared
    write_parts(tmp_path / "bad" / "rust", 1)
    mask = tmp_path / "bad" / "ground_truth" / "rust" / "000_mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"no picture")
    parted = held_out(tmp_path / "samples")
    given = given_set(tmp_path / "bad", parted, tmp_path / "given")
    found = Measure(folder / "k" / "padim" / "0001", 1, parted.samples, given, (), linked=True).run()
    assert f"{mask} is no image" in found.given_failed


def test_of_the_operators_own_data_set_his_own_links_are_named(compared, tmp_path):
    folder, _, _ = compared
    for kind in (GOOD, "rust"):
        write_parts(tmp_path / "set" / "test" / kind, 1)
    (tmp_path / "elsewhere").write_bytes(b"no picture")
    mask = tmp_path / "set" / "ground_truth" / "rust" / "000_mask.png"
    mask.parent.mkdir(parents=True)
    mask.symlink_to(tmp_path / "elsewhere")
    parted = held_out(tmp_path / "samples")
    given = given_set(tmp_path / "set", parted, tmp_path / "given")
    found = Measure(folder / "k" / "padim" / "0001", 1, parted.samples, given, ()).run()
    assert f"{mask} is no image" in found.given_failed


@pytest.mark.parametrize(("given", "linked"), [("work/given", True), ("set", False)])
def test_only_the_folder_that_the_comparison_made_holds_links_to_see_through(
    tmp_path, monkeypatch, given, linked
):
    asked = []
    monkeypatch.setattr("calibrate.compare.ask", lambda task, _: asked.append(task) or Failed("seen"))
    work = tmp_path / "work"
    bench = _Bench(work, None, work / "samples", tmp_path / given, (), 1, Silent())
    bench.row(_Fitted("padim", tmp_path / "recipe", 1.0), Timed(1.0, 1.0, 1, 1.0))
    assert [task.linked for task in asked] == [linked]


def test_good_frames_to_look_at_are_named_as_the_operator_has_them(tmp_path, monkeypatch, capsys):
    """Of a recipe whose marked frame passes, for nothing is painted on it."""
    write_parts(tmp_path / "good", 16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibrate.plan.marked", lambda pixels, _: pixels)
    good = split(options(Path("good")), 0, tmp_path / "work", Silent()).teaching
    own = options(Path("good"), activate=False, extendable=False, threads=1)
    recipe = Fit(replace(own, recipes_dir=tmp_path / "recipes"), good).run()
    err = capsys.readouterr().err
    assert "patchcore: 12 good frames; " in err
    said = re.search(r"least usual good parts are (.*?): are they", err).group(1)
    taught = {str(frame.path) for frame in good.frames}
    assert set(said.split(", ")) < taught <= {f"good/{number:03d}.png" for number in range(16)}
    assert "good/" in (recipe / "report.html").read_text()
    assert str(tmp_path / "work") not in (recipe / "report.html").read_text()


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
        (2, "is no list of different ones of patchcore", ["--models", "padim,padim"]),
        (2, "is no list of different ones of patchcore", ["--models", "rust"]),
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
    padim, patchcore, trained, adapted = wanted(
        *flags, "--tile", 64, "--surroundings", "--models", "padim,patchcore,efficientad-lite,padim-seg"
    ).kinds
    assert [each.tile for each in (padim, patchcore, trained)] == [64, 64, 64]
    assert [each.epsilon for each in (padim, patchcore)] == [0.5, FitOptions.epsilon]
    assert [each.surroundings for each in (padim, patchcore, trained, adapted)] == [True, True, None, None]
    assert (adapted.epsilon, adapted.steps, adapted.coreset, adapted.backbone) == (0.5, 7, None, "resnet18")
    assert wanted("--models", "padim,padim-seg", "--minutes", 2).kinds[1].minutes == 2
    assert [each.coreset for each in (padim, patchcore)] == [None, "50"]
    assert [each.steps for each in (padim, trained)] == [None, 7]
    assert [each.backbone for each in (padim, trained)] == ["resnet18", FitOptions.backbone]
    assert [each.weights for each in (padim, trained)] == [Path("w.pth"), None]
    assert wanted("--models", "padim,efficientad-s", "--weights", "t.pth").kinds[1].weights == Path("t.pth")


# --- the frames ---


def options(*folders, **more):
    return FitOptions("p", Path("none"), folders, "patchcore", memory_mb=100_000, **more)


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
    taught = [frame.path for frame in parted.teaching.frames]
    assert len(taught) == 15
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
    assert {frame.run for frame in one.teaching.frames} == set(map(str, runs))
    assert all(str(frame.path.parent) == frame.run for frame in one.teaching.frames)
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
    nothing = GoodFrames(frames=(), shape=(48, 64, 3), letterboxed=False, duplicates=0, skipped=())
    return Split(teaching=nothing, held_out=(), samples=folder, strikes=60)


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
    assert (len(parted.teaching), len(parted.held_out)) == (10, 3)
    list_images(good)[0].unlink()
    with pytest.raises(FitError, match="12 different good images; a comparison needs at least 13"):
        split(options(good), 0, tmp_path / "again", Silent())
