"""The accuracy benchmark: real commands on a tiny data set, and its rules and figures on known cases."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import accuracy
from benchmarks._accuracy_cells import Configuration, default_configurations, identity, last_word, measure
from benchmarks._accuracy_data import find_data_sets, folder_to_evaluate, size_rule
from benchmarks._accuracy_random import with_random_weights
from benchmarks._accuracy_rows import bootstrap_interval, mean_auroc, remarks, row, tables
from calibrate.backbones import open_backbone
from calibrate.metrics import auroc
from inspectord.errors import SettingsError, SourceError

ROOT = Path(__file__).parent.parent
BAD = "bad=--backbone nonsense"


def write(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noise of mixed sizes; defects are a spot with a mask named as in MVTec AD, and a bar as in VisA."""
    folder, rng = tmp_path_factory.mktemp("sets") / "noise", np.random.default_rng(0)

    def image(index):
        return rng.normal(120, 8, (60 + index, 72 - index)).clip(0, 255).astype(np.uint8)

    for index in range(12):
        write(folder / f"train/good/{index:03d}.png", image(index))
    for index in range(4):
        write(folder / f"test/good/{index:03d}.png", image(index))
    for index in range(3):
        for kind, corner, mask_name in (("spot", (15, 15), "_mask.png"), ("bar", (40, 10), ".png")):
            pixels = image(index)
            mask = np.zeros_like(pixels)
            cv2.rectangle(mask, (8, 8), corner, 255, -1)
            # The last ones are as faint as noise, so that the order of scores is not perfect.
            change = 60 if index < 2 else 1
            write(folder / f"test/{kind}/{index:03d}.png", np.where(mask > 0, pixels + change, pixels))
            write(folder / f"ground_truth/{kind}/{index:03d}{mask_name}", mask)
    return folder


def command(folder: Path, out: Path, *more: str):
    words = [str(folder), "--json", f"{out}/a.json", "--markdown", f"{out}/a.md", "--config", BAD, *more]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=170,
    )


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory):
    """The command's output and folder, after one seed of two configurations, one of which can't be fitted."""
    out = tmp_path_factory.mktemp("out")
    return command(data, out, "--config", "default=", "--seeds", "1"), out


def stored(out: Path):
    return json.loads((out / "a.json").read_text())


def cell_of(out: Path):
    (cell,) = [cell for cell in stored(out)["cells"] if cell["failed"] is None]
    return cell


# --- the command ---


def test_the_tables_figures_are_those_of_the_stored_scores(measured):
    _, out = measured
    cell, found = cell_of(out), stored(out)["rows"][1]
    scores = {
        kind: np.array([s for _, k, s, _ in cell["images"] if k == kind]) for kind in ("good", "bar", "spot")
    }
    both = np.concatenate([scores["bar"], scores["spot"]])
    assert [len(part) for part in scores.values()] == [4, 3, 3]
    assert found["image_auroc"]["mean"] == auroc(scores["good"], both)
    assert found["image_auroc"]["mean"] < 1
    assert {kind["kind"]: kind["image_auroc"]["mean"] for kind in found["kinds"]} == {
        kind: auroc(scores["good"], scores[kind]) for kind in ("bar", "spot")
    }
    low, high = found["image_auroc"]["interval"]
    assert low <= found["image_auroc"]["mean"] <= high
    passed = [kind for _, kind, score, _ in cell["images"] if score <= cell["evaluation"]["limit"]]
    assert found["escapes"]["events"] == [sum(kind != "good" for kind in passed)]
    assert found["false_rejects"]["events"] == [4 - passed.count("good")]


def test_masks_of_both_namings_count(measured):
    pixels = cell_of(measured[1])["evaluation"]["pixels"]
    assert (pixels["images"], pixels["images_without_mask"]) == (6, 0)


def test_images_of_mixed_sizes_need_no_option_and_it_is_said_what_was_done(measured):
    done, out = measured
    assert cell_of(out)["options"] == ["--letterbox", "132x132"]
    assert cell_of(out)["recipe"]["frame"]["letterbox"]
    assert "12 sizes around 66x66: scaled and padded to 132x132 (--letterbox 132x132)" in done.stdout


