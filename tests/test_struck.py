"""The data set with made-up defects: from good frames alone, whole, reproducible."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import struck


@pytest.fixture
def frames(tmp_path):
    """Twelve grey frames of two sizes, in the common layout."""
    folder = tmp_path / "part"
    (folder / "train/good").mkdir(parents=True)
    for number in range(12):
        rng = np.random.default_rng(number)
        pixels = rng.integers(100, 140, (64, 80 - 16 * (number % 2)), np.uint8)
        cv2.imwrite(str(folder / f"train/good/{number:02}.png"), pixels)
    return folder


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float)


def images(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_every_frame_is_taught_or_tested_and_struck_where_the_mask_is(frames, tmp_path, capsys):
    out = tmp_path / "out"
    assert struck.main([str(frames), str(out), "--seed", "1"]) == 0
    assert "3 good frames for testing" in capsys.readouterr().out
    train, good = (
        sorted(path.name for path in (out / place).iterdir()) for place in ("train/good", "test/good")
    )
    assert (len(train), len(good)) == (9, 3)
    assert sorted(name[6:] for name in train + good) == [f"{number:02}.png" for number in range(12)]
    for kind, faintly in struck.FAINT_OF.items():
        found = sorted((out / "test" / kind).iterdir())
        assert found
        for path in found:
            clean, defect, faint = (read(out / "test" / each / path.name) for each in ("good", kind, faintly))
            assert clean.ndim == defect.ndim == 2
            mask = read(out / "ground_truth" / kind / f"{path.stem}_mask.png") > 0
            change = np.abs(defect - clean)
            assert change[mask].mean() > (10 if kind == "struck" else 4) * change[~mask].mean()
            assert np.abs(faint - clean)[mask].mean() == pytest.approx(0.35 * change[mask].mean(), rel=0.1)
    covered = [(read(path) > 0).mean() for path in (out / "ground_truth/broad").iterdir()]
    assert 0.1 < np.mean(covered) < 0.8


def test_frames_keep_their_channels_and_names_of_two_folders_do_not_collide(frames, tmp_path):
    (frames / "train/good/again").mkdir()
    for path in sorted((frames / "train/good").glob("*.png")):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.merge([pixels] * 3))  # grey, stored as colour
        cv2.imwrite(str(frames / "train/good/again" / path.name), cv2.merge([255 - pixels] * 3))
    assert struck.main([str(frames), str(tmp_path / "out")]) == 0
    copied = [path for place in ("train", "test") for path in (tmp_path / "out" / place / "good").iterdir()]
    assert len(copied) == 24
    found = list((tmp_path / "out/test/struck").iterdir())
    assert found
    assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim == 3 for path in found)


def test_the_same_seed_gives_the_same_set_and_another_seed_another(frames, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert struck.main([str(frames), str(tmp_path / name), "--seed", str(seed)]) == 0
    assert images(tmp_path / "one") == images(tmp_path / "same") != images(tmp_path / "other")


def test_under_other_light_every_frame_for_testing_is_another_and_no_frame_that_teaches(frames, tmp_path):
    for name, more in (("plain", ()), ("lit", ("--light", "0.5"))):
        assert struck.main([str(frames), str(tmp_path / name), *more]) == 0
    plain, lit = (images(tmp_path / name) for name in ("plain", "lit"))
    assert plain.keys() == lit.keys()
    same = {name for name in plain if plain[name] == lit[name]}
    assert same == {name for name in plain if name.startswith(("train", "ground_truth"))}


def test_what_cannot_be_made_is_one_clear_line_and_nothing_is_overwritten(frames, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    assert struck.main([str(frames), str(tmp_path / "taken")]) == 65
    assert "taken exists; give another folder" in capsys.readouterr().err
    for path in sorted((frames / "train/good").iterdir())[7:]:
        path.unlink()
    assert struck.main([str(frames), str(tmp_path / "few")]) == 65
    assert "has 7 frames, at least 8 are needed" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
