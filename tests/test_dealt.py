"""Good frames dealt anew: none lost, none in both halves, defects and masks as they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks import dealt


@pytest.fixture
def frames(tmp_path):
    """Six frames to teach, four to test, three names of both; a defect and its mask."""
    folder = tmp_path / "part"
    names = [f"train/good/{number}.png" for number in range(6)]
    names += [f"test/good/{number}.png" for number in range(3, 7)]
    for number, name in enumerate([*names, "test/dent/a.png", "ground_truth/dent/a_mask.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((8, 8), number, np.uint8))
    return folder


def greys(folder):
    """What tells the frames apart."""
    return sorted(int(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[0, 0]) for path in folder.iterdir())


def test_every_good_frame_is_dealt_once_and_defects_stay(frames, tmp_path, capsys):
    out = tmp_path / "out"
    assert dealt.main([str(frames), str(out), "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{out}: 6 good frames to teach, 4 to test\n"
    taught, tested = greys(out / "train/good"), greys(out / "test/good")
    assert (len(taught), len(tested)) == (6, 4)
    assert sorted(taught + tested) == list(range(10))
    assert set(tested) & set(range(6)), "some that taught are among those for testing now"
    assert greys(out / "test/dent") == [10]
    assert greys(out / "ground_truth/dent") == [11]
    assert not [path for path in (out / "test").rglob("*") if path.is_symlink() and path.is_dir()]


def test_a_seed_repeats_itself_and_another_deals_otherwise(frames, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert dealt.main([str(frames), str(tmp_path / name), "--seed", str(seed)]) == 0
    one, same, other = (greys(tmp_path / name / "test/good") for name in "abc")
    assert one == same != other


def test_a_folder_that_is_there_or_holds_no_frames_is_one_line(frames, tmp_path, capsys):
    for folder, out, told in ((frames, tmp_path, "exists"), (tmp_path, tmp_path / "new", "train/good")):
        assert dealt.main([str(folder), str(out)]) == 65
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