def test_a_configuration_that_fails_is_a_row_with_its_reason_and_the_others_go_on(measured):
    done, out = measured
    failed, found = stored(out)["rows"]
    assert done.returncode == 1, done.stderr
    assert failed["failures"][0].startswith("seed 0: fit: unknown backbone 'nonsense'; use ")
    assert found["failures"] == []
    for text in (done.stdout, (out / "a.md").read_text()):
        assert "noise, bad: FAILED, seed 0: fit: unknown backbone" in text
    assert "| noise | bad | - | FAILED | - |" in (out / "a.md").read_text()


def test_cost_is_measured_beside_accuracy(measured):
    found = stored(measured[1])["rows"][1]
    assert found["fit_s"] > 0
    assert found["fit_peak_mb"] > 50
    assert found["latency_ms"] > 0
    assert 0.1 < found["recipe_mb"] < 100


def test_every_step_is_told_on_stderr(measured):
    lines = measured[0].stderr.splitlines()
    for step in ("fit", "evaluate", "latency"):
        assert f"[2/2] noise, default, seed 0: {step}" in lines


# --- going on ---


@pytest.fixture
def fake(measured, monkeypatch):
    """Stands for the measurement: copies of the real cell, and a list of the seeds that were asked for.

    The code's digest is held, as somebody may edit the code while its tests run.
    """
    real, asked = cell_of(measured[1]), []

    def copied(data, configuration, seed, say):
        asked.append(seed)
        if seed == 2:
            raise KeyboardInterrupt
        return real | identity(data, configuration, seed) | {"code": accuracy.code_digest()}

    monkeypatch.setattr(accuracy, "code_digest", lambda: real["code"])
    monkeypatch.setattr(accuracy, "measure", copied)
    return asked


def run(data, out: Path, seeds: int) -> int:
    return accuracy.main(
        [str(data), "--config", "default=", "--seeds", str(seeds), "--json", f"{out}/a.json"]
    )


def test_the_file_of_a_real_run_is_gone_on_from(fake, measured, data, capsys):
    before = stored(measured[1])["cells"]
    assert run(data, measured[1], 1) == 0
    assert fake == []
    assert "[1/1] noise, default, seed 0: measured before, image AUROC" in capsys.readouterr().err
    assert stored(measured[1])["cells"] == before


def test_what_failed_is_tried_again_and_then_counts(fake, data, tmp_path, monkeypatch):
    works = accuracy.measure

    def failing(*asked):
        return works(*asked) | {"failed": "fit: no memory"}

    monkeypatch.setattr(accuracy, "measure", failing)
    assert run(data, tmp_path, 1) == 1
    monkeypatch.setattr(accuracy, "measure", works)
    assert run(data, tmp_path, 1) == 0
    assert [cell["failed"] for cell in stored(tmp_path)["cells"]] == [None]


def test_more_seeds_and_an_interrupted_run_go_on_from_the_file(fake, data, tmp_path):
    assert run(data, tmp_path, 1) == 0
    assert run(data, tmp_path, 3) == 130
    assert len(stored(tmp_path)["cells"]) == 2
    assert run(data, tmp_path, 2) == 0
    assert fake == [0, 1, 2]
    assert stored(tmp_path)["rows"][0]["seeds"] == [0, 1]


def test_an_interrupted_restart_leaves_the_last_finished_table(fake, data, tmp_path):
    assert run(data, tmp_path, 2) == 0
    finished = stored(tmp_path)
    assert run(data, tmp_path, 3) == 130
    assert stored(tmp_path) == finished


def test_an_interrupted_first_run_tells_what_it_was_asked(fake, data, tmp_path):
    assert run(data, tmp_path, 3) == 130
    found = stored(tmp_path)
    assert (found["seeds"], found["rows"], len(found["cells"])) == (3, [], 2)


@pytest.mark.parametrize("option", ["--markdown", "--json"])
def test_a_file_that_can_not_be_written_is_known_before_anything_is_measured(
    option, fake, data, tmp_path, capsys
):
    (tmp_path / "file").write_text("no folder")
    words = [str(data), "--config", "default=", "--seeds", "1", option, f"{tmp_path}/file/a"]
    assert accuracy.main(words) == 74
    assert fake == []
    assert f"{tmp_path}/file" in capsys.readouterr().err


def test_an_interrupted_run_leaves_the_old_tables_text(fake, data, tmp_path):
    for text in (None, "old"):
        if text:
            (tmp_path / "a.md").write_text(text)
        assert accuracy.main([str(data), "--config", "default=", "--markdown", f"{tmp_path}/a.md"]) == 130
        assert (tmp_path / "a.md").exists() == bool(text)
    assert (tmp_path / "a.md").read_text() == "old"


def test_cells_of_other_code_or_other_files_are_kept_but_never_used(fake, data, tmp_path, monkeypatch):
    assert run(data, tmp_path, 1) == 0
    monkeypatch.setattr(accuracy, "code_digest", lambda: "0" * 64)
    assert run(data, tmp_path, 1) == 0
    (data / "test/good/note.txt").write_text("one file more")
    assert run(data, tmp_path, 1) == 0
    assert fake == [0, 0, 0]
    assert len(stored(tmp_path)["cells"]) == 3
    (data / "test/good/note.txt").unlink()


def test_a_file_of_something_else_is_not_written_over(data, tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"mine": 1}')
    assert run(data, tmp_path, 1) == SettingsError.exit_code
    assert (tmp_path / "a.json").read_text() == '{"mine": 1}'
    assert "give --json another" in capsys.readouterr().err


# --- data sets ---


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({(300, 300): 9}, ""),
        ({(512, 400): 9}, ""),
        ({(1600, 1200): 9}, ""),
        ({(4096, 256): 9}, "--tile 256 --overlap 32"),
        ({(300, 2000): 9}, "--resize 256 --tile 256 --overlap 32"),
        ({(240, 60): 9}, ""),
        ({(2448, 2048): 9}, "--resize 1024 --tile 256 --overlap 32"),
        ({(300, 200): 5, (103, 360): 4, (180, 340): 3}, "--letterbox 512x512"),
        ({(1100, 900): 5, (1000, 950): 5}, "--letterbox 512x512"),
        ({(4000, 256): 5, (4096, 260): 6}, "--letterbox 4096x260 --resize 256 --tile 256 --overlap 32"),
        ({}, ""),
    ],
)
def test_the_size_rule(sizes, options):
    assert size_rule(Counter(sizes))[0] == tuple(options.split())


def test_only_train_good_decides_on_sizes(data, tmp_path):
    for name, side in (("train/good/1.png", 64), ("test/good/1.png", 900), ("test/hole/1.png", 30)):
        write(tmp_path / name, np.zeros((side, side), np.uint8))
    (found,) = find_data_sets([tmp_path])
    assert (found.options, found.train, found.good, found.defective) == ((), 1, 1, 1)


def test_a_folder_of_data_sets_is_all_of_them_once(data):
    assert [each.folder for each in find_data_sets([data.parent, data])] == [data.resolve()]


@pytest.mark.parametrize(("made", "named"), [("test/good", "no train/good"), ("train/good", "no test/good")])
def test_a_folder_of_another_layout_is_a_clear_error(made, named, tmp_path):
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(SourceError, match=named):
        find_data_sets([tmp_path])


def test_where_all_masks_have_their_usual_names_the_folder_itself_is_evaluated(tmp_path):
    for name in (
        "train/good/1.png",
        "test/good/1.png",
        "test/hole/000.png",
        "ground_truth/hole/000_mask.png",
    ):
        write(tmp_path / "set" / name, np.zeros((9, 9), np.uint8))
    (found,) = find_data_sets([tmp_path])
    assert folder_to_evaluate(found, tmp_path / "view") == found.folder
    assert not (tmp_path / "view").exists()


# --- configurations ---


def test_the_shipped_default_comes_first_and_no_other_repeats_it():
    found = default_configurations()
    assert found[0] == Configuration("default", ())
    assert len({each.name for each in found}) == len(found)
    assert len({each.words for each in found}) == len(found)


def test_a_configuration_that_decides_on_sizes_is_not_overruled(data):
    (found,) = find_data_sets([data])
    assert Configuration.parse("a=--letterbox 64x64").on(found) == ("--letterbox", "64x64")
    assert Configuration.parse("a=--epsilon 0.1").on(found) == (*found.options, "--epsilon", "0.1")


@pytest.mark.parametrize(
    "text",
    [
        *("--epsilon 0.1", "=--epsilon 0.1", "a=--seed 3", "a=--recipes=there", "a=--layers 'layer1"),
        *("a=--weights random", "a=--backbone bundled --weights=random"),
    ],
)
def test_a_configuration_that_can_not_be_meant_is_refused(text):
    with pytest.raises(SettingsError):
        Configuration.parse(text)


@pytest.mark.parametrize("words", ["--weights {}.pth", "--weights={}.pth", "--backbone {}.xml --layers a"])
def test_another_file_under_a_name_that_an_option_gives_is_another_cell(words, data, tmp_path):
    (each,) = find_data_sets([data])
    configuration = Configuration.parse(f"a={words.format(tmp_path / 'net')}")
    found = []
    for content in ("one", "other", "one"):
        for suffix in (".pth", ".bin"):
            (tmp_path / f"net{suffix}").write_text(content)
        (tmp_path / "net.xml").write_text("the same")
        found.append(identity(each, configuration, 0))
    assert found[0] == found[2] != found[1]


def test_random_weights_are_a_networks_and_of_the_seed(tmp_path):
    words = ("--backbone=resnet18", "--weights", "random")
    paths = [Path(with_random_weights(words, seed, tmp_path)[-1]) for seed in (0, 1)]
    zero, one = (open_backbone("resnet18", path, None) for path in paths)
    assert zero.digest != one.digest
    (tmp_path / "again").mkdir()
    again = Path(with_random_weights(words, 0, tmp_path / "again")[-1])
    assert again.read_bytes() == paths[0].read_bytes()
    kernel = load_file(again)["layer2.0.conv1.weight"]  # He et al. 2015: a variance of 2 / fan-in
    assert kernel.var() * kernel[0].size == pytest.approx(2, rel=0.02)
    assert with_random_weights(("--weights", "net.pth"), 0, tmp_path) == ["--weights", "net.pth"]


def test_a_cell_of_random_weights_is_measured_like_any_other(data):
    (each,) = find_data_sets([data])
    words = "a=--backbone resnet18 --weights random --dimensions 8 --letterbox 64x64"
    cell = measure(each, Configuration.parse(words), 2, print)
    assert cell["failed"] is None
    assert cell["recipe"]["backbone"] == "resnet18"
    assert "random" in cell["options"]


def test_a_fit_of_too_few_images_fails_with_its_own_words(data, tmp_path):
    write(tmp_path / "few/train/good/1.png", np.arange(4096, dtype=np.uint8).reshape(64, 64))
    (found,) = find_data_sets([data])
    cell = measure(replace(found, folder=tmp_path / "few"), Configuration("default", ()), 0, print)
    assert cell["failed"].startswith("fit: 1 different good image in ")


def test_a_process_that_was_killed_says_by_what():
    assert last_word(-9, "") == "ended by SIGKILL; was there enough memory?"


# --- figures ---


def delong_error(good, bad):
    """Standard error of an AUROC (DeLong et al. 1988)."""
    wins = (bad[:, None] > good[None, :]) + 0.5 * (bad[:, None] == good[None, :])
    return np.sqrt(wins.mean(axis=1).var(ddof=1) / len(bad) + wins.mean(axis=0).var(ddof=1) / len(good))


def test_the_bootstrap_interval_is_as_wide_as_theory_says():
    rng = np.random.default_rng(3)
    good, bad = rng.normal(0, 1, 150), rng.normal(1, 1, 100)
    low, high = bootstrap_interval(good[None], bad[None])
    error = delong_error(good, bad)
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(auroc(good, bad), abs=0.3 * error)


def test_seeds_share_the_images_that_are_drawn():
    """Drawn anew for each seed, the mean of two equal seeds would seem surer than one."""
    rng = np.random.default_rng(4)
    good, bad = rng.normal(0, 1, (1, 40)), rng.normal(1, 1, (1, 30))
    once, twice = bootstrap_interval(good, bad), bootstrap_interval(good.repeat(2, 0), bad.repeat(2, 0))
    assert twice == pytest.approx(once, abs=1e-12)


def test_perfect_order_has_no_width_and_one_image_no_interval():
    good, bad = np.array([[1.0, 2, 3]]), np.array([[4.0, 5]])
    assert bootstrap_interval(good, bad) == (1.0, 1.0)
    assert bootstrap_interval(good, bad[:, :1]) is None


def seeded(cell, seed, images):
    """The cell with other scores; its evaluation is what `calibrate evaluate` would say of them."""
    good, bad = (
        [s for _, k, s, _ in images if s is not None and (k == "good") == is_good] for is_good in (1, 0)
    )
    value = auroc(np.array(good), np.array(bad))
    kinds = [cell["evaluation"]["kinds"][0] | {"kind": "spot", "image_auroc": value}]
    evaluation = cell["evaluation"] | {"image_auroc": value, "kinds": kinds, "pixels": None}
    return cell | {"seed": seed, "images": images, "evaluation": evaluation}


def test_a_row_is_the_mean_over_seeds_and_leaves_out_what_one_seed_could_not_inspect(measured):
    def images(*scores):
        kinds = ("good", "good", "spot", "spot")
        return [[f"{i}.png", k, s, "PASS"] for i, (k, s) in enumerate(zip(kinds, scores, strict=True))]

    cell = cell_of(measured[1])
    cells = [seeded(cell, 0, images(1, 2, 3, 4)), seeded(cell, 1, images(1, 3, 2, 4))]
    found = row(cells)
    assert found["image_auroc"]["each"] == [1.0, 0.75]
    assert found["image_auroc"]["mean"] == 0.875
    assert mean_auroc(np.array([[1, 2], [1, 3]]), np.array([[3, 4], [2, 4]])) == 0.875
    assert (found["pixels"], found["not_inspected"]) == (None, 0)
    failed = cells[1] | {"failed": "fit: no"}
    assert row([cells[0], failed])["failures"] == ["seed 1: fit: no"]
    missed = row([seeded(cell, 0, images(1, 2, 3, None)), cells[1]])
    assert (missed["not_inspected"], missed["image_auroc"]["interval"]) == (1, None)


def test_good_test_frames_unlike_those_that_taught_are_remarked_on(measured):
    cell = cell_of(measured[1])
    assert not row([cell])["unlike"]
    above = {"events": 3, "parts": 4, "low": 0.2, "high": 1.0}
    likeness = {"above": above, "usual": 0.4, "chance": 1e-4, "alike": False}
    other = cell | {"evaluation": cell["evaluation"] | {"likeness": likeness}}
    (said,) = [text for text in remarks([row([cell, other])]) if "nine in ten" in text]
    assert "in 1 of 2 seeds" in said
    assert "up to 3 of 4 score more" in said


def test_configurations_are_compared_over_all_data_sets(measured):
    found = row([cell_of(measured[1])])
    rows = [
        found | {"data": "a"},
        found | {"data": "b"},
        {**found, "data": "b", "configuration": "x", "seeds": []},
    ]
    last = tables(rows)[-1]
    mean = f"{found['image_auroc']['mean']:.3f}"
    assert last.rows == [("default", "2 of 2", mean, mean)]


def test_times_of_a_busy_machine_say_so(measured):
    found = row([cell_of(measured[1])])
    assert remarks([found | {"load_1min": 1.5}]) == []
    assert "busy machine (load 7.7)" in remarks([found | {"load_1min": 7.7}])[0]


def test_seeds_that_change_nothing_are_said(measured):
    first = cell_of(measured[1])
    moved = [[*image[:2], image[2] + 1, *image[3:]] for image in first["images"]]
    assert "nothing in this recipe is random" in remarks([row([first, {**first, "seed": 1}])])[0]
    assert not row([first, {**first, "seed": 1, "images": moved}])["same_for_all_seeds"]
